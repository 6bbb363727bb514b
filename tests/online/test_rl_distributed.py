"""Two processes learn what one does, statistics of the whole rollout included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launched import launch
from palate.errors import RecipeError
from palate.recipes import resolve_yaml
from palate.store.rollouts import read_rollouts
from palate.train.rl_run import rl
from tiny_rl import assert_close, log_of, merged, rl_recipe

CHILD = """
import sys
import palate.report
palate.report.write_report = lambda runs, *more: runs[0] / "report.html"
from palate.recipes import load_recipe
from palate.recipes.rl import RlRecipe
from palate.train.rl_run import rl

for file in sys.argv[1:]:
    rl(load_recipe(RlRecipe, file), quiet=True)
"""
REWARDS = '''
def letters(completions, **more):
    """Often equal within a group: such groups are dropped, and processes have unequal shares."""
    return [float(any("a" <= c <= "z" for c in text)) for text in completions]
'''
COMMON: dict[str, Any] = {
    "n": 9,
    "rollout": {"batch_size_prompts": 5, "num_generations": 3, "eval_generations": 2},
    # Plain gradients: Adam makes much of what rounding leaves of a small one.
    "train": {
        "max_steps": 4,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "micro_batch_tokens": 70,
        "eval_every_steps": 2,
    },
}
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {
        "algorithm": {"type": "ppo"},
        "kl": {"target": 0.01, "horizon": 20},
        "reward": {"whiten": True},
        "train": {"num_iterations": 2, "layout": "shared"},
    },
    "grpo": {
        "algorithm": {"type": "grpo", "zero_variance": "drop", "loss_type": "grpo"},
        "kl": {"form": "exact", "place": "loss"},
        "train": {"num_iterations": 2},
    },
    "reinforce": {
        "algorithm": {"type": "reinforce++", "target_kl": 1e-4},
        "train": {"num_iterations": 3},
    },
    "online dpo": {"algorithm": {"type": "online_dpo", "pairs": "all", "sync_every": 2}},
}


def test_two_processes_learn_what_one_does(folder: Path) -> None:
    (folder / "rewards.py").write_text(REWARDS)
    more = {
        "reward": {"scorer": {"type": "function", "path": f"{folder}/rewards.py:letters"}},
        "prompts": {"eval": [{"path": str(folder / "held.jsonl")}]},
    }
    alone, files, together = {}, [], {}
    for name, settings in RUNS.items():
        whole = merged(merged(COMMON, more), settings)
        alone[name] = rl(rl_recipe(folder, **whole), quiet=True).path
        recipe = rl_recipe(folder, **whole)
        together[name] = recipe.output_dir
        files.append(folder / f"two {name}.yaml")
        files[-1].write_text(resolve_yaml(recipe))
    child = folder / "child.py"
    child.write_text(CHILD)
    done = launch("--multi_gpu", str(child), *map(str, files))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in RUNS:
        same_run(alone[name], together[name])
    assert any(row.dropped for row in read_rollouts(together["grpo"]))


def same_run(one: Path, two: Path) -> None:
    assert_close(one, two, atol=1e-4)
    for x, y in zip(log_of(one, None), log_of(two, None), strict=True):
        assert x.keys() == y.keys()
        for name in x.keys() - {"split"}:
            loose = name.startswith(("mismatch", "ratio/first"))
            assert x[name] == pytest.approx(y[name], rel=2e-3, abs=1e-3 if loose else 1e-4), name
    rows, others = list(read_rollouts(one)), list(read_rollouts(two))
    for a, b in zip(rows, others, strict=True):
        # The same prompts, and in float32 the same draws from weights that differ by rounding.
        assert (a.prompt, a.sample, a.dropped) == (b.prompt, b.sample, b.dropped)
        assert a.response_ids == b.response_ids
        for name in ("advantages", "returns"):
            if name in a.tokens:
                np.testing.assert_allclose(a.tokens[name], b.tokens[name], rtol=1e-3, atol=1e-3)


def test_sharded_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(RecipeError, match=r"sharded weights .* launch without \(DDP\)"):
        rl(rl_recipe(folder), quiet=True)
