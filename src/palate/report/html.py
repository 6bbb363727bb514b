"""The report: one HTML file that asks the network for nothing and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palate.errors import RunError
from palate.report import words
from palate.report.audit import is_audit, write_audit_report
from palate.report.figures import frontier_svgs, panel_svg
from palate.report.notes import notes
from palate.report.overview import overview, summary, title_of
from palate.report.page import environment
from palate.report.panels import metric_groups
from palate.report.points import Frontier, evaluated_losses, frontier_of
from palate.report.reader import Run, read_runs
from palate.report.reward_figures import SHOWN_PAIRS
from palate.report.reward_views import reward_views
from palate.report.rl_alarms import alarms_of
from palate.report.rl_views import online_views
from palate.report.style import PALETTE, Style, Styles
from palate.report.tables import (
    data_views,
    evaluation_views,
    lineage_rows,
    recipe_differences,
    samples_views,
)
from palate.report.wrong_pairs import held_out_errors
from palate.store.files import read_json, write_text
from palate.store.pictures import PictureBudget

NAME = "report.html"


def write_report(
    runs: Sequence[str | Path], out: str | Path | None = None, title: str | None = None
) -> Path:
    """Writes one self-contained HTML file about one or more run folders.

    A run need not be finished nor complete: what its folder lacks, the report lacks.

    Args:
        runs: run folders of sft, tune, rl or eval, or a folder with a conclusion.json; or one
            folder of `palate data`, alone.
        out: the file, or an existing folder for it. Default: report.html in the run folder; of
            several runs, in the folder that holds them all.
        title: default: made from the runs' names.

    Returns:
        The file written.

    Raises:
        RunError: a folder that is no run, no default place for `out`, or the file cannot be
            written.
    """
    if data := [folder for folder in map(Path, runs) if _holds_data(folder)]:
        if len(runs) > 1:
            raise RunError(f"{data[0]} holds built data, no run: report it alone")
        return write_audit_report(data[0], out, title)
    read = read_runs(runs)
    target = _default_out([run.path for run in read]) if out is None else Path(out)
    if target.is_dir():
        target /= NAME
    write_text(target, render(read, title))
    return target


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """The report as text."""
    styles = Styles.of(runs, evaluated_losses(runs))
    frontier = frontier_of(runs, styles)
    trained = [run for run in runs if run.trains]
    made = [run for run in runs if run.lineage is not None]
    alarms = alarms_of(runs, styles)
    groups = metric_groups(runs, styles, alarms)
    budget = PictureBudget()
    page = environment().get_template("report.html.jinja")
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
        alarms=alarms,
        online=online_views(runs, styles, budget),
        frontier=frontier,
        frontier_keys=_frontier_keys(frontier),
        frontier_svgs=frontier_svgs(frontier) if frontier else [],
        evaluations=evaluation_views(runs, styles),
        samples=samples_views(runs),
        rewards=reward_views(runs, budget),
        held_out_errors=held_out_errors(runs, budget),
        shown_pairs=SHOWN_PAIRS,
        palette=PALETTE,
    )


def _holds_data(folder: Path) -> bool:
    path = folder / "data.json"
    try:
        return path.is_file() and is_audit(read_json(path))
    except RunError:
        # A damaged file of a run is said in its report.
        return False


def _default_out(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / NAME
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if all(folder in (folder_of_run, *folder_of_run.parents) for folder_of_run in resolved):
            return folder / NAME
    if len({folder.parent for folder in resolved}) == 1:
        return folders[0].parent / NAME
    raise RunError("the runs are in different places: say where the report goes with `out`")


def _frontier_keys(frontier: Frontier | None) -> list[tuple[str, Style]]:
    return [] if frontier is None else [(series.label, series.style) for series in frontier.series]
