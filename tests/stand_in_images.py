"""Small images that stand in for those of public data, good ones and bad ones."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def png(number: int, colour: tuple[int, int, int] = (200, 200, 200)) -> bytes:
    """A picture of one colour; every number gives another file."""
    image = Image.new("RGB", (6, 4), colour)
    image.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def huge_png(side: int = 30000) -> bytes:
    """A file whose header alone says that it is so wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
