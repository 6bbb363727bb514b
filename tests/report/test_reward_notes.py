"""Which findings of a reward evaluation are worth a sentence."""

from __future__ import annotations

import pytest

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
