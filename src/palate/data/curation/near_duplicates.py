"""Pairs so similar to an earlier one that only that one stays.

Three looks at the pairs. The first keeps hashes of MinHash bands (Broder 1997; banding as in
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4), so that pairs which are likely
to be similar share one. The second writes the shingles of those alone to a temporary file. Then
each of them, in the order of the rows, is compared with the pairs that stay and share a band with
it, by the true Jaccard index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import rensa

from palate.data.content import image_key
from palate.data.curation.arrays import Columns, Verdicts
from palate.data.curation.bands import Bands, bands_for
from palate.data.curation.base import KEEP, Block, Dropped, Judgement, Means
from palate.data.curation.shingles import Hashes, Shingles, mix, of_characters, of_words
from palate.data.curation.spool import ShingleFile
from palate.data.curation.text import digest, normalised
from palate.data.schema import Preference
from palate.recipes.curation import NearDuplicates

_SIZES = {"characters": 5, "words": 3}
_MOST_COMPARED = 64


class NearDuplicatesStep:
    """12 bytes a band and pair, 252 at the defaults; up to twice that where many are alike."""

    name = "near_duplicates"
    passes = 2

    def __init__(self, recipe: NearDuplicates, means: Means) -> None:
        self.recipe = recipe
        self._parts = 3 if recipe.of == "pair" else 1
        self.shape = bands_for(recipe.threshold, recipe.num_perm, self._parts)
        self._size = recipe.shingle_size or _SIZES[recipe.shingles]
        self._seed = means.seed
        self._scratch = means.scratch
        self._pass = 0
        self._rows = Columns(band=np.uint64)
        self._index: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._bands: Bands | None = None
        self._file: ShingleFile | None = None
        self._verdicts: Verdicts | None = None
        self._account: dict[str, Any] = {}
        self._dropped = Dropped(f"similar to another {recipe.of}")

    def look(self, block: Block) -> None:
        if self._pass == 0:
            self._rows.add(block.index, band=self._band_hashes(block))
            return
        assert self._bands is not None and self._file is not None
        places = np.searchsorted(self._index, block.index)
        mine = [k for k, place in enumerate(places.tolist()) if self._bands.candidate[place]]
        if mine:
            part = Block(block.first, [block.index[k] for k in mine], [block.rows[k] for k in mine])
            shingles = self._shingles(part)
            for k, (row, place) in enumerate(zip(part.rows, places[mine].tolist(), strict=True)):
                self._file.add(place, [_images(row), *(np.unique(s.of(k)) for s in shingles)])

    def end_of_pass(self) -> None:
        self._pass += 1
        if self._pass == 1:
            index = self._rows.take("index")
            order = np.argsort(index, kind="stable")
            self._index = index[order]
            self._bands = Bands(self._rows.take("band").reshape(-1, self.shape.bands), order)
            self._file = ShingleFile(self._scratch, len(index), self._parts)
            return
        assert self._bands is not None and self._file is not None
        self._file.flush()
        self._verdicts = Verdicts(self._index, self._compare(self._bands, self._file))
        self._file.close()
        self._bands = self._file = None

    def judge(self, block: Block) -> list[Judgement]:
        assert self._verdicts is not None
        return [self._dropped if code else KEEP for code in self._verdicts.of(block.index)]

    def account(self) -> dict[str, Any]:
        """What was compared how.

        threshold, shingles, bands, hashes_of_a_band. recall_at_threshold: the chance that a
        duplicate just at the threshold became a candidate. candidates: pairs that share a band
        with another. compared: comparisons by the true Jaccard index. not_compared: comparisons
        left out where a pair has very many candidates that are no duplicates of each other.
        """
        return {
            "threshold": self.recipe.threshold,
            "shingles": f"{self._size} {self.recipe.shingles}",
            "bands": self.shape.bands,
            "hashes_of_a_band": self.shape.rows,
            "recall_at_threshold": round(self.shape.recall(self.recipe.threshold), 5),
            **self._account,
        }

    def _texts(self, block: Block) -> list[list[str]]:
        fields = [block.prompts, block.chosen, block.rejected][: self._parts]
        return [[normalised(text, "whitespace").casefold() for text in texts] for texts in fields]

    def _shingles(self, block: Block) -> list[Shingles]:
        cut = of_characters if self.recipe.shingles == "characters" else of_words
        return [cut(texts, self._size) for texts in self._texts(block)]

    def _band_hashes(self, block: Block) -> npt.NDArray[np.uint64]:
        """[N, bands]: pairs whose parts are similar, and whose images are the same, share one."""
        images = np.array([_images(row)[0] for row in block.rows], dtype=np.uint64)
        hashes: npt.NDArray[np.uint64] = np.repeat(images[:, None], self.shape.bands, axis=1)
        for number, (shingles, width) in enumerate(
            zip(self._shingles(block), self.shape.of_part, strict=True)
        ):
            sketch = _sketch(shingles, width * self.shape.bands, self._seed + number)
            for k in range(width):
                # Slots are unlike sets, not sequences: each has its own place in the hash.
                hashes = mix(hashes * np.uint64(3) + sketch[:, k::width] + np.uint64(k + 1))
        return hashes

    def _compare(self, bands: Bands, file: ShingleFile) -> npt.NDArray[np.bool_]:
        """Which rows go, in rising order of `self._index`."""
        dropped = np.zeros(len(self._index), dtype=np.bool_)
        compared = left_out = 0
        for place in np.flatnonzero(bands.candidate).tolist():
            near, unregistered = bands.standing(place)
            left_out += unregistered + max(0, len(near) - _MOST_COMPARED)
            if len(near):
                mine = file.read(place)
                for other in near[:_MOST_COMPARED].tolist():
                    compared += 1
                    if _similar(mine, file.read(other), self.recipe.threshold):
                        dropped[place] = True
                        break
            if not dropped[place]:
                bands.stand(place)
        self._account = {
            "candidates": int(bands.candidate.sum()),
            "compared": compared,
            "not_compared": left_out,
        }
        return dropped


def jaccard(a: Hashes, b: Hashes) -> float:
    """|A and B| / |A or B| of sorted sets; two empty ones are equal."""
    if not len(a) and not len(b):
        return 1.0
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def _similar(a: list[Hashes], b: list[Hashes], threshold: float) -> bool:
    if a[0] != b[0]:
        return False
    for mine, other in zip(a[1:], b[1:], strict=True):
        small, large = sorted((len(mine), len(other)))
        # The index is at most the ratio of the sizes.
        if small < threshold * large or jaccard(mine, other) < threshold:
            return False
    return True


def _sketch(shingles: Shingles, num_perm: int, seed: int) -> npt.NDArray[np.uint64]:
    """[N, num_perm] MinHash of each text; of one without shingles, the same for all."""
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.hashes, shingles.offsets.astype(np.uint64), num_perm, seed
    )
    return np.array(matrix.to_rows(), dtype=np.uint64).reshape(-1, num_perm)


def _images(row: Preference) -> Hashes:
    """[1] the row's images, in their order, as one number."""
    return np.frombuffer(digest(map(image_key, row.all_images))[:8], dtype="<u8")
