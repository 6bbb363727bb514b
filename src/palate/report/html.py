"""The report: one HTML file that asks the network for nothing and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from palate.errors import RunError
from palate.io import write_text
from palate.report import words
from palate.report.figures import frontier_svgs, panel_svg
from palate.report.notes import length_note, notes, splits
from palate.report.overview import overview, summary, title_of
from palate.report.panels import metric_groups
from palate.report.points import Frontier, evaluated_losses, frontier_of
from palate.report.reader import Run, read_runs
from palate.report.style import DASHES, PALETTE, Style, Styles
from palate.report.tables import (
    data_views,
    evaluation_views,
    lineage_rows,
    recipe_differences,
    samples_views,
)

NAME = "report.html"
OPEN_PROMPTS = 4
"""Further prompts of the side-by-side samples are folded away."""


def write_report(
    runs: Sequence[str | Path], out: str | Path | None = None, title: str | None = None
) -> Path:
    """Writes one self-contained HTML file about one or more run folders.

    A run need not be finished nor complete: what its folder lacks, the report lacks.

    Args:
        runs: run folders of sft, tune or eval, or a folder with a conclusion.json.
        out: the file, or an existing folder for it. Default: report.html in the run folder; of
            several runs, in the folder that holds them all.
        title: default: made from the runs' names.

    Returns:
        The file written.

    Raises:
        RunError: a folder that is no run, no default place for `out`, or the file cannot be
            written.
    """
    found = read_runs(runs)
    target = _default_out([run.path for run in found]) if out is None else Path(out)
    if target.is_dir():
        target /= NAME
    write_text(target, render(found, title))
    return target


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """The report as text."""
    styles = Styles.of(runs, evaluated_losses(runs))
    frontier = frontier_of(runs, styles)
    trained = [run for run in runs if run.trains]
    made = [run for run in runs if run.lineage is not None]
    groups = metric_groups(runs, styles)
    page = _environment().get_template("report.html.jinja")
    return page.render(
        title=words.plain(title) if title else title_of(runs),
        summary=summary(runs),
        conclusion=[line for run in runs for line in run.conclusion],
        notes=notes(runs),
        overview=overview(runs, styles),
        runs=runs,
        trained=trained,
        differences=recipe_differences(trained) if len(trained) > 1 else [],
        lineage=lineage_rows(made),
        made=made,
        data=data_views(runs),
        groups=[(g, [(p, panel_svg(p)) for p in g.panels]) for g in groups],
        held_out=any(line.held_out for g in groups for p in g.panels for line in p.lines),
        run_keys=[(run.name, styles.by_run[run.name]) for run in trained],
        frontier=frontier,
        frontier_keys=_frontier_keys(frontier),
        frontier_svgs=frontier_svgs(frontier) if frontier else [],
        evaluations=evaluation_views(runs, styles),
        samples=samples_views(runs),
        palette=PALETTE,
    )


def _default_out(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / NAME
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if all(folder in (other, *other.parents) for other in resolved):
            return folder / NAME
    if len({folder.parent for folder in resolved}) == 1:
        return folders[0].parent / NAME
    raise RunError("the runs are in different places: say where the report goes with `out`")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("palate.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "fixed": words.fixed,
        "percent": words.percent,
        "short": lambda value: words.DASH if value is None else f"{value:g}",
        "level": lambda share: f"{100 * share:g}%",
        "span": words.span,
        "seconds": words.seconds,
        "listed": words.listed,
        "swatch": swatch,
        "place": place,
    }
    helpers: dict[str, Any] = {
        "splits": splits,
        "length_note": length_note,
        "count": words.count,
        "open_prompts": OPEN_PROMPTS,
    }
    environment.globals |= helpers
    return environment


def place(value: float | None, low: float, high: float) -> str:
    """Where a value lies between two others, in per cent of the way, kept inside."""
    if value is None or not high > low:
        return "0%"
    return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.2f}%"


_MARKS = {
    "o": '<circle cx="16" cy="6" r="4"/>',
    "s": '<rect x="12.5" y="2.5" width="7" height="7"/>',
    "^": '<path d="M16 1.5 20.5 10h-9z"/>',
    "D": '<path d="M16 1 21 6 16 11 11 6z"/>',
    "v": '<path d="M16 10.5 20.5 2h-9z"/>',
    "P": '<path d="M14.4 1.5h3.2v2.9h2.9v3.2h-2.9v2.9h-3.2V7.6h-2.9V4.4h2.9z"/>',
    "X": '<path d="m13 1 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
}


def swatch(style: Style | None) -> Markup:
    """A series' line and marker as in the figures, for legends and tables."""
    if style is None:
        return Markup("")
    dashes = " ".join(f"{2 * part:g}" for part in DASHES[style.dash])
    return Markup(
        '<svg class="swatch" viewBox="0 0 32 12" aria-hidden="true" style="color:var(--s{})">'
        '<path d="M1 6h30" fill="none" stroke="currentColor" stroke-width="2" '
        'stroke-dasharray="{}"/><g fill="currentColor">{}</g></svg>'
    ).format(style.colour, dashes or "none", Markup(_MARKS[style.marker]))


def _frontier_keys(frontier: Frontier | None) -> list[tuple[str, Style]]:
    return [] if frontier is None else [(series.label, series.style) for series in frontier.series]
