"""One source of a build: every record read, its pairs staged on disk, everything else counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from palate.data.construct.pool import Pool
from palate.data.construct.quarantine import Quarantine
from palate.data.construct.read import Done, Job, Staged, Work, do, stage, together
from palate.data.construct.staging import BlockFile
from palate.data.construct.state import Collected
from palate.data.containers import Piece, Records, Rejection
from palate.data.containers.base import PIECE_ROWS
from palate.data.readers.grouping import same_prompt
from palate.data.readers.read import draw_order
from palate.data.schema import Preference
from palate.store.files import read_json, write_json

if TYPE_CHECKING:
    from palate.data.images import ImageCounts

_ACCOUNT = "source.json"
_ARRAYS = "pairs.npz"
QUARANTINE = "quarantine.jsonl"


@dataclass(kw_only=True)
class Account:
    """What became of the records of a source up to the staged pairs.

    Attributes:
        read: records looked at = rows + merged + rejected.
        rows: rows made of them. counted: of these, those of which no pairs were to be made.
        pairs: pairs made of the others and staged.
        dropped: rows that gave no pair, by reason. refused: pairs of rows that gave others.
        blocks: file names, data files and numbers of pairs of the blocks.
    """

    read: int = 0
    rows: int = 0
    merged: int = 0
    counted: int = 0
    pairs: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    flips: Counter[str] = field(default_factory=Counter)
    scored_by: Counter[str] = field(default_factory=Counter)
    blocks: list[tuple[str, str, int]] = field(default_factory=list)

    def add(self, staged: Staged, block: Path, file: str) -> None:
        """Counts what a piece gave."""
        for name in ("rows", "merged", "counted", "pairs"):
            setattr(self, name, getattr(self, name) + getattr(staged, name))
        self.dropped.update(reason for _, reason in staged.dropped)
        self.refused.update(reason for _, reason in staged.refused)
        self.flips.update(staged.flips)
        self.scored_by.update(staged.scored_by)
        if staged.pairs:
            self.blocks.append((block.name, file, staged.pairs))

    def check(self, name: str) -> None:
        """Every record is accounted for, or the counting is wrong."""
        total = self.rows + self.merged + self.rejected.total()
        assert self.read == total, f"{name}: {self.read} records read, {total} accounted for"


class Source:
    """Stages one source.

    Attributes:
        account: what became of its records. arrays: of its pairs, see `State`.
        images: what was seen of images; None where there were none.
    """

    def __init__(
        self, work: Work, folder: Path, *, grouped: bool, advance: Callable[[int], None]
    ) -> None:
        """Args: `folder` is its own; `advance` is told of records read."""
        self.work = work
        self.folder = folder
        self.account = Account()
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.images: ImageCounts | None = None
        self._grouped = grouped
        self._advance = advance
        self._collected = Collected()
        self._open: list[Preference] = []
        self._open_file = work.path
        self._number = 0

    def read(self, records: Records, pool: Pool, limit: int | None) -> None:
        """Reads the records, or as many as give `limit` usable rows, and keeps what came of it.

        Raises:
            DataError: a contradicted label where the recipe says `flips: error`.
            RunError: the disk is full.
        """
        self.folder.mkdir(exist_ok=True)
        with Quarantine(self.folder / QUARANTINE) as quarantine:
            if limit is None or self._grouped:
                self._pieces(records.pieces(), pool, quarantine)
            else:
                self._drawn(records, pool, quarantine, limit)
            for item in records.damage:
                self.account.read += 1
                self._reject(item, quarantine)
            self._close_group(quarantine)
        self.account.check(self.work.name)
        self.arrays = self._collected.arrays()

    def _drawn(self, records: Records, pool: Pool, quarantine: Quarantine, limit: int) -> None:
        order = draw_order(len(records), self.work.seed, self.work.name)
        at = 0
        while at < len(order) and self.account.rows < limit:
            some = sorted(order[at : at + limit - self.account.rows])
            at += len(some)
            starts = range(0, len(some), PIECE_ROWS)
            pieces = (records.take(some[start : start + PIECE_ROWS]) for start in starts)
            self._pieces(pieces, pool, quarantine)

    def _pieces(self, pieces: Iterator[Piece], pool: Pool, quarantine: Quarantine) -> None:
        jobs = (Job(work=self.work, piece=piece, block=self._block()) for piece in pieces)
        for done in pool.map(do, jobs):
            self._take(done, quarantine)

    def _block(self) -> Path:
        self._number += 1
        return self.folder / f"{self._number:06}.arrow"

    def _take(self, done: Done, quarantine: Quarantine) -> None:
        self.account.read += done.read
        self._advance(done.read)
        for item in done.rejected:
            self._reject(item, quarantine)
        for item in done.left_out:
            self.account.left_out[item.counted_as] += 1
            quarantine.add(
                source=self.work.name,
                file=item.file,
                row=item.row,
                field=item.field,
                reason=item.reason,
            )
        if done.head:
            if self._open and not same_prompt(self._open[0], done.head[0]):
                self._close_group(quarantine)
            self._open_file = self._open_file if self._open else done.file
            self._open += done.head
            if done.tail:
                self._close_group(quarantine)
        self._keep(done.staged, done.block, done.file, quarantine)
        if done.tail:
            self._open, self._open_file = done.tail, done.file

    def _close_group(self, quarantine: Quarantine) -> None:
        """The answers to a prompt that may have gone over the border of two pieces."""
        if not self._open:
            return
        rows, lone = together([self._open], self._open_file)
        self._open = []
        for item in lone:
            self._reject(item, quarantine)
        block = self._block()
        self._keep(stage(rows, self.work, block), block, self._open_file, quarantine)

    def _keep(self, staged: Staged, block: Path, file: str, quarantine: Quarantine) -> None:
        self.account.add(staged, block, file)
        self._collected.add(staged)
        if staged.images is not None:
            if self.images is None:
                self.images = staged.images
            else:
                self.images.merge(staged.images)
        for row, reason in (*staged.dropped, *staged.refused):
            quarantine.add(source=self.work.name, file=file, row=row, reason=reason)

    def _reject(self, item: Rejection, quarantine: Quarantine) -> None:
        self.account.rejected[item.counted_as] += 1
        quarantine.add(
            source=self.work.name,
            file=item.file,
            row=item.row,
            field=item.field,
            reason=item.reason,
        )

    def save(self, key: str) -> None:
        """Keeps the account and the arrays for a resumed build; `key` says what they depend on."""
        np.savez(self.folder / _ARRAYS, **self.arrays)  # type: ignore[arg-type]
        images = None if self.images is None else self.images.dump()
        saved = {"key": key, "account": vars(self.account), "images": images}
        write_json(self.folder / _ACCOUNT, saved)

    def load(self, key: str) -> bool:
        """Takes up what an interrupted build has saved; False if nothing has this key."""
        file = self.folder / _ACCOUNT
        if not file.exists():
            return False
        saved = read_json(file)
        if saved["key"] != key:
            return False
        for name, value in saved["account"].items():
            kind = type(getattr(self.account, name))
            setattr(self.account, name, kind(value))
        self.account.blocks = [tuple(block) for block in saved["account"]["blocks"]]
        if saved["images"] is not None:
            from palate.data.images import ImageCounts

            self.images = ImageCounts.restore(saved["images"])
        with np.load(self.folder / _ARRAYS, allow_pickle=False) as arrays:
            self.arrays = dict(arrays)
        self._advance(self.account.read)
        return True


def images_of(sources: Sequence[Source]) -> dict[str, Any] | None:
    """The entry `images` of data.json; None where no source has any."""
    counts = [source.images for source in sources if source.images is not None]
    if not counts:
        return None
    from palate.data.images import ImageCounts

    found = ImageCounts()
    for one in counts:
        found.merge(one)
    return found.result()


def blocks_of(sources: Sequence[Source]) -> list[BlockFile]:
    """The blocks of all sources, numbered through."""
    found = []
    first = 0
    for ledger, source in enumerate(sources):
        for name, file, rows in source.account.blocks:
            path = source.folder / name
            found.append(BlockFile(path=path, ledger=ledger, file=file, first=first, rows=rows))
            first += rows
    return found
