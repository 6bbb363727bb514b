"""How alike texts are to the nearest of some given ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse

from palate.data.curation.shingles import of_characters
from palate.data.curation.text import normalised

SIZE = 5
"""Characters of a shingle, as for near duplicates."""
_ROWS = 4096
_CELLS = 4_000_000
"""Of a block: texts, and texts by given ones, 32 MB of them."""


def nearest(texts: Sequence[str], given: Sequence[str]) -> npt.NDArray[np.float64]:
    """[N], of each text the largest Jaccard index with any of `given`, 0 to 1.

    Compared are runs of 5 characters, case and white space evened out; an empty text is like none.
    Memory is a block of texts by the given ones.
    """
    known, sizes = _sets(given)
    vocabulary = np.unique(np.concatenate(known)) if known else np.zeros(0, np.uint64)
    columns = _matrix(known, vocabulary).T.tocsc()
    values = np.zeros(len(texts))
    rows = min(_ROWS, max(1, _CELLS // max(1, len(given))))
    for start in range(0, len(texts), rows):
        sets, lengths = _sets(texts[start : start + rows])
        shared = (_matrix(sets, vocabulary) @ columns).toarray()
        either = lengths[:, None] + sizes[None, :] - shared
        index = np.divide(shared, either, out=np.zeros(shared.shape), where=either > 0)
        values[start : start + rows] = index.max(axis=1, initial=0.0)
    return values


def _sets(texts: Sequence[str]) -> tuple[list[npt.NDArray[np.uint64]], npt.NDArray[np.float64]]:
    """The distinct shingles of each text, and their numbers."""
    shingles = of_characters([normalised(t, "whitespace").casefold() for t in texts], SIZE)
    sets = [np.unique(shingles.of(i)) for i in range(len(texts))]
    return sets, np.array([len(values) for values in sets], dtype=np.float64)


def _matrix(
    sets: Sequence[npt.NDArray[np.uint64]], vocabulary: npt.NDArray[np.uint64]
) -> scipy.sparse.csr_matrix:
    """[N, V] of ones where a text has a shingle of the vocabulary; others are left out."""
    indices: list[npt.NDArray[np.int64]] = []
    for values in sets:
        places = np.searchsorted(vocabulary, values)
        inside = places < len(vocabulary)
        places, values = places[inside], values[inside]
        indices.append(places[vocabulary[places] == values])
    ends = np.cumsum([0, *map(len, indices)])
    columns = np.concatenate(indices) if indices else np.zeros(0, np.int64)
    ones = np.ones(len(columns))
    return scipy.sparse.csr_matrix((ones, columns, ends), shape=(len(sets), len(vocabulary)))
