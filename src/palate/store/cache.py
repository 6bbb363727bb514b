"""One cache of tensors by content: computed once, written as it goes, read where it lies.

A folder under the digest of an identity, a JSON value that names everything the numbers depend on:

    <root>/<digest of the identity>/key.json, shard-<digest of its keys>.safetensors ...

An entry is found by a key of 32 bytes, the digest of what it was computed from, and holds the same
number of rows of each column. A shard has `keys` [32 n] bytes, `offsets` [n + 1], `checksums` [n],
and a tensor [rows, ...] a column. Shards are written whole, and any number of processes may add to
one folder. They are mapped, not read: a cache need not fit the memory. Keys and places are checked
when a shard is opened, an entry's content when it is first read.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from palate.errors import ModelError, RunError
from palate.store.digests import sha256_json
from palate.store.files import write_bytes, write_json

SHARD_BYTES = 256 * 2**20
SHARD_SECONDS = 60.0
"""A shard is written when it is as large, or its first entry as old: a killed process loses no
more, and one that ends by an exception or an interrupt loses nothing."""
KEY_BYTES = 32

Entry = Mapping[str, Tensor]
"""Column -> [rows, ...] of one entry."""


@dataclass(frozen=True)
class Column:
    """What a column holds: `shape` of a row, and its dtype, None for any."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None


