"""Pooled states of a frozen backbone, computed once and stored by content.

The identity of a cache is the digest and dtype of the backbone's weights, attention kernel, pooling
and version of this code; an entry's key is the digest of its sequence, so that heads, losses and
data mixtures share one. A state takes hidden size x bytes of the dtype: a million pairs of a 640
wide bfloat16 model 2.6 GB, which are read where they lie and need not fit the memory. On load a
sample is run live and compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from palate.data.items import Item, Tokens, batches_to_score, sequence_key
from palate.data.layouts import Layout, SequenceBatch, item_fields
from palate.errors import ModelError
from palate.models.compiled import kernels_of
from palate.models.model import Model, evaluating
from palate.models.verdicts import exact_layout
from palate.store.cache import Column, Entry, TensorCache, share_of

VERSION = 5
"""Of the stored numbers and files: raised whenever the same inputs would give others."""
VERIFY_SEQUENCES = 4
VERIFY_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}
"""Accepted distance of a stored and a live state, as a share of its length: batches of other shapes
round differently, another model is off by its whole length."""

COLUMN = "features"


class FeatureTable:
    """The pooled states of a run's items, and batches of them for the head.

    Args:
        model: whose backbone is frozen.
        digest: of the backbone's weights.
        root: folder of caches; this one's is below it.
        items: everything the run will ask about; each `index` is its place among them.
        pad_id: for batches of the backbone.
    """

    def __init__(
        self,
        model: Model,
        items: Sequence[Item],
        *,
        digest: str,
        root: Path,
        pad_id: int,
        batch_size: int = 8,
    ) -> None:
        identity = {
            "kind": "features",
            "version": VERSION,
            "digest": digest,
            "dtype": str(model.dtype),
            "kernels": kernels_of(model.base),
            "pooling": model.spec.pooling,
            **model.shown,
        }
        # A mean over tokens is float32 or wider.
        wide = model.spec.pooling != "token" and model.dtype != torch.float64
        dtype = torch.float32 if wide else model.dtype
        column = Column((model.backbone.hidden_size,), dtype)
        self.cache = TensorCache(root, identity, {COLUMN: column})
        self.model = model
        self.items = items
        self.pad_id = pad_id
        self.batch_size = batch_size
        self.computed = 0
        self._layout: Layout | None = None
        sizes = [len(item.responses) for item in items]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._lengths = np.asarray([len(r) for item in items for r in item.responses])
        self._keys = [bytes.fromhex(sequence_key(*s)) for item in items for s in item.sequences]
        self._rows = np.zeros(0, dtype=np.int64)

    @property
    def folder(self) -> Path:
        return self.cache.folder

    def fill(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Computes this process's share of what the folder lacks.

        Raises:
            RunError: a shard that cannot be read or written, or is damaged.
            ModelError: states that are not finite.
        """
        self.cache.refresh()
        self.cache.check()
        wanted: dict[bytes, tuple[Tokens, Tokens]] = {}
        sequences = (sequence for item in self.items for sequence in item.sequences)
        for key, sequence in zip(self._keys, sequences, strict=True):
            if key not in self.cache and share_of(key, world_size) == rank:
                wanted[key] = sequence
        keys, missing = list(wanted), list(wanted.values())
        self.computed = 0
        with self.cache.writing():
            for items, places in batches_to_score(missing, self.batch_size):
                self.cache.add(dict(self._records([keys[place] for place in places], items)))
                self.computed += len(places)
                if progress is not None:
                    progress(self.computed, len(missing))

    def index(self) -> None:
        """Finds every item's states; checks a sample against the live backbone.

        Raises:
            RunError: a state is missing, or a shard cannot be read or is damaged.
            ModelError: stored states are not this backbone's.
        """
        self.cache.refresh()
        self._rows = self.cache.places(self._keys)
        self.cache.compare(
            self._records(*self._sample()),
            _distance,
            tolerance=VERIFY_TOLERANCE[self.model.dtype],
            of="backbone, as a share of its length",
        )

    def collate(self, items: Sequence[Item]) -> SequenceBatch:
        """A batch whose `inputs` are the features [S, d], in the order of `palate.data.layouts`."""
        places = np.asarray([item.index for item in items])
        at = np.concatenate([np.arange(self._first[i], self._first[i + 1]) for i in places])
        lengths = torch.from_numpy(self._lengths[at])
        nothing = torch.zeros(0, dtype=torch.long)
        return SequenceBatch(
            inputs={"features": self.cache.gather(COLUMN, self._rows[at])},
            predict=nothing,
            targets=nothing,
            segment=torch.repeat_interleave(torch.arange(len(at)), lengths),
            position=nothing,
            keys=(),
            **item_fields(items, "plain", self.pad_id),
        )

    def _records(
        self, keys: Sequence[bytes], items: Sequence[Item]
    ) -> Iterator[tuple[bytes, Entry]]:
        """By the key of each response of the items."""
        states = self._finite(self._live(items).cpu())
        for i, key in enumerate(keys):
            yield key, {COLUMN: states[i : i + 1]}

    def _sample(self) -> tuple[list[bytes], list[Item]]:
        """Sequences to compare, wherever they lie."""
        n = len(self._keys)
        chosen = random.Random(0).sample(range(n), min(VERIFY_SEQUENCES, n))
        sample = []
        for place in chosen:
            item = int(np.searchsorted(self._first, place, side="right")) - 1
            prompt, response = self.items[item].sequences[place - int(self._first[item])]
            sample.append(Item.of(prompt, response))
        return [self._keys[place] for place in chosen], sample

    def _finite(self, states: Tensor) -> Tensor:
        if not bool(states.isfinite().all()):
            raise ModelError(
                f"{self.model.spec.model.path}: states of the backbone are not finite in "
                f"{str(self.model.dtype).removeprefix('torch.')}: choose another `model.dtype`"
            )
        return states

    @torch.no_grad()
    def _live(self, items: Sequence[Item]) -> Tensor:
        """[S, d] states, in the backbone's dtype (a mean over tokens: float32)."""
        if self._layout is None:
            self._layout = exact_layout(self.model)
        batch = self.model.collator(self._layout, pad_id=self.pad_id, keep_last=True)(items)
        with evaluating(self.model):
            return self.model.pooled(batch.to(self.model.device))


def _distance(stored: Entry, live: Entry) -> float:
    """Distance of two states, relative to the length of the live one."""
    right = live[COLUMN].float()
    return float((stored[COLUMN].float() - right).norm() / right.norm().clamp(min=1e-6))
