"""Which prompts come next: each once an epoch, or by pass rates; exactly where a run was."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.data.prompts import Curriculum, PromptDraws, PromptStream, prompt_draws
from palate.errors import DataError, RunError
from palate.recipes.prompts import CurriculumRecipe
from prompting import recipe_of


def flat(draws: list[list[int]]) -> list[int]:
    return [index for draw in draws for index in draw]


@given(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_each_prompt_once_an_epoch(n: int, sizes: list[int], in_order: bool) -> None:
    stream = PromptStream(n, "file" if in_order else "random", seed=4)
    draws = [stream.draw(min(size, n)) for size in sizes]
    assert all(len(set(draw)) == len(draw) for draw in draws)
    taken = flat(draws)
    assert stream.drawn == len(taken) and stream.epoch == len(taken) // n
    for start in range(0, len(taken) - n + 1, n):
        assert sorted(taken[start : start + n]) == list(range(n))


def test_orders() -> None:
    by_file = PromptStream(5, "file", seed=0)
    assert flat([by_file.draw(5) for _ in range(2)]) == [*range(5), *range(5)]
    first, second = PromptStream(50, "random", 1), PromptStream(50, "random", 2)
    epochs = [first.draw(50), first.draw(50), second.draw(50)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # Every place is as likely for every prompt.
    firsts = Counter(PromptStream(5, "random", seed).draw(1)[0] for seed in range(2000))
    assert all(abs(count - 400) < 5 * 18 for count in firsts.values())


def curriculum(n: int = 20, seed: int = 0, **more: Any) -> Curriculum:
    return Curriculum(n, CurriculumRecipe(**more), seed)


def resumed(draws: PromptDraws, fresh: PromptDraws) -> PromptDraws:
    fresh.load_state_dict(json.loads(json.dumps(draws.state_dict())))
    return fresh


@pytest.mark.parametrize("kind", ["random", "file", "curriculum"])
def test_a_resumed_run_draws_what_the_other_would_have(kind: str) -> None:
    def made() -> PromptDraws:
        more = {"curriculum": {}} if kind == "curriculum" else {"order": kind}
        return prompt_draws(recipe_of({"path": "x"}, **more), 11, seed=3)

    whole, parted = made(), made()
    rates = random.Random(0)
    for _ in range(40):
        n = rates.randrange(1, 8)
        expected, drawn = whole.draw(n), parted.draw(n)
        assert drawn == expected
        for index in drawn:
            passed = rates.choice((0.0, 0.5, 1.0))
            whole.record(index, passed)
            parted.record(index, passed)
        parted = resumed(parted, made())
        assert parted.drawn == whole.drawn


def test_states_of_other_runs_are_refused() -> None:
    state = PromptStream(5, "random", 0).state_dict()
    with pytest.raises(RunError, match="of 5 prompts by random, and this run draws from 6"):
        PromptStream(6, "random", 0).load_state_dict(state)
    with pytest.raises(RunError, match="by pass rate"):
        curriculum(5).load_state_dict(state)


def test_more_than_there_are_cannot_be_drawn_at_once() -> None:
    for draws in (PromptStream(3, "random", 0), curriculum(3)):
        with pytest.raises(DataError, match=r"4 prompts .* there are 3: lower `rollout"):
            draws.draw(4)
        assert len(draws.draw(3)) == 3
    for make in (lambda: PromptStream(0, "file", 0), lambda: curriculum(0)):
        with pytest.raises(DataError, match="no prompt to draw"):
            make()


def test_unseen_prompts_come_first() -> None:
    for seed in range(20):
        draws = curriculum(10, seed)
        taken = [draws.draw(4) for _ in range(3)]
        assert sorted(flat(taken)[:10]) == list(range(10))
        assert len(set(taken[2])) == 4
    assert curriculum(10, seed=1).draw(10) != curriculum(10).draw(10)


def test_prompts_beyond_the_bounds_are_drawn_by_their_weight() -> None:
    draws = curriculum(10, outside=0.25)
    draws.draw(10)
    for index in range(5):
        draws.record(index, 1.0 if index % 2 else 0.0)
        draws.record(index + 5, 0.5)
    counts = Counter(flat([draws.draw(1) for _ in range(8000)]))
    # 5 of weight 1 and 5 of weight 0.25.
    inside = sum(counts[index] for index in range(5, 10)) / 8000
    assert inside == pytest.approx(0.8, abs=0.02)
    for index in range(5):
        assert counts[index] / 8000 == pytest.approx(0.04, abs=0.01)
    assert draws.figures() == {"seen": 1.0, "within": 0.5, "below": 0.3, "above": 0.2}


def test_bounds_are_inclusive_and_rates_are_of_the_latest_groups() -> None:
    draws = curriculum(3, min=0.25, max=0.75, outside=0.5, memory=2)
    draws.record(0, 0.25)
    draws.record(1, 0.76)
    assert [draws.weight(index) for index in range(3)] == [1.0, 0.5, 1.0]
    assert draws.pass_rate(2) is None
    for passed in (1.0, 1.0, 0.0):
        draws.record(0, passed)
    assert draws.pass_rate(0) == 0.5
    with pytest.raises(ValueError, match="a pass rate of"):
        draws.record(0, 1.5)
