"""What was seen of the images of a data set: how many, how large, how often, and what was wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palate.data.images import ImageInfo

SIDES = (0.0, 64.0, 128.0, 256.0, 384.0, 512.0, 768.0, 1024.0, 1536.0, 2048.0, 4096.0, 1e6)
"""Bounds of the histogram of longer sides, in pixels."""
ASPECTS = (0.0, 0.4, 0.57, 0.7, 0.8, 0.95, 1.05, 1.25, 1.43, 1.75, 2.5, 1e6)
"""Bounds of the histogram of width by height; 1.05 and 0.95 are about square."""


@dataclass
class ImageCounts:
    """What was seen of images, for data.json. Memory is one entry a distinct image.

    Attributes:
        refused: images that cost their row, by reason.
    """

    refused: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, tuple[ImageInfo, int]] = field(default_factory=dict)

    def add(self, infos: Iterable[ImageInfo]) -> None:
        for info in infos:
            times = self._seen[info.digest][1] if info.digest in self._seen else 0
            self._seen[info.digest] = (info, times + 1)

    def merge(self, counts: ImageCounts) -> None:
        """Adds the counts of another part of the same data."""
        self.refused += counts.refused
        for digest, (info, times) in counts._seen.items():
            before = self._seen[digest][1] if digest in self._seen else 0
            self._seen[digest] = (info, before + times)

    def dump(self) -> dict[str, Any]:
        """All of it as JSON values; see `restore`."""
        seen = [[dataclasses.asdict(info), times] for info, times in self._seen.values()]
        return {"refused": dict(self.refused), "seen": seen}

    @classmethod
    def restore(cls, dumped: dict[str, Any]) -> ImageCounts:
        """What `dump` was made of."""
        counts = cls(refused=Counter(dumped["refused"]))
        for about, times in dumped["seen"]:
            info = ImageInfo(**about)
            counts._seen[info.digest] = (info, times)
        return counts

    def result(self) -> dict[str, Any] | None:
        """The entry `images` of data.json: read = used + the images in `broken`; None where there
        were none.

        Sizes (pixels, as in the file) and bytes are of distinct images; `longer_side` and `aspect`
        (width by height) are [from, below, number]; of `animated` ones the first frame alone is
        looked at.
        """
        seen = [info for info, _ in self._seen.values()]
        times = [n for _, n in self._seen.values()]
        if not seen and not self.refused:
            return None
        return {
            "read": sum(times) + self.refused.total(),
            "used": sum(times),
            "unique": len(seen),
            "repeated": sum(n > 1 for n in times),
            "most_often": max(times, default=0),
            "broken": dict(self.refused.most_common()),
            "bytes": sum(info.bytes for info in seen),
            "formats": dict(Counter(info.format for info in seen).most_common()),
            "animated": sum(info.animated for info in seen),
            "width": _spread([info.width for info in seen]),
            "height": _spread([info.height for info in seen]),
            "longer_side": _bars([max(info.width, info.height) for info in seen], SIDES),
            "aspect": _bars([info.width / info.height for info in seen], ASPECTS),
        }

    def most_seen(self, most: int) -> list[tuple[ImageInfo, int]]:
        """The images that come back, the most frequent first, with how often each is there."""
        repeated = [(info, times) for info, times in self._seen.values() if times > 1]
        return sorted(repeated, key=lambda entry: (-entry[1], entry[0].digest))[:most]

    def drawn(self, most: int, seed: int) -> list[ImageInfo]:
        """Distinct images drawn by the seed, whatever the order they came in."""

        def priority(info: ImageInfo) -> bytes:
            return hashlib.blake2b(f"{seed}|{info.digest}".encode(), digest_size=8).digest()

        return heapq.nsmallest(most, (info for info, _ in self._seen.values()), key=priority)

    def info(self, digest: str) -> ImageInfo | None:
        """The image of a digest, if it was seen."""
        return self._seen[digest][0] if digest in self._seen else None


def _spread(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    low, half, high = np.percentile(values, [5, 50, 95]).tolist()
    return {"min": min(values), "p5": low, "p50": half, "p95": high, "max": max(values)}


def _bars(values: Sequence[float], edges: tuple[float, ...]) -> list[list[float]]:
    """[from, below, number] between edges; what lies outside counts at the ends."""
    inside = np.digitize(values, edges[1:-1])
    numbers = np.bincount(inside, minlength=len(edges) - 1).tolist()
    return [[low, below, n] for low, below, n in zip(edges, edges[1:], numbers, strict=False)]
