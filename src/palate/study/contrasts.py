"""Variants compared with their aspect's baseline: at the end of training, and at matched KL."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palate.errors import PalateError
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.study import GAINS, MeasureRecipe, StudyRecipe
from palate.study.cells import Cell
from palate.study.comparison import Comparison, Direction, compare
from palate.study.corrections import Correction, correct
from palate.study.crossed import Estimand
from palate.study.graph import Run
from palate.study.matched_kl import Frontier, at_matched_kl
from palate.study.outcomes import Item, Outcomes, Undetermined, checkpoints_of, outcomes_of
from palate.study.plan import Plan
from palate.study.study import Study

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
    """The outcomes of every compared run, read once.

    Attributes:
        notes: what a finished run has no number of, and why.
    """

    study: Study
    plan: Plan
    notes: dict[str, None] = field(default_factory=dict)
    _known: dict[tuple[Cell, int, str], Outcomes | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runs: dict[tuple[Cell, int], Run] = {
            (run.cell, run.seed): run for run in self.plan.compared
        }

    def of(self, cell: Cell, seed: int, measure: MeasureRecipe) -> Outcomes | None:
        """A run's outcomes; None where its evaluation is not finished, or has no such number."""
        key = (cell, seed, measure.name)
        if key not in self._known:
            folder = self.folder(cell, seed, measure.step)
            known: Outcomes | None = None
            if folder is not None:
                try:
                    known = outcomes_of(folder, self.study.recipe, measure)
                except Undetermined as reason:
                    self.notes[f"{measure.name} of {cell.name}, seed {seed}: {reason}."] = None
            self._known[key] = known
        return self._known[key]

    def folder(self, cell: Cell, seed: int, step: str) -> Path | None:
        """Where the step of a run has left its results; None where it is not finished."""
        run = self.runs.get((cell, seed))
        stage = None if run is None else self.plan.stages.get(run.stages.get(step, ""))
        done = stage is not None and self.study.finished(stage)
        return self.study.root / stage.key if done and stage is not None else None

    def seeds(self, cells: Sequence[Cell], measure: MeasureRecipe) -> list[int]:
        """Seeds with which all of these cells are finished."""
        seeds = self.study.recipe.seeds
        return [s for s in seeds if all(self.of(cell, s, measure) is not None for cell in cells)]


def comparisons(sheet: OutcomeTable, measure: MeasureRecipe) -> Iterator[dict[str, Any]]:
    """The comparisons of one measure, each run as it ended, corrected for how many there are."""
    yield from _entries(sheet, measure, [(c, _at_the_end(sheet, c, measure)) for c in _of(sheet)])


def matched_comparisons(sheet: OutcomeTable, measure: MeasureRecipe) -> Iterator[dict[str, Any]]:
    """The comparisons of one measure at the same KL from the reference.

    None of measures that are no gain, or of evaluations without checkpoints.
    """
    recipes = [stage.recipe for stage in sheet.plan.stages.values() if stage.step == measure.step]
    checkpoints = all(isinstance(r, EvalRecipe) and r.checkpoints == "all" for r in recipes)
    if measure.value in GAINS and recipes and checkpoints:
        made = [(c, _at_matched_kl(sheet, c, measure)) for c in _of(sheet)]
        yield from _entries(sheet, measure, made)


def _of(sheet: OutcomeTable) -> list[Contrast]:
    return list(_contrasts(sheet.study.recipe, sheet.plan.cells))


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


Made = tuple[dict[str, Comparison] | None, dict[str, Any]]
"""Both estimands, and what was left out; None where nothing can be compared."""


def _at_the_end(sheet: OutcomeTable, contrast: Contrast, measure: MeasureRecipe) -> Made:
    pairs, seeds, notes = _finished(sheet, contrast, measure)
    if not seeds:
        return None, notes
    cells = [cell for pair in pairs for cell in pair]
    known = [o for cell in cells for s in seeds if (o := sheet.of(cell, s, measure)) is not None]
    items = _shared(known, notes)
    if not items:
        return None, notes | {"why": "no item has an outcome in all runs"}

    def outcomes(side: int) -> np.ndarray:
        """[S, N], means over the contrast's settings."""
        by_cell = [
            [[_at(sheet, pair[side], s, measure)[item] for item in items] for s in seeds]
            for pair in pairs
        ]
        return np.asarray(np.mean(by_cell, axis=0))

    return _compare(sheet.study.recipe, contrast, measure, outcomes(0), outcomes(1), items, notes)


