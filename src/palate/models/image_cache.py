"""What a frozen tower makes of images, computed once and kept by content.

The identity of a cache is the digest and dtype of tower and projector, the image processor's
settings and the version of this code; an entry's key is the digest of an image's file, so that
runs, losses and data sets share one. An image takes tokens x width x bytes of the dtype: 1,280
tokens of a 3,584 wide bfloat16 model 9.2 MB. On load a sample is run live and compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from palate.data.items import Item
from palate.data.layouts import seen_tokens
from palate.data.trees import VisionLayout
from palate.models.compiled import kernels_of
from palate.models.loading import tensors_digest
from palate.models.model import Model, evaluating
from palate.models.structure import backbone_of
from palate.models.vision import Features, image_features, vision_parameters
from palate.store.cache import Column, Entry, TensorCache, share_of

if TYPE_CHECKING:
    from palate.models.pictures import Pictures

VERSION = 1
"""Of the stored numbers and files: raised whenever the same images would give others."""
VERIFY_IMAGES = 4
VERIFY_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}
"""Accepted distance of stored and live features, as a share of their length: passes over other
numbers of images round differently, another tower is off by its whole length."""


RECENT_BYTES = 256 * 2**20
"""Of the features that are kept in memory."""


class KeptFeatures(Protocol):
    """Features that are there without a pass of the tower in the batch, by an image's digest."""

    def __contains__(self, digest: str) -> bool: ...

    def read(self, digest: str) -> Features: ...


class RecentFeatures:
    """Features of the images of a model that only scores or is measured, the latest used in memory.

    Each image is run by itself, so that what is made of it does not depend on those beside it.
    """

    def __init__(self, model: Model, pictures: Pictures) -> None:
        self.model = model
        self.pictures = pictures
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._size = 0

    def __contains__(self, digest: str) -> bool:
        return True

    def read(self, digest: str) -> Features:
        if digest not in self._kept:
            (self._kept[digest],) = live_features(self.model, self.pictures, [digest])
            self._size += _bytes(self._kept[digest])
        self._kept.move_to_end(digest)
        while self._size > RECENT_BYTES and len(self._kept) > 1:
            _, last = self._kept.popitem(last=False)
            self._size -= _bytes(last)
        return self._kept[digest]


def _bytes(features: Features) -> int:
    return sum(value.numel() * value.element_size() for value in features.values())


class ImageFeatureCache:
    """The features of a run's images.

    Args:
        model: whose tower and projector are frozen.
        pictures: its images. root: folder of caches; this one's is below it.
    """

    def __init__(self, model: Model, pictures: Pictures, root: Path) -> None:
        self.model = model
        self.pictures = pictures
        tower = backbone_of(model.base)
        parameters = vision_parameters(tower)
        identity = {
            "kind": "image features",
            "version": VERSION,
            "digest": vision_digest(tower),
            "dtype": str(parameters[0].dtype),
            "kernels": kernels_of(model.base),
            "processor": pictures.processor.digest,
        }
        (probe,) = self._live([pictures.example((), ()).images[0].digest])
        columns = {name: Column(tuple(v.shape[1:]), v.dtype) for name, v in probe.items()}
        self.row_bytes = sum(v.shape[1] * v.element_size() for v in probe.values())
        self.cache = TensorCache(root, identity, columns)
        self.computed = 0

    @property
    def folder(self) -> Path:
        return self.cache.folder

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self.cache

    def read(self, digest: str) -> Features:
        """The features of an image, as views of the file.

        Raises:
            RunError: it is not there, or damaged.
        """
        return self.cache.read(bytes.fromhex(digest))

    def fill(
        self,
        digests: Sequence[str],
        *,
        rank: int = 0,
        world_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Computes this process's share of what the folder lacks.

        Raises:
            RunError: a shard that cannot be read or written, or is damaged.
            DataError: an image that is no longer what it was.
        """
        self.cache.refresh()
        wanted = [
            digest
            for digest in digests
            if digest not in self and share_of(bytes.fromhex(digest), world_size) == rank
        ]
        with self.cache.writing():
            for digest in wanted:
                # One by one: what is kept of an image must not depend on those beside it.
                self.cache.add(dict(self._records([digest])))
                self.computed += 1
                if progress is not None:
                    progress(self.computed, len(wanted))

    def index(self, digests: Sequence[str]) -> None:
        """Takes in what other processes have written; checks a sample against the live tower.

        Raises:
            ModelError: stored features are not this tower's.
        """
        self.cache.refresh()
        sample = digests[:: max(1, len(digests) // VERIFY_IMAGES)][:VERIFY_IMAGES]
        self.cache.compare(
            self._records(sample),
            _distance,
            tolerance=VERIFY_TOLERANCE[vision_parameters(backbone_of(self.model.base))[0].dtype],
            of="tower, as a share of its length",
        )

    def _records(self, digests: Sequence[str]) -> Iterator[tuple[bytes, Entry]]:
        for digest, features in zip(digests, self._live(digests), strict=True):
            yield bytes.fromhex(digest), {k: v.cpu() for k, v in features.items()}

    def _live(self, digests: Sequence[str]) -> list[Features]:
        return live_features(self.model, self.pictures, digests)


@torch.no_grad()
def live_features(model: Model, pictures: Pictures, digests: Sequence[str]) -> list[Features]:
    """What a model's tower makes of images that were read."""
    pixels = [
        {name: value.to(model.device) for name, value in pictures.pixels(digest).items()}
        for digest in digests
    ]
    lengths = [pictures.lengths[digest] for digest in digests]
    with evaluating(model):
        return image_features(backbone_of(model.base), pixels, lengths)


def vision_digest(tower: nn.Module) -> str:
    """Hex SHA-256 of the weights of a backbone's tower and projector, buffers included."""
    seeing = {id(p) for p in vision_parameters(tower)}
    text = ("language_model.", "text_model.")
    named: dict[str, Any] = {n: p for n, p in tower.named_parameters() if id(p) in seeing}
    named |= {n: b for n, b in tower.named_buffers() if not n.startswith(text)}
    return tensors_digest(named)


def placeholder_tokens(items: Iterable[Item], vision: VisionLayout) -> dict[str, int]:
    """Tokens of each image of items, by its digest."""
    tokens: dict[str, int] = {}
    for item in items:
        for sequence in item.all_sequences:
            for part in sequence:
                for image in part.images:
                    if image.digest not in tokens:
                        tokens[image.digest] = seen_tokens(part, image, vision)
    return tokens


def _distance(stored: Entry, live: Entry) -> float:
    gaps = []
    for name, value in live.items():
        right: Tensor = value.float()
        gaps.append(float((stored[name].float() - right).norm() / right.norm().clamp(min=1e-6)))
    return max(gaps)
