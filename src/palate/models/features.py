"""Pooled states of a frozen backbone, computed once and stored by content.

A folder of safetensors shards under a key that names everything the numbers depend on: digest and
dtype of the backbone's weights, attention kernel, pooling and version of this code. Within it each
sequence is found by the digest of its token ids, so that heads, losses and data mixtures share one
cache. A state takes hidden size x bytes of the dtype: a million pairs of a 640 wide bfloat16 model
2.6 GB, which are read where they lie and need not fit the memory. Shards are written whole, with a
checksum; any number of processes may add to one folder. On load a sample is run live and compared.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from palate.data.items import Item, Tokens, sequence_key
from palate.data.layouts import SequenceBatch, collate, item_fields
from palate.errors import ModelError, RunError
from palate.models.model import Model
from palate.store.files import write_bytes

VERSION = 3
"""Of the stored numbers and files: raised whenever the same inputs would give others."""
SHARD_SEQUENCES = 16_384
SHARD_SECONDS = 300.0
"""A shard is written when it is full, or this old: no more is lost when the process is killed."""
VERIFY_SEQUENCES = 4
VERIFY_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}
"""Accepted distance of a stored and a live state, as a share of its length: batches of other shapes
round differently, another model is off by its whole length."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

_Sequence = tuple[Tokens, Tokens]


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
            "version": VERSION,
            "digest": digest,
            "dtype": str(model.dtype),
            "attention": model.config._attn_implementation,
            "pooling": model.spec.pooling,
        }
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = root / self.key
        self.model = model
        self.items = items
        self.pad_id = pad_id
        self.batch_size = batch_size
        self.computed = 0
        sizes = [len(item.responses) for item in items]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._lengths = np.asarray([len(r) for item in items for r in item.responses])
        self._keys = [bytes.fromhex(sequence_key(*s)) for item in items for s in item.sequences]
        self._rows = np.zeros(0, dtype=np.int64)
        self._shards: dict[Path, np.ndarray] = {}
        self._starts = np.zeros(1, dtype=np.int64)
        self._known: dict[bytes, int] = {}

    def fill(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Computes this process's share of what the folder lacks.

        Which process computes a sequence is said by its key alone: what others have written
        meanwhile changes nothing.

        Raises:
            RunError: a shard that cannot be read or written, or is damaged.
            ModelError: states that are not finite.
        """
        self._read()
        wanted: dict[bytes, _Sequence] = {}
        sequences = (sequence for item in self.items for sequence in item.sequences)
        for key, sequence in zip(self._keys, sequences, strict=True):
            if key not in self._known and int.from_bytes(key[:8], "big") % world_size == rank:
                wanted[key] = sequence
        # Alike lengths together.
        missing = sorted(wanted.items(), key=lambda entry: (-sum(map(len, entry[1])), entry[0]))
        self.computed = len(missing)
        states: list[Tensor] = []
        keys: list[bytes] = []
        started = time.monotonic()
        for i in range(0, len(missing), self.batch_size):
            part = missing[i : i + self.batch_size]
            states.append(self._live([sequence for _, sequence in part]))
            keys += [key for key, _ in part]
            done = i + len(part)
            old = time.monotonic() - started >= SHARD_SECONDS
            if old or done == len(missing) or len(keys) + self.batch_size > SHARD_SEQUENCES:
                self._write(keys, self._finite(torch.cat(states).cpu()))
                states, keys, started = [], [], time.monotonic()
            if progress is not None:
                progress(done, len(missing))

    def index(self) -> None:
        """Finds every item's states; checks a sample against the live backbone.

        Raises:
            RunError: a state is missing, or a shard cannot be read or is damaged.
            ModelError: stored states are not this backbone's.
        """
        self._read()
        try:
            rows = [self._known[key] for key in self._keys]
        except KeyError:
            raise RunError(f"{self.folder}: the feature cache lacks a sequence") from None
        self._rows = np.asarray(rows, dtype=np.int64)
        self._verify()

    def collate(self, items: Sequence[Item]) -> SequenceBatch:
        """A batch whose `inputs` are the features [S, d], in the order of `palate.data.layouts`."""
        places = np.asarray([item.index for item in items])
        at = np.concatenate([np.arange(self._first[i], self._first[i + 1]) for i in places])
        lengths = torch.from_numpy(self._lengths[at])
        nothing = torch.zeros(0, dtype=torch.long)
        return SequenceBatch(
            inputs={"features": self._gather(self._rows[at])},
            predict=nothing,
            targets=nothing,
            segment=torch.repeat_interleave(torch.arange(len(at)), lengths),
            position=nothing,
            keys=(),
            **item_fields(items, self.pad_id),
        )

    def _gather(self, rows: np.ndarray) -> Tensor:
        # By numpy: so many small copies by torch would each wait for all of its threads.
        shards = list(self._shards.values())
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), self.model.backbone.hidden_size), dtype=shards[0].dtype)
        for s in np.unique(shard):
            own = np.flatnonzero(shard == s)
            found[own] = shards[s][rows[own] - self._starts[s]]
        return torch.from_numpy(found).view(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of the states: the backbone's, and float32 or wider of a mean over tokens."""
        dtype = self.model.dtype
        means = self.model.spec.pooling != "token" and dtype != torch.float64
        return torch.float32 if means else dtype

    def _write(self, keys: Sequence[bytes], states: Tensor) -> None:
        joined = np.frombuffer(b"".join(keys), dtype=np.uint8).copy()
        tensors = {"keys": torch.from_numpy(joined), "features": states.contiguous()}
        name = hashlib.sha256(joined.tobytes()).hexdigest()[:24]
        metadata = {"cache": self.key, "sha256": _checksum(tensors)}
        write_bytes(self.folder / f"shard-{name}.safetensors", save(tensors, metadata=metadata))

    def _read(self) -> None:
        """Takes in the shards that are not known yet; rows are counted through all of them."""
        for path in sorted(set(self.folder.glob("shard-*.safetensors")) - self._shards.keys()):
            keys, features = self._shard(path)
            start = int(self._starts[-1])
            for i in range(len(features)):
                self._known.setdefault(keys[32 * i : 32 * i + 32], start + i)
            # numpy has no bfloat16, and only copies them.
            self._shards[path] = features.view(_BITS[features.element_size()]).numpy()
            self._starts = np.append(self._starts, start + len(features))

    def _shard(self, path: Path) -> tuple[bytes, Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("keys", "features")}
        except (SafetensorError, OSError) as error:
            text = f"{path}: not a readable feature shard; delete it: {error}"
            raise RunError(text) from error
        keys, features = tensors["keys"], tensors["features"]
        shape, n = (len(keys) // 32, self.model.backbone.hidden_size), len(keys)
        fits = n % 32 == 0 and features.shape == shape and features.dtype == self._dtype
        if metadata.get("cache") != self.key or not fits:
            raise RunError(f"{path}: a feature shard of another model; delete it")
        if metadata.get("sha256") != _checksum(tensors):
            raise RunError(f"{path}: a damaged feature shard; delete it")
        return keys.numpy().tobytes(), features

    def _finite(self, states: Tensor) -> Tensor:
        if not bool(states.isfinite().all()):
            raise ModelError(
                f"{self.model.spec.model.path}: states of the backbone are not finite in "
                f"{str(self.model.dtype).removeprefix('torch.')}: choose another `model.dtype`"
            )
        return states

    @torch.no_grad()
    def _live(self, sequences: Sequence[_Sequence]) -> Tensor:
        """[S, d] states, in the backbone's dtype (a mean over tokens: float32)."""
        items = [Item.of(prompt, response) for prompt, response in sequences]
        batch = collate(items, layout="plain", pad_id=self.pad_id, keep_last=True)
        was_training = self.model.training
        self.model.eval()
        try:
            return self.model.pooled(batch.to(self.model.device))
        finally:
            self.model.train(was_training)

    def _verify(self) -> None:
        n = len(self._rows)
        chosen = random.Random(0).sample(range(n), min(VERIFY_SEQUENCES, n))
        sequences = []
        for place in chosen:
            item = int(np.searchsorted(self._first, place, side="right")) - 1
            sequences.append(self.items[item].sequences[place - int(self._first[item])])
        live = self._live(sequences).float().cpu()
        stored = self._gather(self._rows[chosen]).float()
        gap = (live - stored).norm(dim=1) / live.norm(dim=1).clamp(min=1e-6)
        if not float(gap.max()) <= VERIFY_TOLERANCE[self.model.dtype]:
            raise ModelError(
                f"{self.folder}: stored features are off the live backbone by "
                f"{float(gap.max()):.2g} of their length: delete the folder"
            )


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("keys", "features"):
        flat = tensors[name].contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
