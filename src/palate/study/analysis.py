"""What a study's outcomes say: runs, comparisons, shares of variance, cost; as one record."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import numpy as np

from palate.errors import PalateError
from palate.recipes.study import Aspect, MeasureRecipe, StudyRecipe
from palate.study.cells import Cell
from palate.study.comparison import Comparison, Direction, compare
from palate.study.corrections import Correction, correct
from palate.study.correlation import correlate
from palate.study.crossed import Estimand
from palate.study.expectations import expectation_entries
from palate.study.graph import Run
from palate.study.lineage import lineage_entries, sample_entries
from palate.study.outcomes import Outcomes, mean, outcomes_of
from palate.study.plan import Plan, seconds_apart
from palate.study.shared_prompts import shared_prompts
from palate.study.study import Study
from palate.study.variance import variance_shares

VERSION = 1
_ESTIMANDS: dict[str, Estimand] = {"new_items": "new items", "these_items": "these items"}
_CORRECTIONS: dict[str, Correction] = {"holm": "holm", "benjamini_hochberg": "bh"}
_DIRECTIONS: dict[str | None, Direction] = {"higher": "higher", "lower": "lower", None: "neither"}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two variants of an aspect, at settings of the other aspects.

    Attributes:
        pairs: cells that differ in the aspect alone: the variant's and the other's.
    """

    aspect: str
    variant: str
    against: str
    pairs: tuple[tuple[Cell, Cell], ...]

    @property
    def at(self) -> dict[str, str] | None:
        """The other aspects' variants; None where it is the mean over several."""
        if len(self.pairs) > 1:
            return None
        return {name: v for name, v in self.pairs[0][0].choices if name != self.aspect}


@dataclass
class OutcomeTable:
    """The outcomes of every compared run, read once."""

    study: Study
    plan: Plan
    _known: dict[tuple[Cell, int, str], Outcomes | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runs: dict[tuple[Cell, int], Run] = {
            (run.cell, run.seed): run for run in self.plan.compared
        }

    def of(self, cell: Cell, seed: int, measure: MeasureRecipe) -> Outcomes | None:
        """A run's outcomes; None where its evaluation is not finished."""
        key = (cell, seed, measure.name)
        if key not in self._known:
            run = self.runs.get((cell, seed))
            stage = None if run is None else self.plan.stages.get(run.stages.get(measure.step, ""))
            done = stage is not None and self.study.finished(stage)
            self._known[key] = (
                outcomes_of(self.study.root / stage.key, self.study.recipe, measure)
                if done and stage is not None
                else None
            )
        return self._known[key]

    def seeds(self, cells: Sequence[Cell], measure: MeasureRecipe) -> list[int]:
        """Seeds with which all of these cells are finished."""
        seeds = self.study.recipe.seeds
        return [s for s in seeds if all(self.of(cell, s, measure) is not None for cell in cells)]


def analyse(study: Study, plan: Plan | None = None) -> dict[str, Any]:
    """The record of a study as far as it is finished: the content of analysis.json.

    Raises:
        RecipeError: the study is wrong or confounded. RunError: a stage's files are damaged.
    """
    plan = plan or study.plan()
    sheet = OutcomeTable(study, plan)
    recipe = study.recipe
    measures = [m for m in recipe.measures if m.step in _compared_measures(plan)]
    comparisons = [entry for measure in measures for entry in _compared(sheet, measure)]
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
        "comparisons": comparisons,
        "expectations": expectation_entries(study, comparisons),
        "variance": [entry for m in measures if (entry := _variance_entry(sheet, m)) is not None],
        "correlations": _correlations(sheet, measures),
        "footnotes": [*_footnotes(recipe), *_shared_prompts(plan)],
        "cost": _cost(sheet),
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
    records = {step: sheet.study.record(sheet.plan.stages[key]) for step, key in run.stages.items()}
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
        "values": values,
    }


# Comparisons --------------------------------------------------------------------------------------


def _contrasts(recipe: StudyRecipe, cells: Sequence[Cell]) -> Iterator[Contrast]:
    """Each variant with its aspect's baseline, wherever cells differ in nothing else."""
    for aspect in recipe.aspects:
        base = aspect.base.name
        for variant in aspect.variants:
            if variant.name == base:
                continue
            pairs = tuple(
                (cell, against)
                for cell, against in itertools.permutations(cells, 2)
                if cell.of(aspect.name) == variant.name
                and against.of(aspect.name) == base
                and cell.differs_in(against) == [aspect.name]
            )
            if len(pairs) > 1:
                yield Contrast(aspect=aspect.name, variant=variant.name, against=base, pairs=pairs)
            for pair in pairs:
                yield Contrast(
                    aspect=aspect.name, variant=variant.name, against=base, pairs=(pair,)
                )


