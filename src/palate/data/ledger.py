"""What became of every row of a source: the counts of data.json and the lines of quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from palate.data.items import Desirable, Item
from palate.data.stream import ReadResult
from palate.store.digests import sha256_file, sha256_tree

QUARANTINE = "quarantine.jsonl"
Role = Literal["train", "eval"]


@dataclass(kw_only=True)
class Ledger:
    """Counts of one source. read = kept + rejected + dropped + merged + not_selected, in rows.

    Attributes:
        items: pairs or examples made of the kept rows (a rated row may give several).
        items_dropped: further ones of rows that gave others, dropped, by reason.
        not_selected: rows that could be used and that the mixture does not take, or that are beyond
            the limit of a format with an answer a record.
        items_not_selected: further items of kept rows that it does not take.
        truncated: kept rows by what was cut of them.
        scored_by: rated rows by what their responses were compared by.
        left_out: responses that ranked rows do without, beside those that reading left out.
        flips: pairs whose label another number of the row contradicts, by which.
    """

    name: str
    path: str
    role: Role
    result: ReadResult
    kept: int = 0
    items: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    items_dropped: Counter[str] = field(default_factory=Counter)
    not_selected: int = 0
    items_not_selected: int = 0
    truncated: Counter[str] = field(default_factory=Counter)
    scored_by: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    flips: Counter[str] = field(default_factory=Counter)
    quarantine: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.not_selected += self.result.not_drawn
        for item in (*self.result.rejected, *self.result.left_out):
            self._quarantine(item.file, item.row, item.field, item.reason)

    def keep(self, items: int, cut: Sequence[str], *, not_selected: int = 0) -> None:
        """Counts a row that gave `items`, with the names of what was cut of any of them.

        `not_selected` further ones are not in the mixture.
        """
        self.kept += 1
        self.items += items
        self.items_not_selected += not_selected
        if cut:
            self.truncated[f"{', '.join(dict.fromkeys(cut))} cut"] += 1

    def drop(self, row: int | None, reason: str) -> None:
        """Counts a row that was read but gave nothing."""
        self.dropped[reason] += 1
        self._quarantine(self.path, row, None, reason)

    def drop_item(self, row: int | None, reason: str) -> None:
        """Counts an item of a row that is kept for others."""
        self.items_dropped[reason] += 1
        self._quarantine(self.path, row, None, reason)

    def drop_contrast(self, row: int | None, reason: str) -> None:
        """Enters a pair that `image_contrast` could not make; its own account counts it."""
        self._quarantine(self.path, row, "images", reason)

    def leave_out(self, row: int | None, reason: str) -> None:
        """Counts a response of a row that is kept for its others."""
        self.left_out[reason] += 1
        self._quarantine(self.path, row, "responses", reason)

    def entry(self) -> dict[str, Any]:
        """The source's entry in data.json."""
        read, rejected = self.result.read, self.result.rejected
        total = self.kept + len(rejected) + self.dropped.total() + self.not_selected
        total += self.result.merged
        assert read == total, f"{self.name}: {read} rows read, {total} accounted for"
        return {
            "name": self.name,
            "path": self.path,
            "format": self.result.format,
            "recognised": self.result.why,
            "split_role": self.role,
            "sha256": digest(self.result.files),
            "available": self.result.available,
            "read": read,
            "kept": self.kept,
            "rejected": _counts(Counter(item.counted_as for item in rejected)),
            "dropped": _counts(self.dropped),
            "merged": self.result.merged,
            "not_selected": self.not_selected,
            "truncated": _counts(self.truncated),
            "responses_left_out": _counts(
                Counter(item.counted_as for item in self.result.left_out) + self.left_out
            ),
            "items": self.items,
            "items_dropped": _counts(self.items_dropped),
            "items_not_selected": self.items_not_selected,
            "scored_by": _counts(self.scored_by),
            "flips": _counts(self.flips),
            "quarantine": QUARANTINE if self.quarantine else None,
        }

    def _quarantine(self, file: str, row: int | None, field: str | None, reason: str) -> None:
        line = {"source": self.name, "file": file, "row": row, "field": field, "reason": reason}
        self.quarantine.append(line)


def digest(files: Sequence[Path]) -> str | None:
    """Hex SHA-256 of a source's files; None where it has none on this machine."""
    if not files:
        return None
    return sha256_file(files[0]) if len(files) == 1 else sha256_tree(files)


def describe(items: Sequence[Item]) -> dict[str, Any]:
    """Numbers, tokens and lengths of one split, and how far length gives the label away."""
    kind = items[0].kind
    prompts = [prompt for item in items for prompt in dict.fromkeys(item.prompts)]
    sides = {"prompt": [len(prompt) for prompt in prompts]}
    names = ("chosen", "rejected") if kind == "pair" else ("response",)
    for place, name in enumerate(names):
        taken = slice(place, place + 1) if kind == "pair" else slice(None)
        sides[name] = [len(response) for item in items for response in item.responses[taken]]
    counted = {"pair": "pairs", "rated": "lists"}.get(kind, "examples")
    described: dict[str, Any] = {counted: len(items)}
    if kind == "unpaired":
        labels = [item.label for item in items if isinstance(item.label, Desirable)]
        described["desirable"] = sum(label.desirable for label in labels)
    described["prompts"] = len({item.prompts[0] for item in items})
    described["tokens"] = {name: sum(lengths) for name, lengths in sides.items()}
    described["length"] = {name: spread(lengths) for name, lengths in sides.items()}
    if kind == "pair":
        longer = [1.0 if p.longer > 0 else 0.5 if p.longer == 0 else 0.0 for p in items]
        described["longer_is_chosen"] = sum(longer) / len(longer)
        described["cut_even"] = sum(pair.cut_even for pair in items)
    return described


def spread(lengths: list[int]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum."""
    return {
        "mean": float(np.mean(lengths)),
        "p50": float(np.percentile(lengths, 50)),
        "p95": float(np.percentile(lengths, 95)),
        "max": float(max(lengths)),
    }


def _counts(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())
