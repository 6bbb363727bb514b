"""Runs of online learning: what must hold of every algorithm, exactly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palate.errors import RunError
from palate.models.generation.local import LocalEngine
from palate.models.loading import load_model
from palate.recipes.schema import ModelRecipe
from palate.store.rollouts import read_rollouts
from tiny_rl import (
    ByText,
    assert_close,
    assert_same,
    differ,
    further,
    letters,
    log_of,
    merged,
    run,
    weights,
)

ALGORITHMS = ("ppo", "grpo", "rloo", "reinforce++", "online_dpo")
METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> list[re.Pattern[str]]:
    """The names of docs/metrics.md, as patterns; `<part>` stands for anything."""
    first = (line.split("|")[1] for line in METRICS.read_text().splitlines() if "|" in line[:3])
    names = [name for column in first for name in re.findall(r"`([^`]+)`", column)]
    parts = (re.sub(r"<[^>]+>|\*", ".+", name) for name in names)
    return [re.compile(part.replace("+", r"+")) for part in parts]


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_runs(algorithm: str, lora: Any, folder: Path) -> None:
    path = run(
        folder,
        model={"lora": lora},
        algorithm={"type": algorithm},
        prompts={"eval": [{"path": str(folder / "held.jsonl")}]},
        train={"layout": "shared"},
    )
    log = log_of(path, None)
    assert [line["split"] for line in log] == ["train", "train", "eval"]
    known = documented()
    for line in log:
        for name in line.keys() - {"split", "step", "epoch"}:
            assert any(pattern.fullmatch(name) for pattern in known), name
        assert all(np.isfinite(v) for v in line.values() if isinstance(v, float))
    rows = list(read_rollouts(path))
    # Two rollouts of four prompts and four responses each, none of the prompts twice.
    assert [row.rollout for row in rows] == [0] * 16 + [1] * 16
    assert len({row.prompt for row in rows}) == 8
    assert {row.sample for row in rows} == {0, 1, 2, 3}
    assert log[0]["reward"] == pytest.approx(np.mean([row.score for row in rows[:16]]))
    start = dict(load_model(ModelRecipe(path=str(folder / "tiny"))).named_parameters())
    assert (weights(path).keys() == start.keys()) is (lora is None)


def test_ppo_reaches_the_optimum(folder: Path) -> None:
    """A share of letters is rewarded: from one in ten tokens to all of them."""
    path = run(
        folder,
        algorithm={"type": "ppo"},
        rollout={"num_generations": 64, "max_new_tokens": 2},
        train={"learning_rate": 3e-2, "max_steps": 13, "scheduler": "constant", "layout": "shared"},
    )
    rewards = [line["reward"] for line in log_of(path)]
    assert rewards[0] < 0.2
    assert rewards[-1] > 0.97


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce++", "online_dpo"])
def test_the_others_learn_it_too(algorithm: str, folder: Path) -> None:
    path = run(
        folder,
        algorithm={"type": algorithm},
        rollout={"num_generations": 32, "max_new_tokens": 2},
        train={"learning_rate": 3e-2, "max_steps": 8, "scheduler": "constant", "layout": "shared"},
    )
    rewards = [line["reward"] for line in log_of(path)]
    assert rewards[-1] > 3 * rewards[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize(
    "more",
    [
        {"algorithm": {"type": "ppo", "truncated": "bootstrap"}},
        {"algorithm": {"type": "ppo"}, "value": {"kind": "shared"}},
        {
            "algorithm": {"type": "grpo"},
            "rollout": {"temperature": 0.7},
            "train": {"micro_batch_tokens": 60, "gradient_checkpointing": True},
        },
    ],
    ids=["ppo", "ppo shared", "grpo"],
)
def test_the_ratio_is_one_in_the_first_update_and_not_later(
    more: dict[str, Any], layout: str, dtype: str, folder: Path
) -> None:
    settings = {"num_mini_batches": 2, "max_steps": 4, "layout": layout}
    path = run(folder, **merged(more, {"model": {"dtype": dtype}, "train": settings}))
    first, second, third, fourth = log_of(path)
    for line in (first, third):
        assert (line["ratio/first"], line["ratio/mean"], line["ratio/max"]) == (0.0, 1.0, 1.0)
        assert (line["clip/low"], line["clip/high"], line["approx_kl"]) == (0.0, 0.0, 0.0)
    for line in (second, fourth):
        assert line["ratio/max"] > 1.001 and line["approx_kl"] > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS[:-1])
def test_without_score_and_kl_there_is_no_gradient(algorithm: str, folder: Path) -> None:
    path = run(
        folder,
        scorer=ByText(lambda text: 0.0),
        algorithm={"type": algorithm},
        kl={"coefficient": 0.0},
        train={"max_steps": 1},
    )
    (line,) = log_of(path)
    assert line["grad_norm"] == 0.0 and line.get("grad_norm/value", 0.0) == 0.0
    start = load_model(ModelRecipe(path=str(folder / "tiny"), dtype="float32"))
    for name, tensor in weights(path).items():
        assert torch.equal(tensor, dict(start.named_parameters())[name]), name


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize(
    "algorithm",
    [
        {"type": "ppo"},
        *({"type": "grpo", "loss_type": kind} for kind in ("grpo", "dapo")),
    ],
    ids=lambda algorithm: algorithm.get("loss_type", "ppo"),
)
def test_the_update_does_not_depend_on_micro_batches(
    algorithm: dict[str, Any], layout: str, folder: Path
) -> None:
    """Down to micro-batches that hold less than a group: 14 tokens of prompt and 6 of a response
    each."""
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "layout": layout}
    paths = [
        run(
            folder,
            algorithm=algorithm,
            train=settings | {"micro_batch_tokens": tokens, "num_mini_batches": 2},
        )
        for tokens in (None, 30)
    ]
    assert_close(*paths, atol=2e-6)
    for a, b in zip(*map(log_of, paths), strict=True):
        assert a.keys() == b.keys()
        assert a["responses"] == b["responses"]
        for name in ("loss", "grad_norm", "approx_kl"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-6), name


def test_the_value_model_learns_alone_while_the_policy_stands_still(folder: Path) -> None:
    """Bit for bit, weight decay and a shared trunk notwithstanding."""
    for kind, dtype in (("separate", "bfloat16"), ("separate", "float32"), ("shared", "float32")):
        model: Any = {"path": str(folder / "tiny"), "dtype": dtype}
        start = load_model(ModelRecipe(**model))
        path = run(
            folder,
            model=model,
            algorithm={"type": "ppo", "entropy_coefficient": 0.1},
            value={"kind": kind, "warmup_steps": 2},
            train={"weight_decay": 0.1, "max_steps": 2},
        )
        for name, tensor in weights(path).items():
            assert torch.equal(tensor, dict(start.named_parameters())[name]), (kind, name)
        assert any(tensor.any() for name, tensor in further(path).items() if "heads" in name)
        after = run(
            folder,
            model=model,
            algorithm={"type": "ppo"},
            value={"kind": kind, "warmup_steps": 1},
            train={"max_steps": 2},
        )
        assert differ(path, after)


def test_the_same_recipe_gives_the_same_run(folder: Path) -> None:
    settings = {"algorithm": {"type": "ppo"}, "train": {"num_mini_batches": 2}}
    assert_same(run(folder, **settings), run(folder, **settings))


def test_engine_batches_change_nothing(folder: Path) -> None:
    """Draws are keyed: in float32 the samples are the same whatever is written at once."""
    paths = [
        run(folder, rollout={"engine": {"type": "local", "batch_size": size}}) for size in (64, 3)
    ]
    rows = [[(r.prompt, r.response_ids) for r in read_rollouts(path)] for path in paths]
    assert rows[0] == rows[1]
    assert letters("ab1") == pytest.approx(2 / 3)


def test_the_engine_is_closed_whatever_happens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(LocalEngine, "close", lambda self: closed.append(True))
    run(folder, train={"max_steps": 1})
    with pytest.raises(RunError):
        run(folder, scorer=ByText(lambda text: None), reward={"unscored": "stop"})
    assert closed == [True, True]
