"""What a study's outcomes say: runs, comparisons, shares of variance, cost; as one record."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from palate.errors import PalateError
from palate.recipes.study import Aspect, MeasureRecipe, StudyRecipe
from palate.study.cells import Cell
from palate.study.contrasts import OutcomeTable, comparisons, matched_comparisons
from palate.study.correlation import correlate
from palate.study.expectations import expectation_entries
from palate.study.graph import Run
from palate.study.lineage import lineage_entries, sample_entries
from palate.study.outcomes import mean
from palate.study.plan import Plan
from palate.study.shared_prompts import shared_prompts
from palate.study.spent import cost_entry, tokens_of
from palate.study.standings import rating_entries
from palate.study.study import Study
from palate.study.variance import variance_shares

VERSION = 1


def analyse(study: Study, plan: Plan | None = None) -> dict[str, Any]:
    """The record of a study as far as it is finished: the content of analysis.json.

    Raises:
        RecipeError: the study is wrong or confounded. RunError: a stage's files are damaged.
    """
    plan = plan or study.plan()
    sheet = OutcomeTable(study, plan)
    recipe = study.recipe
    measures = [m for m in recipe.measures if m.step in _compared_measures(plan)]
    compared = [entry for measure in measures for entry in comparisons(sheet, measure)]
    return {
        "kind": "study",
        "version": VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(study.root),
        "design": recipe.design.type,
        "seeds": list(recipe.seeds),
        "statistics": recipe.statistics.model_dump(),
        "budget": None if recipe.budget is None else recipe.budget.model_dump(exclude_none=True),
        "aspects": [_aspect_entry(aspect) for aspect in recipe.aspects],
        "measures": [_measure_entry(sheet, measure) for measure in measures],
        "runs": [_run_entry(sheet, run, measures) for run in plan.compared],
        "comparisons": compared,
        "matched_kl": [entry for m in measures for entry in matched_comparisons(sheet, m)],
        "ratings": list(rating_entries(sheet, measures)),
        "expectations": expectation_entries(study, compared),
        "variance": [entry for m in measures if (entry := _variance_entry(sheet, m)) is not None],
        "correlations": _correlations(sheet, measures),
        "footnotes": [*_footnotes(recipe), *_shared_prompts(plan), *sheet.notes],
        "cost": cost_entry(sheet),
        "lineage": lineage_entries(study, plan),
        "samples": sample_entries(study, plan),
        "tuned": [
            {"cell": dict(cell.choices), "values": dict(settings.values)}
            for cell, settings in plan.chosen.items()
            if settings.values
        ],
        "later": plan.later,
    }


def _compared_measures(plan: Plan) -> set[str]:
    return {step for run in plan.compared for step in run.stages}


def _aspect_entry(aspect: Aspect) -> dict[str, Any]:
    return {
        "name": aspect.name,
        "varies": list(aspect.sections),
        "baseline": aspect.base.name,
        "variants": [
            {"name": v.name, "set": v.set or {}, "coupled": v.coupled or {}}
            | {"also_changes": list(v.also_changes)}
            for v in aspect.variants
        ],
    }


def _measure_entry(sheet: OutcomeTable, measure: MeasureRecipe) -> dict[str, Any]:
    known = [sheet.of(cell, seed, measure) for cell, seed in sheet.runs]
    items = {item for outcomes in known if outcomes is not None for item in outcomes}
    return measure.model_dump() | {"items": len(items)}


def _run_entry(sheet: OutcomeTable, run: Run, measures: Sequence[MeasureRecipe]) -> dict[str, Any]:
    """A compared run: its stages, what it cost, and its numbers."""
    stages = {step: sheet.plan.stages[key] for step, key in run.stages.items()}
    records = {step: sheet.study.record(stage) for step, stage in stages.items()}
    values = {
        measure.name: None if outcomes is None else mean(outcomes)
        for measure in measures
        for outcomes in [sheet.of(run.cell, run.seed, measure)]
    }
    return {
        "cell": dict(run.cell.choices),
        "seed": run.seed,
        "stages": dict(run.stages),
        "seconds": {step: None if r is None else r.seconds for step, r in records.items()},
        "tokens": {
            step: tokens
            for step, stage in stages.items()
            if (tokens := tokens_of(sheet.study.root, stage)) is not None
        },
        "values": values,
    }


# Over all runs ------------------------------------------------------------------------------------


def _variance_entry(sheet: OutcomeTable, measure: MeasureRecipe) -> dict[str, Any] | None:
    """Shares of the variance between runs; None of a measure with too few of them."""
    runs = [
        (run, mean(outcomes))
        for run in sheet.plan.compared
        if (outcomes := sheet.of(run.cell, run.seed, measure)) is not None
    ]
    levels = {
        aspect.name: [run.cell.of(aspect.name) for run, _ in runs]
        for aspect in sheet.study.recipe.aspects
    }
    levels = {name: values for name, values in levels.items() if len(set(values)) > 1}
    try:
        shares = variance_shares(
            [value for _, value in runs],
            levels,
            confidence=sheet.study.recipe.statistics.confidence,
        )
    except PalateError:
        return None
    entry = dataclasses.asdict(shares) | {"notes": list(shares.notes)}
    return {"measure": measure.name} | entry


def _correlations(sheet: OutcomeTable, measures: Sequence[MeasureRecipe]) -> list[dict[str, Any]]:
    """Of every two measures, over the cells' means."""
    means: dict[str, list[float | None]] = {}
    for measure in measures:
        means[measure.name] = [_cell_mean(sheet, cell, measure) for cell in sheet.plan.cells]
    entries = []
    for names in itertools.combinations(means, 2):
        known = [
            (x, y)
            for x, y in zip(*(means[name] for name in names), strict=True)
            if x is not None and y is not None
        ]
        if known:
            x, y = zip(*known, strict=True)
            entries.append(dataclasses.asdict(correlate(x, y, names=names)))
    return entries


def _cell_mean(sheet: OutcomeTable, cell: Cell, measure: MeasureRecipe) -> float | None:
    seeds = sheet.seeds([cell], measure)
    known = [o for s in seeds if (o := sheet.of(cell, s, measure)) is not None]
    return fmean(mean(outcomes) for outcomes in known) if known else None


def _footnotes(recipe: StudyRecipe) -> Iterator[str]:
    """What else differs between variants than their aspect."""
    for aspect in recipe.aspects:
        for variant in aspect.variants:
            coupled = [f"{key} = {value}" for key, value in (variant.coupled or {}).items()]
            if coupled:
                yield f"{aspect.name} {variant.name} also sets {', '.join(coupled)}."
            if variant.also_changes:
                facts = ", ".join(variant.also_changes)
                yield f"{aspect.name} {variant.name} also changes {facts}."
    if recipe.budget is not None and recipe.budget.unmatched:
        yield "Runs do not spend the same budget."


def _shared_prompts(plan: Plan) -> Iterator[str]:
    """The few evaluation prompts that are trained on."""
    for shared in shared_prompts(plan):
        yield f"{shared.words[0].upper()}{shared.words[1:]}."
