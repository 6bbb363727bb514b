"""Held-out accuracy in a run's evaluation.json: intervals of comparisons that share a prompt."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from palate.evaluate.preference import PairScore, summarise_pairs
from palate.intervals import wilson
from palate.train.reward_summary import held_out


def item(i: int, margins: list[float], *, prompt: int | None = None) -> dict[str, Any]:
    return {
        "id": str(i),
        "source": "even" if i % 2 == 0 else "odd",
        "prompt": (1, i if prompt is None else prompt),
        "rewards": [0.0],
        "heads": [],
        "margins": margins,
        "longer": [float(k % 3 - 1) for k in range(len(margins))],
        "head_margins": [],
    }


def test_pairs_of_prompts_of_their_own_are_independent() -> None:
    found = [item(i, [m]) for i, m in enumerate([0.5, -0.2, 0.0, 1.5, 2.5])]
    scores = [
        PairScore(
            id=own["id"],
            source=own["source"],
            margin=own["margins"][0],
            log_ratio_margin=None,
            longer=-1,
        )
        for own in found
    ]
    summary = held_out(found)
    prompts = {name: entry.pop("prompts") for name, entry in summary.items()}
    assert summary == summarise_pairs(scores)
    assert prompts == {"even": 3, "odd": 2, "all": 5}
    assert held_out([item(0, [])]) == {}


def test_comparisons_that_all_agree_within_a_prompt_count_once() -> None:
    """Twelve prompts of ten comparisons each, nine of them right throughout."""
    found = [item(2 * i, [1.0 if i % 4 else -1.0] * 10) for i in range(12)]
    entry = held_out(found)["all"]
    assert entry["n"] == 120 and entry["accuracy"] == 0.75 and entry["prompts"] == 12
    assert entry["effective_n"] == pytest.approx(11)
    assert entry["accuracy_ci"] == pytest.approx(wilson(0.75 * 11, 11))
    assert "p_value" not in entry


def test_pairs_of_one_prompt_are_a_group_too() -> None:
    apart = [item(2 * i, [1.0 if i % 8 < 5 else -1.0]) for i in range(32)]
    together = [
        item(2 * i, own["margins"], prompt=i // 8 * 8 + i % 8 // 5) for i, own in enumerate(apart)
    ]
    narrow, wide = (held_out(own)["all"] for own in (apart, together))
    assert wide["prompts"] == 8 and wide["accuracy"] == narrow["accuracy"]
    for name in ("accuracy_ci", "margin_ci"):
        assert np.ptp(wide[name]) > 1.2 * np.ptp(narrow[name])
        assert np.mean(wide["margin_ci"]) == pytest.approx(wide["margin"])


def test_intervals_cover_as_often_as_they_say() -> None:
    """Over lists whose model is good or bad at each prompt as a whole."""
    rng = random.Random(0)
    covered = {"accuracy_ci": 0, "margin_ci": 0}
    for _ in range(300):
        found = []
        for i in range(40):
            skill = rng.choice([-0.5, 1.5])
            found.append(item(2 * i, [skill + rng.gauss(0, 1) for _ in range(6)]))
        entry = held_out(found)["all"]
        # P(N(-0.5, 1) > 0) and P(N(1.5, 1) > 0), halfway.
        for name, truth in (("accuracy_ci", (0.30854 + 0.93319) / 2), ("margin_ci", 0.5)):
            covered[name] += entry[name][0] <= truth <= entry[name][1]
    for hits in covered.values():
        assert 0.90 < hits / 300 < 0.985
