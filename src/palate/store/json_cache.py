"""A cache of JSON values by content: what a model took time to answer, one entry a line.

Each line holds the entries that were made together, and a checksum. A line is there as soon as it
is made; one that a kill cut off is left out, and its entries are made again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palate.errors import RunError
from palate.store.files import append_jsonl


class JsonCache:
    """Entries by key, a digest of what they were made from.

    Args:
        path: of the file; None keeps them in memory alone.

    Attributes:
        notes: what was said beside entries, of all lines in order.

    Raises:
        RunError: a line that was changed after it was written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.notes: list[Any] = []
        self._entries: dict[str, Any] = {}
        if path is not None and path.exists():
            # By line feeds alone: texts hold other characters that end a line.
            for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
                self._take(line, number)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def add(self, entries: Mapping[str, Any], note: Any = None) -> None:
        """Stores entries that were made together.

        Raises:
            RunError: the file cannot be written.
        """
        row = {"entries": dict(entries), "note": note}
        if self.path is not None:
            append_jsonl(self.path, row | {"checksum": _checksum(row)})
        self._entries.update(entries)
        self.notes.append(note)

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            checksum = row.pop("checksum")
            entries: dict[str, Any] = row["entries"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # cut off by a kill
        if checksum != _checksum(row):
            raise RunError(f"{self.path}, line {number}: damaged; delete the line")
        self._entries.update(entries)
        self.notes.append(row["note"])


def _checksum(row: Any) -> int:
    return zlib.crc32(json.dumps(row, sort_keys=True).encode())
