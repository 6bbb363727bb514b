"""A score has a value or a reason, never both and never a number that is none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from palate.data.scorer import (
    HAS_IMAGES,
    NOT_FINITE,
    TEXT_AND_IMAGES,
    Group,
    Score,
    Span,
    Traits,
    ask,
    regrouped,
    values_by_part,
)
from scored import Numbers

PICTURE: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_no_score(value: float) -> None:
    with pytest.raises(ValueError, match=NOT_FINITE):
        Score(value)
    with pytest.raises(ValueError, match=NOT_FINITE):
        Span(0, 1, value)
    assert Score.of(value, text="so") == Score(None, NOT_FINITE, "so")


def test_a_score_has_either_a_value_or_a_reason() -> None:
    for value, reason in ((None, None), (1.0, "why")):
        with pytest.raises(ValueError, match="a value or a reason"):
            Score(value, reason)
    assert Score.of(0.5) == Score(0.5) and Score(0.0).reason is None
    with pytest.raises(ValueError, match="a span from 2 to 1"):
        Span(2, 1, 0.0)


class Length(Numbers):
    def __init__(self, **traits: Any) -> None:
        self.traits = Traits(**traits)
        self.asked: list[Any] = []

    def numbers(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        self.asked += prompts
        return [len(response) for response in responses]


def test_a_scorer_is_asked_about_what_it_reads() -> None:
    groups = [Group(PICTURE, ("a", "bb")), Group("p", ("ccc",)), Group(PICTURE, ())]
    blind, seeing = Length(), Length(modalities=TEXT_AND_IMAGES)
    assert ask(blind, groups) == [[Score(None, HAS_IMAGES)] * 2, [Score(3)], []]
    assert blind.asked == ["p"]
    assert ask(seeing, groups) == [[Score(1), Score(2)], [Score(3)], []]
    # Nothing is left to ask: it is not called at all.
    silent: Any = object.__new__(Length)
    silent.traits = Traits()
    assert ask(silent, groups[:1]) == [[Score(None, HAS_IMAGES)] * 2]


def test_scores_go_back_to_their_groups() -> None:
    groups = [Group("p", ("a", "b")), Group("q", ()), Group("r", ("c",))]
    scores = [Score(1.0), Score(2.0), Score(3.0)]
    assert regrouped(scores, groups) == [scores[:2], [], scores[2:]]
    with pytest.raises(AssertionError):
        regrouped([*scores, Score(4.0)], groups)


def test_parts_of_several_scores_by_name() -> None:
    first = Score(1.0, parts={"a": Score(1.0), "b": Score(None, "why")})
    second = Score(2.0, parts={"a": Score(2.0), "c": Score(3.0)})
    assert values_by_part([first, second]) == {"a": [1.0, 2.0], "b": [None, None], "c": [None, 3.0]}
    assert values_by_part([Score(1.0)]) == {}
