"""The pictures of a reward evaluation: reliability, accuracy by length and margin, best-of-n."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from palate.report.figures import PIXELS
from palate.report.style import DASHES, Style
from palate.report.svg import MUTED, PAPER, page_style, series_colour, to_svg
from palate.store.reward_records import Bin, Choice, Point, Result

_SIZE = (380 * PIXELS, 260 * PIXELS)
SHOWN_PAIRS = 5
"""Bins of reliability with fewer are left out: their accuracy is noise."""
_FAR = 200
"""Characters: smaller differences in length are drawn to scale."""
_WIDE = (560 * PIXELS, 330 * PIXELS)


def reliability_svg(
    results: Mapping[str, Result], styles: Mapping[str, Style], *, key: str, tempered: bool = False
) -> Markup | None:
    """Accuracy against stated confidence; the diagonal is a calibrated model."""
    series = {
        name: [
            bin
            for bin in (r.calibration.bins_tempered if tempered else r.calibration.bins)
            if bin.n >= SHOWN_PAIRS
        ]
        for name, r in results.items()
    }
    if not any(series.values()):
        return None

    def frame(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, dashes=(2, 2), zorder=1.5)
        axes.set_xlim(0.49, 1.01)
        axes.set_xlabel("confidence, sigmoid of the margin" + (" / T" if tempered else ""))
        axes.xaxis.set_major_formatter(_percent())

    label = f"Reliability plot: accuracy against confidence, for {', '.join(series)}."
    return _binned_svg(series, styles, lambda b: b.confidence, frame, key=key, label=label)


def by_length_svg(
    results: Mapping[str, Result], styles: Mapping[str, Style], *, key: str
) -> Markup | None:
    """Accuracy by how much longer the better response is."""
    series = {name: r.by_length.bins for name, r in results.items()}
    if not any(series.values()):
        return None

    def frame(axes: Axes) -> None:
        axes.axhline(0.5, color=MUTED, linewidth=1, zorder=1.5)
        axes.axvline(0.0, color=MUTED, linewidth=1, dashes=(2, 2), zorder=1.5)
        low, high = axes.get_xlim()
        if max(-low, high) > _FAR:
            axes.set_xscale("symlog", linthresh=100, linscale=0.8)
            low, high = axes.get_xlim()
            ticks = (-10_000, -1_000, -100, 0, 100, 1_000, 10_000)
            axes.set_xticks([tick for tick in ticks if low <= tick <= high])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+,.0f}" if value else "0")
        )
        axes.set_xlabel("characters by which the better response is longer")

    label = f"Line chart: accuracy by difference in length, for {', '.join(series)}."
    return _binned_svg(series, styles, lambda b: b.mean, frame, key=key, label=label)


def by_margin_svg(
    results: Mapping[str, Result], styles: Mapping[str, Style], *, key: str
) -> Markup | None:
    """Accuracy by how much better the data says the better response is."""
    series = {name: r.by_margin.data for name, r in results.items()}
    if not any(series.values()):
        return None

    def frame(axes: Axes) -> None:
        axes.axhline(0.5, color=MUTED, linewidth=1, zorder=1.5)
        axes.set_xlabel("margin in the data")
        axes.xaxis.set_major_locator(MaxNLocator(5))

    label = f"Line chart: accuracy by margin in the data, for {', '.join(series)}."
    return _binned_svg(series, styles, lambda b: b.mean, frame, key=key, label=label)


def best_of_n_svg(
    choices: Mapping[str, Choice], styles: Mapping[str, Style], *, key: str, gold: str
) -> Markup | None:
    """Mean gold score of the best of n, with intervals, and the ceiling of choosing by gold."""
    shown = {name: choice for name, choice in choices.items() if choice.points}
    if not shown:
        return None
    with page_style(for_page=True):
        figure = Figure(figsize=_WIDE, layout="constrained")
        axes = figure.subplots()
        ceiling = max(
            shown.values(), key=lambda choice: (len(choice.points), choice.prompts)
        ).points
        axes.plot(
            [p.n for p in ceiling],
            [_number(p.ceiling) for p in ceiling],
            color=MUTED,
            linewidth=1.2,
            dashes=(2, 2),
            zorder=1.5,
        )
        for name, choice in shown.items():
            _points(axes, choice.points, styles[name], lambda p: p.n)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("n, candidates to choose from")
        axes.set_ylabel("mean gold score of the choice")
        axes.xaxis.grid(False)
        label = f"Line chart: gold score ({gold}) of the best of n, for {', '.join(shown)}."
        return to_svg(figure, key=key, label=label)


def over_optimisation_svg(
    choices: Mapping[str, Choice], styles: Mapping[str, Style], *, key: str, gold: str
) -> Markup | None:
    """Gain of gold (strong lines) and of the proxy itself (thin ones), over distance in nats.

    Each as a share of its own greatest, since their scales have nothing to do with one another.
    """
    shown = {name: choice for name, choice in choices.items() if len(choice.points) > 1}
    if not shown:
        return None
    with page_style(for_page=True):
        figure = Figure(figsize=_WIDE, layout="constrained")
        axes = figure.subplots()
        axes.axhline(0.0, color=MUTED, linewidth=1, zorder=1.5)
        for name, choice in shown.items():
            style = styles[name]
            # What choosing by gold itself gains: the same for all models of the same candidates.
            possible = _number(choice.points[-1].ceiling) - _number(choice.points[0].gold)
            kl = [p.kl for p in choice.points]
            gain = [_number(p.gold) - _number(choice.points[0].gold) for p in choice.points]
            proxy = [_number(p.proxy) - _number(choice.points[0].proxy) for p in choice.points]
            most = max(proxy) or 1.0
            colour = series_colour(style.colour)
            axes.plot(kl, [p / most for p in proxy], color=colour, linewidth=0.9, alpha=0.5)
            axes.plot(
                kl,
                [g / possible if possible > 0 else math.nan for g in gain],
                color=colour,
                dashes=DASHES[style.dash] or (None, None),
                marker=style.marker,
                markersize=5,
                zorder=3,
            )
        axes.set_xlabel("KL from the sampling policy, log n \u2212 (n \u2212 1) / n nats at most")
        axes.set_ylabel("share of the greatest gain")
        axes.yaxis.set_major_formatter(_percent())
        axes.xaxis.grid(False)
        label = (
            f"Line chart: gain under gold ({gold}) and under the proxy itself as n grows, for "
            f"{', '.join(shown)}."
        )
        return to_svg(figure, key=key, label=label)


def _points(axes: Axes, points: Sequence[Point], style: Style, x: Callable[[Point], float]) -> None:
    colour = series_colour(style.colour)
    for point in points:
        if point.gold_ci is not None and None not in point.gold_ci:
            ends = [_number(end) for end in point.gold_ci]
            axes.plot([x(point)] * 2, ends, color=colour, linewidth=1.1, alpha=0.5)
    axes.plot(
        [x(point) for point in points],
        [_number(point.gold) for point in points],
        color=colour,
        dashes=DASHES[style.dash] or (None, None),
        marker=style.marker,
        markersize=5.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        zorder=3,
    )


def _binned_svg(
    series: Mapping[str, Sequence[Bin]],
    styles: Mapping[str, Style],
    x: Callable[[Bin], float | None],
    frame: Callable[[Axes], None],
    *,
    key: str,
    label: str,
) -> Markup:
    with page_style(for_page=True):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for name, bins in series.items():
            style = styles[name]
            colour = series_colour(style.colour)
            for bin in bins:
                if bin.accuracy_ci is not None and None not in bin.accuracy_ci:
                    at = _number(x(bin))
                    ends = [_number(end) for end in bin.accuracy_ci]
                    axes.plot([at, at], ends, color=colour, linewidth=1, alpha=0.45)
            axes.plot(
                [_number(x(bin)) for bin in bins],
                [_number(bin.accuracy) for bin in bins],
                color=colour,
                linewidth=1.6,
                dashes=DASHES[style.dash] or (None, None),
                marker=style.marker,
                markersize=5,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
                zorder=3,
            )
        frame(axes)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(_percent())
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.grid(False)
        return to_svg(figure, key=key, label=label)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{100 * value:.0f}%")
