"""Tables and findings of a reward evaluation as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from palate.report.reader import Run
from palate.report.reward_figures import (
    best_of_n_svg,
    by_length_svg,
    by_margin_svg,
    over_optimisation_svg,
    reliability_svg,
)
from palate.report.style import DASHES, PALETTE, Style
from palate.report.words import count, listed
from palate.store.records import Interval
from palate.store.reward_records import (
    Benchmark,
    Column,
    Look,
    Official,
    Result,
    RewardEvaluation,
)

OPEN_SOURCES = 12
"""Rows; longer tables by source are folded away."""

BASELINES = {"longer": "the longer one wins", "shorter": "the shorter one wins"}
ASIDES = {
    "with_prior": "with prior sets",
    "by_old_counts": "by old counts",
    "legacy_macro": "macro, R1-Reward's groups",
}
"""What stands beside a score: key in its detail, and heading."""
ABOUT = {
    "with_prior": "With prior sets: sections weigh 2 each, the prior sets 1.",
    "by_old_counts": (
        "By old counts: as rewardbench weighed the two xstest subsets up to its version 0.1.2."
    ),
    "legacy_macro": (
        "R1-Reward's groups: its script has 301 pairs of hallucination among the general ones."
    ),
}
TIES = {
    "tied_accuracy": "right, several answers",
    "ref_accuracy": "right, one answer",
    "preferred": "gap over spread",
    "preferred_hard": "both gaps over spread",
}
"""What the subset Ties of RewardBench 2 is made of."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure with its heading."""

    title: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class BenchmarkView:
    """One benchmark.

    Attributes:
        columns: names of what the headline is made of. official: (name, style, official) of models
            and baselines; baselines have no style.
        sources: (model, style, source, accuracy) rows. bounds: of the drawn accuracies.
        changes: (words, rejected alone, model, style, robust) rows.
    """

    key: str
    benchmark: Benchmark
    columns: tuple[str, ...]
    official: tuple[tuple[str, Style | None, Official], ...]
    results: tuple[tuple[str, Style, Result], ...]
    panels: tuple[Panel, ...]
    bounds: tuple[float, float]

    @property
    def has_headline(self) -> bool:
        return any(official.value is not None for _, _, official in self.official)

    @property
    def is_accuracy(self) -> bool:
        """Whether the score is the accuracy itself, which has a table of its own."""
        return self.columns == ("accuracy",)

    @property
    def asides(self) -> list[tuple[str, str]]:
        """Key and heading of what some model's score has beside it."""
        officials = [official for _, _, official in self.official]
        return [(k, word) for k, word in ASIDES.items() if any(self.aside(o, k) for o in officials)]

    def aside(self, official: Official, key: str) -> float | None:
        """What stands beside a score."""
        return _real(official.detail.get(key))

    @property
    def about_asides(self) -> str:
        """What stands beside the score, in sentences."""
        return " ".join(ABOUT[key] for key, _ in self.asides)

    @property
    def matrices(self) -> list[tuple[str, Style | None, list[tuple[str, list[float | None]]]]]:
        """Name, style and rows (style of the right answer, accuracies against each) of RM-Bench."""
        matrices = []
        for name, style, official in self.official:
            styles, rows = official.detail.get("styles"), official.detail.get("matrix")
            if isinstance(styles, list) and isinstance(rows, list) and len(styles) == len(rows):
                shares = [[_real(v) for v in row] if isinstance(row, list) else [] for row in rows]
                matrices.append((name, style, list(zip(map(str, styles), shares, strict=True))))
        return matrices

    @property
    def ties(self) -> list[tuple[str, Style | None, dict[str, float | None]]]:
        """Name, style and parts of the subset Ties of RewardBench 2."""
        return [
            (name, style, {key: _real(value) for key, value in official.detail["ties"].items()})
            for name, style, official in self.official
            if isinstance(official.detail.get("ties"), dict)
        ]

    @property
    def ties_parts(self) -> dict[str, str]:
        """Key and heading of the parts of Ties that are shares."""
        return TIES

    @property
    def compared(self) -> int:
        """Pairs that the robustness checks compare, at most."""
        return max((c.n for _, _, r in self.results for c in r.robustness), default=0)

    def in_points(self, ci: Interval | None) -> list[float | None] | None:
        """An interval of shares in points of a hundred; None where nothing varied."""
        if ci is None or ci[0] == ci[1]:
            return None
        return [None if end is None else 100 * end for end in ci]

    @property
    def sources(self) -> list[str]:
        """Sources beside `all`, where there are several."""
        names = list(dict.fromkeys(s for _, _, r in self.results for s in r.accuracy))
        names = [name for name in names if name != "all"]
        return names if len(names) > 1 else []

    @property
    def folds_sources(self) -> bool:
        """Whether the table by source is too long to stand open."""
        return len(self.sources) * len(self.results) > OPEN_SOURCES

    @property
    def looks(self) -> list[tuple[str, Style, Look]]:
        """Name, style and what the images are worth, of models that were asked."""
        return [(name, style, r.look) for name, style, r in self.results if r.look is not None]

    @property
    def changes(self) -> list[tuple[str, bool]]:
        """(words, rejected alone) of the robustness checks."""
        changes = [(c.words, c.rejected_only) for _, _, r in self.results for c in r.robustness]
        return list(dict.fromkeys(changes))

    def column(self, official: Official, name: str) -> Column | None:
        return next((c for c in official.columns if c.name == name), None)


