"""A fixed number of pairs drawn by chance, whatever the order: those of the least priority.

A pair's priority is a hash of the seed and of its place among all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.audit.repeats import Keys
from palate.data.audit.sketches import share_interval
from palate.data.audit.style import FEATURES, features, opening
from palate.data.curation.shingles import Hashes, mix

SIZE = 10_000
"""Pairs a source whose style is looked at: a share of them is known to within one per cent."""

_OPENING_BYTES = 48
_SHOWN_OPENINGS = 12
_FEWEST = 20
_SAME_TEXT = 5
_SHOWN_TEXTS = 5
_ROW = np.dtype(
    [
        ("priority", "<u8"),
        ("prompt", "<u8"),
        ("response", "<u8", (2,)),
        ("difference", "<f4"),
        ("style", "<i2", (2, len(FEATURES))),
        ("opening", f"S{_OPENING_BYTES}", (2,)),
    ]
)


def priorities(index: Sequence[int], seed: int) -> Hashes:
    """[N] of rows at these places."""
    salt = mix(np.array([seed % (1 << 64)], dtype=np.uint64))
    return mix(np.asarray(index, dtype=np.int64).astype(np.uint64) + salt)


class Sample:
    """The style of at most `SIZE` pairs that are no ties, in about 3 MB."""

    def __init__(self) -> None:
        self._rows: npt.NDArray[Any] = np.zeros(0, dtype=_ROW)
        self._limit = (1 << 64) - 1
        self._waiting: list[npt.NDArray[Any]] = []

    def add(
        self,
        priority: Hashes,
        keys: Keys,
        ties: npt.NDArray[np.bool_],
        chosen: Sequence[str],
        rejected: Sequence[str],
    ) -> None:
        places = np.flatnonzero((priority < np.uint64(self._limit)) & ~ties)
        if not len(places):
            return
        rows = np.zeros(len(places), dtype=_ROW)
        rows["priority"], rows["prompt"] = priority[places], keys.prompts[places]
        rows["response"] = keys.responses[:, places].T
        for at, i in enumerate(places.tolist()):
            sides = chosen[i], rejected[i]
            rows["difference"][at] = len(sides[0]) - len(sides[1])
            rows["style"][at] = [features(side) for side in sides]
            rows["opening"][at] = [_packed(opening(side)) for side in sides]
        self._take(rows)

    def merge(self, other: Sample) -> None:
        self._take(other.rows())

    def rows(self) -> npt.NDArray[Any]:
        """The drawn pairs, by rising priority."""
        self._settle()
        return self._rows

    def summary(self) -> dict[str, Any]:
        """What of style alone tells the chosen from the rejected response."""
        rows = self.rows()
        effective = _effective(rows["prompt"])
        found = [
            {"name": name, **_comparison(rows["style"][:, :, k], effective)}
            for k, name in enumerate(FEATURES)
        ]
        return {
            "pairs": len(rows),
            "features": found,
            "openings": _openings(rows, effective),
            "together": _together(rows, effective),
            "same_response": _same_response(rows),
        }

    def _take(self, rows: npt.NDArray[Any]) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) > SIZE // 2:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate([self._rows, *self._waiting])
        self._waiting = []
        order = np.argsort(rows["priority"], kind="stable")[:SIZE]
        self._rows = rows[order]
        if len(self._rows) == SIZE:
            self._limit = int(self._rows["priority"][-1])


def _packed(text: str) -> bytes:
    data = text.encode("utf-8", "replace")[:_OPENING_BYTES]
    return data.decode("utf-8", "ignore").encode()


def _effective(prompts: Hashes) -> float:
    """Observations a pair is worth: pairs of one prompt are counted as one of them."""
    return len(np.unique(prompts)) / len(prompts) if len(prompts) else 1.0


def _comparison(values: npt.NDArray[Any], effective: float) -> dict[str, Any]:
    """Of [N, 2] values of chosen and rejected: which side has it, and which has more."""
    more = int((values[:, 0] > values[:, 1]).sum())
    less = int((values[:, 0] < values[:, 1]).sum())
    return {
        "chosen": int((values[:, 0] > 0).sum()),
        "rejected": int((values[:, 1] > 0).sum()),
        **_share(more, less, effective),
    }


def _share(more: int, less: int, effective: float) -> dict[str, Any]:
    n = more + less
    share = round(more / n, 6) if n else None
    return {
        "more": more,
        "less": less,
        "share": share,
        "ci": share_interval(more * effective, n * effective),
    }


def _openings(rows: npt.NDArray[Any], effective: float) -> list[dict[str, Any]]:
    """First two words that one side has and the other has not, the most telling ones."""
    chosen, rejected = rows["opening"][:, 0], rows["opening"][:, 1]
    apart = chosen != rejected
    sides = Counter(chosen[apart].tolist()), Counter(rejected[apart].tolist())
    found = []
    for text in sides[0] | sides[1]:
        more, less = sides[0][text], sides[1][text]
        if text and more + less >= _FEWEST:
            ends = share_interval(more * effective, (more + less) * effective)
            assert ends is not None
            # How far even the nearer end of the interval is from one half.
            clear = max(ends[0] - 0.5, 0.5 - ends[1])
            if clear > 0:
                found.append((-clear, text, more, less))
    return [
        {"text": text.decode(), **_share(more, less, effective)}
        for _, text, more, less in sorted(found)[:_SHOWN_OPENINGS]
    ]


def _same_response(rows: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """Texts that answer the most prompts, if they answer five or more."""
    responses = rows["response"].ravel()
    openings = rows["opening"].ravel()
    prompts = np.repeat(rows["prompt"], 2)
    chosen = np.tile([True, False], len(rows))
    # One line a text and prompt.
    _, first = np.unique(np.stack([responses, prompts]), axis=1, return_index=True)
    texts, where, counts = np.unique(responses[first], return_index=True, return_counts=True)
    found = []
    for k in np.argsort(-counts, kind="stable")[:_SHOWN_TEXTS].tolist():
        if counts[k] < _SAME_TEXT:
            break
        here = responses == texts[k]
        found.append(
            {
                "opening": openings[first[where[k]]].decode(),
                "prompts": int(counts[k]),
                "chosen": int((here & chosen).sum()),
                "rejected": int((here & ~chosen).sum()),
            }
        )
    return found


def _together(rows: npt.NDArray[Any], effective: float) -> dict[str, Any] | None:
    """How often length and style together name the chosen response of pairs not fitted to.

    Logistic regression on the differences of the two sides, in two halves by prompt, each judged by
    what the other has learnt. None where there are too few pairs.
    """
    x = np.concatenate(
        [
            rows["difference"][:, None].astype(np.float64),
            rows["style"][:, 0].astype(np.float64) - rows["style"][:, 1],
        ],
        axis=1,
    )
    # A pair's twentieth heading says little more than its third, so differences are drawn in.
    x = np.sign(x) * np.log1p(np.abs(x))
    half = mix(rows["prompt"]) >> np.uint64(63) == 1
    if min(int(half.sum()), int((~half).sum())) < 5 * x.shape[1]:
        return None
    right = 0.0
    for fold in (half, ~half):
        score = x[~fold] @ _fitted(x[fold])
        right += float((score > 0).sum() + (score == 0).sum() / 2)
    return {
        "pairs": len(x),
        "share": round(right / len(x), 6),
        "ci": share_interval(right * effective, len(x) * effective),
    }


def _fitted(x: npt.NDArray[np.float64], steps: int = 8) -> npt.NDArray[np.float64]:
    """Weights [F] that give the rows [N, F], each chosen minus rejected, a positive score."""
    scale = x.std(axis=0)
    scale[scale == 0] = 1.0
    z = x / scale
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        share = 1 / (1 + np.exp(np.clip(z @ weights, -30, 30)))
        curvature = (z * (share * (1 - share))[:, None]).T @ z + np.eye(len(weights))
        weights += np.linalg.solve(curvature, z.T @ share - weights)
    found: npt.NDArray[np.float64] = weights / scale
    return found
