"""What a study's page says besides its tables: verdicts, differences, what lacks, cost, samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from palate.report.study_tables import (
    Tables,
    cell_words,
    distinguished,
    main_estimate,
    signed,
)
from palate.report.words import MINUS, count, fixed, listed, seconds, span
from palate.store.study_records import (
    Choices,
    StudyAnalysis,
    StudyComparison,
    StudyExpectation,
    StudyMeasure,
    StudyRatings,
    StudySample,
)

SHOWN_CHARACTERS = 600
"""Of a sample's text; how much more there is, is told."""

OUTCOMES = {"as expected": "good", "against it": "bad"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A comparison in words: `first` what came out, `rest` what belongs to it."""

    comparison: StudyComparison
    told_apart: bool
    first: str
    rest: str
    expectations: tuple[StudyExpectation, ...]


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """A difference; intervals by estimand."""

    label: str
    at: str
    told_apart: bool
    difference: float
    new_items: tuple[float, float] | None
    these_items: tuple[float, float] | None
    words: str


@dataclass(frozen=True, kw_only=True)
class Forest:
    """The differences of one measure on one scale.

    Attributes:
        smallest: that matters. groups: of means, or of single settings, with the ends of the scale.
    """

    measure: StudyMeasure
    smallest: float | None
    places: int
    groups: tuple[tuple[str, tuple[ForestRow, ...], float], ...]


def answers(
    tables: Tables, measure: StudyMeasure, *, matched: bool = False
) -> list[tuple[str, list[Verdict]]]:
    """Aspect -> verdicts on its variants, what was told apart first: of means where there are.

    Args:
        matched: of runs at matched KL, not as they ended.
    """
    analysis = tables.analysis
    result = []
    for aspect in analysis.aspects:
        verdicts = []
        for variant in aspect.names:
            comparison = tables.comparison(measure.name, aspect.name, variant, matched=matched)
            if comparison is not None:
                verdicts.append(_verdict(analysis, comparison))
        verdicts.sort(key=lambda v: (not v.told_apart, -abs(_difference(analysis, v.comparison))))
        if verdicts:
            result.append((aspect.name, verdicts))
    return sorted(result, key=lambda pair: not pair[1][0].told_apart)


def _verdict(analysis: StudyAnalysis, comparison: StudyComparison) -> Verdict:
    estimate = main_estimate(analysis, comparison)
    if comparison.corrected is not None and comparison.corrected.verdict:
        text = comparison.corrected.verdict
    elif estimate is not None and estimate.verdict:
        text = estimate.verdict
    else:
        text = f"{comparison.variant} and {comparison.against}: {_no_result(comparison)}"
    first, mark, rest = text.partition("; ")
    if comparison.settings > 1 and estimate is not None:
        planned, there = comparison.settings, comparison.settings_finished
        over = f"{there} settings" if there == planned else f"{there} of {planned} settings"
        rest = f"{rest} Mean over {over}.".strip()
    if comparison.span is not None:
        low, high = (fixed(end, 2) for end in comparison.span)
        rest = f"{rest} Between {low} and {high} nats of KL, which every run has been through."
    lacking = list(map(str, comparison.missing_seeds))
    if lacking and estimate is not None:
        rest += f" Without seed{'s' if len(lacking) > 1 else ''} {listed(lacking)}."
    if comparison.items_left_out:
        left = count(comparison.items_left_out, "item")
        rest += f" {left} that some run lacks left out."
    return Verdict(
        comparison=comparison,
        told_apart=distinguished(analysis, comparison),
        first=first,
        rest=mark + rest if mark else rest and f" {rest}",
        expectations=tuple(
            e
            for e in analysis.expectations
            if comparison.span is None and _is_about(analysis, e, comparison)
        ),
    )


def _no_result(comparison: StudyComparison) -> str:
    if comparison.why:
        return f"no result, {comparison.why}."
    if comparison.settings > 1:
        return "no result, since no seed is finished on each side in all settings."
    return "no result, since no seed is finished on each side."


def _difference(analysis: StudyAnalysis, comparison: StudyComparison) -> float:
    estimate = main_estimate(analysis, comparison)
    return 0.0 if estimate is None else estimate.difference


def _is_about(
    analysis: StudyAnalysis, expected: StudyExpectation, comparison: StudyComparison
) -> bool:
    against = expected.against or _baseline(analysis, expected.aspect)
    return (expected.aspect, expected.measure) == (comparison.aspect, comparison.measure) and {
        expected.variant,
        against,
    } == {comparison.variant, comparison.against}


def _baseline(analysis: StudyAnalysis, aspect: str) -> str:
    return next((a.baseline for a in analysis.aspects if a.name == aspect), "")


def headline(tables: Tables, measure: StudyMeasure) -> str:
    """The answer in a sentence."""
    verdicts = [v for _, of_aspect in answers(tables, measure) for v in of_aspect]
    analysis = tables.analysis
    known = [v for v in verdicts if v.comparison.estimands]
    if not known:
        return f"Nothing can be said of {measure.name} yet: no comparison has its runs."
    told = [v.comparison for v in known if v.told_apart]
    if not told:
        return (
            f"On {measure.name}, no choice is told apart from its aspect's baseline "
            f"({count(len(known), 'comparison')})."
        )
    groups: dict[tuple[str, str, str], list[str]] = {}
    for c in told:
        side = "above" if _difference(analysis, c) > 0 else "below"
        groups.setdefault((c.aspect, side, c.against), []).append(c.variant)
    which = "; ".join(
        f"{aspect} {listed(variants)} ({side} {against})"
        for (aspect, side, against), variants in groups.items()
    )
    rest = len(known) - len(told)
    quiet = f" {rest} of {len(known)} comparisons are not told apart." if rest else ""
    return f"On {measure.name}, told apart: {which}.{quiet}"


def expected_words(analysis: StudyAnalysis, e: StudyExpectation) -> str:
    """
    >>> e = StudyExpectation(aspect="data", variant="hh", against="uf", measure="reward",
    ...     direction="higher", smallest=0.02)
    >>> expected_words(StudyAnalysis(), e)
    'data hh higher than uf on reward; at least 0.02 would matter'
    """
    against = e.against or _baseline(analysis, e.aspect)
    if e.direction == "none":
        return f"{e.aspect} {e.variant} within {e.smallest:g} of {against} on {e.measure}"
    return (
        f"{e.aspect} {e.variant} {e.direction} than {against} on {e.measure}; "
        f"at least {e.smallest:g} would matter"
    )


def expected_result(tables: Tables, e: StudyExpectation) -> str:
    """The difference in the expectation's own direction, with its interval."""
    if e.difference is None:
        return ""
    # Comparisons are of a variant less the baseline.
    turned = e.variant == _baseline(tables.analysis, e.aspect)
    places = tables.places.get(e.measure, 3)
    difference, interval = e.difference, e.interval
    if turned:
        difference = -difference
        interval = None if interval is None else (-interval[1], -interval[0])
    return f"{signed(difference, places)} {span(interval, places)}".strip()


def forests(tables: Tables) -> Iterator[Forest]:
    """A forest a measure that has differences with intervals."""
    analysis = tables.analysis
    for measure in analysis.measures:
        of_measure = [
            (c, e)
            for c in analysis.comparisons
            if c.measure == measure.name and (e := main_estimate(analysis, c)) is not None
        ]
        rows = [(c, _forest_row(tables, c)) for c, _ in of_measure]
        groups = {
            "means over settings": tuple(row for c, row in rows if c.settings > 1),
            "single settings": tuple(row for c, row in rows if c.settings == 1),
        }
        kept = tuple(
            (name, members, _reach(members, measure.smallest))
            for name, members in groups.items()
            if members
        )
        if kept:
            yield Forest(
                measure=measure,
                smallest=measure.smallest,
                places=tables.places[measure.name],
                groups=kept,
            )


def _forest_row(tables: Tables, c: StudyComparison) -> ForestRow:
    estimate = main_estimate(tables.analysis, c)
    assert estimate is not None
    places = tables.places[c.measure]
    intervals = {name: e.interval for name, e in c.estimands.items()}
    words = f"{signed(estimate.difference, places)} {span(estimate.interval, places)}"
    return ForestRow(
        label=f"{c.variant} {MINUS} {c.against}",
        at=c.aspect if not c.at else f"{c.aspect}, at {cell_words(c.at)}",
        told_apart=distinguished(tables.analysis, c),
        difference=estimate.difference,
        new_items=intervals.get("new_items"),
        these_items=intervals.get("these_items"),
        words=words.strip(),
    )


def _reach(rows: Sequence[ForestRow], smallest: float | None) -> float:
    """The scale's end: it holds the thick intervals; thin ones of few seeds may leave it."""
    thick = [end for row in rows for end in row.new_items or ()]
    thin = [end for row in rows for end in row.these_items or ()]
    ends = [abs(end) for end in (thick or thin)] + [abs(row.difference) for row in rows]
    return max([*ends, 1.5 * (smallest or 0.0)]) * 1.08 or 1.0


def ratings_reach(ratings: StudyRatings) -> tuple[float, float]:
    """The ends of the scale of ratings: it holds the reference's 0 and all intervals."""
    ends = [end for row in ratings.rows for end in row.interval or () if end is not None]
    ends += [0.0, *(row.points for row in ratings.rows)]
    pad = 0.04 * (max(ends) - min(ends)) or 1.0
    return min(ends) - pad, max(ends) + pad


# What lacks ---------------------------------------------------------------------------------------


def lacking(tables: Tables) -> list[str]:
    """What failed and what is to come, in words."""
    analysis = tables.analysis
    reasons: dict[str, list[str]] = {}
    for key, why in analysis.failures.items():
        reasons.setdefault(why, []).append(key)
    lines = [f"{_stages_words(keys)} failed: {why}" for why, keys in reasons.items()]
    failed = [run for run in analysis.runs if tables.failure(run) is not None]
    waiting = [
        run
        for run in analysis.runs
        if run not in failed and any(value is None for value in run.values.values())
    ]
    if failed:
        lines.append(
            f"{count(len(failed), 'run')} of {len(analysis.runs)} without a result for that: "
            f"{listed(_run_words(run.cell, run.seed) for run in failed[:6])}"
            + (f" and {len(failed) - 6} more." if len(failed) > 6 else ".")
        )
    if waiting and analysis.finished:
        lines.append(
            f"{count(len(waiting), 'run')} of {len(analysis.runs)} not finished: "
            f"{listed(_run_words(run.cell, run.seed) for run in waiting[:6])}"
            + (f" and {len(waiting) - 6} more." if len(waiting) > 6 else ".")
        )
    if len(analysis.seeds) == 1 and analysis.runs:
        lines.append(
            "One seed a cell: what is told apart holds for these trained models, not for another "
            "training of them."
        )
    lines += [f"To come: {line}" for line in analysis.later]
    return lines


def _stages_words(keys: Sequence[str]) -> str:
    shown = [f"`{key.replace('`', '')}`" for key in keys[:4]]
    return listed(shown) if len(keys) <= 4 else f"{', '.join(shown)} and {len(keys) - 4} more"


def _run_words(cell: Choices, seed: int) -> str:
    return f"{cell_words(cell)} seed {seed}"


# Cost and samples ---------------------------------------------------------------------------------


def cell_costs(tables: Tables) -> list[tuple[str, dict[str, str], str, dict[str, int]]]:
    """Cell -> mean seconds of its runs by step, and together; and mean tokens by step."""
    rows = []
    for runs in tables.runs.values():
        members = list(runs.values())
        steps: dict[str, str] = {}
        together = 0.0
        for step in dict.fromkeys(name for run in members for name in run.seconds):
            known = [taken for run in members if (taken := run.seconds.get(step)) is not None]
            if known:
                steps[step] = seconds(fmean(known))
                together += fmean(known)
        tokens = {
            step: round(fmean(run.tokens[step] for run in members if step in run.tokens))
            for step in dict.fromkeys(name for run in members for name in run.tokens)
        }
        words = cell_words(members[0].cell)
        rows.append((words, steps, seconds(together) if steps else "", tokens))
    return rows


def cut(text: str) -> tuple[str, int]:
    """The beginning of a text, and how many more characters it has.

    >>> cut("a" * 700)[1]
    100
    """
    text = text.strip()
    return text[:SHOWN_CHARACTERS], max(0, len(text) - SHOWN_CHARACTERS)


def sampled(sample: StudySample) -> Iterable[tuple[str, str, int, tuple[str, ...]]]:
    """The reference and each cell: who, what it wrote, how much more, and numbers."""
    if sample.reference is not None:
        yield ("reference", *cut(sample.reference), ())
    for entry in sample.cells:
        numbers = {"reward": entry.reward, "KL": entry.kl}
        facts = [f"{name} {fixed(v, 2)}" for name, v in numbers.items() if v is not None]
        if entry.tokens is not None:
            facts.append(count(entry.tokens, "token"))
        yield (cell_words(entry.cell), *cut(entry.response), tuple(facts))
