"""The tables of a study: by aspect, and two aspects crossed; the same for page, Markdown, LaTeX."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, median, stdev
from typing import Literal

from scipy import stats

from palate.report.words import DASH, fixed, span
from palate.store.study_records import (
    Choices,
    StudyAnalysis,
    StudyAspect,
    StudyComparison,
    StudyEstimate,
    StudyMeasure,
    StudyRun,
)

Tone = Literal["plain", "grey", "bold", "missing"]
"""grey: not told from the baseline. bold: told from it, and better."""

Cell = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands in a cell of a table, in words."""

    mean: str
    interval: str = ""
    difference: str = ""
    difference_interval: str = ""
    tone: Tone = "plain"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """
    Attributes:
        corner: what the rows are.
        rows: name -> an entry a column. baseline: of the rows, what others are compared with.
        footnotes: what is needed to read it.
    """

    key: str
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    baseline: str
    footnotes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Of the seeds' means over a variant's settings.

    Attributes:
        interval: t over seeds, on these items; None with fewer than 2.
        seeds: with which all settings are finished.
    """

    value: float
    interval: tuple[float, float] | None
    seeds: int


def seeds_mean(values: Sequence[float], confidence: float) -> Mean | None:
    """
    >>> tuple(round(end, 3) for end in seeds_mean([1.0, 3.0], 0.95).interval)
    (-10.706, 14.706)
    """
    if not values:
        return None
    centre, interval = fmean(values), None
    if len(values) > 1:
        error = stdev(values) / math.sqrt(len(values))
        half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
        interval = (centre - half, centre + half)
    return Mean(value=centre, interval=interval, seeds=len(values))


class Tables:
    """Looks the runs and comparisons of a study up, and lays them out."""

    def __init__(self, analysis: StudyAnalysis) -> None:
        self.analysis = analysis
        self.runs: dict[Cell, dict[int, StudyRun]] = {}
        for run in analysis.runs:
            self.runs.setdefault(cell_of(run.cell), {})[run.seed] = run

    def settings(self, aspect: StudyAspect, variant: str) -> list[Cell]:
        """Cells with the variant that have a neighbour with the baseline, or with any variant."""
        rest: dict[str, set[Cell]] = {}
        for cell in self.runs:
            choices = dict(cell)
            rest.setdefault(choices.pop(aspect.name, ""), set()).add(cell_of(choices))
        base = rest.get(aspect.baseline, set())
        compared = [others for name, others in rest.items() if name != aspect.baseline]
        with_variant = [rest.get(variant, set())] if variant != aspect.baseline else compared
        shared = base & set().union(*with_variant)
        named = [cell for cell in self.runs if dict(cell).get(aspect.name) == variant]
        return [cell for cell in named if without(cell, aspect.name) in shared]

    def mean(self, cells: Sequence[Cell], measure: str) -> Mean | None:
        """Over cells and the seeds that all of them have; None where there is none."""
        if not cells:
            return None
        by_cell = [
            {seed: run.values.get(measure) for seed, run in self.runs[cell].items()}
            for cell in cells
        ]
        rows = [[values.get(seed) for values in by_cell] for seed in self.analysis.seeds]
        complete = [[v for v in row if v is not None] for row in rows]
        means = [fmean(row) for row in complete if len(row) == len(cells)]
        return seeds_mean(means, self.analysis.statistics.confidence)

    def comparison(
        self,
        measure: str,
        aspect: str,
        variant: str,
        at: Choices | None = None,
        *,
        matched: bool = False,
    ) -> StudyComparison | None:
        """At these settings; without them the mean over all, or the only comparison.

        Args:
            matched: of those at matched KL.
        """
        fitting = [
            c
            for c in (self.analysis.matched_kl if matched else self.analysis.comparisons)
            if (c.measure, c.aspect, c.variant) == (measure, aspect, variant)
        ]
        if at is not None:
            return next((c for c in fitting if c.at == at), None)
        return max(fitting, key=lambda c: c.settings, default=None)

    @cached_property
    def places(self) -> dict[str, int]:
        """Decimal places of each measure: two digits of a usual interval's half."""
        return {measure.name: self._places(measure.name) for measure in self.analysis.measures}

    def _places(self, measure: str) -> int:
        estimates = [
            main_estimate(self.analysis, c)
            for c in self.analysis.comparisons
            if c.measure == measure
        ]
        halves = [(e.interval[1] - e.interval[0]) / 2 for e in estimates if e and e.interval]
        halves = [half for half in halves if half > 0]
        values = [v for run in self.analysis.runs if (v := run.values.get(measure)) is not None]
        if not halves and len(values) > 1:
            halves = [half] if (half := max(values) - min(values)) > 0 else []
        if not halves:
            return 3
        return min(6, max(0, 1 - math.floor(math.log10(median(halves)))))

    def by_aspect(self) -> Iterator[Table]:
        """A table an aspect: its variants by all measures."""
        for number, aspect in enumerate(self.analysis.aspects):
            cells = {name: self.settings(aspect, name) for name in aspect.names}
            rows = tuple(
                (name, tuple(self._entry(aspect, name, cells, m) for m in self.analysis.measures))
                for name in aspect.names
            )
            yield Table(
                key=f"aspect-{number}",
                title=aspect.name,
                corner=aspect.name,
                columns=tuple(map(column_title, self.analysis.measures)),
                rows=rows,
                baseline=aspect.baseline,
                footnotes=tuple(_settings_note([len(c) for c in cells.values()])),
            )

    def crossed(self) -> Iterator[Table]:
        """A table a measure for every two aspects of which more than the baselines meet."""
        numbered = list(enumerate(self.analysis.aspects))
        for (i, first), (j, second) in itertools.combinations(numbered, 2):
            cells = self._crossed_cells(first, second)
            if not any(a != first.baseline and b != second.baseline for a, b in cells):
                continue
            for k, measure in enumerate(self.analysis.measures):
                rows = tuple(
                    (
                        a,
                        tuple(
                            self._crossed_entry(cells, first, second, (a, b), measure)
                            for b in second.names
                        ),
                    )
                    for a in first.names
                )
                notes = list(_settings_note([len(c) for c in cells.values()]))
                if not any(entry.difference for _, row in rows for entry in row):
                    notes.append("These means are not compared with each other.")
                yield Table(
                    key=f"crossed-{i}-{j}-{k}",
                    title=f"{first.name} by {second.name}, {column_title(measure)}",
                    corner=f"{first.name}, by {second.name}",
                    columns=tuple(second.names),
                    rows=rows,
                    baseline=first.baseline,
                    footnotes=tuple(notes),
                )

    def _crossed_cells(
        self, first: StudyAspect, second: StudyAspect
    ) -> dict[tuple[str, str], list[Cell]]:
        """Variants of the two -> their cells, at settings of the rest that all of them have."""
        by_pair: dict[tuple[str, str], dict[Cell, Cell]] = {}
        for cell in self.runs:
            choices = dict(cell)
            pair = choices.get(first.name, ""), choices.get(second.name, "")
            by_pair.setdefault(pair, {})[without(cell, first.name, second.name)] = cell
        rest = [set(cells) for cells in by_pair.values()]
        shared = set.intersection(*rest) if rest else set()
        if not shared:
            # As where each two aspects are crossed at the baselines of the others.
            bases = {a.name: a.baseline for a in self.analysis.aspects}
            shared = {without(cell_of(bases), first.name, second.name)}
        kept = {
            pair: [cell for others, cell in cells.items() if others in shared]
            for pair, cells in by_pair.items()
        }
        return {pair: cells for pair, cells in kept.items() if cells}

    def _entry(
        self,
        aspect: StudyAspect,
        variant: str,
        cells: dict[str, list[Cell]],
        measure: StudyMeasure,
    ) -> Entry:
        comparison = None
        if variant != aspect.baseline:
            comparison = self.comparison(measure.name, aspect.name, variant)
        return self._made(cells[variant], measure, comparison)

    def _crossed_entry(
        self,
        cells: dict[tuple[str, str], list[Cell]],
        first: StudyAspect,
        second: StudyAspect,
        pair: tuple[str, str],
        measure: StudyMeasure,
    ) -> Entry:
        """With the difference from the first aspect's baseline, where a comparison is that."""
        if pair not in cells:
            return Entry(mean=DASH, tone="missing", notes=("not in the design",))
        comparison = None
        if len(cells[pair]) == 1 and pair[0] != first.baseline:
            at = dict(without(cells[pair][0], first.name))
            comparison = self.comparison(measure.name, first.name, pair[0], at)
        return self._made(cells[pair], measure, comparison)

    def _made(
        self, cells: Sequence[Cell], measure: StudyMeasure, comparison: StudyComparison | None
    ) -> Entry:
        places = self.places[measure.name]
        mean = self.mean(cells, measure.name)
        notes = tuple(self._lacks(cells, measure, mean))
        if mean is None:
            return Entry(mean=DASH, tone="missing", notes=notes)
        plain = Entry(
            mean=fixed(mean.value, places), interval=span(mean.interval, places), notes=notes
        )
        estimate = None if comparison is None else main_estimate(self.analysis, comparison)
        if comparison is None or estimate is None:
            return plain
        sure = distinguished(self.analysis, comparison)
        wanted = {"higher": 1, "lower": -1}.get(measure.better or "", 0)
        better = sure and estimate.difference * wanted > 0
        return replace(
            plain,
            difference=signed(estimate.difference, places),
            difference_interval=span(estimate.interval, places),
            tone="bold" if better else "plain" if sure else "grey",
        )

    def _lacks(
        self, cells: Sequence[Cell], measure: StudyMeasure, mean: Mean | None
    ) -> Iterator[str]:
        """`n=2` of three seeds; and whether what lacks has failed or is to come."""
        planned = len(self.analysis.seeds)
        if mean is not None and mean.seeds < planned:
            yield f"n={mean.seeds}"
        runs = [run for cell in cells for run in self.runs[cell].values()]
        lacking = [run for run in runs if run.values.get(measure.name) is None]
        failed = sum(self.failure(run) is not None for run in lacking)
        for number, what in ((failed, "failed"), (len(lacking) - failed, "not finished")):
            if number:
                yield what if number == len(runs) else f"{number} of {len(runs)} {what}"
        if not runs:
            yield "not in the design"

    def failure(self, run: StudyRun) -> tuple[str, str] | None:
        """The stage of a run that failed, and why."""
        for key in run.stages.values():
            if key in self.analysis.failures:
                return key, self.analysis.failures[key]
        return None


