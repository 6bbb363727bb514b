"""JSON arrays of objects, found one by one: the file is never in memory as a whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from palate.data.containers.base import Record, Rejection, lost
from palate.data.containers.indexed import Indexed, Slice, not_json, parsed

_STEP_BYTES = 1 << 20
_ELEMENT_BYTES = 1 << 28
_BLANKS = " \t\n\r"


@dataclass(frozen=True, kw_only=True)
class _ElementSlice(Slice):
    """Attributes: offsets, of each element from `start`, and of the end."""

    offsets: tuple[int, ...]

    def parse_bytes(self, data: bytes) -> list[Record | Rejection]:
        records = []
        for k in range(self.rows):
            element = data[self.offsets[k] : self.offsets[k + 1]]
            element = element.rstrip(b" \t\n\r").removesuffix(b",")
            records.append(parsed(element, self.file, self.first + k))
        return records


class Array(Indexed):
    """Records of a file that holds a JSON array; of a broken one, those before the break."""

    def __init__(
        self, path: Path, file: str, broken: str | None, *, skip: int = 0, keep: object = None
    ) -> None:
        super().__init__(path, file, keep)
        with path.open("rb") as source:
            source.seek(skip)
            # Bytes as characters of their own: what JSON is made of is ASCII, and so places are
            # bytes. Whether the texts are UTF-8 shows when a record is parsed.
            self._index(_Window(source, skip), broken)

    def _index(self, window: _Window, broken: str | None) -> None:
        decoder = json.JSONDecoder()
        while window.next_character() != "[":
            window.at += 1
        window.at += 1
        if window.next_character() == "]":
            return
        while True:
            row = len(self.starts) + 1
            window.next_character()
            try:
                end = window.end_of_value(decoder)
            except (ValueError, RecursionError) as error:
                self.damage.append(lost(self.file, row, broken or not_json(error)))
                self.starts.append(window.place)
                return
            self.starts.append(window.place)
            window.at = end
            ended = window.place
            following = window.next_character()
            if following != ",":
                if following != "]":
                    reason = broken or "not JSON: no ',' or ']' after an object"
                    self.damage.append(lost(self.file, row + 1, reason))
                self.starts.append(ended)
                return
            window.at += 1

    def slice(self, start: int, stop: int) -> Slice:
        begin = self.starts[start]
        return _ElementSlice(
            path=str(self.path),
            file=self.file,
            start=begin,
            end=self.starts[stop],
            rows=stop - start,
            first=self.row(start),
            offsets=tuple(self.starts[k] - begin for k in range(start, stop + 1)),
        )


class _Window:
    """The part of a file that is looked at.

    Attributes:
        at: where in the part.
    """

    def __init__(self, source: BinaryIO, place: int) -> None:
        self._source = source
        self._text = ""
        self._before = place
        self.at = 0

    @property
    def place(self) -> int:
        """`at` as a byte of the file."""
        return self._before + self.at

    def next_character(self) -> str:
        """Moves to the next character that is not blank; empty at the end of the file."""
        while True:
            while self.at < len(self._text):
                if self._text[self.at] not in _BLANKS:
                    return self._text[self.at]
                self.at += 1
            if not self._grow():
                return ""

    def end_of_value(self, decoder: json.JSONDecoder) -> int:
        """Where the value that begins at `at` ends, counted as `at` is.

        Raises:
            ValueError, RecursionError: there is no JSON value.
        """
        while True:
            try:
                end = decoder.raw_decode(self._text, self.at)[1]
            except json.JSONDecodeError as error:
                # An error at the end of what has been read may be for want of the rest.
                near = error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated")
                if not near or not self._grow():
                    raise
                continue
            # A number may go on.
            length = end - self.at
            if end < len(self._text) or not self._grow():
                return self.at + length

    def _grow(self) -> bool:
        self._before += self.at
        self._text = self._text[self.at :]
        self.at = 0
        if len(self._text) > _ELEMENT_BYTES:
            raise ValueError(f"a value of more than {_ELEMENT_BYTES:,} bytes")
        # Twice as much each time, so that a long value is not parsed again and again.
        block = self._source.read(max(_STEP_BYTES, len(self._text)))
        self._text += block.decode("latin-1")
        return bool(block)
