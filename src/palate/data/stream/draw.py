"""Which rows a `limit` keeps: those with the least keyed hashes of their places.

A hash does not depend on how many rows there are or who reads them: a larger limit keeps what a
smaller one keeps, and rows added to the end of a file leave the order of the others as it was.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from palate.data.containers import Piece, Records
from palate.data.containers.base import PIECE_ROWS

T = TypeVar("T")


def draw_keys(numbers: npt.ArrayLike, seed: int, name: str) -> npt.NDArray[np.uint64]:
    """[N], the hash of each number (Steele et al. 2014, SplitMix64); no two are equal.

    Args:
        name: of the source.
    """
    salt = hashlib.blake2b(f"{seed}|limit|{name}".encode("utf-8", "surrogatepass"), digest_size=8)
    keys = np.asarray(numbers, dtype=np.uint64) + np.uint64(int.from_bytes(salt.digest(), "little"))
    keys *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys ^ (keys >> np.uint64(31))


def drawn(count: int, limit: int, seed: int, name: str) -> npt.NDArray[np.int64]:
    """The places among 0 .. count - 1 that a limit keeps, ascending."""
    return np.sort(np.argsort(draw_keys(np.arange(count), seed, name))[:limit])


class Span(NamedTuple):
    """A piece of a source, and the places of its records in it."""

    piece: Piece
    places: Sequence[int]


@dataclass
class Draw:
    """The pieces of a source; with a limit, those of as many records as give so many usable rows.

    No record is read twice.

    Attributes:
        usable: how many usable rows have been read so far; for the reader to count.
    """

    records: Records
    limit: int | None
    seed: int
    name: str
    usable: int = 0

    def batches(self) -> Iterator[Iterator[Span]]:
        """Pieces that may be read side by side; all of a batch, before the next is drawn."""
        if self.limit is None:
            yield _spans(self.records)
            return
        order = np.argsort(draw_keys(np.arange(len(self.records)), self.seed, self.name))
        at = 0
        while at < len(order) and (missing := self.limit - self.usable) > 0:
            # In the order of the source, which reads tables in blocks.
            places: list[int] = np.sort(order[at : at + missing]).tolist()
            at += len(places)
            yield _taken(self.records, places)


def _spans(records: Records) -> Iterator[Span]:
    first = 0
    for piece in records.pieces():
        yield Span(piece, range(first, first + piece.rows))
        first += piece.rows


def _taken(records: Records, places: Sequence[int]) -> Iterator[Span]:
    for start in range(0, len(places), PIECE_ROWS):
        part = places[start : start + PIECE_ROWS]
        yield Span(records.take(part), part)


class Least(Generic[T]):
    """Keeps, of a stream of values, the `limit` values whose numbers have the smallest keys."""

    def __init__(self, limit: int, seed: int, name: str) -> None:
        self._limit, self._seed, self._name = limit, seed, name
        self._kept: list[tuple[int, int, T]] = []
        self._count = 0

    def add(self, values: Sequence[T]) -> Iterable[T]:
        """Takes values; returns those, of all so far, that are not among the least any more."""
        numbers = range(self._count, self._count + len(values))
        keys = draw_keys(numbers, self._seed, self._name).tolist()
        self._count += len(values)
        removed = []
        for key, number, value in zip(keys, numbers, values, strict=True):
            entry = (-key, number, value)
            if len(self._kept) < self._limit:
                heapq.heappush(self._kept, entry)
            else:
                removed.append(heapq.heappushpop(self._kept, entry)[2])
        return removed

    def kept(self) -> list[T]:
        """In the order in which they came."""
        return [value for _, _, value in sorted(self._kept, key=lambda entry: entry[1])]
