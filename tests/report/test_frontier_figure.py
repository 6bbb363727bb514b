"""The frontier's picture shows what was measured, and where methods can be compared."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from palate.report import figures, read_run
from palate.report.figures import Ink, draw_frontier
from palate.report.points import Frontier, Point, Series
from palate.report.style import Style
from synthetic_runs import demo


def point(kl: float, reward: float) -> Point:
    return Point(
        label="p",
        checkpoint=1,
        beta=0.1,
        kl=kl,
        reward=reward,
        kl_ci=(kl * 0.9, kl * 1.1),
        reward_ci=(reward - 0.1, reward + 0.1),
        n=8,
    )


FRONTIER = Frontier(
    series=(
        Series(label="DPO", style=Style(colour=0), runs=((point(2, 0.6), point(24, 0.97)),)),
        Series(label="TDPO1", style=Style(colour=1), runs=((point(2.1, 0.6), point(40, 0.99)),)),
        Series(label="TDPO2", style=Style(colour=2), runs=((point(1.5, 0.5), point(3.4, 0.7)),)),
    ),
    reference=Point(
        label="reference",
        checkpoint=None,
        beta=None,
        kl=0.0,
        reward=0.38,
        kl_ci=None,
        reward_ci=(0.3, 0.5),
        n=8,
    ),
)


@pytest.fixture
def axes():
    axes = Figure().subplots()
    draw_frontier(axes, FRONTIER, Ink(False))
    return axes


def test_only_marks_are_solid_and_nothing_leaves_the_reference(axes):
    measured = {(p.kl, p.reward) for s in FRONTIER.series for run in s.runs for p in run}
    marked, joined = set(), 0
    for line in axes.get_lines():
        points = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        if line.get_marker() not in ("None", None, ""):
            assert line.get_linestyle() == "None"
            marked |= set(points)
        elif len(measured & set(points)) > 1:
            joined += 1
            assert line.get_linestyle() == "--", "dots, not a line"
            assert (0.0, 0.38) not in points, "a chord from the reference is no measurement"
    assert marked == measured | {(0, 0.38)} and joined == 3


def test_every_point_has_its_intervals(axes):
    ends = {
        (tuple(line.get_xdata()), tuple(line.get_ydata()))
        for line in axes.get_lines()
        if len(line.get_xdata()) == 2
    }
    for series in FRONTIER.series:
        for p in series.runs[0]:
            assert (p.kl_ci, (p.reward, p.reward)) in ends
            assert ((p.kl, p.kl), p.reward_ci) in ends


def test_the_band_ends_where_the_first_method_does(axes):
    (band,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (band.get_x(), band.get_width()) == (0, pytest.approx(3.4))
    assert FRONTIER.beyond == ["DPO", "TDPO1"]
    alone = Frontier(series=FRONTIER.series[:1], reference=None)
    assert alone.reached_by_all is None and alone.beyond == []


def test_the_page_says_what_is_measured_and_where_methods_compare(tmp_path):
    from palate.report import write_report

    page = " ".join(write_report(demo(tmp_path)).read_text().split())
    assert "Only the marks are measured" in page and "Lines join" not in page
    assert "All have been measured up to 8.0 nats, the grey band; further out only" in page
    assert "are not told apart by this chart" in page


def test_the_legend_names_what_is_not_measured(tmp_path):
    runs = [read_run(path) for path in demo(tmp_path)]
    styles = figures.Styles.of(runs, figures.evaluated_losses(runs))
    (legend,) = figures._frontier_figure(runs, styles).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["DPO", "TDPO1", "TDPO2", "reference", figures.ORDER, figures.REACHED]
