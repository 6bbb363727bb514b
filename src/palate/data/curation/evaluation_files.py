"""Prompts and images of evaluation sets, of any file that has them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palate.data.containers import Record, Rejection, open_records, source_name
from palate.data.containers.base import Records
from palate.data.curation.text import turns_of
from palate.data.readers.base import Reader
from palate.data.schema import ImageRef
from palate.data.stream import parse_record, reader_of
from palate.errors import DataError
from palate.recipes.curation import EvaluationFile
from palate.recipes.schema import DataSource
from palate.store.digests import sha256_file

PROMPT_FIELDS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "input",
    "problem",
    "messages",
    "conversations",
    "text",
)
IMAGE_FIELDS = ("images", "image")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_SAMPLE_ROWS = 100


@dataclass(frozen=True)
class Item:
    """One prompt of an evaluation set.

    Attributes:
        turns: (role, text) each.
        images: digests; None where it has images that could not all be read.
        has_images: whether it has any.
    """

    turns: list[tuple[str, str]]
    images: frozenset[str] | None = frozenset()
    has_images: bool = False


@dataclass
class EvaluationSet:
    """An evaluation file that is being read.

    Attributes:
        name: for reports. without_prompt: records that have none. images_not_read: items.
    """

    recipe: EvaluationFile
    missing_images: str
    name: str = field(init=False)
    without_prompt: int = 0
    images_not_read: int = 0

    def __post_init__(self) -> None:
        self._source = DataSource(**self.recipe.model_dump(include=set(DataSource.model_fields)))
        self.name = source_name(self._source)

    def items(self) -> Iterator[Item]:
        """Its prompts, in order.

        Raises:
            DataError: unreadable, without a single prompt, or with an image that is not there.
        """
        records = open_records(self._source)
        reader = self._reader(records)
        found = 0
        for piece in records.pieces():
            for record in piece.records():
                item = None if isinstance(record, Rejection) else self._item(record, reader)
                if item is None:
                    self.without_prompt += 1
                else:
                    found += 1
                    yield item
        self.without_prompt += len(records.damage)
        if not found:
            sample = records.fetch(range(min(len(records), _SAMPLE_ROWS)))
            there = ", ".join(
                sorted({str(k) for r in sample if isinstance(r, Record) for k in r.value})
            )
            raise DataError(
                f"no prompt in it (columns: {there or 'none'}): name the field with `prompt`",
                file=self.recipe.path,
            )

    def _reader(self, records: Records) -> Reader | None:
        if self.recipe.format is None and self.recipe.prompt is not None:
            return None
        try:
            return reader_of(self._source, records)[0]
        except DataError:
            return None  # of no known format: its fields are looked for by name

    def _item(self, record: Record, reader: Reader | None) -> Item | None:
        if reader is not None:
            row = parse_record(reader, record, self.name, [])
            if not isinstance(row, Rejection):
                images: Sequence[ImageRef] = row.all_images
                if self.recipe.image is not None:
                    images = _images(_value(record.value, self.recipe.image))
                return self._made(record, turns_of(row.prompt), images)
            if self.recipe.format is not None:
                return None
        # No pair (a tie, three styles of each side ...) may still be a prompt.
        names: Sequence[str] = PROMPT_FIELDS
        if self.recipe.prompt is not None:
            names = (self.recipe.prompt,)
        turns = next((t for name in names if (t := _turns(_value(record.value, name)))), None)
        if turns is None:
            return None
        names = IMAGE_FIELDS if self.recipe.image is None else (self.recipe.image,)
        images = next((i for name in names if (i := _images(_value(record.value, name)))), [])
        return self._made(record, turns, images)

    def _made(
        self, record: Record, turns: list[tuple[str, str]], images: Sequence[ImageRef]
    ) -> Item:
        if not images:
            return Item(turns)
        digests = [self._digest(image, record) for image in images]
        if None in digests:
            self.images_not_read += 1
            return Item(turns, None, True)
        return Item(turns, frozenset(d for d in digests if d is not None), True)

    def _digest(self, image: ImageRef, record: Record) -> str | None:
        if image.digest is not None:
            return image.digest
        if image.data is not None:
            return hashlib.sha256(image.data).hexdigest()
        root = self.recipe.image_root or _folder_of(self.recipe.path)
        path = (root / str(image.path)).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return sha256_file(path)
        if self.missing_images == "text":
            return None
        raise DataError(
            f"no image '{image.path}' in {root}: give `image_root`, or go by the text alone "
            "with `missing_images: text`",
            file=record.file,
            row=record.row,
        )


def _folder_of(path: str) -> Path:
    given = Path(path).expanduser()
    return given if given.is_dir() else given.parent


def _value(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for key in [name] if name in record else name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _turns(value: Any) -> list[tuple[str, str]] | None:
    """Text or chat turns up to the last that is not the assistant's; None where it is neither."""
    if isinstance(value, str):
        return [("", value)] if value.strip() else None
    if not isinstance(value, list) or not value:
        return None
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            return None
        role, text = (
            turn.get("role", turn.get("from")),
            _text(turn.get("content", turn.get("value"))),
        )
        if not isinstance(role, str) or text is None:
            return None
        turns.append((_ROLES.get(role, role), text))
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    return turns or None


def _text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return None


def _images(value: Any) -> list[ImageRef]:
    """Images of a field: a path, a data URI, bytes, what `datasets` makes of one, or several."""
    if isinstance(value, list):
        return [image for part in value for image in _images(part)]
    if isinstance(value, dict):
        if value.get("bytes"):
            return _images(value["bytes"])
        return _images(value.get("path"))
    if isinstance(value, bytes) and value:
        return [ImageRef(data=value)]
    if isinstance(value, str) and value.startswith("data:"):
        try:
            return [ImageRef(data=base64.b64decode(value.partition(",")[2], validate=True))]
        except binascii.Error:
            return [ImageRef(path="(a broken data URI)")]
    return [ImageRef(path=value)] if isinstance(value, str) and value else []
