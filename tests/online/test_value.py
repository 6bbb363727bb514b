"""Value models: where they begin, what moves them, and what is kept of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from palate.data.items import Item
from palate.data.layouts import collate
from palate.errors import ModelError
from palate.models.model import Ask, Model
from palate.models.reward_config import RewardSpec, Scale
from palate.models.reward_files import load_reward_model, save_reward_model
from palate.models.structure import backbone_of
from palate.models.value import value_parameters
from palate.recipes.schema import ModelRecipe
from palate.store.rollouts import read_rollouts
from palate.train import reward
from palate.train.loop import Loop, _clipped_together
from palate.train.rl_run import rl
from tiny_rewards import recipe as reward_recipe
from tiny_rl import further, log_of, merged, rl_recipe, run, save_stopping, started
from tiny_text import tiny_text_model, tiny_tokenizer


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, str]:
    """Reward models that were trained on pairs for some steps: whole, and adapters."""
    if not (folder / "tiny").exists():
        save_stopping(folder / "tiny")
    paths = {}
    for name, more in {"full": {}, "lora": {"lora": {"r": 4}}}.items():
        train = {"max_steps": 3, "learning_rate": 1e-2}
        recipe = reward_recipe(folder, out=f"reward-{name}", train=train, **more)
        paths[name] = str(reward(recipe, quiet=True).path / "model")
    return paths


def prompt_ids(text: str) -> tuple[int, ...]:
    return tuple(tiny_tokenizer()(text)["input_ids"])


def expected_scores(model: Model, prompt: tuple[int, ...], response: tuple[int, ...]) -> Any:
    """What the reward model says of prompt + the first t tokens of the response, each by itself."""
    scores = []
    for t in range(len(response)):
        ids = prompt + response[:t]
        batch = collate([Item.of(ids[:-1], ids[-1:])], layout="plain", pad_id=0, keep_last=True)
        with torch.no_grad():
            scores.append(float(model(batch, Ask(heads=("reward",))).sequence_rewards))
    return np.array(scores)


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_value_begins_as_the_reward_of_the_text_so_far(
    kind: str, layout: str, folder: Path, trained: dict[str, str]
) -> None:
    """Before each token, from the model that `reward.scorer` names."""
    recipe = rl_recipe(
        folder,
        algorithm={"type": "ppo"},
        reward={"scorer": {"type": "model", "path": trained[kind]}},
        train={"max_steps": 1, "layout": layout},
    )
    path = rl(recipe, quiet=True).path
    model = load_reward_model(trained[kind])
    rows = list(read_rollouts(path))
    spread = []
    for row in rows[::3]:
        expected = expected_scores(model, prompt_ids(row.prompt_text), row.response_ids)
        np.testing.assert_allclose(row.tokens["values"], expected, atol=2e-5)
        spread += expected.tolist()
    assert np.std(spread) > 0.05
    if kind == "full":
        # And transformers' own classifier says the same.
        classifier = AutoModelForSequenceClassification.from_pretrained(trained[kind])
        row = rows[0]
        ids = torch.tensor([prompt_ids(row.prompt_text) + row.response_ids[:-1]])
        with torch.no_grad():
            assert float(classifier(ids).logits) == pytest.approx(
                row.tokens["values"][-1], abs=1e-4
            )


def test_a_value_is_on_the_scale_of_the_rewards(folder: Path, trained: dict[str, str]) -> None:
    more: dict[str, Any] = {
        "algorithm": {"type": "ppo"},
        "reward": {
            "scorer": {"type": "model", "path": trained["full"], "normalised": True},
            "mean": 0.5,
            "deviation": 2.0,
        },
        "train": {"max_steps": 1},
    }
    path = rl(rl_recipe(folder, **more), quiet=True).path
    model = load_reward_model(trained["full"])
    scale = model.spec.scale
    assert isinstance(scale, Scale) and scale.deviation != 1
    row = next(iter(read_rollouts(path)))
    raw = expected_scores(model, prompt_ids(row.prompt_text), row.response_ids)
    expected = ((raw - scale.mean) / scale.deviation - 0.5) / 2.0
    np.testing.assert_allclose(row.tokens["values"], expected, atol=1e-4)
    assert row.reward is not None and row.score is not None
    assert row.reward == pytest.approx((row.score - 0.5) / 2.0)


def test_a_path_of_its_own_and_none(folder: Path, trained: dict[str, str]) -> None:
    path = run(
        folder, algorithm={"type": "ppo"}, value={"path": trained["full"]}, train={"max_steps": 1}
    )
    row = next(iter(read_rollouts(path)))
    expected = expected_scores(
        load_reward_model(trained["full"]), prompt_ids(row.prompt_text), row.response_ids
    )
    np.testing.assert_allclose(row.tokens["values"], expected, atol=2e-5)
    for kind in ("separate", "shared"):
        path = run(folder, algorithm={"type": "ppo"}, value={"kind": kind}, train={"max_steps": 1})
        assert all(not row.tokens["values"].any() for row in read_rollouts(path))


@pytest.mark.parametrize("kind", ["separate", "shared"])
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_rates_clipping_and_checkpoints(kind: str, lora: Any, folder: Path) -> None:
    more: dict[str, Any] = {
        "model": {"lora": lora},
        "algorithm": {"type": "ppo"},
        "value": {"kind": kind, "learning_rate": 0.25},
        "train": {"learning_rate": 1e-3, "max_steps": 1},
    }
    job, recipe = started(folder, **more)
    values = {id(p) for p in value_parameters(job.model)}
    assert values and job.model.trunks.keys() == (
        {"policy", "value"} if kind == "separate" else {"policy"}
    )
    loop = Loop(job, recipe.train, seed=0)
    for group in loop.optimizer.param_groups:
        rates = {0.25 if id(p) in values else 1e-3 for p in group["params"]}
        assert rates == {group["initial_lr"]}
    assert sum(len(g["params"]) for g in loop.optimizer.param_groups) == sum(
        p.requires_grad for p in job.model.parameters()
    )
    clipped = _clipped_together(job.model)
    if kind == "separate":
        assert clipped.keys() == {"grad_norm", "grad_norm/value"}
        assert {id(p) for p in clipped["grad_norm/value"]} == values
    else:
        assert clipped.keys() == {"grad_norm"}
    names = {n for n, p in job.model.named_parameters() if id(p) in values}
    assert further(run(folder, **more)).keys() == names
    assert all(".lora_" in name or name.startswith("heads.") for name in names) is (
        lora is not None or kind == "shared"
    )


def test_one_model_does_not_shorten_the_steps_of_the_other(folder: Path) -> None:
    """A value loss a thousand times as large leaves the policy's update as it was."""
    from tiny_rl import differ

    plain: dict[str, Any] = {
        "algorithm": {"type": "ppo"},
        "train": {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 1, "max_grad_norm": 0.1},
    }
    large = merged(plain, {"value": {"coefficient": 1e3}})
    paths = run(folder, **plain), run(folder, **large)
    assert not differ(*paths)
    one, other = (log_of(path)[0] for path in paths)
    assert one["grad_norm"] == other["grad_norm"] > 0.1
    assert other["grad_norm/value"] == pytest.approx(1e4 * one["grad_norm/value"], rel=1e-4)
    shared = {"value": {"kind": "shared"}}
    assert differ(run(folder, **merged(plain, shared)), run(folder, **merged(large, shared)))


