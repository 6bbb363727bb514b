"""The pictures of a study: two measures against each other, a point a run and a mark a cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from palate.report.figures import PIXELS, Ink
from palate.report.study_tables import Mean, Tables
from palate.report.style import MARKERS, PALETTE, Style
from palate.report.svg import page_style, to_svg
from palate.store.study_records import StudyAspect, StudyMeasure


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A cell: the means of two measures with intervals, and the runs that they are of."""

    colour: int
    marker: int
    x: Mean
    y: Mean
    runs: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """
    Attributes:
        colours, markers: the variants that these tell, by aspect; the second may be none.
        words: what their correlation is.
    """

    key: str
    x: StudyMeasure
    y: StudyMeasure
    marks: tuple[Mark, ...]
    colours: tuple[str, tuple[str, ...]]
    markers: tuple[str, tuple[str, ...]] | None
    words: str

    @property
    def keys(self) -> list[tuple[str, Style]]:
        """For a legend: colours, and markers with them where they are of the same aspect."""
        return [(name, Style(colour=i % len(PALETTE))) for i, name in enumerate(self.colours[1])]


def frontiers(tables: Tables) -> Iterator[Scatter]:
    """Reward or win rate against KL, of the same step."""
    measures = tables.analysis.measures
    for kl in (m for m in measures if m.value == "kl"):
        for gain in (m for m in measures if m.value in ("reward", "win_rate")):
            if gain.step == kl.step and (scatter := _scatter(tables, kl, gain)):
                yield scatter


def across_steps(tables: Tables) -> Iterator[Scatter]:
    """Measures of different steps, as a reward model's accuracy and its policy's reward."""
    for x, y in combinations(tables.analysis.measures, 2):
        if x.step != y.step and (scatter := _scatter(tables, x, y)):
            yield scatter


def _scatter(tables: Tables, x: StudyMeasure, y: StudyMeasure) -> Scatter | None:
    analysis = tables.analysis
    varying = [a for a in analysis.aspects if _varies(tables, a)] or list(analysis.aspects)
    first = varying[0]
    second = varying[1] if len(varying) > 1 else None
    marks = []
    for cell, runs in tables.runs.items():
        means = tables.mean([cell], x.name), tables.mean([cell], y.name)
        if means[0] is None or means[1] is None:
            continue
        points = [(run.values.get(x.name), run.values.get(y.name)) for run in runs.values()]
        choices = dict(cell)
        marks.append(
            Mark(
                colour=_index(first, choices.get(first.name)),
                marker=0 if second is None else _index(second, choices.get(second.name)),
                x=means[0],
                y=means[1],
                runs=tuple((a, b) for a, b in points if a is not None and b is not None),
            )
        )
    if len(marks) < 2:
        return None
    words = [c.words for c in analysis.correlations if set(c.names) == {x.name, y.name}]
    numbers = analysis.measures.index(x), analysis.measures.index(y)
    return Scatter(
        key=f"scatter-{numbers[0]}-{numbers[1]}",
        x=x,
        y=y,
        marks=tuple(marks),
        colours=(first.name, tuple(first.names)),
        markers=None if second is None else (second.name, tuple(second.names)),
        words=" ".join(words),
    )


def _varies(tables: Tables, aspect: StudyAspect) -> bool:
    return len({dict(cell).get(aspect.name) for cell in tables.runs}) > 1


def _index(aspect: StudyAspect, variant: str | None) -> int:
    return aspect.names.index(variant) if variant in aspect.names else 0


def scatter_svgs(scatter: Scatter) -> list[tuple[str, Markup]]:
    """For wide and for narrow pages: (class, svg)."""
    label = (
        f"Scatter chart: {scatter.y.name} against {scatter.x.name}, a small point a run and a mark "
        f"with intervals a cell, for {len(scatter.marks)} cells."
    )
    drawn = []
    for kind, (width, height) in {"wide": (760, 400), "narrow": (380, 330)}.items():
        with page_style(for_page=True):
            figure = Figure(figsize=(width * PIXELS, height * PIXELS), layout="constrained")
            draw_scatter(figure.subplots(), scatter, Ink(True))
            drawn.append((kind, to_svg(figure, key=f"{scatter.key}-{kind}", label=label)))
    return drawn


def draw_scatter(axes: Axes, scatter: Scatter, ink: Ink) -> None:
    """Marks above, runs faint below; the scale holds marks and runs, intervals may leave it."""
    crowded = len(scatter.marks) > 20
    for mark in scatter.marks:
        colour = ink.series(Style(colour=mark.colour % len(PALETTE)))
        for a, b in mark.runs:
            axes.plot(a, b, "o", color=colour, markersize=3.2, alpha=0.55, markeredgewidth=0)
    # The scale of what was measured: an interval of two seeds may be many times as wide.
    low_x, high_x = axes.get_xlim()
    low_y, high_y = axes.get_ylim()
    for mark in scatter.marks:
        colour = ink.series(Style(colour=mark.colour % len(PALETTE)))
        x, y = mark.x.value, mark.y.value
        faint = 0.25 if crowded else 0.55
        if mark.x.interval:
            axes.plot(mark.x.interval, (y, y), color=colour, linewidth=1.1, alpha=faint)
        if mark.y.interval:
            axes.plot((x, x), mark.y.interval, color=colour, linewidth=1.1, alpha=faint)
        axes.plot(
            x,
            y,
            MARKERS[mark.marker % len(MARKERS)],
            color=colour,
            markersize=8,
            markeredgecolor=ink.paper,
            markeredgewidth=1,
            zorder=3,
        )
    pad_x, pad_y = 0.12 * (high_x - low_x), 0.12 * (high_y - low_y)
    axes.set_xlim(low_x - pad_x, high_x + pad_x)
    axes.set_ylim(low_y - pad_y, high_y + pad_y)
    axes.set_xlabel(_axis(scatter.x))
    axes.set_ylabel(_axis(scatter.y))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _axis(measure: StudyMeasure) -> str:
    name = measure.name if len(measure.name) <= 44 else f"{measure.name[:43]}…"
    return f"{name} (nats)" if measure.value in ("kl", "forward_kl") else name
