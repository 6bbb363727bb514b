"""Digests of content: files, folders, and JSON values that say what a result depends on.

A folder with a manifest can be told from one that was damaged since it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from palate.errors import RunError
from palate.store.files import file_errors, read_json, write_json

_CHUNK_BYTES = 1 << 20
MANIFEST = "manifest.json"


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
    with file_errors("read", path), path.open("rb") as file:
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


def write_manifest(folder: Path) -> None:
    """Writes manifest.json: the digest of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    write_json(folder / MANIFEST, dict(zip(names, _digests(files), strict=True)))


def damage(folder: Path, *, below: str = "") -> str | None:
    """The first file that differs from the manifest of a folder, in words; None where none does.

    Args:
        below: look only at files whose names begin with this.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        expected = {n: d for n, d in manifest.items() if n.startswith(below)}
        if missing := sorted(name for name in expected if not (folder / name).is_file()):
            return f"{missing[0]} is missing"
        digests = _digests([folder / name for name in expected])
    except (RunError, AttributeError, ValueError) as error:
        return str(error) if isinstance(error, RunError) else f"{MANIFEST} is unreadable"
    for (name, digest), now in zip(expected.items(), digests, strict=True):
        if digest != now:
            return f"{name} is not as it was written"
    return None


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(sha256_file, files))
