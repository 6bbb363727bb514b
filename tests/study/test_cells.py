"""Which cells each design runs, which settings trials try, and how rounds of halving end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from palate.errors import RecipeError
from palate.study.cells import Cell, cells_of, tuning_trials
from palate.study.run import run_study
from study_cases import (
    ACCURACY,
    VALIDATION,
    FakeExecutor,
    algorithm,
    data,
    keys_by_run,
    plan_of,
    plant,
    recipe,
    study_of,
    tuning,
    validating,
)

IPO = {"name": "ipo", "set": {"policy.loss": {"type": "ipo_sum"}}}
RATE = {
    "name": "rate",
    "varies": ["policy.train"],
    "baseline": "slow",
    "variants": [
        {"name": "fast", "set": {"policy.train.learning_rate": 1e-3}},
        {"name": "slow"},
    ],
}


def names(design: dict[str, Any], **changes: Any) -> list[str]:
    value = recipe(aspects=[algorithm(IPO), data(), RATE], design=design, **changes)
    return [cell.name for cell in cells_of(study_of(value).recipe)]


def test_one_at_a_time() -> None:
    assert names({"type": "one_at_a_time"}) == [
        "dpo, a, slow",
        "tdpo2, a, slow",
        "ipo, a, slow",
        "dpo, b, slow",
        "dpo, a, fast",
    ]


def test_pairwise_crosses_every_two_aspects_at_the_baseline_of_the_third() -> None:
    assert set(names({"type": "pairwise"})) == {
        *("dpo, a, slow", "tdpo2, a, slow", "ipo, a, slow"),
        *("dpo, b, slow", "tdpo2, b, slow", "ipo, b, slow"),
        *("dpo, a, fast", "tdpo2, a, fast", "ipo, a, fast"),
        "dpo, b, fast",
    }
    assert len(names({"type": "pairwise"})) == 10


def test_grid_is_all_with_the_baselines_first() -> None:
    cells = names({"type": "grid"})
    assert cells[0] == "dpo, a, slow"
    assert sorted(cells) == sorted(
        f"{loss}, {source}, {rate}"
        for loss in ("dpo", "tdpo2", "ipo")
        for source in "ab"
        for rate in ("fast", "slow")
    )


def test_random_cells_are_drawn_with_the_seed_and_hold_the_baselines() -> None:
    draws = [tuple(names({"type": "random", "cells": 4}, seed=seed)) for seed in range(8)]
    assert draws[3] == tuple(names({"type": "random", "cells": 4}, seed=3))
    assert len(set(draws)) > 1
    for cells in draws:
        assert cells[0] == "dpo, a, slow"
        assert len(set(cells)) == 4


def test_more_random_cells_than_the_grid_has_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"design\.cells: 13, and the grid has 12"):
        names({"type": "random", "cells": 13})


def trials_of(variants: list[dict[str, Any]], **changes: Any) -> dict[str, list[Any]]:
    value = validating(
        aspects=[algorithm(*variants)], tuning=tuning(**changes), design={"type": "grid"}
    )
    study = study_of(value).recipe
    return {
        cell.name: [dict(settings.values) for settings in tuning_trials(study, cell)]
        for cell in cells_of(study)
    }


def test_every_cell_tries_as_many_settings_and_those_of_the_same_keys_the_same() -> None:
    ipo = IPO | {"tune": {"policy.loss.beta": [0.1, 0.2]}}
    trials = trials_of([ipo])
    assert trials["dpo"] == trials["tdpo2"] != trials["ipo"]
    assert {len(tried) for tried in trials.values()} == {2}
    for tried in trials.values():
        assert len({repr(values) for values in tried}) == 2
    assert {key for values in trials["ipo"] for key in values} == {
        "policy.loss.beta",
        "policy.train.learning_rate",
    }


def test_a_variant_may_replace_the_values_that_are_tried() -> None:
    ipo = IPO | {"tune": {"policy.train.learning_rate": [1e-7, 1e-8]}}
    rates = [values["policy.train.learning_rate"] for values in trials_of([ipo])["ipo"]]
    assert sorted(rates) == [1e-8, 1e-7]


def test_fewer_combinations_than_trials_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"tuning\.trials: 4, and dpo has 3 combinations"):
        trials_of([], trials=4)


def test_the_best_trial_of_a_cell_gives_the_settings_of_its_runs() -> None:
    value = validating(aspects=[algorithm()], tuning=tuning())
    study = study_of(value)
    plan = study.plan()
    trials = [run for run in plan.runs if run.purpose == "trial"]
    assert len(trials) == 4 and plan.compared == []
    assert plan.later == ["4 runs of 2 cells, with what their trials choose"]
    # The second trial of each cell is the better.
    for number, run in enumerate(trials):
        margins = (1.0, -1.0) if number % 2 == 0 else (1.0, 1.0)
        plant(study, plan.stages[run.stages["validation"]], margins)
    chosen = study.plan()
    assert chosen.later == []
    for run in chosen.compared:
        trial = [trial for trial in trials if trial.cell == run.cell][1]
        assert run.settings.values == trial.settings.values
        stage = chosen.stages[run.stages["policy"]]
        rate = stage.inputs["recipe"]["train"]["learning_rate"]
        assert rate == trial.settings.values["policy.train.learning_rate"]
        assert set(run.stages) == {"policy", "evaluation"}
    assert {run.seed for run in trials}.isdisjoint({run.seed for run in chosen.compared})


def test_where_lower_is_better_the_lowest_trial_is_chosen() -> None:
    lower = VALIDATION | {"better": "lower"}
    study = study_of(
        validating(aspects=[algorithm()], tuning=tuning()) | {"measures": [ACCURACY, lower]}
    )
    plan = study.plan()
    trials = [run for run in plan.runs if run.purpose == "trial"]
    for number, run in enumerate(trials):
        margins = (1.0, 1.0) if number % 2 == 0 else (1.0, -1.0)
        plant(study, plan.stages[run.stages["validation"]], margins)
    settings = study.plan().chosen
    assert [settings[cell] for cell in plan.cells] == [trials[1].settings, trials[3].settings]


def halving(**changes: Any) -> dict[str, Any]:
    design = {"type": "halving", "measure": "validation", "first_updates": 2, **changes}
    return validating(design=design, budget={"updates": 12})


def best_of_rounds(value: dict[str, Any], scores: dict[str, float]) -> list[list[str]]:
    """Cells of each round and of the end, where cells are worth what `scores` says."""
    study = study_of(value)
    rounds: list[list[str]] = []
    seen: set[str] = set()
    for _ in range(20):
        plan = study.plan()
        runs = [run for run in plan.runs if run.purpose == "round"]
        new = [run for run in runs if run.stages["validation"] not in seen]
        if not new:
            return [*rounds, [cell.name for cell in plan.cells]]
        rounds.append([run.cell.name for run in new])
        for run in new:
            key = run.stages["validation"]
            seen.add(key)
            score = scores[run.cell.name]
            plant(study, plan.stages[key], [1.0] * int(score) + [-1.0] * (9 - int(score)))
    raise AssertionError("goes on for ever")


WORTH = {"dpo, a": 2.0, "tdpo2, a": 3.0, "dpo, b": 1.0, "tdpo2, b": 7.0}


def test_halving_keeps_the_better_half_until_one_is_left() -> None:
    rounds = best_of_rounds(halving(), WORTH)
    assert [set(cells) for cells in rounds] == [
        set(WORTH),
        {"tdpo2, a", "tdpo2, b"},
        {"tdpo2, b"},
    ]


@pytest.mark.parametrize("keep", [0.6, 0.9])
def test_a_share_that_rounds_up_to_all_still_leaves_out_the_worst(keep: float) -> None:
    rounds = best_of_rounds(halving(keep=keep), WORTH)
    ranked = sorted(WORTH, key=WORTH.__getitem__, reverse=True)
    assert len(rounds[0]) == 4
    for before, after in itertools.pairwise(rounds):
        assert len(after) < len(before)
        assert set(after) == set(ranked[: len(after)])


def test_rounds_have_their_own_updates_and_the_end_has_the_budget() -> None:
    study = study_of(halving(first_updates=5))
    first = study.plan()
    assert first.compared == []
    run_study(study, make_executor=lambda study: FakeExecutor(study))
    plan = study.plan()
    updates = {
        purpose: {
            plan.stages[run.stages["policy"]].inputs["recipe"]["train"]["max_steps"]
            for run in plan.runs
            if run.purpose == purpose
        }
        for purpose in ("round", "compared")
    }
    assert updates == {"round": {5, 10}, "compared": {12}}
    assert {run.seed for run in plan.runs if run.purpose == "round"} == {1_000_003}
    assert plan.later == []


def test_cells_differ_in_aspects() -> None:
    ours = Cell((("algorithm", "dpo"), ("data", "a")))
    assert ours.differs_in(Cell((("algorithm", "dpo"), ("data", "b")))) == ["data"]
    assert len(keys_by_run(plan_of(recipe()))) == 3 * 2 * 2
