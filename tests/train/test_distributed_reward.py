"""Two processes train the reward model that one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launched import FSDP_CHILD, fsdp, launch
from palate.recipes import resolve_yaml
from palate.rewards.model import ModelScorer
from palate.train import reward
from scored import flat_values
from tiny_rewards import log_of, recipe, weights
from tiny_runs import WORDS

# 13 rows in steps of 4: the last step of an epoch has one row, so one process has none.
TRAIN: dict[str, Any] = {
    "micro_batch_size_pairs": 2,
    "epochs": 2.0,
    "save_every_steps": 3,
    "eval_every_steps": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "pairs, all weights": {"pooling": "mean", "regularise": {"centring": 0.01}},
    "lists, LoRA, bootstrapped heads": {
        "lora": {"r": 2},
        "loss": {"type": "plackett_luce"},
        "ensemble": {"heads": 2, "bootstrap": True},
    },
    "frozen backbone": {"backbone": "frozen", "head": {"layers": 2, "bias": False}},
}


def assert_alike(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4, msg=name)
    for split in ("train", "eval"):
        for x, y in zip(log_of(a, split), log_of(b, split), strict=True):
            assert x.keys() == y.keys()
            assert x["step"] == y["step"]
            for name in ("loss", "accuracy", "margin", "mean_reward", "min_reward", "spread"):
                if name in x:
                    assert x[name] == pytest.approx(y[name], abs=1e-3, rel=1e-3), name
    found = [json.loads((run / "evaluation.json").read_text())["policies"][0] for run in (a, b)]
    assert found[0]["rewards"] == pytest.approx(found[1]["rewards"], abs=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n": 13, "train": TRAIN}
    one = reward(recipe(tmp_path, out="one", **settings, **CASES[case]), quiet=True).path
    two = recipe(tmp_path, out="two", **settings, **CASES[case])
    file = tmp_path / "recipe.yaml"
    file.write_text(resolve_yaml(two))
    done = launch("--multi_gpu", "-m", "palate.cli", "reward", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((two.output_dir / "lineage.json").read_text())["processes"] == 2
    assert_alike(one, two.output_dir)


def test_sharded_weights_give_the_same_scores(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n": 13, "train": TRAIN}
    one = reward(recipe(tmp_path, out="one", **settings), quiet=True).path
    two = recipe(tmp_path, out="two", **settings)
    file, child = tmp_path / "recipe.yaml", tmp_path / "child.py"
    file.write_text(resolve_yaml(two))
    child.write_text(FSDP_CHILD)
    done = launch(fsdp("Gemma3DecoderLayer"), str(child), str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    assert_alike(one, two.output_dir)
    asked = [" ".join(WORDS[:4])] * 3, [" ".join(WORDS[k : k + 3]) for k in range(3)]
    scores = [flat_values(ModelScorer(run / "model"), *asked) for run in (one, two.output_dir)]
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)
