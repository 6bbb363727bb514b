"""Gzip with a limit, giving what could be read of a broken file."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

from palate.errors import DataError

LIMIT_BYTES = 64 << 30
"""Decompressed size beyond which a file is refused: a few megabytes of gzip can hold terabytes."""

_RATIO = 300
_RATIO_FROM_BYTES = 1 << 30
# Text packs ten to one; a file that unpacks to a gigabyte at 300 to one was made to fill a disk.

_STEP_BYTES = 1 << 20
_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS


def gunzip(packed: Path, to: BinaryIO) -> str | None:
    """Writes the content of a gzip file to `to`; returns what is wrong with its end, or None.

    Raises:
        DataError: not gzip, too large, or a checksum that tells of damage somewhere inside.
    """
    file = str(packed)
    packed_bytes = packed.stat().st_size
    with packed.open("rb") as source:
        pending = source.read(_STEP_BYTES)
        if pending[:2] != _MAGIC:
            raise DataError("named .gz but not gzip" if pending else "empty", file=file)
        size = 0
        member = zlib.decompressobj(_GZIP)
        while True:
            if not pending:
                pending = source.read(_STEP_BYTES)
            at_end = not pending
            try:
                part = member.decompress(pending, _STEP_BYTES)
            except zlib.error as error:
                # The checksum stands at the end of a member: no row can be told to be sound.
                if "data check" in str(error) or "length check" in str(error):
                    raise DataError("the gzip checksum is wrong: damaged", file=file) from None
                return "the gzip data is damaged"
            size += len(part)
            if size > LIMIT_BYTES:
                limit = f"{LIMIT_BYTES:,} bytes"
                raise DataError(f"more than {limit} when decompressed: unpack it", file=file)
            if size > _RATIO_FROM_BYTES and size > _RATIO * packed_bytes:
                raise DataError(f"unpacks to over {_RATIO} times its size: refused", file=file)
            to.write(part)
            if not member.eof:
                pending = member.unconsumed_tail
                if at_end and not pending and not part:
                    return "the gzip data ends early"
                continue
            # Members may follow one another, and zero bytes may pad the last.
            pending = member.unused_data.lstrip(b"\0")
            while not pending and (block := source.read(_STEP_BYTES)):
                pending = block.lstrip(b"\0")
            if not pending:
                return None
            if pending[0] != _MAGIC[0]:
                return "something other than gzip follows the gzip data"
            member = zlib.decompressobj(_GZIP)
