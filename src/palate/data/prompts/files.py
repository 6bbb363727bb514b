"""Rows of a source of prompts: a file of prompts, or preference data that is read for its prompts.

A file of prompts has the prompt in `prompt` (text, or turns that end with the user's), in
`messages`, or as a question in a column of its own, which is a turn of the user. Images and videos
are given as in TRL's preference data. Every other column is for rewards: it is named by the source,
or it is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record, Records, Rejection, open_records, source_name
from palate.data.prompts.reader import NAME, PROMPT_COLUMNS, READER
from palate.data.readers.base import Reader
from palate.data.readers.fields import holds
from palate.data.readers.registry import recognise
from palate.data.schema import Preference
from palate.data.stream import Draw, ReadResult, parse_record, read_source, unique_ids
from palate.errors import DataError, RecipeError, in_one_line
from palate.recipes.prompts import PromptSource

_SAMPLE_ROWS = 100


def read_file(source: PromptSource, *, seed: int, strict: bool = True) -> ReadResult:
    """The rows of a source; `extra` has its `columns`, where a row has a value for them.

    Args:
        strict: refuse columns that the recipe does not name.

    Raises:
        DataError: missing, empty, of no known format, without one usable row, or with a column that
            the recipe does not name; in one line.
        RecipeError: `format`, `split`, `subset` or `columns` that do not fit.
    """
    records = open_records(source)
    why = _why_prompts(source, records)
    if why is not None:
        return _with_columns(_read_prompts(source, records, why, seed), source, strict=strict)
    if source.columns == "all":
        raise RecipeError(
            f"`columns`: {source.path} is no file of prompts, so `all` would be its answers too: "
            "name them"
        )
    result = read_source(source, seed=seed, keep=source.columns, keep_lone=True)
    return _with_columns(result, source, strict=strict)


def _why_prompts(source: PromptSource, records: Records) -> str | None:
    """Why a source is a file of prompts; None where it is preference data."""
    if source.format is not None:
        return "named by the recipe" if source.format == NAME else None
    sample = [
        record.value
        for record in records.fetch(range(min(len(records), _SAMPLE_ROWS)))
        if isinstance(record, Record)
    ]
    columns = {str(name) for value in sample for name in value}
    asked = next((name for name in PROMPT_COLUMNS if name in columns), None)
    if asked is None:
        return None
    try:
        reader, _ = recognise(sample, source.path, records.files)
    except DataError:
        return f"column {asked}"
    return f"column {asked}" if _is_asked_only(reader, asked, columns, sample) else None


def _is_asked_only(
    reader: Reader, asked: str, columns: set[str], sample: Sequence[dict[str, Any]]
) -> bool:
    """Whether what is recognised as demonstrations holds no answers.

    Such are turns that end with the user's, and a text beside a prompt.
    """
    if reader.name != "demonstrations" or {"prompt", "completion"} <= columns:
        return False
    if asked != "messages":
        return True
    chats = [value["messages"] for value in sample if holds(value.get("messages"))]
    last = [chat[-1] for chat in chats if isinstance(chat, list)]
    return bool(last) and all(
        isinstance(turn, dict) and turn.get("role") != "assistant" for turn in last
    )


def _read_prompts(source: PromptSource, records: Records, why: str, seed: int) -> ReadResult:
    name = source_name(source)
    aside = () if source.columns == "all" else source.columns
    placed: list[tuple[int, Preference]] = []
    rejected: list[Rejection] = []
    left_out: list[Rejection] = []
    read = len(records.damage)
    draw = Draw(records, source.limit, seed, name)
    for batch in draw.batches():
        for span in batch:
            for place, record in zip(span.places, span.piece.records(), strict=True):
                read += 1
                row = _row(record, name, aside, left_out)
                if isinstance(row, Rejection):
                    rejected.append(row)
                else:
                    draw.usable += 1
                    placed.append((place, row))
    rejected += records.damage
    if not placed:
        why_not = f"; {rejected[0]}" if rejected else ""
        raise DataError(f"no usable row of {read} as {NAME}{why_not}", file=source.path)
    placed.sort(key=lambda entry: entry[0])
    return ReadResult(
        rows=unique_ids([row for _, row in placed]),
        format=NAME,
        why=why,
        read=read,
        available=len(records) + len(records.damage),
        rejected=rejected,
        left_out=left_out,
        files=records.files,
    )


def _row(
    record: Record | Rejection, source: str, aside: Sequence[str], left_out: list[Rejection]
) -> Preference | Rejection:
    """The row of a record. Columns for rewards say nothing of what is asked, whatever their name.

    Args:
        aside: the columns for rewards.
    """
    if isinstance(record, Rejection):
        return record
    columns = {name: record.value[name] for name in aside if name in record.value}
    rest = {name: value for name, value in record.value.items() if name not in columns}
    row = parse_record(READER, dataclasses.replace(record, value=rest), source, left_out)
    if isinstance(row, Rejection):
        return row
    return dataclasses.replace(row, extra={**(row.extra or {}), **columns})


def _with_columns(result: ReadResult, source: PromptSource, *, strict: bool) -> ReadResult:
    """The rows with the columns that the recipe names, and of each those with a value.

    Raises:
        DataError: a file of prompts has another column that holds something.
        RecipeError: no row has a value for a column that the recipe names.
    """
    named = source.columns
    rows = []
    there: dict[str, None] = {}
    for row in result.rows:
        values = {name: value for name, value in (row.extra or {}).items() if holds(value)}
        there.update(dict.fromkeys(values))
        if named != "all":
            values = {name: values[name] for name in named if name in values}
        rows.append(dataclasses.replace(row, extra=values))
    if named == "all":
        return dataclasses.replace(result, rows=rows)
    if absent := [name for name in named if name not in there]:
        has = f"; there are {', '.join(map(in_one_line, there))}" if there else ""
        raise RecipeError(f"`columns`: no row of {source.path} has '{absent[0]}'{has}")
    others = [name for name in there if name not in named]
    if strict and result.format == NAME and others:
        listed = ", ".join(map(in_one_line, others[:8]))
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        raise DataError(
            f"columns that nothing reads: {listed}{more}; name them in `columns`, for rewards, or "
            "in `ignore`",
            file=source.path,
        )
    return dataclasses.replace(result, rows=rows)
