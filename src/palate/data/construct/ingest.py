"""One source of a build: every record read, its pairs in blocks on disk, all else counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from palate.data.construct.blocks import BlockFile
from palate.data.construct.pool import Pool
from palate.data.construct.process import (
    BlockResult,
    Result,
    SourceSpec,
    Task,
    process,
    write_pairs,
)
from palate.data.construct.quarantine import Quarantine
from palate.data.construct.state import Collected
from palate.data.containers import Rejection
from palate.data.stream import Group, OpenGroup, RowStream

if TYPE_CHECKING:
    from palate.data.image_counts import ImageCounts

_ARRAYS = "pairs.npz"
QUARANTINE = "quarantine.jsonl"


@dataclass(kw_only=True)
class Account:
    """What became of the records of a source up to the pairs in the blocks.

    Attributes:
        read: records looked at = rows + merged + rejected.
        rows: rows made of them. counted: of these, those of which no pairs were to be made.
        pairs: pairs made of the others.
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

    def add(self, made: BlockResult, block: Path, file: str) -> None:
        """Counts what some rows gave."""
        for name in ("rows", "counted", "pairs"):
            setattr(self, name, getattr(self, name) + getattr(made, name))
        self.dropped.update(reason for _, reason in made.dropped)
        self.refused.update(reason for _, reason in made.refused)
        self.flips.update(made.flips)
        self.scored_by.update(made.scored_by)
        if made.pairs:
            self.blocks.append((block.name, file, made.pairs))

    def check(self, name: str) -> None:
        """Every record is accounted for, or the counting is wrong."""
        total = self.rows + self.merged + self.rejected.total()
        assert self.read == total, f"{name}: {self.read} records read, {total} accounted for"


class Source:
    """Makes the blocks of one source.

    Attributes:
        account: what became of its records. arrays: of its pairs, see `State`.
        images: what was seen of images; None where there were none.
    """

    def __init__(self, spec: SourceSpec, folder: Path, *, advance: Callable[[int], None]) -> None:
        """Args: `folder` is for it alone; `advance` is told of records read."""
        self.spec = spec
        self.folder = folder
        self.account = Account()
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.images: ImageCounts | None = None
        self._advance = advance
        self._collected = Collected()
        self._group = OpenGroup()
        self._number = 0

    def read(self, stream: RowStream, pool: Pool) -> None:
        """Reads the records, or as many as give `limit` usable rows, and keeps what came of it.

        Raises:
            DataError: a contradicted label where the recipe says `flips: error`.
            RunError: the disk is full.
        """
        self.folder.mkdir(exist_ok=True)
        with Quarantine(self.folder / QUARANTINE) as quarantine:
            draw = stream.draw()
            for batch in draw.batches():
                tasks = (Task(spec=self.spec, span=span, block=self._block()) for span in batch)
                for result in pool.map(process, tasks):
                    self._take(result, quarantine)
                    draw.usable = self.account.rows
            self._join(self._group.close(), quarantine)
            self.account.read += len(stream.records.damage)
            self._reject(stream.records.damage, quarantine)
        self.account.check(self.spec.name)
        self.arrays = self._collected.arrays()

    def _block(self) -> Path:
        self._number += 1
        return self.folder / f"{self._number:06}.arrow"

    def _take(self, result: Result, quarantine: Quarantine) -> None:
        chunk = result.chunk
        self.account.read += chunk.read
        self.account.merged += chunk.merged
        self._advance(chunk.read)
        self._reject(chunk.rejected, quarantine)
        self._leave_out(result.left_out, quarantine)
        self._join(self._group.ended(chunk.head, chunk.tail), quarantine)
        self._keep(result.made, result.block, chunk.file, quarantine)

    def _join(self, groups: Sequence[Group], quarantine: Quarantine) -> None:
        """Answers to a prompt that may have gone over the border of two pieces."""
        for group in groups:
            row = self.spec.parser.merged(group)
            if isinstance(row, Rejection):
                self._reject([row], quarantine)
                continue
            self.account.merged += row.records - 1
            self._leave_out(row.left_out, quarantine)
            block = self._block()
            made = write_pairs([row], self.spec, block)
            self._keep(made, block, group.file, quarantine)

    def _keep(self, made: BlockResult, block: Path, file: str, quarantine: Quarantine) -> None:
        self.account.add(made, block, file)
        self._collected.add(made)
        if made.images is not None:
            if self.images is None:
                self.images = made.images
            else:
                self.images.merge(made.images)
        for row, reason in (*made.dropped, *made.refused):
            quarantine.add(source=self.spec.name, file=file, row=row, reason=reason)

    def _reject(self, items: Sequence[Rejection], quarantine: Quarantine) -> None:
        self.account.rejected.update(item.counted_as for item in items)
        self._note(items, quarantine)

    def _leave_out(self, items: Sequence[Rejection], quarantine: Quarantine) -> None:
        self.account.left_out.update(item.counted_as for item in items)
        self._note(items, quarantine)

    def _note(self, items: Sequence[Rejection], quarantine: Quarantine) -> None:
        for item in items:
            quarantine.add(
                source=self.spec.name,
                file=item.file,
                row=item.row,
                field=item.field,
                reason=item.reason,
            )

    def dump(self) -> dict[str, Any]:
        """The account as JSON values, for `restore`; the arrays are kept in the folder."""
        np.savez(self.folder / _ARRAYS, **self.arrays)  # type: ignore[arg-type]
        images = None if self.images is None else self.images.dump()
        return {"account": vars(self.account), "images": images}

    def restore(self, dumped: Mapping[str, Any]) -> None:
        """Takes up what an interrupted build has dumped."""
        for name, value in dumped["account"].items():
            kind = type(getattr(self.account, name))
            setattr(self.account, name, kind(value))
        self.account.blocks = [tuple(block) for block in dumped["account"]["blocks"]]
        if dumped["images"] is not None:
            from palate.data.image_counts import ImageCounts

            self.images = ImageCounts.restore(dumped["images"])
        with np.load(self.folder / _ARRAYS, allow_pickle=False) as arrays:
            self.arrays = dict(arrays)
        self._advance(self.account.read)


def image_counts(sources: Sequence[Source]) -> ImageCounts | None:
    """What was seen of the images of all sources; None where no source has any."""
    counts = [source.images for source in sources if source.images is not None]
    if not counts:
        return None
    from palate.data.image_counts import ImageCounts

    found = ImageCounts()
    for one in counts:
        found.merge(one)
    return found


def images_of(sources: Sequence[Source]) -> dict[str, Any] | None:
    """The entry `images` of data.json; None where no source has any."""
    counts = image_counts(sources)
    return None if counts is None else counts.result()


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
