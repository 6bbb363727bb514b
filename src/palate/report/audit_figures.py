"""The figures of an audit: lengths, length against label, margins, images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from palate.report.audit_schema import Bars, LengthGroup, Margin, Summary
from palate.report.figures import PIXELS
from palate.report.style import DASHES, Style
from palate.report.svg import INK, MUTED, PAPER, page_style, series_colour, to_svg

CHOSEN, REJECTED, PROMPT = Style(colour=2), Style(colour=1, dash=1), Style(colour=5, dash=2)
"""Of the parts of a pair, on all figures of the page."""

_SIZE = (380 * PIXELS, 220 * PIXELS)
_PARTS = (("prompt", PROMPT), ("chosen", CHOSEN), ("rejected", REJECTED))


def lengths_svg(summary: Summary, *, key: str, name: str) -> Markup | None:
    """Share of texts by length, a line a part, on a scale of doublings."""
    lengths = summary.length.get("characters", {})
    parts = [(part, style) for part, style in _PARTS if part in lengths and lengths[part].histogram]
    if not parts:
        return None
    with page_style(for_page=True):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for part, style in parts:
            _stairs(axes, lengths[part].histogram, style)
        axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("characters")
        axes.set_ylabel("share, by doubling")
        ticks = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000]
        axes.set_xticks([t for t in ticks if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(_percent())
        axes.xaxis.grid(False)
        label = f"Line chart: lengths of prompts, chosen and rejected responses of {name}."
        return to_svg(figure, key=key, label=label)


def _stairs(axes: Axes, bars: Bars, style: Style) -> None:
    # Few texts make ragged bars: then two or four of them are one.
    texts = sum(bar[2] for bar in bars)
    step = 4 if texts < 200 else 2 if texts < 4000 else 1
    edges = [bar[0] for bar in bars[::step]] + [bars[-1][1]]
    values = np.add.reduceat([float(bar[2]) for bar in bars], np.arange(0, len(bars), step))
    # Bars are of unequal width on any scale: per doubling, heights of neighbours compare.
    low, high = np.maximum(edges[:-1], 0.5), np.maximum(edges[1:], 1.0)
    heights = values / values.sum() / np.maximum(np.log2(high / low), 0.25)
    axes.stairs(
        heights,
        edges,
        color=series_colour(style.colour),
        linewidth=1.8,
        linestyle=(0, DASHES[style.dash]) if DASHES[style.dash] else "solid",
    )


def length_bias_svg(
    groups: Sequence[LengthGroup],
    before: Sequence[LengthGroup],
    *,
    key: str,
    name: str,
) -> Markup | None:
    """Share of pairs whose longer response is chosen, by how much longer it is.

    Args:
        groups: drawn with their intervals. before: the same before curation, drawn faint.
    """
    if not any(group.share is not None for group in groups):
        return None
    with page_style(for_page=True):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        axes.axhline(0.5, color=MUTED, linewidth=1, zorder=1.5)
        if len(before) == len(groups):
            _bias(axes, before, faint=True)
        _bias(axes, groups, faint=False)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_xticks(range(len(groups)), [_reach(group) for group in groups])
        axes.tick_params(axis="x", labelsize=8.5)
        axes.set_xlabel("difference in length, characters")
        axes.set_ylabel("longer one is chosen")
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(_percent())
        axes.xaxis.grid(False)
        label = (
            f"Dot plot: how often the longer response is the chosen one in {name}, by the "
            "difference in length. The table that follows has the numbers."
        )
        return to_svg(figure, key=key, label=label)


def _bias(axes: Axes, groups: Sequence[LengthGroup], *, faint: bool) -> None:
    known = [(i, group) for i, group in enumerate(groups) if group.share is not None]
    colour = MUTED if faint else series_colour(0)
    x = [i for i, _ in known]
    y = [group.share for _, group in known]
    axes.plot(
        x,
        y,  # type: ignore[arg-type]
        color=colour,
        linewidth=1.1,
        alpha=0.7,
        dashes=(2, 2) if faint else (None, None),
        marker=None if faint else "o",
        markersize=6,
        markeredgecolor=PAPER,
        zorder=2.5 if faint else 4,
    )
    if faint:
        return
    for i, group in known:
        if group.ci is not None and None not in group.ci:
            axes.plot([i, i], list(group.ci), color=colour, linewidth=1.6, zorder=3)  # type: ignore[arg-type]


def _reach(group: LengthGroup) -> str:
    if group.below is None:
        return f"{group.low}+"
    return f"{group.low}\N{EN DASH}{group.below - 1}"


def margins_svg(margin: Margin, *, key: str, name: str) -> Markup | None:
    """Pairs by margin; those below zero in another colour."""
    if not margin.histogram:
        return None
    with page_style(for_page=True):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for low, below, count in margin.histogram:
            style = REJECTED if low < 0 else CHOSEN
            axes.bar(
                low,
                count,
                width=(below - low) * 0.92,
                align="edge",
                color=series_colour(style.colour),
            )
        if margin.negative:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel("chosen score minus rejected score")
        axes.set_ylabel("pairs")
        axes.xaxis.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        label = f"Histogram: margins of {name}."
        return to_svg(figure, key=key, label=label)


def image_bars_svg(bars: Bars, *, key: str, axis: str, label: str) -> Markup | None:
    """Images by a measure, a bar of equal width each range; ranges that nothing is in are left out
    at both ends.

    Args:
        axis: what is measured. label: read out for the figure.
    """
    used = [i for i, bar in enumerate(bars) if bar[2]]
    if not used:
        return None
    shown = bars[used[0] : used[-1] + 1]
    with page_style(for_page=True):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(shown)), [bar[2] for bar in shown], width=0.86, color=series_colour(0))
        axes.set_xlim(-0.6, max(len(shown), 3) - 0.4)
        axes.set_xticks(range(len(shown)), [_range(*bar[:2]) for bar in shown])
        axes.tick_params(axis="x", labelsize=8.5, labelrotation=35 if len(shown) > 5 else 0)
        axes.set_xlabel(axis)
        axes.set_ylabel("images")
        axes.xaxis.grid(False)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return to_svg(figure, key=key, label=label)


def _range(low: float, below: float) -> str:
    if low <= 0:
        return f"< {below:g}"
    return (
        f"\N{GREATER-THAN OR EQUAL TO} {low:g}" if below >= 1e6 else f"{low:g}\N{EN DASH}{below:g}"
    )


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{100 * value:.0f}%")
