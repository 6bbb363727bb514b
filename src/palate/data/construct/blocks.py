"""Pairs on disk between two stages of a build: blocks of rows as Arrow files.

Everything that a pair of one prompt holds goes there and comes back equal; no pickle, so that a
staged folder is data and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from palate.data.content import bare
from palate.data.schema import Content, ImageRef, Preference, Response
from palate.errors import RunError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("chat", pa.bool_()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("margin", pa.float64()),
        ("tie", pa.bool_()),
        ("row", pa.int64()),
        ("images", pa.string()),
        ("more", pa.string()),
    ]
)
"""Texts as they are, chats and what few rows have as JSON."""

_DUMPS = json.JSONEncoder(ensure_ascii=False).encode
_RESPONSE = ("rating", "aspects", "votes", "rank", "label", "generator")
_NOTHING = (None,) * len(_RESPONSE)
_response_values = attrgetter(*_RESPONSE)


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """One block on disk.

    Attributes:
        path: of the file. ledger: number of the recipe's source that its rows came from.
        file: the data file that they came from, for messages.
        first: number of its first pair among all. rows: how many.
    """

    path: Path
    ledger: int
    file: str
    first: int
    rows: int

    def load(self, index: Sequence[int] | None = None) -> list[Preference]:
        """Its rows, or those at the places `index`."""
        return decode(read_table(self.path), index)


def write_block(path: Path, rows: Sequence[Preference]) -> None:
    """Writes rows of kind pair to a file.

    Raises:
        RunError: it cannot be written (the disk is full ...).
    """
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(encode(rows))
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def read_table(path: Path) -> pa.Table:
    """The table in a block file. Mapped, so that only what is used is read."""
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None


def encode(rows: Sequence[Preference]) -> pa.Table:
    """Pairs as a table of `SCHEMA`."""
    columns = {
        "id": [row.id for row in rows],
        "source": [row.source for row in rows],
        "chat": [row.conversational for row in rows],
        "prompt": [_text(row.prompt) for row in rows],
        "chosen": [_text(row.responses[0].content) for row in rows],
        "rejected": [_text(row.responses[1].content) for row in rows],
        "margin": [row.margin for row in rows],
        "tie": [row.tie for row in rows],
        "row": [row.row for row in rows],
        "images": [_images(row.all_images) for row in rows],
        "more": [_more(row) for row in rows],
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def decode(table: pa.Table, index: Sequence[int] | None = None) -> list[Preference]:
    """The pairs of a table, or those at the places `index`."""
    if index is not None:
        table = table.take(pa.array(index, pa.int64()))
    columns = [table.column(field.name).to_pylist() for field in SCHEMA]
    return [_row(*values) for values in zip(*columns, strict=True)]


def _row(
    id: str,
    source: str,
    chat: bool,
    prompt: str,
    chosen: str,
    rejected: str,
    margin: float | None,
    tie: bool,
    row: int | None,
    images: str | None,
    more: str | None,
) -> Preference:
    sides: tuple[Content, Content] = (chosen, rejected)
    asked: Content = prompt
    if chat:
        asked, sides = json.loads(prompt), (json.loads(chosen), json.loads(rejected))
    if more is None:
        responses = (Response(content=sides[0]), Response(content=sides[1]))
        extra = None
    else:
        rest = json.loads(more)
        responses = (
            Response(content=sides[0], **rest["responses"][0]),
            Response(content=sides[1], **rest["responses"][1]),
        )
        extra = rest["extra"]
    pair = Preference(
        id=id,
        source=source,
        kind="pair",
        prompt=asked,
        responses=responses,
        margin=margin,
        tie=tie,
        row=row,
        extra=extra,
    )
    if images is None:
        return pair
    refs = (ImageRef(path=path, digest=digest) for path, digest in json.loads(images))
    return pair.with_images(lambda _: next(refs))


def _text(content: Content) -> str:
    return content if isinstance(content, str) else _DUMPS(bare(content))


def _more(row: Preference) -> str | None:
    responses = [_set_values(response) for response in row.responses]
    if row.extra is None and not any(responses):
        return None
    return _DUMPS({"responses": responses, "extra": row.extra})


def _set_values(response: Response) -> dict[str, Any]:
    values = _response_values(response)
    if values == _NOTHING:
        return {}
    return {name: v for name, v in zip(_RESPONSE, values, strict=True) if v is not None}


def _images(images: Sequence[ImageRef]) -> str | None:
    # By now they are checked and stored: their place and digest say all.
    if not images:
        return None
    return json.dumps([[image.path, image.digest] for image in images])
