"""A study's tables as files: CSV of runs and comparisons; Markdown and LaTeX of what is shown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from palate.report.study_tables import Entry, Table, Tables, distinguished, reading_notes
from palate.report.words import DASH, MINUS
from palate.store.study_records import StudyAnalysis


def runs_csv(analysis: StudyAnalysis) -> str:
    """A line a run and measure; of a run that is not finished the value is empty."""
    aspects = [aspect.name for aspect in analysis.aspects]
    fixed = ("seed", "measure", "value")
    head = [f"aspect {name}" if name in fixed else name for name in aspects]
    rows = (
        [*(run.cell.get(name, "") for name in aspects), run.seed, measure, value]
        for run in analysis.runs
        for measure, value in run.values.items()
    )
    return _csv([*head, *fixed], rows)


_COMPARISON = (
    "measure", "aspect", "variant", "against", "at", "kl_from", "kl_to", "settings", "seeds",
    "estimand", "items",
    "mean", "mean_against", "difference", "low", "high", "confidence", "p_value",
    "told_apart", "corrected_p_value", "corrected_told_apart", "verdict",
)  # fmt: skip


def comparisons_csv(analysis: StudyAnalysis) -> str:
    """A line a comparison and estimand; corrected values stand with the main estimand.

    Those at matched KL follow those of runs as they ended, and say between which.
    """
    rows = []
    for c in (*analysis.comparisons, *analysis.matched_kl):
        span = c.span or (None, None)
        at = (
            "" if c.at is None else "; ".join(f"{name}={variant}" for name, variant in c.at.items())
        )
        for name, e in c.estimands.items():
            low, high = e.interval or (None, None)
            corrected = c.corrected if name == analysis.statistics.estimand else None
            rows.append(
                [c.measure, c.aspect, c.variant, c.against, at, *span, c.settings, len(c.seeds),
                 name, e.items, *e.means, e.difference, low, high, e.confidence, e.p_value,
                 e.distinguished, *_corrected(analysis, c, corrected),
                 (corrected.verdict if corrected else "") or e.verdict]
            )  # fmt: skip
        if not c.estimands:
            why = c.why or "no seed is finished on each side"
            told = [c.measure, c.aspect, c.variant, c.against, at, *span, c.settings, 0, ""]
            rows.append([*told, *[None] * (len(_COMPARISON) - len(told) - 1), why])
    return _csv(_COMPARISON, rows)


def _corrected(analysis: StudyAnalysis, c: Any, corrected: Any) -> tuple[Any, Any]:
    if corrected is None:
        return None, None
    return corrected.p_value, distinguished(analysis, c)


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return buffer.getvalue()


# Markdown -----------------------------------------------------------------------------------------

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def tables_markdown(tables: Tables) -> str:
    """The tables by aspect and crossed, in pipes; what is not told apart is in brackets."""
    parts = ["# Tables of a study"]
    for table in [*tables.by_aspect(), *tables.crossed()]:
        head = [_md(table.corner), *map(_md, table.columns)]
        lines = [_pipes(head), _pipes(["---", *["---:"] * len(table.columns)])]
        for name, row in table.rows:
            mark = " (baseline)" if name == table.baseline else ""
            lines.append(_pipes([_md(name) + mark, *map(_md_entry, row)]))
        parts.append(f"## {_md(table.title)}")
        parts.append("\n".join(lines))
        parts += [_md(note) for note in table.footnotes]
    parts.append("\n".join(f"- {_md(note)}" for note in _notes(tables, "In round brackets")))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _md_entry(entry: Entry) -> str:
    text = _md(f"{entry.mean} {entry.interval}".strip())
    if entry.tone == "bold":
        text = f"**{_md(entry.mean)}** {_md(entry.interval)}".strip()
    if entry.difference:
        difference = _md(f"{entry.difference} {entry.difference_interval}".strip())
        text += f"<br>({difference})" if entry.tone == "grey" else f"<br>{difference}"
    return f"{text} {_md('; '.join(entry.notes))}".strip()


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(tables: Tables, grey: str) -> list[str]:
    return [note.replace("Grey:", f"{grey}:") for note in reading_notes(tables.analysis)]


# LaTeX --------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    MINUS: "$-$",
    DASH: "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
}


def tables_latex(tables: Tables) -> str:
    """The tables by aspect and crossed, as LaTeX floats."""
    parts = ["% Needs \\usepackage{booktabs,xcolor} and, of older LaTeX, UTF-8 input."]
    notes = " ".join(_tex(note) for note in _notes(tables, "Grey"))
    for table in [*tables.by_aspect(), *tables.crossed()]:
        parts.append(_tex_table(table, notes))
    return "\n\n".join(parts) + "\n"


def _tex_table(table: Table, notes: str) -> str:
    head = " & ".join([_tex(table.corner), *map(_tex, table.columns)])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}. {' '.join([*map(_tex, table.footnotes), notes])}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
    ]
    for name, row in table.rows:
        lines.append(" & ".join([_tex(name), *(_tex_mean(entry) for entry in row)]) + r" \\")
        if any(entry.difference for entry in row):
            lines.append(" & ".join(["", *(_tex_difference(entry) for entry in row)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _tex_mean(entry: Entry) -> str:
    notes = rf" {{\footnotesize {_tex('; '.join(entry.notes))}}}" if entry.notes else ""
    interval = rf" {{\scriptsize {_tex(entry.interval)}}}" if entry.interval else ""
    mean = _tex(entry.mean)
    if entry.tone == "bold":
        mean = rf"\textbf{{{mean}}}"
    # A row that begins with a bracket would be read as the option of the line break before it.
    text = f"{{{mean}}}{interval}{notes}"
    return rf"\textcolor{{gray}}{{{text}}}" if entry.tone == "grey" else text


def _tex_difference(entry: Entry) -> str:
    if not entry.difference:
        return ""
    interval = rf" {{\scriptsize {_tex(entry.difference_interval)}}}"
    text = f"{_tex(entry.difference)}{interval}"
    return rf"\textcolor{{gray}}{{{text}}}" if entry.tone == "grey" else text
