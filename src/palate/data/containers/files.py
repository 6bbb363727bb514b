"""JSONL, JSON, CSV and Parquet files, plain or gzipped, with exact row numbers."""

from __future__ import annotations

from pathlib import Path

from palate.data.containers.arrays import Array
from palate.data.containers.base import Records
from palate.data.containers.lines import Lines
from palate.data.containers.separated import Separated
from palate.data.containers.spool import Spool
from palate.data.containers.tables import parquet
from palate.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_BOM = b"\xef\xbb\xbf"
_STEP_BYTES = 1 << 16


def suffix_of(path: str | Path) -> str | None:
    """The data suffix of a file name without `.gz`; None where it has none that is known."""
    name = Path(path).name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def open_file(path: Path, scratch: Path | None = None) -> Records:
    """The records of one file.

    Args:
        scratch: folder for the unpacked copy of a gzipped file; default: the system's.

    Raises:
        DataError: no such file, unknown suffix, empty, or nothing of it can be read.
    """
    file = str(path)
    suffix = suffix_of(path)
    if suffix is None:
        known = ", ".join(SUFFIXES)
        raise DataError(f"no known kind of file; known: {known}, each also .gz", file=file)
    try:
        records = _open(path, file, suffix, scratch)
    except OSError as error:
        raise DataError(error.strerror or str(error), file=file) from None
    if not len(records) and not records.damage:
        raise DataError("no row", file=file)
    records.files = [path]
    return records


def _open(path: Path, file: str, suffix: str, scratch: Path | None) -> Records:
    broken = None
    spool = None
    if path.name.lower().endswith(".gz"):
        spool = Spool(path, scratch)
        path, broken = spool.path, spool.broken
    if suffix == ".parquet":
        if broken is not None:
            raise DataError(broken, file=file)
        return parquet(path, file, keep=spool)
    skip, first = _beginning(path)
    if not first:
        raise DataError(broken or "empty", file=file)
    if suffix == ".csv":
        return Separated(path, file, broken, skip=skip, keep=spool)
    # Many a .json file holds JSON lines.
    if suffix == ".json" and first == b"[":
        return Array(path, file, broken, skip=skip, keep=spool)
    return Lines(path, file, broken, skip=skip, keep=spool)


def _beginning(path: Path) -> tuple[int, bytes]:
    """How many bytes of a byte order mark there are, and the first byte that is not blank."""
    with path.open("rb") as source:
        block = source.read(_STEP_BYTES)
        skip = len(_BOM) if block.startswith(_BOM) else 0
        block = block[skip:]
        while block:
            if first := block.lstrip()[:1]:
                return skip, first
            block = source.read(_STEP_BYTES)
    return skip, b""
