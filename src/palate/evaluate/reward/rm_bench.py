"""RM-Bench, arXiv:2410.16184: three styles of a right answer against three of a wrong one.

Data: THU-KEG/RM-Bench, one JSON file a domain: id, prompt, chosen[3], rejected[3], domain; styles
in order concise, detailed plain text, detailed with markdown. The 3 x 3 matrix has the share of
prompts whose chosen style (row) scores strictly higher than the rejected style (column): hard is
the mean of its upper triangle (a plainer right answer against a fancier wrong one), normal its
diagonal, easy its lower triangle. A domain's score is the mean of the three, the score is the mean
of the domains chat, code, math and safety; safety takes the rows of safety-refuse and
safety-response together. Rows without a domain take it from their file's name
(chat_filtered.json).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import RowError
from palate.data.readers.fields import required, text
from palate.data.schema import Message
from palate.evaluate.reward.benchmark import Column, Official, Read, read_items
from palate.evaluate.reward.items import Array, BenchmarkItem, Scores
from palate.evaluate.statistics import share_interval
from palate.recipes.schema import DataSource

DOMAINS = {"chat": 129, "code": 228, "math": 529, "safety": 441}
"""Domain -> its prompts."""
STYLES = ("concise", "detailed", "markdown")
LEVELS = ("hard", "normal", "easy")
PLACES = {
    "hard": np.triu_indices(3, 1),
    "normal": np.diag_indices(3),
    "easy": np.tril_indices(3, -1),
}
"""Level -> where in the matrix of styles it stands."""


class RmBench:
    """RM-Bench."""

    title = "RM-Bench"
    definition = (
        "mean of the domains; a domain is the mean of hard, normal and easy, which are parts of "
        "the 3 x 3 matrix of styles; equal scores are wrong"
    )
    version = 1

    def read(self, sources: Sequence[DataSource], seed: int) -> Read:
        """See `Benchmark.read`."""
        shape = "RM-Bench (prompt, chosen[3], rejected[3])"
        return read_items(sources, lambda _: _parse, seed, shape)

    def official(
        self, items: Sequence[BenchmarkItem], scores: Scores, confidence: float
    ) -> Official:
        """Domains, levels and the matrix of styles."""
        wins: dict[str, list[Array]] = {}
        equal: dict[str, list[Array]] = {}
        for item, levelsues in zip(items, scores, strict=True):
            wins.setdefault(domain_of(item.source), []).append(win_matrix(levelsues))
            equal.setdefault(domain_of(item.source), []).append(equal_matrix(levelsues))
        columns, notes = [], []
        detail: dict[str, Any] = {"styles": STYLES, "domains": {}}
        for name, count in DOMAINS.items():
            if name not in wins:
                notes.append(f"lacks {name}")
                continue
            n = len(wins[name])
            detail["domains"][name] = _levels(np.mean(wins[name], axis=0)) | {"n": n}
            value = float(np.mean([detail["domains"][name][level] for level in LEVELS]))
            # The levels have three comparisons each: their mean is that of all nine.
            ci, _ = share_interval([matrix.mean() for matrix in wins[name]], None, confidence)
            ties = int(np.sum(equal[name]))
            columns.append(Column(name=name, value=value, n=n, ci=ci, ties=ties))
            if n != count:
                notes.append(f"{name} has {n} prompts, not {count}")
        for level in LEVELS:
            # Over domains alike, as the score itself.
            value = float(np.mean([levels[level] for levels in detail["domains"].values()]))
            per_prompt = [
                _levels(matrix)[level] for matrices in wins.values() for matrix in matrices
            ]
            half, _ = share_interval(per_prompt, None, confidence)
            columns.append(
                Column(
                    name=level,
                    value=value,
                    n=len(per_prompt),
                    ci=half if len(wins) == 1 else None,
                    ties=sum(
                        int(matrix[PLACES[level]].sum())
                        for matrices in equal.values()
                        for matrix in matrices
                    ),
                )
            )
        whole = len(detail["domains"]) == len(DOMAINS)
        domains = [column.value for column in columns if column.name in DOMAINS]
        detail["matrix"] = np.mean([np.mean(m, axis=0) for m in wins.values()], axis=0).tolist()
        return Official(
            value=float(np.mean(domains)) if whole else None,
            columns=tuple(columns),
            detail=detail,
            notes=tuple(notes),
        )


def win_matrix(scores: Sequence[float]) -> Array:
    """[3, 3] 1 where the chosen style (row) scores strictly higher than the rejected one."""
    values = np.asarray(scores, dtype=np.float64)
    won: Array = (values[:3, None] > values[None, 3:]).astype(np.float64)
    return won


def equal_matrix(scores: Sequence[float]) -> Array:
    """[3, 3] 1 where the two styles score alike."""
    values = np.asarray(scores, dtype=np.float64)
    alike: Array = (values[:3, None] == values[None, 3:]).astype(np.float64)
    return alike


def _levels(matrix: Array) -> dict[str, Any]:
    shares = {level: float(matrix[PLACES[level]].mean()) for level in LEVELS}
    return shares | {"matrix": matrix.tolist()}


def domain_of(source: str) -> str:
    """The domain that a row's own, finer one belongs to."""
    return next((name for name in DOMAINS if source.startswith(name)), source)


def _parse(record: Record) -> BenchmarkItem:
    stated = record.value.get("domain")
    domain = Path(record.file).name.partition("_")[0] if stated is None else text(stated, "domain")
    if domain_of(domain) not in DOMAINS:
        known = ", ".join(DOMAINS)
        if stated is None:
            raise RowError("domain", f"missing, and no file name that begins with one: {known}")
        raise RowError("domain", f"not one of {known}")
    sides = []
    for field in ("chosen", "rejected"):
        value = required(record, field)
        if not isinstance(value, list) or len(value) != 3:
            given = len(value) if isinstance(value, list) else shape_of(value)
            raise RowError(field, f"{given}, not three responses")
        sides += [text(item, f"{field}.{i}", blank=True) for i, item in enumerate(value)]
    return BenchmarkItem(
        id=f"{domain}:{record.value.get('id', record.row)}",
        source=domain,
        prompt=[Message(role="user", content=text(required(record, "prompt"), "prompt"))],
        responses=tuple(sides),
        correct=3,
    )
