"""analysis.json of studies that nobody ran: drawn outcomes, analysed as real ones are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from palate.recipes.study import StudyRecipe
from palate.study import analysis, contrasts
from palate.study.cells import Cell, cells_of
from palate.study.expectations import expectation_entries
from palate.study.outcomes import Outcomes

Outcome = Callable[[Mapping[str, str], str, np.random.Generator], float]


class Drawn(contrasts.OutcomeTable):
    """Outcomes by cell, seed and measure, instead of stages on a disk."""

    def __init__(self, recipe: StudyRecipe, known: dict[Any, Outcomes]) -> None:
        self.cells = cells_of(recipe)
        runs = [
            SimpleNamespace(cell=cell, seed=seed, stages=keys(recipe, cell, seed))
            for cell in self.cells
            for seed in recipe.seeds
        ]
        self.study = SimpleNamespace(recipe=recipe, root=recipe.output_dir)
        self.plan = SimpleNamespace(cells=self.cells, compared=runs, runs=runs)
        self.runs = {(run.cell, run.seed): run for run in runs}
        self.known = known

    def of(self, cell: Any, seed: int, measure: Any) -> Outcomes | None:
        return self.known.get((cell, seed, measure.name))


def keys(recipe: StudyRecipe, cell: Cell, seed: int) -> dict[str, str]:
    number = cells_of(recipe).index(cell)
    return {step.name: f"{step.name}-{number:04d}{seed}" for step in recipe.steps}


def recipe_of(
    aspects: Mapping[str, Sequence[str]],
    measures: Sequence[Mapping[str, Any]],
    *,
    design: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    expectations: Sequence[Mapping[str, Any]] = (),
    coupled: Mapping[str, Mapping[str, Any]] | None = None,
    folder: Path = Path("out"),
) -> StudyRecipe:
    """Aspect -> variants, the first its baseline."""
    steps = dict.fromkeys(["policy", *(measure["step"] for measure in measures)])
    return StudyRecipe.model_validate(
        {
            "output_dir": folder,
            "seeds": list(seeds),
            "design": design or {"type": "grid"},
            "steps": [
                {"name": name, "verb": "tune" if name == "policy" else "eval", "recipe": {}}
                for name in steps
            ],
            "aspects": [
                {
                    "name": name,
                    "varies": [f"policy.section{number}"],
                    "variants": [
                        {"name": v, "coupled": dict((coupled or {}).get(v, {}))} for v in variants
                    ],
                }
                for number, (name, variants) in enumerate(aspects.items())
            ],
            "measures": list(measures),
            "expectations": list(expectations),
        }
    )


def analysed(
    recipe: StudyRecipe,
    effect: Callable[[Mapping[str, str], str], float],
    *,
    items: int = 60,
    noise: Mapping[str, float] | None = None,
    missing: Callable[[Mapping[str, str], int], bool] = lambda cell, seed: False,
    failed: Callable[[Mapping[str, str], int], bool] = lambda cell, seed: False,
    before: bool = True,
) -> dict[str, Any]:
    """The record of a study whose outcomes are an effect, plus an item's, a seed's and a rest.

    Args:
        effect: of a cell's choices on a measure. noise: of a measure's single outcomes.
        missing, failed: runs without a result.
    """
    rng = np.random.default_rng(0)
    known: dict[Any, Outcomes] = {}
    difficulty = {m.name: rng.normal(size=items) for m in recipe.measures}
    for cell in cells_of(recipe):
        choices = dict(cell.choices)
        for seed in recipe.seeds:
            draws = {m.name: rng.normal(size=items + 1) for m in recipe.measures}
            if missing(choices, seed) or failed(choices, seed):
                continue
            for m in recipe.measures:
                size = (noise or {}).get(m.name, 0.1)
                rest = draws[m.name]
                values = effect(choices, m.name) + size * (
                    difficulty[m.name] + 0.6 * rest[:-1] + 0.15 * rest[-1]
                )
                known[cell, seed, m.name] = {
                    (f"{i:04d}", f"{i:04d}"): float(v) for i, v in enumerate(values)
                }
    sheet: Any = Drawn(recipe, known)
    comparisons = [entry for m in recipe.measures for entry in contrasts.comparisons(sheet, m)]
    seconds = {"policy": 31.4, "evaluation": 12.5}
    runs = [
        {
            "cell": dict(run.cell.choices),
            "seed": run.seed,
            "stages": dict(run.stages),
            "seconds": {step: seconds.get(step, 7.0) for step in run.stages},
            "values": {
                m.name: None if (o := sheet.of(run.cell, run.seed, m)) is None
                else float(np.mean(list(o.values())))
                for m in recipe.measures
            },
        }
        for run in sheet.plan.compared
    ]  # fmt: skip
    failures = {
        run["stages"]["policy"]: "out of memory at step 12"
        for run in runs
        if failed(run["cell"], run["seed"])
    }
    study: Any = SimpleNamespace(recipe=recipe, root=Path("/nowhere"))
    expectations = expectation_entries(study, comparisons)
    for entry in expectations:
        entry |= {"written": "2026-11-30T09:00:00+00:00", "before": before}
    return {
        "kind": "study",
        "version": analysis.VERSION,
        "written": "2026-11-30T12:00:00+00:00",
        "folder": str(recipe.output_dir),
        "design": recipe.design.type,
        "seeds": list(recipe.seeds),
        "statistics": recipe.statistics.model_dump(),
        "budget": {"pairs": 2000, "updates": 200, "unmatched": False},
        "aspects": [analysis._aspect_entry(aspect) for aspect in recipe.aspects],
        "measures": [analysis._measure_entry(sheet, m) for m in recipe.measures],
        "runs": runs,
        "comparisons": comparisons,
        "expectations": expectations,
        "variance": [
            entry for m in recipe.measures if (entry := analysis._variance_entry(sheet, m))
        ],
        "correlations": analysis._correlations(sheet, recipe.measures),
        "footnotes": list(analysis._footnotes(recipe)),
        "cost": {
            "steps": {step: taken * len(runs) for step, taken in seconds.items()},
            "together": 43.9 * len(runs),
            "apart": 61.0 * len(runs),
        },
        "lineage": [_lineage(cell) for cell in sheet.cells],
        "samples": [_sample(number, sheet.cells) for number in range(4)],
        "tuned": [],
        "later": [],
        "failures": failures,
    }


def _lineage(cell: Cell) -> dict[str, Any]:
    choices = dict(cell.choices)
    data = choices.get("data", "data")
    step = {
        "base": "models/base",
        "base_digest": "99845d281222757a",
        "scorers": [{"role": "reward", "name": "VADER compound", "type": "lexicon"}],
        "sources": [{"name": data, "sha256": "8adfc783abea0dce", "items": 2000}],
        "pairs": 2000,
        "longer_is_chosen": 0.5 + 0.01 * len(data),
        "mean_tokens": {"prompt": 40.0, "chosen": 100.0 + len(data), "rejected": 90.5},
        "commit": "6445028a557a4661df4c",
    }
    return {"cell": choices, "steps": {"policy": step}}


def _sample(number: int, cells: Sequence[Cell]) -> dict[str, Any]:
    return {
        "prompt": f"Prompt {number}: what makes a film worth seeing twice?",
        "reference": "It depends on the film.",
        "cells": [
            {
                "cell": dict(cell.choices),
                "seed": 0,
                "response": f"An answer of {cell.name}. " + "And so it goes on. " * (20 * number),
                "reward": 0.25 + 0.1 * number,
                "kl": 3.2,
                "tokens": 12 + 80 * number,
            }
            for cell in cells
        ],
    }
