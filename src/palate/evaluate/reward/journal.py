"""How far a run of `palate score` has come, and what it has counted by then."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from palate.errors import RunError
from palate.io import append_jsonl
from palate.rewards.rows import Outcome

LINES = "scores.jsonl"
QUARANTINE = "quarantine.jsonl"
JOURNAL = "journal.jsonl"


@dataclass
class Tally:
    """What became of one source: records = rows + rejected + merged, responses = scored +
    unscored."""

    records: int = 0
    rows: int = 0
    merged: int = 0
    responses: int = 0
    scored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unscored: Counter[str] = field(default_factory=Counter)
    mean: float = 0.0
    square: float = 0.0
    least: float | None = None
    most: float | None = None

    def add(self, outcome: Outcome) -> None:
        """Counts a response."""
        self.responses += 1
        if outcome.score is None:
            self.unscored[str(outcome.reason)] += 1
            return
        score = outcome.score
        self.scored += 1
        off = score - self.mean
        self.mean += off / self.scored
        self.square += off * (score - self.mean)
        self.least = score if self.least is None else min(self.least, score)
        self.most = score if self.most is None else max(self.most, score)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **self.__dict__,
            "rejected": dict(self.rejected),
            "unscored": dict(self.unscored),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Tally:
        """From `state`."""
        counters = {key: Counter(state[key]) for key in ("rejected", "unscored")}
        return cls(**{**state, **counters})

    def described(self) -> dict[str, Any]:
        """The scores in numbers."""
        some = self.scored > 0
        return {
            "responses": self.responses,
            "scored": self.scored,
            "unscored": dict(sorted(self.unscored.items())),
            "mean": self.mean if some else None,
            "deviation": math.sqrt(self.square / self.scored) if some else None,
            "min": self.least,
            "max": self.most,
        }


@dataclass
class Journal:
    """How far a run has come, kept on the disk.

    Attributes:
        source, place: the next record is at `place` of this source.
        sizes: bytes of LINES and QUARANTINE that are good.
        account: what the scorer counted.
        done: all sources are scored.
    """

    path: Path
    tallies: list[Tally]
    source: int = 0
    place: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: {LINES: 0, QUARANTINE: 0})
    account: Counter[str] = field(default_factory=Counter)
    done: bool = False

    @classmethod
    def of(cls, path: Path, sources: int) -> Journal:
        """The last state in the journal of a folder, its files cut back to it."""
        state = cls(path, [Tally() for _ in range(sources)])
        journal = path / JOURNAL
        for line in journal.read_bytes().splitlines() if journal.exists() else []:
            try:
                found = json.loads(line)
            except ValueError:
                continue  # cut off by a kill: that block is scored again
            state.source, state.place, state.sizes = found["source"], found["place"], found["sizes"]
            state.account = Counter(found["account"])
            state.done = found["done"]
            for number, own in found["tallies"].items():
                state.tallies[int(number)] = Tally.restored(own)
        if not (state.done and not (path / LINES).exists()):
            for name, size in state.sizes.items():
                state._cut(name, size)
        return state

    def _cut(self, name: str, size: int) -> None:
        file = self.path / name
        if (file.stat().st_size if file.exists() else 0) < size:
            raise RunError(f"{file}: shorter than it was written; choose another output_dir")
        with file.open("ab") as handle:
            handle.truncate(size)

    def append(self, texts: dict[str, str], number: int) -> None:
        """Writes what a block of a source gave, to the disk, and then says so in the journal."""
        for name, text in texts.items():
            with (self.path / name).open("ab") as handle:
                self.sizes[name] += _put(handle, text.encode("utf-8"), self.path / name)
        append_jsonl(
            self.path / JOURNAL,
            {
                "source": self.source,
                "place": self.place,
                "sizes": self.sizes,
                "account": dict(self.account),
                "done": self.done,
                "tallies": {str(number): self.tallies[number].state()},
            },
        )


def _put(handle: BinaryIO, data: bytes, path: Path) -> int:
    try:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return len(data)
