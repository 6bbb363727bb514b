"""Digests of content: files, folders, and JSON values that say what a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from palate.store.files import one_line

_CHUNK_BYTES = 1 << 20


def sha256_text(text: str) -> str:
    """Hex SHA-256 of UTF-8 `text`; halves of surrogate pairs count as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value; the order of keys does not matter."""
    return sha256_text(json.dumps(value, sort_keys=True))


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    path = Path(path)
    digest = hashlib.sha256()
    with one_line("read", path), path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_tree(paths: Iterable[str | Path]) -> str:
    """Hex SHA-256 of files and folders: names within each path and contents, not locations.

    Args:
        paths: files, or folders taken with everything below them. Their order does not matter.
    """
    entries = []
    for root in map(Path, paths):
        if root.is_dir():
            files = sorted(path for path in root.rglob("*") if path.is_file())
            entries += [(path.relative_to(root).as_posix(), sha256_file(path)) for path in files]
        else:
            entries.append((root.name, sha256_file(root)))
    digest = hashlib.sha256()
    for name, content in sorted(entries):
        digest.update(f"{len(name.encode())}:{name}:{content}\n".encode())
    return digest.hexdigest()