class TensorCache:
    """The entries under one identity.

    Args:
        root: folder of caches; this one's is below it, and is made by the first write.
        identity: everything that the numbers depend on, as JSON.
        columns: what each entry holds.
    """

    def __init__(self, root: Path, identity: Any, columns: Mapping[str, Column]) -> None:
        self.identity = identity
        self.name = sha256_json(identity)[:32]
        self.folder = root / self.name
        self.columns = dict(sorted(columns.items()))
        self._shards: list[_Shard] = []
        self._starts: list[int] = []
        self._paths: set[Path] = set()
        self._places: dict[bytes, int] = {}
        self._pending: dict[bytes, Entry] = {}
        self._added: set[bytes] = set()
        self._size = 0
        self._began = 0.0

    def __contains__(self, key: bytes) -> bool:
        """Whether the entry can be read, or has been added by this process."""
        return key in self._places or key in self._added

    def __len__(self) -> int:
        return len(self._places)

    # Writing ----------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Writes what has been added when the block ends, however it ends."""
        try:
            yield
        except BaseException:
            with suppress(RunError):  # the error on its way out matters more
                self.flush()
            raise
        self.flush()

    def add(self, records: Mapping[bytes, Entry]) -> None:
        """Adds entries; those that are stored already are skipped.

        They are in the folder once the shard is full or old, or after `flush`.

        Raises:
            RunError: a write that failed.
        """
        for key, record in records.items():
            if key in self:
                continue
            if not self._pending:
                self._began = time.monotonic()
            self._pending[key] = record
            self._added.add(key)
            self._size += sum(t.numel() * t.element_size() for t in record.values())
        if self._size >= SHARD_BYTES or (
            self._pending and time.monotonic() - self._began >= SHARD_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Writes what has been added since the last shard."""
        if not self._pending:
            return
        records = list(self._pending.values())
        columns = {
            name: torch.cat([record[name] for record in records]).contiguous()
            for name in self.columns
        }
        lengths = [len(next(iter(record.values()))) for record in records]
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        joined = b"".join(self._pending)
        flat = [_bytes_of(column) for column in columns.values()]
        sums = [_checksum(flat, start, stop) for start, stop in pairwise(offsets.tolist())]
        header = {
            "keys": torch.frombuffer(bytearray(joined), dtype=torch.uint8),
            "offsets": offsets,
            "checksums": torch.tensor(sums, dtype=torch.int64),
        }
        metadata = {
            "cache": self.name,
            "sha256": _header_digest(header),
            "checksum": str(_checksum(flat, 0, int(offsets[-1]))),
        }
        path = self.folder / f"shard-{hashlib.sha256(joined).hexdigest()[:24]}.safetensors"
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", self.identity)
        write_bytes(path, save({**columns, **header}, metadata=metadata))
        self._pending, self._size = {}, 0

    # Reading ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Opens the shards that are not known yet, this process's and those of others.

        Raises:
            RunError: a shard that cannot be read, is damaged, or belongs to another cache.
        """
        for path in sorted(set(self.folder.glob("shard-*.safetensors")) - self._paths):
            shard = _Shard.open(path, self.name, self.columns)
            start = self._starts[-1] + len(self._shards[-1]) if self._shards else 0
            for i, key in enumerate(shard.keys()):
                self._places.setdefault(key, start + i)
            self._shards.append(shard)
            self._starts.append(start)
            self._paths.add(path)

    def check(self) -> None:
        """Checks the content of all entries, by reading everything once.

        Raises:
            RunError: a damaged shard.
        """
        for shard in self._shards:
            if not shard.checked.all():
                shard.check_all()

    def read(self, key: bytes) -> dict[str, Tensor]:
        """The columns of one entry, as views of the file.

        Raises:
            RunError: it is not there, or damaged.
        """
        place = self._places.get(key)
        if place is None:
            raise RunError(f"{self.folder}: the cache lacks entry {key.hex()[:12]}")
        number = bisect.bisect_right(self._starts, place) - 1
        return self._shards[number].read(place - self._starts[number])

    def places(self, keys: Iterable[bytes]) -> np.ndarray:
        """Where entries lie, for `gather`: [n].

        Raises:
            RunError: one of them is not there.
        """
        try:
            return np.fromiter((self._places[key] for key in keys), dtype=np.int64)
        except KeyError as error:
            lacks = error.args[0].hex()[:12]
            raise RunError(f"{self.folder}: the cache lacks entry {lacks}") from None

    def gather(self, name: str, places: np.ndarray) -> Tensor:
        """A column [n, ...] of entries of one row each.

        Raises:
            RunError: a damaged entry.
        """
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        width = self._shards[0].bytes[name].shape[1]
        # By numpy: so many small copies by torch would each wait for all of its threads.
        rows = np.empty((len(places), width), dtype=np.uint8)
        for number in np.unique(numbers):
            chosen = np.flatnonzero(numbers == number)
            shard, inside = self._shards[number], places[chosen] - self._starts[number]
            for entry in inside[~shard.checked[inside]]:
                shard.check(int(entry))
            rows[chosen] = np.take(shard.bytes[name], shard.offsets[inside], axis=0)
        column = self._shards[0].columns[name]
        return torch.from_numpy(rows).view(column.dtype).reshape(len(places), *column.shape[1:])

    def compare(
        self,
        live: Iterable[tuple[bytes, Entry]],
        distance: Callable[[Entry, Entry], float],
        *,
        tolerance: float,
        of: str,
    ) -> None:
        """Compares stored entries with what is computed for them now.

        Args:
            live: entries computed now, each with its key.
            distance: of a stored and a live record, in the unit of `tolerance`.
            of: what computes them, for the message.

        Raises:
            ModelError: they are further apart.
        """
        for key, record in live:
            stored = self.read(key)
            alike = all(stored[name].shape == record[name].shape for name in stored)
            gap = distance(stored, record) if alike else math.inf
            if not gap <= tolerance:
                raise ModelError(
                    f"{self.folder}: what is stored of {key.hex()[:12]} is {gap:.3g} off the live "
                    f"{of} (accepted: {tolerance:g}); delete the folder to compute it anew"
                )


def share_of(key: bytes, world_size: int) -> int:
    """Which of several processes computes an entry.

    By its key alone: what others write meanwhile changes no one's share.
    """
    return int.from_bytes(key[:8], "big") % world_size


class _Shard:
    """One file, mapped.

    Attributes:
        columns: name -> [rows, ...]. bytes: the same as [rows, bytes of a row].
        offsets: [n + 1] first row of each entry. checked: [n] whose content has been checked.
    """

    def __init__(
        self, path: Path, tensors: dict[str, Tensor], columns: Iterable[str], checksum: str
    ) -> None:
        self.path = path
        self._checksum = checksum
        self.columns = {name: tensors[name] for name in columns}
        self.bytes = {name: _bytes_of(column) for name, column in self.columns.items()}
        self.offsets: np.ndarray = tensors["offsets"].numpy()
        self._joined: bytes = tensors["keys"].numpy().tobytes()
        self._sums: list[int] = tensors["checksums"].tolist()
        self._flat = list(self.bytes.values())
        self.checked = np.zeros(len(self), dtype=bool)

    @classmethod
    def open(cls, path: Path, cache: str, columns: Mapping[str, Column]) -> _Shard:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path}: not a readable cache shard; delete it: {error}") from error
        if metadata.get("cache") != cache or not _fits(tensors, columns):
            raise RunError(f"{path}: a cache shard of another model; delete it")
        if metadata.get("sha256") != _header_digest(tensors):
            raise RunError(f"{path}: a damaged cache shard; delete it")
        return cls(path, tensors, columns, metadata.get("checksum", ""))

    def __len__(self) -> int:
        return len(self._sums)

    def keys(self) -> Iterator[bytes]:
        for start in range(0, len(self._joined), KEY_BYTES):
            yield self._joined[start : start + KEY_BYTES]

    def rows_of(self, entry: int) -> tuple[int, int]:
        return int(self.offsets[entry]), int(self.offsets[entry + 1])

    def check(self, entry: int) -> None:
        start, stop = self.rows_of(entry)
        if _checksum(self._flat, start, stop) != self._sums[entry]:
            raise RunError(f"{self.path}: a damaged cache shard; delete it")
        self.checked[entry] = True

    def check_all(self) -> None:
        if str(_checksum(self._flat, 0, int(self.offsets[-1]))) != self._checksum:
            raise RunError(f"{self.path}: a damaged cache shard; delete it")
        self.checked[:] = True

    def read(self, entry: int) -> dict[str, Tensor]:
        if not self.checked[entry]:
            self.check(entry)
        start, stop = self.rows_of(entry)
        return {name: column[start:stop] for name, column in self.columns.items()}


def _fits(tensors: Mapping[str, Tensor], columns: Mapping[str, Column]) -> bool:
    """Whether a shard's tensors are those of a cache with these columns."""
    if tensors.keys() != {*columns, "keys", "offsets", "checksums"}:
        return False
    n, odd = divmod(len(tensors["keys"]), KEY_BYTES)
    if odd or tensors["offsets"].shape != (n + 1,) or tensors["checksums"].shape != (n,):
        return False
    rows = int(tensors["offsets"][-1])
    return all(
        tensors[name].shape == (rows, *column.shape) and column.dtype in (None, tensors[name].dtype)
        for name, column in columns.items()
    )


def _bytes_of(column: Tensor) -> np.ndarray:
    """[rows, bytes of a row] of a contiguous column [rows, ...], without a copy."""
    width = math.prod(column.shape[1:])
    flat: np.ndarray = column.reshape(len(column), width).view(torch.uint8).numpy()
    return flat


def _checksum(columns: Sequence[np.ndarray], start: int, stop: int) -> int:
    total = 0
    for column in columns:
        total = zlib.crc32(column[start:stop].data, total)
    return total


def _header_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("keys", "offsets", "checksums"):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