def _compared(sheet: OutcomeTable, measure: MeasureRecipe) -> Iterator[dict[str, Any]]:
    """The comparisons of one measure, corrected for how many there are.

    Means over settings are one family, single settings another.
    """
    recipe = sheet.study.recipe
    contrasts = list(_contrasts(recipe, sheet.plan.cells))
    several = any(len(contrast.pairs) > 1 for contrast in contrasts)
    for family in (True, False) if several else (False,):
        members = [c for c in contrasts if (len(c.pairs) > 1) is family]
        made = [(c, _compare(sheet, c, measure)) for c in members]
        yield from _entries(recipe, measure, made, mean=family)


Made = tuple[dict[str, Comparison] | None, dict[str, Any]]


def _compare(sheet: OutcomeTable, contrast: Contrast, measure: MeasureRecipe) -> Made:
    """Both estimands, and what was left out; None where no seed is finished on both sides."""
    recipe = sheet.study.recipe
    # A cell that failed takes its setting out of the mean, not the comparison out of the table.
    pairs = [pair for pair in contrast.pairs if sheet.seeds(pair, measure)]
    cells = [cell for pair in pairs for cell in pair]
    seeds = sheet.seeds(cells, measure) if cells else []
    notes: dict[str, Any] = {
        "seeds": seeds,
        "missing_seeds": [s for s in recipe.seeds if s not in seeds],
        "settings_finished": len(pairs),
        "items_left_out": 0,
    }
    if not seeds:
        return None, notes
    known = [o for cell in cells for s in seeds if (o := sheet.of(cell, s, measure)) is not None]
    items = sorted(set.intersection(*(set(outcomes) for outcomes in known)))
    notes["items_left_out"] = len(set.union(*(set(o) for o in known))) - len(items)
    if not items:
        return None, notes | {"why": "no item has an outcome in all runs"}

    def outcomes(side: int) -> np.ndarray:
        """[S, N], means over the contrast's settings."""
        by_cell = [
            [[_at(sheet, pair[side], s, measure, item) for item in items] for s in seeds]
            for pair in pairs
        ]
        return np.asarray(np.mean(by_cell, axis=0))

    a, b = outcomes(0), outcomes(1)
    made: dict[str, Comparison] = {}
    for name, estimand in _ESTIMANDS.items():
        try:
            made[name] = compare(
                a,
                b,
                names=(contrast.variant, contrast.against),
                paired=True,
                estimand=estimand,
                confidence=recipe.statistics.confidence,
                sesoi=measure.smallest,
                direction=_DIRECTIONS[measure.better],
            )
        except PalateError as error:
            notes["why"] = str(error)
    return (made or None), notes


def _at(sheet: OutcomeTable, cell: Cell, seed: int, measure: MeasureRecipe, item: str) -> float:
    outcomes = sheet.of(cell, seed, measure)
    assert outcomes is not None
    return outcomes[item]


def _entries(
    recipe: StudyRecipe,
    measure: MeasureRecipe,
    made: Sequence[tuple[Contrast, Made]],
    *,
    mean: bool,
) -> Iterator[dict[str, Any]]:
    main = recipe.statistics.estimand
    counted = [
        (place, estimates[main])
        for place, (_, (estimates, _)) in enumerate(made)
        if estimates is not None and main in estimates
    ]
    corrected: dict[int, dict[str, Any]] = {}
    if recipe.statistics.correction != "none" and counted:
        method = _CORRECTIONS[recipe.statistics.correction]
        results = correct([comparison for _, comparison in counted], method)
        for (place, _), result in zip(counted, results, strict=True):
            shown = dataclasses.asdict(dataclasses.replace(result))
            del shown["comparison"]
            corrected[place] = shown | {"comparisons": len(counted)}
    for place, (contrast, (estimates, notes)) in enumerate(made):
        yield {
            "measure": measure.name,
            "aspect": contrast.aspect,
            "variant": contrast.variant,
            "against": contrast.against,
            "at": contrast.at,
            "settings": len(contrast.pairs),
            "family": "means over settings" if mean else "single settings",
            **notes,
            "estimands": {name: c.record() for name, c in (estimates or {}).items()},
            "corrected": corrected.get(place),
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


def _cost(sheet: OutcomeTable) -> dict[str, Any]:
    """Seconds of all stages by step, each once, and what runs would have taken one by one."""
    plan = sheet.plan
    seconds = sheet.study.seconds(plan)
    steps: dict[str, float] = {}
    for key, taken in seconds.items():
        step = plan.stages[key].step
        steps[step] = steps.get(step, 0.0) + taken
    together, apart = sum(seconds.values()), seconds_apart(plan, seconds)
    return {"steps": steps, "together": together, "apart": apart}


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
