"""`palate score`: every response of data files gets its score, in a file of lines.

Scores are appended block by block, and a journal says after each block how far the files of the
folder are good and what had been counted by then. A run that goes on after a kill cuts the files
back to that point, so that nothing is there twice and nothing is missing.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console

from palate.data.containers import Rejection
from palate.data.containers.open import named
from palate.data.ledger import digest
from palate.data.pairing import OWN_PROMPTS
from palate.data.schema import Preference
from palate.errors import DataError, RunError
from palate.evaluate.folder import Folder
from palate.evaluate.progress import task
from palate.evaluate.reward.library import identities, name_of
from palate.evaluate.reward.stream import Entry, Stream
from palate.io import append_jsonl, write_json
from palate.recipes.serving import ScoreRecipe
from palate.rewards.base import Scorer
from palate.rewards.build import make_scorer
from palate.rewards.rows import Outcome, score_rows

LINES = "scores.jsonl"
TABLE = "scores.parquet"
QUARANTINE = "quarantine.jsonl"
JOURNAL = "journal.jsonl"
HAS_IMAGES = "has images, which no scorer here reads"


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """A finished run.

    Attributes:
        path: its folder. scores: the file of scores. summary: content of summary.json.
    """

    path: Path
    scores: Path
    summary: dict[str, Any]


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


def score_files(recipe: ScoreRecipe, *, console: Console | None = None) -> ScoreResult:
    """Scores every response of a recipe's data.

    Writes scores.jsonl (or .parquet): a line a response, with id, source, row, response (its
    number in the row; of a pair 0 is the chosen one), score, and reason where there is no score.
    Beside it summary.json, data.json, quarantine.jsonl, recipe.yaml, lineage.json, status.json.
    A file is read a block at a time; what is held of it is where its rows are.

    Raises:
        RunError: an output folder in use.
        RecipeError, DataError, ModelError: what cannot be used.
    """
    console = console or Console(stderr=True)
    sources = named(recipe.data)
    # What is wrong with a source should be said before a model is loaded.
    streams = [Stream(source, seed=recipe.seed) for source in sources]
    with Folder.open(recipe) as folder:
        state = _State.of(folder.path, len(streams))
        if not state.done:
            scorer = make_scorer(recipe.scorer, seed=recipe.seed)
            _score(recipe, streams, state, scorer, console)
        result = _finish(recipe, streams, state, folder)
    unscored = result.summary["responses"] - result.summary["scored"]
    text = f"{result.summary['responses']} responses: {result.summary['scored']} scored"
    console.print(f"{text}, {unscored} without a score" if unscored else text, highlight=False)
    return result


@dataclass
class _State:
    """How far a run has come.

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
    def of(cls, path: Path, sources: int) -> _State:
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


def _score(
    recipe: ScoreRecipe,
    streams: Sequence[Stream],
    state: _State,
    scorer: Scorer,
    console: Console,
) -> None:
    for number in range(state.source, len(streams)):
        stream, tally = streams[number], state.tallies[number]
        with task(f"scoring {stream.name}", len(stream), console) as progress:
            for block in _blocks(stream, state.place, recipe.block_rows):
                rows, refused = _count(block, tally)
                before = _counted(scorer)
                outcomes = _outcomes(scorer, rows, exact=recipe.exact)
                counted = _counted(scorer)
                counted.subtract(before)
                state.account += +counted
                lines = []
                for row, own in zip(rows, outcomes, strict=True):
                    for index, outcome in enumerate(own):
                        tally.add(outcome)
                        lines.append(_line(row, index, outcome))
                quarantine = [_refusal(stream.name, item) for item in refused]
                # The last block holds what is lost for good: after it comes the next source.
                state.source = number + block.last
                state.place = 0 if block.last else block.end
                state.done = state.source == len(streams)
                state.append({LINES: "".join(lines), QUARANTINE: "".join(quarantine)}, number)
                progress(block.end)


@dataclass(frozen=True)
class _Block:
    """Entries that are scored and written together.

    Attributes:
        end: place after them. last: nothing follows in the source.
    """

    entries: list[Entry]
    end: int
    last: bool


def _blocks(stream: Stream, start: int, size: int) -> Iterator[_Block]:
    entries: list[Entry] = []
    end = start
    for entry in stream.entries(start):
        entries.append(entry)
        end = entry.end
        if len(entries) >= size:
            yield _Block(entries, end, last=False)
            entries = []
    damage = [Entry(item=item, end=end) for item in stream.damage]
    yield _Block([*entries, *damage], end, last=True)