def cell_of(choices: Choices) -> Cell:
    """To look a cell up, in whatever order its choices stand."""
    return tuple(sorted(choices.items()))


def without(cell: Cell, *aspects: str) -> Cell:
    return tuple((name, variant) for name, variant in cell if name not in aspects)


def cell_words(choices: Choices) -> str:
    """
    >>> cell_words({"algorithm": "dpo", "data": "hh"})
    'dpo · hh'
    """
    return " · ".join(choices.values())


def main_estimate(analysis: StudyAnalysis, comparison: StudyComparison) -> StudyEstimate | None:
    """Under the estimand that the study puts first."""
    return comparison.estimands.get(analysis.statistics.estimand)


def distinguished(analysis: StudyAnalysis, comparison: StudyComparison) -> bool:
    """Whether two variants are told apart, after the correction where there is one."""
    if comparison.corrected is not None:
        return bool(comparison.corrected.distinguished)
    estimate = main_estimate(analysis, comparison)
    return estimate is not None and bool(estimate.distinguished)


def signed(value: float, places: int) -> str:
    """With its sign, also above 0.

    >>> signed(0.25, 1), signed(0.001, 1)
    ('+0.2', '0.0')
    """
    text = fixed(value, places)
    return f"+{text}" if value > 0 and float(f"{value:.{places}f}") else text


def column_title(measure: StudyMeasure) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(measure.better or "", "")
    return measure.name + arrow


def _settings_note(counts: Sequence[int]) -> Iterator[str]:
    if max(counts, default=0) < 2:
        return
    if len(set(counts)) == 1:
        yield f"Means over {counts[0]} settings of the other aspects."
    else:
        low, high = min(counts), max(counts)
        yield (
            f"Means over {low} to {high} settings of the other aspects; each difference is between "
            "the same settings."
        )


def reading_notes(analysis: StudyAnalysis) -> list[str]:
    """What all tables of a study have in common."""
    level = f"{100 * analysis.statistics.confidence:g}%"
    corrections = {"holm": "Holm's", "benjamini_hochberg": "Benjamini and Hochberg's"}
    words = corrections.get(analysis.statistics.correction)
    main = analysis.statistics.estimand.replace("_", " ")
    notes = [
        f"Mean over seeds with its {level} interval (t over seeds, on these items); below it the "
        f"difference from the baseline with its {level} interval ({main}).",
        "Grey: not told apart from the baseline"
        + (f", after {words} correction for the number of comparisons." if words else ".")
        + " Bold: told apart, and better.",
    ]
    return [*notes, *analysis.footnotes]
