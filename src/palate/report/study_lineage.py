"""Hidden factors of a study: facts of its runs, and which cells have which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palate.report.study_tables import cell_of, cell_words
from palate.report.words import count, fixed, number, percent
from palate.store.study_records import Choices, StepLineage, StudyAnalysis


@dataclass(frozen=True, kw_only=True)
class LineageRow:
    """A fact of a step: its values, each with the cells that it is of."""

    step: str
    fact: str
    values: tuple[tuple[str, str], ...]

    @property
    def differs(self) -> bool:
        return len(self.values) > 1


def lineage_rows(analysis: StudyAnalysis) -> list[LineageRow]:
    """Every fact of every step, cells with the same value together."""
    steps = dict.fromkeys(step for entry in analysis.lineage for step in entry.steps)
    rows = []
    for step in steps:
        facts = [(entry.cell, _facts(entry.steps.get(step))) for entry in analysis.lineage]
        for fact in dict.fromkeys(name for _, of_cell in facts for name in of_cell):
            cells: dict[str, list[Choices]] = {}
            for cell, of_cell in facts:
                cells.setdefault(of_cell.get(fact, "not known"), []).append(cell)
            values = tuple(
                (value, "all cells" if len(cells) == 1 else _which(analysis, members))
                for value, members in cells.items()
            )
            rows.append(LineageRow(step=step, fact=fact, values=values))
    return rows


def _facts(step: StepLineage | None) -> dict[str, str]:
    """What is known of a step, in words."""
    if step is None:
        return {}
    facts = {
        "base model": step.base and f"{step.base}{_digest(step.base_digest)}",
        "feedback": ", ".join(map(_source, step.sources)),
        "pairs": None if step.pairs is None else number(step.pairs),
        "longer is chosen": None
        if step.longer_is_chosen is None
        else percent(step.longer_is_chosen),
        "longer wins": ", ".join(
            f"{name} {percent(share)}" for name, share in step.longer_wins.items()
        ),
        "mean tokens": ", ".join(
            f"{side} {fixed(mean, 1)}" for side, mean in step.mean_tokens.items()
        ),
        "scorers": ", ".join(map(_scorer, step.scorers)),
        "code": step.commit and step.commit[:10],
    }
    return {name: value for name, value in facts.items() if value}


def _source(source: dict[str, Any]) -> str:
    name = source.get("name") or "data"
    items = source.get("items")
    size = f", {count(items, 'row')}" if isinstance(items, int) else ""
    digest = source.get("sha256")
    return f"{name}{_digest(digest if isinstance(digest, str) else None)}{size}"


def _scorer(scorer: dict[str, Any]) -> str:
    name, kind = scorer.get("name") or scorer.get("path") or "scorer", scorer.get("type")
    role = scorer.get("role")
    return f"{role + ': ' if role else ''}{name}{f' ({kind})' if kind else ''}"


def _digest(digest: str | None) -> str:
    return f" ({digest[:8]})" if digest else ""


def _which(analysis: StudyAnalysis, cells: Sequence[Choices]) -> str:
    """The cells by an aspect's variants where these say it, else by name."""
    members = {cell_of(cell) for cell in cells}
    everything = [entry.cell for entry in analysis.lineage]
    for aspect in analysis.aspects:
        variants = list(dict.fromkeys(cell.get(aspect.name, "") for cell in cells))
        same = {cell_of(cell) for cell in everything if cell.get(aspect.name) in variants}
        if same == members:
            return f"{aspect.name}: {', '.join(variants)}"
    shown = "; ".join(cell_words(cell) for cell in cells[:8])
    return shown + (f"; and {len(cells) - 8} more" if len(cells) > 8 else "")
