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
from palate.report.study_tables import Cell, Mean, Tables
from palate.report.style import MARKERS, PALETTE, Style
from palate.report.svg import page_style, to_svg
from palate.store.study_records import StudyAspect, StudyMeasure

NOT_JUDGED = ("kl", "forward_kl", "entropy", "tokens", "self_bleu")
"""Measures that say how, not how well."""
GAINS = ("reward", "win_rate", "length_controlled_win_rate", "best_of_n")
NAMED_CELLS = 21
"""More cells than these have no names in a legend."""

Legend = tuple[str, tuple[tuple[str, int, int | None], ...]]
"""What it tells, and its entries: name, marker, colour."""


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
        legends: what colours and markers tell.
        words: what the correlation is. hidden: aspects that no mark tells.
    """

    key: str
    x: StudyMeasure
    y: StudyMeasure
    marks: tuple[Mark, ...]
    legends: tuple[Legend, ...]
    words: str
    hidden: tuple[str, ...] = ()


def frontiers(tables: Tables) -> Iterator[Scatter]:
    """Rewards and win rates against KL, of the same step."""
    measures = tables.analysis.measures
    for kl in (m for m in measures if m.value == "kl"):
        for gain in (m for m in measures if m.value in GAINS):
            if gain.step == kl.step and (scatter := _scatter(tables, kl, gain)):
                yield scatter


def across_steps(tables: Tables) -> Iterator[Scatter]:
    """Measures of different steps, as a reward model's accuracy and its policy's reward."""
    judged = [m for m in tables.analysis.measures if m.value not in NOT_JUDGED]
    for x, y in combinations(judged, 2):
        if x.step != y.step and (scatter := _scatter(tables, x, y)):
            yield scatter


def _scatter(tables: Tables, x: StudyMeasure, y: StudyMeasure) -> Scatter | None:
    analysis = tables.analysis
    drawn = _legends(tables)
    marks = []
    for cell, runs in tables.runs.items():
        means = tables.mean([cell], x.name), tables.mean([cell], y.name)
        if means[0] is None or means[1] is None:
            continue
        points = [(run.values.get(x.name), run.values.get(y.name)) for run in runs.values()]
        colour, marker = drawn.looks[cell]
        marks.append(
            Mark(
                colour=colour,
                marker=marker,
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
        legends=drawn.legends,
        words=" ".join(words),
        hidden=drawn.hidden,
    )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How cells look: (colour, marker) of each."""

    looks: dict[Cell, tuple[int, int]]
    legends: tuple[Legend, ...]
    hidden: tuple[str, ...]


def _legends(tables: Tables) -> Drawn:
    """Colour by the first aspect that varies, marker by the second; of more aspects each cell has
    its own look, as long as there are few."""
    aspects = [a for a in tables.analysis.aspects if _varies(tables, a)]
    cells = list(tables.runs)
    if not aspects or (len(aspects) > 2 and len(cells) <= NAMED_CELLS):
        looks = {cell: (i, i + i // len(PALETTE)) for i, cell in enumerate(cells)}
        entries = tuple((_deviation(tables, c), looks[c][1], looks[c][0]) for c in cells)
        return Drawn(looks=looks, legends=(("cell", entries),), hidden=())
    first, second = aspects[0], aspects[1] if len(aspects) > 1 else None
    looks = {
        cell: (
            _index(first, dict(cell).get(first.name)),
            0 if second is None else _index(second, dict(cell).get(second.name)),
        )
        for cell in cells
    }
    legends: list[Legend] = [
        (first.name, tuple((name, 0, i) for i, name in enumerate(first.names)))
    ]
    if second is not None:
        legends.append((second.name, tuple((name, i, None) for i, name in enumerate(second.names))))
    hidden = tuple(aspect.name for aspect in aspects[2:])
    return Drawn(looks=looks, legends=tuple(legends), hidden=hidden)


def _deviation(tables: Tables, cell: Cell) -> str:
    """Where a cell leaves the baselines."""
    bases = {aspect.name: aspect.baseline for aspect in tables.analysis.aspects}
    parts = [f"{name} {variant}" for name, variant in cell if bases.get(name) != variant]
    return ", ".join(parts) or "all baselines"


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
            markersize=9,
            markeredgecolor=ink.paper,
            markeredgewidth=0.8,
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