@dataclass(frozen=True, kw_only=True)
class RewardView:
    """One reward evaluation.

    Attributes:
        keys: (model, style) for legends.
    """

    name: str
    evaluation: RewardEvaluation
    styles: dict[str, Style]
    benchmarks: tuple[BenchmarkView, ...]
    best_of_n: tuple[Panel, ...]

    @property
    def keys(self) -> list[tuple[str, Style]]:
        return list(self.styles.items())


def reward_views(runs: Sequence[Run]) -> list[RewardView]:
    """Views of the runs that are reward evaluations."""
    views = []
    for number, run in enumerate(runs):
        if run.rewards is None:
            continue
        styles = {
            model.name: Style(colour=i % len(PALETTE), dash=i % len(DASHES))
            for i, model in enumerate(run.rewards.models)
        }
        views.append(
            RewardView(
                name=run.name,
                evaluation=run.rewards,
                styles=styles,
                benchmarks=tuple(
                    _benchmark(benchmark, styles, f"reward-{number}-{i}")
                    for i, benchmark in enumerate(run.rewards.benchmarks)
                ),
                best_of_n=tuple(_choices(run.rewards, styles, f"reward-{number}")),
            )
        )
    return views


def _benchmark(benchmark: Benchmark, styles: dict[str, Style], key: str) -> BenchmarkView:
    results = {name: r for name, r in benchmark.results.items() if name in styles}
    official: list[tuple[str, Style | None, Official]] = [
        (name, styles[name], result.official) for name, result in results.items()
    ]
    official += [
        (words, None, benchmark.baselines[kind])
        for kind, words in BASELINES.items()
        if kind in benchmark.baselines
    ]
    columns = list(dict.fromkeys(c.name for _, _, o in official for c in o.columns))
    drawn = [
        ("Reliability", reliability_svg(results, styles, key=f"{key}-reliability")),
        (
            "The same at the best temperature",
            reliability_svg(results, styles, key=f"{key}-tempered", tempered=True),
        ),
        ("Accuracy by length", by_length_svg(results, styles, key=f"{key}-length")),
        ("Accuracy by margin", by_margin_svg(results, styles, key=f"{key}-margin")),
    ]
    ends = [0.5]
    for result in results.values():
        for accuracy in result.accuracy.values():
            ends += [end for end in accuracy.accuracy_ci or () if end is not None]
            ends += [accuracy.length_baseline] if accuracy.length_baseline is not None else []
    low, high = min(ends), max(ends)
    pad = 0.02 + 0.05 * (high - low)
    return BenchmarkView(
        key=key,
        benchmark=benchmark,
        columns=tuple(columns),
        official=tuple(official),
        results=tuple((name, styles[name], result) for name, result in results.items()),
        panels=tuple(Panel(title=title, svg=svg) for title, svg in drawn if svg is not None),
        bounds=(max(0.0, low - pad), min(1.0, high + pad)),
    )


def _choices(evaluation: RewardEvaluation, styles: dict[str, Style], key: str) -> Iterator[Panel]:
    if evaluation.best_of_n is None:
        return
    gold = evaluation.best_of_n.gold
    choices = {name: c for name, c in evaluation.best_of_n.models.items() if name in styles}
    best = best_of_n_svg(choices, styles, key=f"{key}-bon", gold=gold)
    if best is not None:
        yield Panel(title=f"Best of n under {gold}", svg=best)
    over = over_optimisation_svg(choices, styles, key=f"{key}-over", gold=gold)
    if over is not None:
        yield Panel(title="Over-optimisation", svg=over)


def reward_summary(evaluation: RewardEvaluation) -> str:
    """One sentence: how many models on what."""
    sets = [f"{b.name} ({count(b.pairs, 'pair')})" for b in evaluation.benchmarks]
    if evaluation.best_of_n is not None:
        most = max((c.candidates for c in evaluation.best_of_n.models.values()), default=0)
        sets.append(f"best-of-n over {count(most, 'candidate')}")
    return f"{count(len(evaluation.models), 'reward model')} on {listed(sets)}."


def _real(value: object) -> float | None:
    """The number, or None for any other value: details are not checked when they are read."""
    return float(value) if isinstance(value, int | float) else None
