"""Win rates over the reference: by a judge in both orders or by scores; raw and at equal length."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from pydantic import TypeAdapter

from palate.data.scorer import TEXT_AND_IMAGES, Score, Traits
from palate.errors import RecipeError
from palate.evaluate.length_control import length_controlled_win_rate
from palate.evaluate.win_rate import beaten, check_judge, judged, win_rate
from palate.recipes.scorers import Scorer

CHAT = {"type": "server", "url": "http://127.0.0.1:9/v1", "model": "judge"}


def recipe(value: dict[str, Any]) -> Any:
    return TypeAdapter(Scorer).validate_python(value)


class Fake:
    """Scores texts by a table; of a judge these are probabilities within the group."""

    name = "fake"

    def __init__(self, scores: dict[str, float | None], *, relative: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.scores = scores
        self.traits = Traits(relative=relative, modalities=TEXT_AND_IMAGES)
        self.asked: list[tuple[Any, ...]] = []

    def score(self, groups: Any) -> list[list[Score]]:
        self.asked += [group.responses for group in groups]
        return [
            [Score(v, None if v is not None else "no") for v in map(self.scores.get, g.responses)]
            for g in groups
        ]


def test_a_pairwise_judge_gives_its_probability() -> None:
    judge = Fake({"a": 0.7, "b": 0.3, "c": None}, relative=True)
    pairwise = recipe({"type": "pairwise", "chat": CHAT})
    assert judged(judge, pairwise, ["p"] * 3, ["a", "b", "c"], ["b", "a", "a"]) == [0.7, 0.3, None]
    # Each sample stands beside the reference's to its prompt, and beside nothing else.
    assert judge.asked == [("a", "b"), ("b", "a"), ("c", "a")]


def test_of_another_scorer_the_higher_score_wins() -> None:
    scorer = Fake({"a": 5.0, "b": 5.0, "c": -1.0, "d": None}, relative=False)
    length = recipe({"type": "length"})
    texts, against = ["a", "a", "c", "d"], ["b", "c", "a", "a"]
    assert judged(scorer, length, ["p"] * 4, texts, against) == [0.5, 1.0, 0.0, None]


def test_a_judge_of_one_order_is_refused_wherever_it_stands() -> None:
    once = {"type": "pairwise", "chat": CHAT, "swap": False}
    mixed = {"type": "mixture", "members": [{"scorer": once}, {"scorer": {"type": "length"}}]}
    for value in (once, mixed):
        with pytest.raises(RecipeError, match="a win rate is of both orders"):
            check_judge(recipe(value))
    check_judge(recipe(once | {"swap": True}))


def samples(n: int, each: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"prompt": i // each, "index": i % each, "text": "x" * rng.randint(10, 90)}
        for i in range(n * each)
    ]


def test_rates_are_means_over_samples_with_intervals_over_prompts() -> None:
    own, reference = samples(40, 3, 0), samples(40, 3, 1)
    rng = random.Random(2)
    won: list[float | None] = [float(rng.random() < 0.6) for _ in own]
    won[7] = None
    entry = win_rate(won, own, reference)
    known = [i for i, value in enumerate(won) if value is not None]
    assert entry["unjudged"] == 1
    assert entry["win_rate"] == pytest.approx(sum(won[i] or 0.0 for i in known) / len(known))
    low, high = entry["win_rate_ci"]
    assert low < entry["win_rate"] < high
    expected = length_controlled_win_rate(
        [won[i] for i in known],
        [len(own[i]["text"]) for i in known],
        [len(reference[i]["text"]) for i in known],
        clusters=[own[i]["prompt"] for i in known],
    )
    assert entry["length_controlled_win_rate"] == expected.controlled
    assert entry["length_controlled_win_rate_ci"] == expected.controlled_interval
    # Three samples of a prompt that agree say no more than one.
    agreed = [won[i // 3 * 3] for i in range(len(own))]
    apart = win_rate(agreed, [row | {"prompt": i} for i, row in enumerate(own)], reference)
    together = win_rate(agreed, own, reference)
    widths = [e["win_rate_ci"][1] - e["win_rate_ci"][0] for e in (apart, together)]
    assert widths[1] == pytest.approx(widths[0] * 3**0.5, rel=0.05)


def test_what_cannot_be_told_is_said() -> None:
    own, reference = samples(20, 1, 0), samples(20, 1, 1)
    entry = win_rate([1.0] * 20, own, reference)
    assert entry["win_rate"] == 1.0 and entry["win_rate_ci"] == (1.0, 1.0)
    assert "no length-controlled win rate of 20" in entry["length_controlled_note"]
    assert win_rate([None] * 20, own, reference) == {"unjudged": 20}


def test_rewards_win_tie_and_lose() -> None:
    assert beaten([1.0, 1.0, 0.0, None, 1.0], [0.0, 1.0, 1.0, 1.0, None]) == [
        1.0,
        0.5,
        0.0,
        None,
        None,
    ]
