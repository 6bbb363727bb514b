"""The Parquet files of a build, written block after block in the order of the sources."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from palate.data.construct import llamafactory
from palate.data.construct.blocks import BlockFile, decode, read_table
from palate.data.construct.columns import Shape, conversational
from palate.data.construct.pool import Pool
from palate.data.construct.progress import Bars
from palate.data.construct.split import repeats
from palate.data.construct.state import State
from palate.errors import RunError
from palate.store.files import write_bytes

DATA = "data"
SPLITS = ("train", "eval")
_GROUP_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """Rows of a block that are to be written, and how.

    Attributes:
        index: their places in the block. held: whether each is held out.
        suffixes: by place in `index`, what makes an id that repeats another.
        store: folder that image paths start from. out: where images are to be put; None to
            put them nowhere.
    """

    block: BlockFile
    index: list[int]
    held: list[bool]
    suffixes: dict[int, str]
    shape: Shape
    factory: bool
    store: Path
    out: Path | None


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """Arrow streams by folder and split, and rows that LLaMA-Factory cannot take."""

    tables: dict[tuple[str, str], Any]
    unfit: int


@dataclass(kw_only=True)
class Written:
    """What has been written.

    Attributes:
        rows: by folder and split. files: in order. unfit: rows that LLaMA-Factory cannot take.
    """

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    files: list[Path] = field(default_factory=list)
    unfit: int = 0


def write(
    out: Path,
    blocks: Sequence[BlockFile],
    state: State,
    held: npt.NDArray[np.bool_],
    shape: Shape,
    *,
    factory: bool,
    store: Path,
    rows_per_file: int,
    pool: Pool,
    bars: Bars,
) -> Written:
    """Writes the pairs that are kept: `held` ones to the split `eval`, others to `train`.

    Raises:
        RunError: the disk is full.
    """
    images = out if shape.images and not shape.embedded else None
    jobs = _jobs(blocks, state, held, shape, factory, store, images)
    metadata = _decoded_by_datasets(shape)
    found = Written()
    files: dict[tuple[str, str], _Shards] = {}
    advance = bars.start("writing", int(state.kept.sum()))
    try:
        for made in pool.map(_ready, jobs):
            for place, stream in made.tables.items():
                table = pa.ipc.open_stream(stream).read_all()
                if place not in files:
                    files[place] = _Shards(out, place, rows_per_file, metadata)
                files[place].add(table)
                found.rows[place] += len(table)
                if place[0] == DATA:
                    advance(len(table))
            found.unfit += made.unfit
        for shards in files.values():
            shards.close()
            found.files += shards.files
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from None
    return found


def _jobs(
    blocks: Sequence[BlockFile],
    state: State,
    held: npt.NDArray[np.bool_],
    shape: Shape,
    factory: bool,
    store: Path,
    out: Path | None,
) -> Iterator[_Writing]:
    again = repeats(state)
    for block in blocks:
        mine = slice(block.first, block.first + block.rows)
        index = np.flatnonzero(state.kept_in(block.first, block.rows))
        if not len(index):
            continue
        numbers = again[mine][index]
        yield _Writing(
            block=block,
            index=index.tolist(),
            held=held[mine][index].tolist(),
            suffixes={k: f"#{numbers[k] + 1}" for k in np.flatnonzero(numbers).tolist()},
            shape=shape,
            factory=factory,
            store=store,
            out=out,
        )


def _ready(job: _Writing) -> _Ready:
    staged = read_table(job.block.path)
    if len(job.index) < len(staged):
        staged = staged.take(job.index)
    table = job.shape.table(staged, job.suffixes, job.store)
    tables: dict[tuple[str, str], Any] = {}
    unfit = 0
    for split, held in zip(SPLITS, (False, True), strict=True):
        mine = [k for k, is_held in enumerate(job.held) if is_held is held]
        if not mine:
            continue
        every = len(mine) == len(table)
        tables[DATA, split] = _stream(table if every else table.take(mine))
        if job.factory:
            rows = decode(staged, None if every else mine)
            if job.shape.chat:
                rows = [conversational(row) for row in rows]
            fit = llamafactory.table(rows, job.shape)
            tables[llamafactory.FOLDER, split] = _stream(fit)
            unfit += len(rows) - len(fit)
    if job.out is not None:
        listed = staged.column("images").to_pylist()
        for path in {path for images in listed if images for path, _ in json.loads(images)}:
            _place(job.store / path, job.out / path)
    return _Ready(tables=tables, unfit=unfit)


def _place(image: Path, target: Path) -> None:
    """The image at `target` too; it is there already where another row has it."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(image, target)
    except FileExistsError:
        return
    except OSError:
        # A file system without links.
        write_bytes(target, image.read_bytes())


def _decoded_by_datasets(shape: Shape) -> dict[bytes, bytes] | None:
    """What tells `datasets` that a column holds images."""
    if not (shape.images and shape.embedded):
        return None
    from datasets import Features, Image, List

    features = Features.from_arrow_schema(shape.schema)
    features["images"] = List(Image())
    metadata: dict[bytes, bytes] = features.arrow_schema.metadata
    return metadata


def _stream(table: pa.Table) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


class _Shards:
    """Parquet files of one split, each of at most so many rows."""

    def __init__(
        self,
        out: Path,
        place: tuple[str, str],
        rows_per_file: int,
        metadata: dict[bytes, bytes] | None,
    ) -> None:
        folder, split = place
        # LLaMA-Factory takes all files of a folder for one split.
        self._folder = out / folder if folder == DATA else out / folder / split
        self._folder.mkdir(parents=True, exist_ok=True)
        self._split = split
        self._metadata = metadata if folder == DATA else None
        self._limit = rows_per_file
        self._rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self.files: list[Path] = []

    def add(self, table: pa.Table) -> None:
        while len(table):
            room = self._limit - self._rows - sum(map(len, self._waiting))
            self._waiting.append(table.slice(0, room))
            table = table.slice(room)
            full = sum(map(len, self._waiting)) + self._rows == self._limit
            if full or sum(map(len, self._waiting)) >= _GROUP_ROWS:
                self._flush()
            if full:
                self.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).replace_schema_metadata(self._metadata)
        if self._writer is None:
            path = self._folder / f"{self._split}-{len(self.files):05}.parquet"
            self.files.append(path)
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=_GROUP_ROWS)
        self._rows += len(table)
        self._waiting = []

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._rows = 0
