"""Images that held-out pairs and training pairs share: prompts are split, images are not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from palate.data.construct.blocks import BlockFile, read_table
from palate.data.construct.process import IMAGES
from palate.data.construct.state import State


def images_in_both_splits(
    blocks: Sequence[BlockFile], state: State, held: npt.NDArray[np.bool_]
) -> dict[str, int] | None:
    """How much of the held-out images is in the training pairs, too.

    Args:
        held: [pairs of all blocks], True where a pair is held out.

    Returns:
        images (distinct ones of held-out pairs), in_train; pairs (held-out ones with images),
        pairs_in_train (those with an image that training pairs have). None where no held-out pair
        has an image.
    """
    pictured = (state.flags & IMAGES) > 0
    if not (state.kept & held & pictured).any():
        return None
    trained: set[str] = set()
    for digests, is_held in _kept(blocks, state, held, pictured):
        if not is_held:
            trained.update(digests)
    tested: set[str] = set()
    pairs = pairs_in_train = 0
    for digests, is_held in _kept(blocks, state, held, pictured):
        if is_held:
            tested.update(digests)
            pairs += 1
            pairs_in_train += not trained.isdisjoint(digests)
    return {
        "images": len(tested),
        "in_train": len(tested & trained),
        "pairs": pairs,
        "pairs_in_train": pairs_in_train,
    }


def _kept(
    blocks: Sequence[BlockFile],
    state: State,
    held: npt.NDArray[np.bool_],
    pictured: npt.NDArray[np.bool_],
) -> Iterator[tuple[list[str], bool]]:
    """(digests of its images, whether it is held out) of every pair with images that is left."""
    wanted = state.kept & pictured
    for block in blocks:
        places = np.flatnonzero(wanted[block.first : block.first + block.rows])
        if len(places):
            # The table is mapped: of all columns this one alone is read.
            images = read_table(block.path).column("images").take(places).to_pylist()
            for place, of_pair in zip(places.tolist(), images, strict=True):
                digests = [digest for _, digest in json.loads(of_pair or "[]")]
                yield digests, bool(held[block.first + place])