def saved_reward(folder: Path, name: str, **spec: Any) -> str:
    recipe = ModelRecipe(path=str(folder / "tiny"), dtype="float32")
    model = Model.reward(backbone_of(tiny_text_model()), RewardSpec(model=recipe, **spec))
    save_reward_model(model, folder / name)
    return str(folder / name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"heads": 3}, "has 3 heads, a value model has one"),
        ({"pooling": "mean"}, "its head reads all of a response at once (pooling: mean)"),
        (None, "no such folder"),
    ],
    ids=["heads", "mean", "none"],
)
def test_a_reward_model_that_is_no_beginning_is_refused_in_one_line(
    spec: dict[str, Any] | None, words: str, folder: Path
) -> None:
    name = f"begin-{words[:5]}"
    path = "nowhere/at/all" if spec is None else saved_reward(folder, name, **spec)
    with pytest.raises(ModelError, match=re.escape(words)) as found:
        run(folder, algorithm={"type": "ppo"}, value={"path": path})
    assert "\n" not in str(found.value) and path in str(found.value)


def test_another_vocabulary_is_refused(folder: Path) -> None:
    recipe = ModelRecipe(path=str(folder / "tiny"), dtype="float32")
    whole = tiny_text_model()
    whole.resize_token_embeddings(300)
    model = Model.reward(backbone_of(whole), RewardSpec(model=recipe))
    save_reward_model(model, folder / "wide")
    with pytest.raises(ModelError, match=r"knows 300 tokens, the policy 259: .*kind: shared"):
        run(folder, algorithm={"type": "ppo"}, value={"path": str(folder / "wide")})


def test_dropout_of_the_reward_head_is_off(folder: Path) -> None:
    """Values at the first update are those that were measured: nothing is clipped, to the bit."""
    from palate.recipes.reward import HeadRecipe

    path = saved_reward(folder, "dropping", head=HeadRecipe(layers=2, dropout=0.5))
    log = log_of(
        run(
            folder,
            algorithm={"type": "ppo"},
            value={"path": path, "epsilon": 1e-9},
            train={"max_steps": 1},
        )
    )
    assert log[0]["value/clip"] == 0.0