def _count(block: _Block, tally: Tally) -> tuple[list[Preference], list[Rejection]]:
    rows, refused = [], []
    for entry in block.entries:
        tally.records += entry.records
        if isinstance(entry.item, Rejection):
            tally.rejected[entry.item.counted_as] += 1
            refused.append(entry.item)
        else:
            tally.rows += 1
            tally.merged += entry.records - 1
            rows.append(entry.item)
    return rows, refused


def _outcomes(scorer: Scorer, rows: Sequence[Preference], *, exact: bool) -> list[list[Outcome]]:
    reasons = [_unread(row) for row in rows]
    readable = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    scored = iter(
        score_rows(
            scorer,
            [row.prompt for row in readable],
            [[response.content for response in row.responses] for row in readable],
            exact=exact,
        )
    )
    return [
        next(scored) if reason is None else [Outcome(None, reason)] * len(row.responses)
        for row, reason in zip(rows, reasons, strict=True)
    ]


def _unread(row: Preference) -> str | None:
    if row.has_images:
        return HAS_IMAGES
    return OWN_PROMPTS if row.has_own_prompts else None


def _line(row: Preference, index: int, outcome: Outcome) -> str:
    line: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "row": row.row,
        "response": index,
        "score": outcome.score,
    }
    if outcome.score is None:
        line["reason"] = outcome.reason
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _refusal(source: str, item: Rejection) -> str:
    line = {
        "source": source,
        "file": item.file,
        "row": item.row,
        "field": item.field,
        "reason": item.reason,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _counted(scorer: Any) -> Counter[str]:
    return Counter(getattr(scorer, "counts", {}))


def _finish(
    recipe: ScoreRecipe, streams: Sequence[Stream], state: _State, folder: Folder
) -> ScoreResult:
    if not any(tally.rows for tally in state.tallies):
        raise DataError("no usable row: see quarantine.jsonl", file=recipe.data[0].path)
    scores = folder.path / LINES
    if recipe.format == "parquet":
        scores = folder.path / TABLE
        _as_table(folder.path / LINES, scores)
    entries = []
    for stream, tally in zip(streams, state.tallies, strict=True):
        assert tally.records == tally.rows + tally.rejected.total() + tally.merged
        assert tally.responses == tally.scored + tally.unscored.total()
        entries.append(
            {
                "name": stream.name,
                "path": stream.path,
                "format": stream.reader.name,
                "recognised": stream.why,
                "split_role": "scored",
                "sha256": digest(stream.records.files),
                "read": tally.records,
                "kept": tally.rows,
                "merged": tally.merged,
                "rejected": dict(sorted(tally.rejected.items())),
                "dropped": {},
                "truncated": {},
            }
        )
    summary = {
        "kind": "scores",
        "scorer": {"name": name_of(recipe.scorer), "type": recipe.scorer.type},
        "exact": recipe.exact,
        "file": scores.name,
        "sources": [
            {"name": stream.name, "rows": tally.rows} | tally.described()
            for stream, tally in zip(streams, state.tallies, strict=True)
        ],
        "responses": sum(tally.responses for tally in state.tallies),
        "scored": sum(tally.scored for tally in state.tallies),
        "unscored": dict(sorted(sum((t.unscored for t in state.tallies), Counter()).items())),
        "account": dict(sorted(state.account.items())),
    }
    write_json(folder.path / "data.json", {"kind": "scores", "sources": entries})
    folder.record_sources(entries)
    folder.record_scorer(
        {
            "name": name_of(recipe.scorer),
            "type": recipe.scorer.type,
            "weights": identities(recipe.scorer),
        }
    )
    folder.write_lineage()
    write_json(folder.path / "summary.json", summary)
    return ScoreResult(path=folder.path, scores=scores, summary=summary)


def _as_table(lines: Path, table: Path) -> None:
    """The lines as Parquet, complete or absent; a table that is there already was complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not lines.exists() and table.exists():
        return
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("source", pa.string()),
            ("row", pa.int64()),
            ("response", pa.int32()),
            ("score", pa.float64()),
            ("reason", pa.string()),
        ]
    )
    part = table.with_name(f".{table.name}.tmp")
    with pq.ParquetWriter(part, schema) as writer, lines.open(encoding="utf-8") as file:
        while block := [json.loads(line) for line in islice(file, 8192)]:
            writer.write_table(pa.Table.from_pylist(block, schema=schema))
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    part.replace(table)
    lines.unlink()
