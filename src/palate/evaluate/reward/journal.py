"""How far a run of `palate score` has come, and what it has counted by then."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from palate.data.scorer import Score
from palate.errors import RunError
from palate.store.files import append_jsonl

LINES = "scores.jsonl"
QUARANTINE = "quarantine.jsonl"
JOURNAL = "journal.jsonl"

Inputs = dict[str, dict[str, str | None]]
"""What scores depend on: kind -> name -> digest of its content, None of what is not on this
machine."""


@dataclass
class Tally:
    """What became of one source: records = rows + not drawn + rejected + merged, responses = scored
    + unscored; left_out are responses that could not be read, of rows that could."""

    records: int = 0
    rows: int = 0
    merged: int = 0
    not_drawn: int = 0
    responses: int = 0
    scored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unscored: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    mean: float = 0.0
    square: float = 0.0
    least: float | None = None
    most: float | None = None

    def add(self, score: Score) -> None:
        """Counts a response."""
        self.responses += 1
        value = score.value
        if value is None:
            self.unscored[str(score.reason)] += 1
            return
        self.scored += 1
        off = value - self.mean
        self.mean += off / self.scored
        self.square += off * (value - self.mean)
        self.least = value if self.least is None else min(self.least, value)
        self.most = value if self.most is None else max(self.most, value)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.__dict__, **{name: dict(getattr(self, name)) for name in _COUNTERS}}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Tally:
        """From `state`."""
        counters = {name: Counter(state[name]) for name in _COUNTERS}
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


_COUNTERS = ("rejected", "unscored", "left_out")


@dataclass
class Journal:
    """How far a run has come, kept on the disk.

    Attributes:
        inputs: what it scores, and by what.
        source, place: the next entry is at `place` of this source.
        sizes: bytes of its files that are good.
        account: what the scorer counted.
        done: all sources are scored.
    """

    path: Path
    tallies: list[Tally]
    inputs: Inputs
    source: int = 0
    place: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: {LINES: 0, QUARANTINE: 0})
    account: Counter[str] = field(default_factory=Counter)
    done: bool = False

    @classmethod
    def of(cls, path: Path, sources: int, inputs: Inputs) -> Journal:
        """The last state in the journal of a folder, its files cut back to it.

        Raises:
            RunError: it was written with other inputs, or a file of the folder is not what it was.
        """
        state = cls(path, [Tally() for _ in range(sources)], inputs)
        journal = path / JOURNAL
        for line in journal.read_bytes().splitlines() if journal.exists() else []:
            try:
                kept = json.loads(line)
            except ValueError:
                continue  # cut off by a kill: that block is scored again
            if (changed := _changed(kept.get("inputs", {}), inputs)) is not None:
                raise RunError(
                    f"{path}: {changed} has changed since its first scores were written; choose "
                    "another output_dir"
                )
            state.source, state.place, state.sizes = kept["source"], kept["place"], kept["sizes"]
            state.account = Counter(kept["account"])
            state.done = kept["done"]
            for number, counted in kept["tallies"].items():
                state.tallies[int(number)] = Tally.restored(counted)
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
                self.sizes[name] = self.sizes.get(name, 0) + _put(
                    handle, text.encode("utf-8"), self.path / name
                )
        append_jsonl(
            self.path / JOURNAL,
            {
                "inputs": self.inputs,
                "source": self.source,
                "place": self.place,
                "sizes": self.sizes,
                "account": dict(self.account),
                "done": self.done,
                "tallies": {str(number): self.tallies[number].state()},
            },
        )


def _changed(then: Inputs, now: Inputs) -> str | None:
    """The first input that is not what it was."""
    for kind in now:
        for name in {**then.get(kind, {}), **now[kind]}:
            if then.get(kind, {}).get(name) != now[kind].get(name):
                return f"{kind} {name}"
    return None


def _put(handle: BinaryIO, data: bytes, path: Path) -> int:
    try:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    return len(data)
