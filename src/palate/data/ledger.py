"""What became of every row of a source: the counts of data.json and the lines of quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from palate.data.pairs import Example, Pair, Ranking
from palate.data.stream import ReadResult
from palate.io import sha256_file, sha256_tree

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


def describe(
    items: Sequence[Pair] | Sequence[Ranking] | Sequence[Example],
) -> dict[str, Any]:
    """Numbers, tokens and lengths of one split, and how far length gives the label away."""
    pairs = [item for item in items if isinstance(item, Pair)]
    examples = [item for item in items if isinstance(item, Example)]
    lists = [item for item in items if isinstance(item, Ranking)]
    sides: dict[str, list[int]] = {"prompt": [len(item.prompt_ids) for item in items]}
    found: dict[str, Any]
    if lists:
        sides["response"] = [len(ids) for item in lists for ids in item.responses]
        found = {"lists": len(lists)}
    elif examples:
        sides["response"] = [len(e.response_ids) for e in examples]
        found = {"examples": len(examples)}
        if any(e.label is not None for e in examples):
            found["desirable"] = sum(e.label is True for e in examples)
    else:
        others = (p.rejected_prompt_ids for p in pairs)
        sides["prompt"] += [len(ids) for ids in others if ids is not None]
        sides["chosen"] = [len(p.chosen_ids) for p in pairs]
        sides["rejected"] = [len(p.rejected_ids) for p in pairs]
        found = {"pairs": len(pairs)}
    found["prompts"] = len({item.prompt_ids for item in items})
    found["tokens"] = {name: sum(lengths) for name, lengths in sides.items()}
    found["length"] = {name: _lengths(lengths) for name, lengths in sides.items()}
    if pairs:
        both = zip(sides["chosen"], sides["rejected"], strict=True)
        longer = [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in both]
        found["longer_is_chosen"] = sum(longer) / len(longer)
    return found


def _lengths(lengths: list[int]) -> dict[str, float]:
    return {
        "mean": float(np.mean(lengths)),
        "p50": float(np.percentile(lengths, 50)),
        "p95": float(np.percentile(lengths, 95)),
        "max": float(max(lengths)),
    }


def _counts(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())
