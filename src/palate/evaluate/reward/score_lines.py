"""The lines of `palate score`: one a response, in JSON or a table, and what they say together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from palate.data.schema import Preference
from palate.data.scorer import Score, part_values
from palate.errors import RunError
from palate.rewards.members import MemberSums, Numbers
from palate.store.files import read_json, write_json

BLOCK = 8192
NUMBERS = "members.json"


def line_of(row: Preference, index: int, score: Score) -> str:
    """The line of one response of a row."""
    line: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "row": row.row,
        "response": index,
        "score": score.value,
    }
    if score.reason is not None:
        line["reason"] = score.reason
    if score.text is not None:
        line["text"] = score.text
    if score.parts:
        line["members"] = part_values(score)
    if score.spans:
        line["spans"] = [asdict(span) for span in score.spans]
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def keep_numbers(folder: Path, numbers: Numbers) -> None:
    """Keeps what an ensemble's rule knows of its members beside the scores."""
    write_json(folder / NUMBERS, asdict(numbers))


def members_in(folder: Path, lines: Path, table: Path) -> dict[str, Any] | None:
    """How wide the scores of an ensemble's members are, as `Numbers.described`; None of other
    scorers.

    Args:
        folder: with what `keep_numbers` wrote. lines, table: where the scores are; of a run that
            had ended the table alone is there.
    """
    if not (folder / NUMBERS).exists():
        return None
    sums = MemberSums(Numbers(**read_json(folder / NUMBERS)))
    part: list[tuple[int, dict[str, float | None]]] = []
    read = _read(lines if lines.exists() else table)
    rows = groupby(read, key=lambda line: (line["source"], line["row"], line["id"]))
    for number, (_, row_lines) in enumerate(rows):
        part += [(number, line["members"]) for line in row_lines if line.get("members")]
        if len(part) >= BLOCK:
            sums.add(part)
            part = []
    sums.add(part)
    return sums.described()


def as_table(lines: Path, table: Path) -> None:
    """The lines as Parquet, complete or absent; a table that is there already was complete.

    Raises:
        RunError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not lines.exists() and table.exists():
        return
    span = pa.struct(
        [
            ("start", pa.int64()),
            ("stop", pa.int64()),
            ("value", pa.float64()),
            ("unit", pa.string()),
        ]
    )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("source", pa.string()),
            ("row", pa.int64()),
            ("response", pa.int32()),
            ("score", pa.float64()),
            ("reason", pa.string()),
            ("text", pa.string()),
            ("members", pa.map_(pa.string(), pa.float64())),
            ("spans", pa.list_(span)),
        ]
    )
    part = table.with_name(f".{table.name}.tmp")
    try:
        with pq.ParquetWriter(part, schema) as writer:
            rows = _read(lines)
            while block := list(islice(rows, BLOCK)):
                for row in block:
                    row["members"] = list(row["members"].items()) if "members" in row else None
                writer.write_table(pa.Table.from_pylist(block, schema=schema))
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(table)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(f"cannot write {table}: {error.strerror or error}") from error
    lines.unlink()


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(BLOCK):
            yield from ({**r, "members": dict(r["members"] or ())} for r in batch.to_pylist())
