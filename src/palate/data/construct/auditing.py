"""The audit of staged pairs, shared among the workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from palate.data.audit import Audit
from palate.data.construct.blocks import BlockFile
from palate.data.construct.pool import Pool
from palate.data.construct.progress import Bars
from palate.data.construct.state import State
from palate.data.curation.base import Block

# Each part sends back an audit of some megabytes: few parts, but enough to share the work evenly.
_PARTS_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Blocks that follow one another, and the places of their pairs that are left.

    Attributes:
        places: one a block; None: all of them.
    """

    blocks: list[BlockFile]
    places: list[list[int] | None]
    seed: int

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)


def audit(
    blocks: Sequence[BlockFile], state: State, seed: int, pool: Pool, bars: Bars, what: str
) -> Audit:
    """The audit of the pairs that are left. It does not depend on how the work is shared."""
    found = Audit(seed)
    advance = bars.start(what, len(state))
    for made, rows in pool.map(_audit, _parts(blocks, state, seed, pool.workers)):
        found.merge(made)
        advance(rows)
    return found


def _parts(blocks: Sequence[BlockFile], state: State, seed: int, workers: int) -> Iterator[_Part]:
    step = -(-len(blocks) // (workers * _PARTS_PER_WORKER)) or 1
    for start in range(0, len(blocks), step):
        some = list(blocks[start : start + step])
        places: list[list[int] | None] = []
        for block in some:
            kept = np.flatnonzero(state.kept_in(block.first, block.rows))
            places.append(None if len(kept) == block.rows else kept.tolist())
        yield _Part(blocks=some, places=places, seed=seed)


def _audit(part: _Part) -> tuple[Audit, int]:
    found = Audit(part.seed)
    for file, places in zip(part.blocks, part.places, strict=True):
        if places == []:
            continue
        index = [file.first + i for i in (range(file.rows) if places is None else places)]
        block = Block(first=file.first, index=index, rows=file.load(places))
        for source, mine in by_source(block):
            found.add(mine, source=source)
    return found, part.rows


def by_source(block: Block) -> Iterable[tuple[str, Block]]:
    """The parts of a block by the source that its rows name."""
    names = dict.fromkeys(row.source for row in block.rows)
    if len(names) == 1:
        return [(next(iter(names)), block)]
    found = []
    for name in names:
        places = [k for k, row in enumerate(block.rows) if row.source == name]
        index, rows = [block.index[k] for k in places], [block.rows[k] for k in places]
        found.append((name, Block(first=block.first, index=index, rows=rows)))
    return found
