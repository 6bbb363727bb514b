"""Rates in the log, by a clock that moves only when the policy is run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from palate.models.model import Model
from palate.train import tune
from tiny_runs import lines, tiny_recipe


def test_time_spent_on_evaluation_is_not_training_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass takes 2 seconds in training and 1000 in evaluation; 4 pairs a step."""
    now = 100.0
    forward = Model.forward

    def timed(self: Model, *args: Any, **kwargs: Any) -> Any:
        nonlocal now
        now += 2.0 if self.training else 1000.0
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Model, "forward", timed)
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: now)
    # SimPO has no reference, whose forward passes would count as evaluation.
    recipe = tiny_recipe(tmp_path, loss={"type": "simpo"}, max_steps=4, eval_every_steps=1)
    log = lines(tune(recipe, quiet=True).path / "metrics.jsonl")
    assert [line["step"] for line in log if line["split"] == "eval"] == [1, 2, 3, 4]
    # The first step's time also holds what precedes the run.
    rates = [line["pairs_per_second"] for line in log if line["split"] == "train"][1:]
    assert rates == pytest.approx([2.0, 2.0, 2.0])
    tokens = [line["tokens_per_second"] for line in log if line["split"] == "train"][1:]
    assert all(4.0 <= rate <= 200.0 for rate in tokens)
