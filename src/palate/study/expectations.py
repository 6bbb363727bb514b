"""What was expected of comparisons before their runs, and how it turned out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from palate.recipes.study import ExpectationRecipe, StudyRecipe
from palate.store.digests import sha256_json
from palate.store.files import append_jsonl
from palate.study.plan import Plan
from palate.study.study import Study

EXPECTATIONS = "expectations.jsonl"


def note_expectations(study: Study, plan: Plan) -> None:
    """Writes down expectations that are new, and how many results were there by then."""
    known = _noted(study)
    measured = {measure.step for measure in study.recipe.measures}
    stages = {run.stages[step] for run in plan.compared for step in measured & run.stages.keys()}
    finished = sum(study.finished(plan.stages[key]) for key in stages)
    for expected in study.recipe.expectations:
        digest = _digest(study.recipe, expected)
        if digest not in known:
            append_jsonl(
                study.root / EXPECTATIONS,
                {
                    "digest": digest,
                    "written": datetime.now(UTC).isoformat(timespec="seconds"),
                    "finished_results": finished,
                    "expectation": expected.model_dump(),
                },
            )


def _noted(study: Study) -> dict[str, dict[str, Any]]:
    file = study.root / EXPECTATIONS
    noted: dict[str, dict[str, Any]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError):  # the line that a process died in
                entry = json.loads(line)
                noted.setdefault(entry["digest"], entry)
    return noted


def _digest(recipe: StudyRecipe, expected: ExpectationRecipe) -> str:
    """Of the expectation and of what decides it: seeds and estimand."""
    shown = expected.model_dump() | {
        "seeds": list(recipe.seeds),
        "estimand": recipe.statistics.estimand,
    }
    return sha256_json(shown)[:16]


def expectation_entries(
    study: Study, comparisons: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each expectation with when it was written, and what came of it."""
    noted = _noted(study)
    entries = []
    for expected in study.recipe.expectations:
        note = noted.get(_digest(study.recipe, expected))
        comparison = _comparison_of(study.recipe, expected, comparisons)
        result = None if comparison is None else _result(study.recipe, comparison)
        entries.append(
            {
                "aspect": expected.aspect,
                "variant": expected.variant,
                "against": expected.against,
                "measure": expected.measure,
                "direction": expected.direction,
                "smallest": expected.smallest,
                "disagreement": expected.disagreement,
                "written": None if note is None else note["written"],
                "before": None if note is None else note["finished_results"] == 0,
                "outcome": "no result yet" if result is None else _outcome(expected, result),
                "difference": None if result is None else result["difference"],
                "interval": None if result is None else result["interval"],
            }
        )
    return entries


def _comparison_of(
    recipe: StudyRecipe, expected: ExpectationRecipe, comparisons: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The comparison it is about: the mean over settings where there are several."""
    aspect = next(aspect for aspect in recipe.aspects if aspect.name == expected.aspect)
    against = expected.against or aspect.base.name
    fitting = [
        c
        for c in comparisons
        if (c["aspect"], c["measure"]) == (expected.aspect, expected.measure)
        and {c["variant"], c["against"]} == {expected.variant, against}
    ]
    return max(fitting, key=lambda c: c["settings"], default=None)


def _result(recipe: StudyRecipe, comparison: Mapping[str, Any]) -> Mapping[str, Any] | None:
    result = comparison["estimands"].get(recipe.statistics.estimand)
    return result if result is not None and result["interval"] is not None else None


def _outcome(expected: ExpectationRecipe, result: Mapping[str, Any]) -> str:
    low, high = result["interval"]
    if result["names"][0] != expected.variant:
        low, high = -high, -low
    if expected.direction == "none":
        if max(abs(low), abs(high)) < expected.smallest:
            return "as expected"
        return "against it" if low >= expected.smallest or high <= -expected.smallest else "open"
    if expected.direction == "lower":
        low, high = -high, -low
    if low > 0:
        return "as expected"
    return "against it" if high < expected.smallest else "open"
