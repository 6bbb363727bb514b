"""Gzip with a limit, giving what could be read of a broken file."""

from __future__ import annotations

import zlib

from palate.errors import DataError

LIMIT_BYTES = 8 << 30
"""Decompressed size beyond which a file is refused: a few megabytes of gzip can hold terabytes."""

_STEP_BYTES = 1 << 20
_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS


def gunzip(data: bytes, file: str) -> tuple[bytes, str | None]:
    """The content of a gzip file, and what is wrong with its end (None: nothing).

    Raises:
        DataError: not gzip, too large, or a checksum that tells of damage somewhere inside.
    """
    if data[:2] != _MAGIC:
        raise DataError("named .gz but not gzip" if data else "empty", file=file)
    parts: list[bytes] = []
    size = 0
    # Slices of the input, so that what zlib hands back unread is never long.
    view = memoryview(data)
    at = 0
    pending: bytes = b""
    member = zlib.decompressobj(_GZIP)
    while True:
        if not pending:
            pending = bytes(view[at : at + _STEP_BYTES])
            at += len(pending)
        try:
            part = member.decompress(pending, _STEP_BYTES)
        except zlib.error as error:
            # The checksum stands at the end of a member: no row can be told to be sound.
            if "data check" in str(error) or "length check" in str(error):
                raise DataError("the gzip checksum is wrong: damaged", file=file) from None
            return b"".join(parts), "the gzip data is damaged"
        size += len(part)
        if size > LIMIT_BYTES:
            limit = f"{LIMIT_BYTES:,} bytes"
            raise DataError(f"more than {limit} when decompressed: unpack it", file=file)
        parts.append(part)
        if not member.eof:
            pending = member.unconsumed_tail
            if not pending and not part and at >= len(view):
                return b"".join(parts), "the gzip data ends early"
            continue
        # Members may follow one another, and zero bytes may pad the last.
        pending = member.unused_data.lstrip(b"\0")
        while not pending and at < len(view):
            pending = bytes(view[at : at + _STEP_BYTES]).lstrip(b"\0")
            at += _STEP_BYTES
        if not pending:
            return b"".join(parts), None
        if pending[0] != _MAGIC[0]:
            return b"".join(parts), "something other than gzip follows the gzip data"
        member = zlib.decompressobj(_GZIP)