def _at_matched_kl(sheet: OutcomeTable, contrast: Contrast, measure: MeasureRecipe) -> Made:
    pairs, seeds, notes = _finished(sheet, contrast, measure)
    if not seeds:
        return None, notes
    read = {
        (cell, s): checkpoints_of(folder, measure)
        for cell in dict.fromkeys(cell for pair in pairs for cell in pair)
        for s in seeds
        if (folder := sheet.folder(cell, s, measure.step)) is not None
    }
    items = _shared([o for points in read.values() for _, o in points], notes)
    if not items:
        return None, notes | {"why": "no item has an outcome in all checkpoints"}
    frontiers = {
        cell.name: [
            Frontier(
                kl=np.array([kl for kl, _ in read[cell, s]]),
                reward=np.array([[o[item] for item in items] for _, o in read[cell, s]]),
            )
            for s in seeds
        ]
        for cell in dict.fromkeys(cell for cell, _ in read)
    }
    try:
        matched = at_matched_kl(frontiers)
    except PalateError as error:
        return None, notes | {"why": str(error)}
    a, b = (
        np.mean([matched.outcomes(pair[side].name) for pair in pairs], axis=0) for side in (0, 1)
    )
    notes["span"] = list(matched.span)
    return _compare(sheet.study.recipe, contrast, measure, a, b, items, notes)


def _finished(
    sheet: OutcomeTable, contrast: Contrast, measure: MeasureRecipe
) -> tuple[list[tuple[Cell, Cell]], list[int], dict[str, Any]]:
    """The settings and seeds with results on both sides, and what is left out."""
    # A cell that failed takes its setting out of the mean, not the comparison out of the table.
    pairs = [pair for pair in contrast.pairs if sheet.seeds(pair, measure)]
    cells = [cell for pair in pairs for cell in pair]
    seeds = sheet.seeds(cells, measure) if cells else []
    notes: dict[str, Any] = {
        "seeds": seeds,
        "missing_seeds": [s for s in sheet.study.recipe.seeds if s not in seeds],
        "settings_finished": len(pairs),
        "items_left_out": 0,
    }
    return pairs, seeds, notes


def _shared(known: Sequence[Outcomes], notes: dict[str, Any]) -> list[Item]:
    """Items with an outcome everywhere; how many have one only somewhere is noted."""
    items = sorted(set.intersection(*(set(outcomes) for outcomes in known)))
    notes["items_left_out"] = len(set.union(*(set(o) for o in known))) - len(items)
    return items


def _at(sheet: OutcomeTable, cell: Cell, seed: int, measure: MeasureRecipe) -> Outcomes:
    outcomes = sheet.of(cell, seed, measure)
    assert outcomes is not None
    return outcomes


def _compare(
    recipe: StudyRecipe,
    contrast: Contrast,
    measure: MeasureRecipe,
    a: np.ndarray,
    b: np.ndarray,
    items: Sequence[Item],
    notes: dict[str, Any],
) -> Made:
    prompts = [prompt for prompt, _ in items]
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
                clusters=prompts if len(set(prompts)) < len(prompts) else None,
                direction=_DIRECTIONS[measure.better],
            )
        except PalateError as error:
            notes["why"] = str(error)
    return (made or None), notes


def _entries(
    sheet: OutcomeTable, measure: MeasureRecipe, made: Sequence[tuple[Contrast, Made]]
) -> Iterator[dict[str, Any]]:
    """Means over settings are one family of a correction, single settings another."""
    recipe = sheet.study.recipe
    means = [entry for entry in made if len(entry[0].pairs) > 1]
    single = [entry for entry in made if len(entry[0].pairs) == 1]
    for name, family in (("means over settings", means), ("single settings", single)):
        corrected = _corrected(recipe, [of for _, of in family])
        for (contrast, (estimates, notes)), correction in zip(family, corrected, strict=True):
            yield {
                "measure": measure.name,
                "aspect": contrast.aspect,
                "variant": contrast.variant,
                "against": contrast.against,
                "at": contrast.at,
                "settings": len(contrast.pairs),
                "family": name,
                **notes,
                "estimands": {name: c.record() for name, c in (estimates or {}).items()},
                "corrected": correction,
            }


def _corrected(recipe: StudyRecipe, family: Sequence[Made]) -> list[dict[str, Any] | None]:
    """What a correction makes of the main estimand; None where there is nothing to correct."""
    main = recipe.statistics.estimand
    counted = [
        (place, estimates[main])
        for place, (estimates, _) in enumerate(family)
        if estimates is not None and main in estimates
    ]
    corrected: list[dict[str, Any] | None] = [None] * len(family)
    if recipe.statistics.correction != "none" and counted:
        method = _CORRECTIONS[recipe.statistics.correction]
        results = correct([comparison for _, comparison in counted], method)
        for (place, _), result in zip(counted, results, strict=True):
            shown = dataclasses.asdict(result)
            del shown["comparison"]
            corrected[place] = shown | {"comparisons": len(counted)}
    return corrected
