"""One piece of a source: rows, and pairs of them in a block on disk. Runs in a worker."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from palate.data.construct.blocks import write_block
from palate.data.containers import Rejection
from palate.data.content import bare, prompt_key
from palate.data.mixture import Measure, row_keys
from palate.data.pairing import OWN_PROMPTS, pair_row
from palate.data.schema import ImageRef, Preference
from palate.data.stream import Chunk, Row, RowParser, Span
from palate.recipes.images import ImagesRecipe
from palate.recipes.mixture import MixtureRecipe
from palate.recipes.pairing import PairingRecipe

if TYPE_CHECKING:
    from palate.data.images import ImageCounts

NO_PAIRS = "unpaired feedback or a demonstration: no pair"
OTHER_IMAGES = "the rejected response saw other images: no column for them"
VIDEO = "a video, which builds do not write"
IMAGE_FOLDER = "images"
CHAT, IMAGES, MARGIN = 1, 2, 4
"""What a pair may have."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What is done with the records of one source.

    Attributes:
        parser: makes rows of them.
        image_root: folder that image paths start from. images: limits. store: folder of the build
            that checked images go to, in its subfolder `images`.
        measure: what pairs count for in the mixture; None where nothing needs it.
        pairs: False counts rows and makes nothing of them (formats without pairs, inspected).
    """

    parser: RowParser
    pairing: PairingRecipe
    seed: int
    image_root: Path
    images: ImagesRecipe
    store: Path
    measure: MixtureRecipe | None
    pairs: bool = True

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.parser.source


@dataclass(frozen=True, kw_only=True)
class Task:
    """A piece, and the file that its pairs are to be written to."""

    spec: SourceSpec
    span: Span
    block: Path


@dataclass(kw_only=True)
class BlockResult:
    """What became of some rows, in the order of the source; their pairs are in a block.

    Attributes:
        rows: rows that were read (groups of answers count as one).
        counted: rows of which no pairs were to be made.
        pairs: pairs written to the block. of_row: [pairs], which of the rows each is of.
        dropped: rows that gave no pair: file row and reason.
        refused: pairs that rows which gave others lost: file row and reason.
        keys: [pairs], hashes of the ids. prompts: [pairs], hashes of the prompts.
        flags: [pairs], sums of CHAT, IMAGES and MARGIN.
        sizes: [pairs], what each counts for in the mixture.
        images: what was seen of images; None where there were none.
        sources: names of the pairs' sources. source: [pairs], places in it.
    """

    rows: int = 0
    counted: int = 0
    pairs: int = 0
    dropped: list[tuple[int | None, str]] = field(default_factory=list)
    refused: list[tuple[int | None, str]] = field(default_factory=list)
    flips: Counter[str] = field(default_factory=Counter)
    scored_by: Counter[str] = field(default_factory=Counter)
    of_row: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    prompts: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    flags: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    sizes: npt.NDArray[np.int64] | None = None
    images: ImageCounts | None = None
    sources: list[str] = field(default_factory=list)
    source: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))


@dataclass(kw_only=True)
class Result:
    """What became of one piece.

    Attributes:
        chunk: what it gave, without the rows that are in the block.
        left_out: parts that those rows do without.
    """

    chunk: Chunk
    left_out: list[Rejection]
    block: Path
    made: BlockResult


def process(task: Task) -> Result:
    """Reads a piece."""
    chunk = task.spec.parser.chunk(task.span)
    made = write_pairs(chunk.rows, task.spec, task.block)
    left_out = chunk.left_out
    # Rows stay where they are: another process needs the numbers alone.
    chunk.rows = []
    return Result(chunk=chunk, left_out=left_out, block=task.block, made=made)


def write_pairs(rows: Sequence[Row], spec: SourceSpec, block: Path) -> BlockResult:
    """Makes pairs of rows and writes them."""
    result = BlockResult(rows=len(rows))
    if not spec.pairs:
        result.counted = len(rows)
        return result
    pairs: list[Preference] = []
    of_row: list[int] = []
    flags: list[int] = []
    for k, (row, *_) in enumerate(rows):
        if row.kind not in ("pair", "rated"):
            result.dropped.append((row.row, NO_PAIRS))
            continue
        pictured = row.has_images
        if pictured:
            found = _with_images(row, spec, result)
            if isinstance(found, str):
                result.dropped.append((row.row, found))
                continue
            row = found
        if row.has_own_prompts and not _same_texts(row):
            result.dropped.append((row.row, OWN_PROMPTS))
            continue
        made = pair_row(row, spec.pairing, spec.seed)
        result.flips.update(made.flips)
        if made.scored_by is not None:
            result.scored_by[made.scored_by] += 1
        if not made.pairs:
            result.dropped.append((row.row, made.dropped[0]))
            continue
        kept = made.pairs
        refused = list(made.dropped)
        if row.has_own_prompts:
            kept = tuple(one for pair in kept if (one := _of_one_view(pair)) is not None)
            refused += [OTHER_IMAGES] * (len(made.pairs) - len(kept))
        if not kept:
            result.dropped.append((row.row, refused[-1]))
            continue
        result.refused += [(row.row, reason) for reason in refused]
        pairs += kept
        flags += [_flags(pair, pictured) for pair in kept]
        of_row += [k] * len(kept)
    result.pairs = len(pairs)
    if not pairs:
        return result
    result.flags = np.array(flags, dtype=np.uint8)
    result.of_row = np.array(of_row, dtype=np.uint32)
    result.keys = row_keys(spec.seed, (pair.id for pair in pairs))
    result.prompts = np.fromiter((prompt_key(p.prompt, spec.seed) for p in pairs), dtype=np.uint64)
    result.sources = list(dict.fromkeys(pair.source for pair in pairs))
    place = {name: i for i, name in enumerate(result.sources)}
    result.source = np.array([place[pair.source] for pair in pairs], dtype=np.uint32)
    if spec.measure is not None:
        result.sizes = _measure(spec.measure.model_dump_json())(pairs)
    write_block(block, pairs)
    return result


def _with_images(row: Preference, spec: SourceSpec, result: BlockResult) -> Preference | str:
    """The row with its images checked and stored, or what is wrong with them."""
    # Most data has no images, and needs nothing that decodes them.
    from palate.data.images import ImageCounts, ImageError, ImageStore, checked

    counts = result.images = result.images or ImageCounts()
    if row.has_videos:
        counts.refused[VIDEO] += 1
        return f"image: {VIDEO}"
    store = ImageStore(spec.store / IMAGE_FOLDER)
    try:
        row, infos = checked(row, root=spec.image_root, limits=spec.images, store=store)
    except ImageError as error:
        counts.refused[error.reason] += 1
        return f"image: {error.reason}"
    counts.add(infos)
    return row.with_images(_in_folder)


def _in_folder(image: ImageRef) -> ImageRef:
    return dataclasses.replace(image, path=f"{IMAGE_FOLDER}/{image.path}")


def _same_texts(row: Preference) -> bool:
    """Whether the prompts that responses have of their own differ in images alone."""
    asked = bare(row.prompt)
    return all(r.prompt is None or bare(r.prompt) == asked for r in row.responses)


def _of_one_view(pair: Preference) -> Preference | None:
    """The pair with the prompt that both responses saw; None where their images differ."""
    views = [pair.prompt if side.prompt is None else side.prompt for side in pair.responses]
    if views[0] != views[1]:
        return None
    responses = tuple(dataclasses.replace(side, prompt=None) for side in pair.responses)
    return dataclasses.replace(pair, prompt=views[0], responses=responses)


def _flags(pair: Preference, pictured: bool) -> int:
    return CHAT * pair.conversational + IMAGES * pictured + MARGIN * (pair.margin is not None)


@cache
def _measure(recipe: str) -> Measure:
    # A tokenizer is loaded once a worker.
    return Measure(MixtureRecipe.model_validate_json(recipe))
