"""Pooled states of a frozen backbone, computed once and stored by content.

A folder of safetensors shards under a key that names everything the numbers depend on: digest and
dtype of the backbone's weights, attention kernel, pooling and version of this code. Within it each
sequence is found by the digest of its token ids, so that heads, losses and data mixtures share one
cache. A state takes hidden size x bytes of the dtype: a million pairs of a 640 wide bfloat16 model
2.6 GB. Shards are written whole; any number of processes may add to one folder. On load a sample is
run live and compared.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from palate.data.layouts import SequenceBatch, collate
from palate.data.pairs import Example, Pair, Ranking, sequence_key
from palate.errors import ModelError, RunError
from palate.io import write_bytes
from palate.models.reward import RewardModel

VERSION = 1
"""Of the stored numbers: raised whenever the same inputs would give others."""
SHARD_SEQUENCES = 16_384
VERIFY_SEQUENCES = 4
VERIFY_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}
"""Accepted distance of a stored and a live state, as a share of its length: batches of other shapes
round differently, another model is off by its whole length."""

_Item = Pair | Ranking
_Ids = tuple[tuple[int, ...], tuple[int, ...]]


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
        model: RewardModel,
        items: Sequence[_Item],
        *,
        digest: str,
        root: Path,
        pad_id: int,
        batch_size: int = 8,
    ) -> None:
        identity = {
            "version": VERSION,
            "digest": digest,
            "dtype": str(model.dtype),
            "attention": model.config._attn_implementation,
            "pooling": model.spec.pooling,
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = root / key[:32]
        self.model = model
        self.items = items
        self.pad_id = pad_id
        self.batch_size = batch_size
        self.computed = 0
        self._shards: list[Tensor] = []
        self._starts = np.zeros(1, dtype=np.int64)
        self._rows = np.zeros(0, dtype=np.int64)
        self._first = np.zeros(0, dtype=np.int64)

    def fill(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Computes this process's share of what the folder lacks.

        Raises:
            RunError: a shard that cannot be read or written.
        """
        known = self._read()
        wanted = {_key(ids): ids for item in self.items for ids in _sequences(item)}
        missing = [(key, ids) for key, ids in wanted.items() if key not in known]
        # Alike lengths together, dealt out evenly.
        missing.sort(key=lambda both: (-sum(map(len, both[1])), both[0]))
        mine = missing[rank::world_size]
        self.computed = len(mine)
        for start in range(0, len(mine), SHARD_SEQUENCES):
            part = mine[start : start + SHARD_SEQUENCES]
            found = []
            for i in range(0, len(part), self.batch_size):
                found.append(self._live([ids for _, ids in part[i : i + self.batch_size]]))
                if progress is not None:
                    progress(min(start + i + self.batch_size, len(mine)), len(mine))
            keys = np.frombuffer(b"".join(key for key, _ in part), dtype=np.uint8).copy()
            tensors = {"keys": torch.from_numpy(keys), "features": torch.cat(found).cpu()}
            name = hashlib.sha256(keys.tobytes()).hexdigest()[:24]
            write_bytes(self.folder / f"shard-{name}.safetensors", save(tensors))

    def index(self) -> None:
        """Finds every item's states; checks a sample against the live backbone.

        Raises:
            RunError: a state is missing, or a shard cannot be read.
            ModelError: stored states are not this backbone's.
        """
        known = self._read()
        try:
            rows = [known[_key(ids)] for item in self.items for ids in _sequences(item)]
        except KeyError:
            raise RunError(f"{self.folder}: the feature cache lacks a sequence") from None
        self._rows = np.asarray(rows, dtype=np.int64)
        sizes = [sum(1 for _ in _sequences(item)) for item in self.items]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._verify()

    def collate(self, items: Sequence[_Item]) -> SequenceBatch:
        """A batch whose `inputs` are the features [S, d], in the order of `palate.data.layouts`."""
        order = [(i, j) for i, item in enumerate(items) for j, _ in enumerate(_sequences(item))]
        pairs = isinstance(items[0], Pair)
        if pairs:
            order.sort(key=lambda both: both[1])
        rows = np.asarray([self._first[items[i].index] + j for i, j in order])
        responses = [tuple(_sequences(item)) for item in items]
        lengths = torch.tensor([len(responses[i][j][1]) for i, j in order])
        nothing = torch.zeros(0, dtype=torch.long)
        more: dict[str, Any] = {}
        margin = [float("nan")] * len(items)
        if pairs:
            own = [item for item in items if isinstance(item, Pair)]
            margin = [_known(p.margin) for p in own]
            more["tie"] = torch.tensor([p.tie for p in own])
            more["probability"] = torch.tensor([_known(p.probability) for p in own])
        else:
            more["group"] = torch.tensor([i for i, _ in order])
            ranks = [r for item in items if isinstance(item, Ranking) for r in item.ranks]
            more["rank"] = torch.tensor(ranks)
        return SequenceBatch(
            inputs={"features": self._gather(self._rows[rows])},
            predict=nothing,
            targets=nothing,
            segment=torch.repeat_interleave(torch.arange(len(order)), lengths),
            position=nothing,
            n_sequences=len(order),
            n_pairs=len(items) if pairs else 0,
            weight=torch.tensor([item.weight for item in items], dtype=torch.float32),
            margin=torch.tensor(margin, dtype=torch.float32),
            keys=(),
            ids=tuple(item.id for item in items),
            sources=tuple(item.source for item in items),
            **more,
        )

    def _gather(self, rows: np.ndarray) -> Tensor:
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        found = self._shards[0].new_empty(len(rows), self._shards[0].shape[1])
        for s in np.unique(shard):
            own = np.flatnonzero(shard == s)
            found[own] = self._shards[s][rows[own] - self._starts[s]]
        return found

    def _read(self) -> dict[bytes, int]:
        """Loads the shards; digest -> row, counted through all of them."""
        known: dict[bytes, int] = {}
        self._shards, starts = [], [0]
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            try:
                tensors = load_file(path)
                keys, features = tensors["keys"].numpy().tobytes(), tensors["features"]
            except (SafetensorError, OSError, KeyError) as error:
                text = f"{path}: not a readable feature shard; delete it: {error}"
                raise RunError(text) from error
            for i in range(len(features)):
                known.setdefault(keys[32 * i : 32 * i + 32], starts[-1] + i)
            self._shards.append(features)
            starts.append(starts[-1] + len(features))
        self._starts = np.asarray(starts, dtype=np.int64)
        return known

    @torch.no_grad()
    def _live(self, sequences: Sequence[_Ids]) -> Tensor:
        """[S, d] states, in the backbone's dtype (a mean over tokens: float32)."""
        rows = [
            Example(id="", source="", prompt_ids=prompt, response_ids=response)
            for prompt, response in sequences
        ]
        batch = collate(rows, layout="plain", pad_id=self.pad_id, keep_last=True)
        was_training = self.model.training
        self.model.eval()
        try:
            return self.model.features(batch.to(self.model.device))
        finally:
            self.model.train(was_training)

    def _verify(self) -> None:
        sequences = [ids for item in self.items[:VERIFY_SEQUENCES] for ids in _sequences(item)]
        chosen = random.Random(0).sample(
            range(len(sequences)), min(VERIFY_SEQUENCES, len(sequences))
        )
        live = self._live([sequences[i] for i in chosen]).float().cpu()
        stored = self._gather(self._rows[chosen]).float()
        gap = (live - stored).norm(dim=1) / live.norm(dim=1).clamp(min=1e-6)
        if not float(gap.max()) <= VERIFY_TOLERANCE[self.model.dtype]:
            raise ModelError(
                f"{self.folder}: stored features are off the live backbone by "
                f"{float(gap.max()):.2g} of their length: delete the folder"
            )


def _sequences(item: _Item) -> Iterable[_Ids]:
    if isinstance(item, Pair):
        return item.sequences
    return ((item.prompt_ids, response) for response in item.responses)


def _key(ids: _Ids) -> bytes:
    return bytes.fromhex(sequence_key(*ids))


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
