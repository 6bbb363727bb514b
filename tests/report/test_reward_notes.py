"""Which findings of a reward evaluation are worth a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from palate.evaluate.statistics import difference_interval
from palate.intervals import wilson
from palate.report.reward_notes import gap_interval, reward_notes
from palate.store.reward_records import RewardEvaluation


def evaluation(longer: tuple[int, int], shorter: tuple[int, int]) -> RewardEvaluation:
    """Of one model that is right in so many of so many, where the better response is longer ..."""

    def side(right: int, n: int) -> dict[str, object]:
        return {"n": n, "accuracy": right / n, "accuracy_ci": wilson(right, n)}

    by_length = {"longer": side(*longer), "shorter": side(*shorter)}
    by_length["gap"] = longer[0] / longer[1] - shorter[0] / shorter[1]
    whole = side(longer[0] + shorter[0], longer[1] + shorter[1])
    result = {"accuracy": {"all": whole}, "by_length": by_length}
    return RewardEvaluation.model_validate(
        {
            "models": [{"name": "rm", "type": "model"}],
            "benchmarks": [{"name": "pairs", "results": {"rm": result}}],
        }
    )


def test_the_interval_of_a_gap_is_newcombes():
    # His own example, table II (a): 56 of 70 and 48 of 80 differ by 0.2 [0.0524, 0.3339].
    found = evaluation((56, 70), (48, 80)).benchmarks[0].results["rm"].by_length
    assert gap_interval(found) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(
    ("longer", "shorter", "named"),
    [
        ((90, 100), (60, 100), True),
        ((60, 100), (90, 100), True),
        # As wide a gap of ten pairs is none that is seen, and a narrow one is not worth a word.
        ((5, 5), (3, 5), False),
        ((4500, 5000), (4400, 5000), False),
    ],
)
def test_a_model_reads_length_where_the_gap_is_wide_and_clear_of_none(longer, shorter, named):
    notes = [note for note in reward_notes(evaluation(longer, shorter)) if "reads length" in note]
    assert bool(notes) == named
    if named:
        ends = [f"{100 * right / n:.0f}% of {n}" for right, n in (longer, shorter)]
        assert f"{ends[0]} against {ends[1]} on pairs" in notes[0]


@pytest.mark.parametrize(
    ("right", "longer", "together", "named"),
    [
        # 80% against 78% of the same 100 pairs: clear of chance, not of length.
        (80, 78, 78, True),
        # 62% [52%, 71%] does not stand above 55%, but is right wherever length is, and more often.
        (62, 55, 55, False),
        # 70% [60%, 78%] stands above 58%, but they disagree on nearly every pair.
        (70, 58, 28, True),
        (60, 95, 60, True),
    ],
)
def test_not_clear_of_length_is_said_of_the_difference(
    right: int, longer: int, together: int, named: bool
) -> None:
    only_right, only_longer = right - together, longer - together
    differences = [1.0] * only_right + [-1.0] * only_longer
    differences += [0.0] * (100 - len(differences))
    over, ends = difference_interval(np.array(differences), np.arange(100))
    whole = {
        "n": 100, "accuracy": right / 100, "accuracy_ci": wilson(right, 100),
        "length_baseline": longer / 100, "shorter_baseline": 1 - longer / 100,
        "over_length": over, "over_length_ci": ends,
    }  # fmt: skip
    benchmarks = [{"name": "pairs", "results": {"rm": {"accuracy": {"all": whole}}}}]
    document = {"models": [{"name": "rm", "type": "model"}], "benchmarks": benchmarks}
    evaluated = RewardEvaluation.model_validate(document)
    notes = [note for note in reward_notes(evaluated) if "clear of what" in note]
    assert len(notes) == named
    if named:
        assert f"{longer:.1f}% for the longer response of the same pairs" in notes[0]
        assert f"a difference of {right - longer:+.1f} points" in notes[0]


@pytest.mark.parametrize("as_good", [True, False])
def test_a_model_that_is_as_good_without_its_images_is_named(as_good):
    found = evaluation((60, 100), (55, 100)).model_dump()
    sentence = "as good without the images: 57.5% with them, 57.0% without"
    found["benchmarks"][0]["results"]["rm"]["look"] = {
        "as_good_without": as_good,
        "sentence": sentence,
    }
    notes = " ".join(reward_notes(RewardEvaluation.model_validate(found)))
    told = "rm is as good without the images on pairs (57.5% with them, 57.0% without)"
    assert (told in notes) is as_good
