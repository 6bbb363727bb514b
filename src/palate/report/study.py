"""The report of a study: one page, and its tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from palate.errors import RunError
from palate.report.page import environment, glyph
from palate.report.study_figures import across_steps, frontiers, scatter_svgs
from palate.report.study_files import comparisons_csv, runs_csv, tables_latex, tables_markdown
from palate.report.study_lineage import lineage_rows
from palate.report.study_tables import Tables, cell_words, reading_notes
from palate.report.study_views import (
    OUTCOMES,
    SHOWN_CHARACTERS,
    answers,
    cell_costs,
    cut,
    expected_result,
    expected_words,
    forests,
    headline,
    lacking,
    ratings_reach,
    sampled,
)
from palate.report.style import PALETTE
from palate.report.words import count, listed, plain
from palate.store.files import read_json, write_text
from palate.store.study_records import NAME as ANALYSIS
from palate.store.study_records import StudyAnalysis

NAME = "report.html"
OPEN_RUNS = 24
"""More runs than these, or rows of such a list, are folded away."""


def write_study_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a study folder from its analysis.json, and the tables beside it.

    Args:
        out: the page, or an existing folder for it; default: report.html in the study folder.

    Returns:
        The page written: complete in itself, without scripts. Beside it are tables.csv (a line a
        run and measure), comparisons.csv, tables.md and tables.tex.

    Raises:
        RunError: no analysis.json, or not of a study; or a file cannot be written.
    """
    folder = Path(folder)
    analysis = read_analysis(folder)
    target = folder / NAME if out is None else Path(out)
    if target.is_dir():
        target /= NAME
    tables = Tables(analysis)
    write_text(target.with_name("tables.csv"), runs_csv(analysis))
    write_text(target.with_name("comparisons.csv"), comparisons_csv(analysis))
    write_text(target.with_name("tables.md"), tables_markdown(tables))
    write_text(target.with_name("tables.tex"), tables_latex(tables))
    write_text(target, render_study(analysis, folder, target.parent))
    return target


def read_analysis(folder: Path) -> StudyAnalysis:
    """What analysis.json says.

    Raises:
        RunError: it cannot be read, or is not of a study.
    """
    path = folder / ANALYSIS
    document = plain(read_json(path))
    if not isinstance(document, dict) or document.get("kind") != "study":
        raise RunError(f"{path}: not the analysis of a study")
    try:
        return StudyAnalysis.of(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def render_study(analysis: StudyAnalysis, folder: Path, place: Path | None = None) -> str:
    """The page as text.

    Args:
        folder: of the study. place: folder of the page, from which links start.
    """
    place = folder if place is None else place
    tables = Tables(analysis)
    main = analysis.measures[0] if analysis.measures else None
    scatters = [(s, scatter_svgs(s)) for s in across_steps(tables)]
    frontier = [(s, scatter_svgs(s)) for s in frontiers(tables)]
    page = environment().get_template("study.html.jinja")
    return page.render(
        sheets=["report.css", "study.css"],
        title=f"Study: {listed(a.name for a in analysis.aspects) or folder.resolve().name}",
        summary=_summary(analysis),
        analysis=analysis,
        tables=tables,
        main=main,
        headline=headline(tables, main) if main and analysis.finished else None,
        answers=[(m, answers(tables, m)) for m in analysis.measures] if analysis.finished else [],
        matched=[(m, of) for m in analysis.measures if (of := answers(tables, m, matched=True))],
        ratings=[(r, ratings_reach(r)) for r in analysis.ratings],
        expected=[
            (e, expected_words(analysis, e), expected_result(tables, e))
            for e in analysis.expectations
        ],
        outcomes=OUTCOMES,
        lacking=lacking(tables),
        by_aspect=list(tables.by_aspect()) if analysis.finished else [],
        crossed=list(tables.crossed()) if analysis.finished else [],
        reading=reading_notes(analysis),
        forests=list(forests(tables)),
        scatters=scatters,
        frontiers=frontier,
        glyph=glyph,
        cut=cut,
        level=f"{100 * analysis.statistics.confidence:g}%",
        shared_notes=_shared_notes(analysis),
        lineage=lineage_rows(analysis),
        cell_costs=cell_costs(tables),
        cell_words=cell_words,
        sampled=sampled,
        shown_characters=SHOWN_CHARACTERS,
        run_links=[(run, _links(run.stages, folder, place)) for run in analysis.runs],
        open_runs=OPEN_RUNS,
        palette=PALETTE,
    )


def _summary(analysis: StudyAnalysis) -> str:
    """What varied, and how much of it there is."""
    cells = len({tuple(sorted(run.cell.items())) for run in analysis.runs})
    design = analysis.design.replace("_", " ")
    varied = "; ".join(f"{a.name}: {', '.join(a.names)}" for a in analysis.aspects)
    finished = sum(None not in run.values.values() for run in analysis.runs)
    seeds = f"{count(cells, 'cell')} ({design}) with {count(len(analysis.seeds), 'seed')}"
    return f"{varied}. {seeds}; {finished} of {count(len(analysis.runs), 'run')} finished."


def _shared_notes(analysis: StudyAnalysis) -> list[str]:
    """What holds of the shares of every measure."""
    notes = [entry.notes for entry in analysis.variance]
    return [note for note in notes[0] if all(note in of for of in notes)] if notes else []


def _links(stages: dict[str, str], folder: Path, place: Path) -> list[tuple[str, str | None]]:
    """Step -> the address of its report; None where there is none."""
    links: list[tuple[str, str | None]] = []
    for step, key in stages.items():
        file = folder / key / NAME
        # A key names a folder of the study, and nothing beyond it.
        inside = key not in ("", ".", "..") and Path(key).name == key
        if inside and file.is_file():
            way = os.path.relpath(file.resolve(), place.resolve())
            links.append((step, quote(way.replace(os.sep, "/"))))
        else:
            links.append((step, None))
    return links
