"""The pictures: curves of a run's metrics, and the frontier of reward against sequence KL."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from palate.errors import RunError
from palate.report.curves import Floats, pieces, smooth, thin
from palate.report.panels import Line, Mark, Panel, kl_panels
from palate.report.points import Frontier, Point, evaluated_losses, frontier_of
from palate.report.reader import Run, read_runs
from palate.report.style import DASHES, PALETTE, Style, Styles
from palate.report.svg import GRID, INK, MUTED, PAPER, page_style, series_colour, to_svg
from palate.store.files import write_bytes

PIXELS = 1 / 72
"""Inches: an SVG of matplotlib has 72 units an inch."""

UNMEASURED: dict[str, Any] = {"linewidth": 1.0, "dashes": (1, 3)}
"""How what joins two checkpoints is drawn."""
NEAR = 0.06
"""Marks closer than this share of the axis have one label."""
ORDER = "order of checkpoints, not measured"
REACHED = "KL that every method has reached"

Kind = Literal["frontier", "kl"]


@dataclass(frozen=True)
class Ink:
    """Colours of one medium: stand-ins for the page, real ones for a file."""

    for_page: bool

    def series(self, style: Style) -> str:
        return series_colour(style.colour) if self.for_page else PALETTE[style.colour][0]

    @property
    def ink(self) -> str:
        return INK if self.for_page else "#1b1d1f"

    @property
    def muted(self) -> str:
        return MUTED if self.for_page else "#5a5f66"

    @property
    def grid(self) -> str:
        return GRID if self.for_page else "#e3e2dd"

    @property
    def paper(self) -> str:
        return PAPER if self.for_page else "#ffffff"


def panel_svg(panel: Panel) -> Markup:
    """A metric of one or more runs over training."""
    with page_style(for_page=True):
        figure = Figure(figsize=(380 * PIXELS, 236 * PIXELS), layout="constrained")
        draw_panel(figure.subplots(), panel, Ink(True))
        names = ", ".join(dict.fromkeys(line.label for line in panel.lines))
        label = f"Line chart: {panel.title} ({panel.unit}) over training, for {names}."
        return to_svg(figure, key=panel.key, label=label)


def draw_panel(axes: Axes, panel: Panel, ink: Ink) -> None:
    """Training curves thin with their running mean on top, held-out values as marks."""
    by_examples = all(line.curve.examples is not None for line in panel.lines)
    if panel.level is not None:
        axes.axhline(panel.level, color=ink.muted, linewidth=1, zorder=1.5)
    for line in panel.lines:
        examples = line.curve.examples
        at = line.curve.step if examples is None or not by_examples else examples
        _draw_line(axes, at, line, ink)
    if panel.limits is not None:
        axes.set_ylim(panel.limits)
    if not by_examples:
        _draw_marks(axes, panel.marks, ink)
    axes.set_xlabel("pairs seen" if by_examples else "optimizer steps")
    axes.set_ylabel(panel.unit)
    axes.xaxis.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _draw_marks(axes: Axes, marks: Sequence[Mark], ink: Ink) -> None:
    """Dashed lines with their labels above the axes; the labels of near ones are put together."""
    low, high = axes.get_xlim()
    placed: list[tuple[float, str]] = []
    for mark in marks:
        colour = ink.ink if mark.style is None else ink.series(mark.style)
        axes.axvline(mark.step, color=colour, linewidth=1.1, dashes=(3, 2), zorder=2)
        if placed and mark.step - placed[-1][0] < NEAR * (high - low):
            placed[-1] = (placed[-1][0], f"{placed[-1][1]}, {mark.label}")
        else:
            placed.append((mark.step, mark.label))
    for step, label in placed:
        axes.annotate(
            label,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=10,
            color=ink.ink,
            annotation_clip=False,
        )


def _draw_line(axes: Axes, at: Floats, line: Line, ink: Ink) -> None:
    colour, dash = ink.series(line.style), DASHES[line.style.dash]
    x, y = thin(at, line.curve.value)
    if line.held_out:
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=1,
            dashes=(1, 2),
            marker=line.style.marker,
            markersize=5.5,
            markerfacecolor=ink.paper,
            markeredgewidth=1.6,
            markevery=max(1, len(x) // 16),
            zorder=3,
        )
        return
    mean = smooth(y)
    if mean is not None:
        axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.22)
    shown = y if mean is None else mean
    # A lone point between gaps has no line to show it.
    lone = [s.start for s in pieces(shown) if s.stop - s.start == 1]
    axes.plot(
        x,
        shown,
        color=colour,
        dashes=dash or (None, None),
        marker=line.style.marker if lone else None,
        markevery=lone or None,
        markersize=5,
        zorder=2.5,
    )


def frontier_svgs(frontier: Frontier) -> list[tuple[str, Markup]]:
    """The frontier for wide and for narrow pages: (class, svg)."""
    names = ", ".join(series.label for series in frontier.series)
    label = (
        "Scatter chart: mean reward of a policy's samples against its sequence KL from the "
        f"reference, for {names}, with intervals. The table of its points follows."
    )
    drawn = []
    for kind, (width, height) in {"wide": (760, 430), "narrow": (380, 350)}.items():
        with page_style(for_page=True):
            figure = Figure(figsize=(width * PIXELS, height * PIXELS), layout="constrained")
            draw_frontier(figure.subplots(), frontier, Ink(True))
            drawn.append((kind, to_svg(figure, key=f"frontier-{kind}", label=label)))
    return drawn


def draw_frontier(axes: Axes, frontier: Frontier, ink: Ink) -> None:
    """One mark a checkpoint, with its intervals.

    Faint dots join the checkpoints of a run in their order: a line would pass for measurements,
    and its chord from the reference for the best there is at a KL that nobody tried. A grey band
    is the KL that every method has reached, where alone they can be compared.
    """
    reference = frontier.reference
    if frontier.reached_by_all is not None:
        axes.axvspan(0, frontier.reached_by_all, color=ink.grid, alpha=0.45, linewidth=0, zorder=0)
    if reference is not None:
        axes.axhline(reference.reward, color=ink.muted, linewidth=1, dashes=(2, 2), zorder=1.5)
        _whiskers(axes, [reference], ink.muted)
        star: dict[str, Any] = {"color": ink.ink, "marker": "*", "markersize": 13, "linestyle": ""}
        axes.plot([0], [reference.reward], zorder=5, **star)
    for series in frontier.series:
        colour = ink.series(series.style)
        for run in series.runs:
            axes.plot(
                [point.kl for point in run],
                [point.reward for point in run],
                color=colour,
                alpha=0.6,
                zorder=1.8,
                **UNMEASURED,
            )
            _whiskers(axes, run, colour)
            axes.plot(
                [point.kl for point in run],
                [point.reward for point in run],
                color=colour,
                marker=series.style.marker,
                markersize=7.5,
                markeredgecolor=ink.paper,
                markeredgewidth=1,
                linestyle="",
                zorder=4,
            )
            if series.marks_beta and run[-1].beta is not None:
                axes.annotate(
                    f"β {run[-1].beta:g}",
                    (run[-1].kl, run[-1].reward),
                    xytext=(7, -3),
                    textcoords="offset points",
                    fontsize=10,
                    color=ink.muted,
                )
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel("KL(policy ‖ reference) of a response, nats")
    axes.set_ylabel("mean reward of samples")
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _whiskers(axes: Axes, points: Sequence[Point], colour: str) -> None:
    for point in points:
        for ci, across in ((point.reward_ci, False), (point.kl_ci, True)):
            if ci is None:
                continue
            x = ci if across else (point.kl, point.kl)
            y = (point.reward, point.reward) if across else ci
            axes.plot(x, y, color=colour, linewidth=1.1, alpha=0.55, zorder=2)


def figure_png(runs: Sequence[str | Path], path: str | Path, kind: Kind = "frontier") -> Path:
    """Writes one figure of one or more run folders as PNG, for pages that take no SVG.

    Args:
        runs: run folders. kind: `frontier` (reward against sequence KL) or `kl` (sequence KL of
            chosen and rejected responses, and its margin, over training).

    Raises:
        RunError: a folder that is no run, or nothing in them to draw.
    """
    read = read_runs(runs)
    styles = Styles.of(read, evaluated_losses(read))
    with page_style(for_page=False):
        make = _frontier_figure if kind == "frontier" else _kl_figure
        figure = make(read, styles)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return Path(path)


def _frontier_figure(runs: Sequence[Run], styles: Styles) -> Figure:
    frontier = frontier_of(runs, styles)
    if frontier is None:
        raise RunError("no evaluation of these runs has both reward and KL of samples: no frontier")
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    ink = Ink(False)
    draw_frontier(axes, frontier, ink)
    handles: list[Artist] = [_mark(s.label, s.style, ink) for s in frontier.series]
    if frontier.reference is not None:
        star: dict[str, Any] = {"color": ink.ink, "marker": "*", "markersize": 12, "linestyle": ""}
        handles.append(Line2D([], [], label="reference", **star))
    if any(len(run) > 1 for series in frontier.series for run in series.runs):
        handles.append(Line2D([], [], label=ORDER, color=ink.muted, **UNMEASURED))
    if frontier.reached_by_all is not None:
        handles.append(Patch(label=REACHED, color=ink.grid, alpha=0.45))
    # Below the axes: inside, it could lie on a point.
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=3)
    axes.set_title("Reward against distance from the reference", loc="left")
    return figure


def _kl_figure(runs: Sequence[Run], styles: Styles) -> Figure:
    panels = kl_panels(runs, styles)
    if not panels:
        raise RunError("no metrics of these runs have kl/chosen or kl/rejected: nothing to draw")
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    ink = Ink(False)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_panel(axes, panel, ink)
        axes.set_title(panel.title, loc="left")
    shown = [run for run in runs if run.name in styles.by_run]
    figure.legend(
        handles=[_handle(run.name, styles.by_run[run.name], ink) for run in shown],
        frameon=False,
        loc="outside lower center",
        ncols=min(4, len(shown)),
    )
    return figure


def _handle(label: str, style: Style, ink: Ink) -> Line2D:
    line = Line2D([], [], color=ink.series(style), label=label)
    if DASHES[style.dash]:
        line.set_dashes(DASHES[style.dash])
    return line


def _mark(label: str, style: Style, ink: Ink) -> Line2D:
    mark: dict[str, Any] = {"marker": style.marker, "markersize": 7.5, "linestyle": ""}
    return Line2D([], [], color=ink.series(style), label=label, **mark)
