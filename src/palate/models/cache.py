"""The reference cache: what a loss needs of the reference, stored by content.

A folder of safetensors shards under a key that names everything the numbers depend on: digest and
dtype of the reference's weights, attention kernel, batch layout, format and version of this code.
Within it each sequence is found by the digest of its token ids, so that runs, losses, betas and
data mixtures share one cache. Three formats:

  logps    log-prob of each response token                        (losses without token KL)
  summary  + logsumexp, E_ref[W], and its dot with the state      (exact KL, frozen shared head)
  hidden   + last hidden state                                    (exact KL, any head)

Shards are written whole under a temporary name and renamed; any number of processes may add to one
folder. On load a sample of stored sequences is run live and compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from palate.data.items import Item, sequence_key
from palate.data.layouts import Layout, SequenceBatch, collate
from palate.errors import ModelError, RunError
from palate.kernels import (
    Head,
    RefHidden,
    RefInputs,
    RefLogps,
    RefSummary,
    shares_frozen_head,
    summarise,
    token_stats,
)
from palate.models.model import Model
from palate.models.reference import FrozenCopy, LiveReference
from palate.store.files import write_bytes

Format = Literal["logps", "summary", "hidden"]
VERSION = 1
"""Of the stored numbers: raised whenever the same inputs would give others."""
SHARD_BYTES = 256 * 2**20
VERIFY_SEQUENCES = 4
VERIFY_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.06,
    torch.float16: 0.02,
}
"""Accepted mean difference of stored and live log-probs, nats a token: batches of other shapes
round differently, another model is off by tenths and more."""


@dataclass(frozen=True)
class _Entry:
    shard: Path
    start: int
    stop: int


@dataclass
class CacheCounts:
    """What a load found, for data.json and the log."""

    found: int = 0
    computed: int = 0
    bytes: int = 0


@dataclass
class CachedReference:
    """A reference read from a cache folder. Build it with `cached_reference`."""

    folder: Path
    format: Format
    identity: dict[str, Any]
    head: Head | None
    counts: CacheCounts
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _open: dict[Path, Any] = field(default_factory=dict)

    def inputs(self, batch: SequenceBatch, *, kl: bool) -> RefInputs:
        parts = [self.read(key) for key in batch.keys]
        device = batch.targets.device

        def column(name: str) -> Tensor:
            return torch.cat([p[name] for p in parts]).to(device)

        if not kl:
            return RefLogps(logp=column("logp"))
        if self.format == "summary":
            return RefSummary(
                logp=column("logp"),
                lse=column("lse"),
                mean_embedding=column("mean_embedding"),
                mean_dot=column("mean_dot"),
            )
        if self.format == "hidden":
            assert self.head is not None
            return RefHidden(hidden=column("hidden"), head=self.head)
        raise ModelError("the reference cache holds log-probs only; token-level KL needs more")

    def read(self, key: str) -> dict[str, Tensor]:
        """The stored tensors of one sequence."""
        entry = self._entries.get(key)
        if entry is None:
            raise RunError(f"{self.folder}: the reference cache lacks sequence {key[:12]}")
        shard = self._open.get(entry.shard)
        if shard is None:
            shard = self._open[entry.shard] = safe_open(entry.shard, framework="pt")
        return {
            name: shard.get_slice(name)[entry.start : entry.stop]
            for name in shard.keys()  # noqa: SIM118 - a safetensors handle, not a mapping
            if name != "offsets"
        }

    def index(self) -> None:
        """Reads the shards' headers; shards that cannot be read are refused by name."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path in self._open:
                continue
            try:
                shard = safe_open(path, framework="pt")
                keys = json.loads(shard.metadata()["keys"])
                offsets = shard.get_tensor("offsets").tolist()
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise RunError(f"{path}: not a readable cache shard; delete it: {error}") from error
            self._open[path] = shard
            for key, start, stop in zip(keys, offsets, offsets[1:], strict=False):
                self._entries.setdefault(key, _Entry(path, start, stop))


def needed_format(policy: Model, *, kl: bool) -> Format:
    """The smallest format that answers a loss: `summary` where the frozen-head operator applies."""
    if not kl:
        return "logps"
    return "summary" if shares_frozen_head(policy.vocabulary_head()) else "hidden"


def cached_reference(
    live: LiveReference,
    items: Sequence[Item],
    *,
    folder: Path,
    format: Format,
    layout: Layout,
    pad_id: int,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> CachedReference:
    """Opens (and where needed completes) the cache of `items` under `folder`.

    Args:
        live: computes what is missing, and verifies a sample of what is there.
        folder: root of all caches; the key's own folder is made below it.
        batch_size: items of one forward pass.
        progress: called with (items done, items to do).
        rank, world_size: each process computes its share; call a barrier and `index()` after.

    Raises:
        ModelError: stored numbers do not fit the live model.
        RunError: an unreadable shard, or a write that failed.
    """
    policy = live.policy
    identity = dict(live.identity, kind="cache", of=live.identity["kind"])
    key = {
        "version": VERSION,
        "format": format,
        "layout": layout,
        "digest": identity["digest"],
        "dtype": identity["dtype"],
        "attention": policy.config._attn_implementation,
        "torch": torch.__version__.split("+")[0],
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    head = None
    if format == "hidden":
        own = policy.vocabulary_head()
        # The policy's head is about to be trained; the reference's is not.
        shared = isinstance(live, FrozenCopy) or not own.weight.requires_grad
        head = own if shared else _detached(own)
    cache = CachedReference(
        folder=folder / name, format=format, identity=identity, head=head, counts=CacheCounts()
    )
    cache.folder.mkdir(parents=True, exist_ok=True)
    cache.index()
    known: list[Item] = []
    missing: list[Item] = []
    for item in items:
        keys = (sequence_key(*sequence) for sequence in item.all_sequences)
        complete = all(key in cache._entries for key in keys)
        (known if complete else missing).append(item)
    if known:
        sample = random.Random(seed).sample(known, min(VERIFY_SEQUENCES, len(known)))
        _verify(cache, live, sample, layout=layout, pad_id=pad_id)
    cache.counts.found = len(known)
    mine = missing[rank::world_size]
    # Long sequences first, alike lengths together: less padding, and memory peaks at once.
    mine.sort(key=lambda item: (-item.n_tokens, item.id))
    cache.counts.computed = len(mine)
    writer = _ShardWriter(cache.folder, {"key": json.dumps(key, sort_keys=True)})
    for done, batch in enumerate(_batches(mine, batch_size, layout, pad_id)):
        for sequence_key_, record in _records(live, batch.to(policy.device), format):
            writer.add(sequence_key_, record)
        if progress is not None:
            progress(min((done + 1) * batch_size, len(mine)), len(mine))
    writer.flush()
    cache.counts.bytes = writer.written
    if not (cache.folder / "key.json").exists():
        write_bytes(cache.folder / "key.json", json.dumps(key, indent=2).encode())
    cache.index()
    return cache


def _detached(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach().clone()
    return Head(
        weight=head.weight.detach().clone(), bias=bias, scale=head.scale, softcap=head.softcap
    )


def _batches(
    items: Sequence[Item], size: int, layout: Layout, pad_id: int
) -> Iterator[SequenceBatch]:
    for start in range(0, len(items), size):
        batch = collate(items[start : start + size], layout=layout, pad_id=pad_id)
        yield batch
        # Mismatched sequences (KTO) are rows of their own.
        if batch.mismatched is not None:
            yield batch.mismatched


@torch.no_grad()
def _records(
    live: LiveReference, batch: SequenceBatch, format: Format
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    ref = live.inputs(batch, kl=format != "logps")
    assert isinstance(ref, RefHidden)
    memory_mb = live.policy.memory_mb
    if format == "summary":
        s = summarise(hidden=ref.hidden, head=ref.head, targets=batch.targets, memory_mb=memory_mb)
        record = {
            "logp": s.logp,
            "lse": s.lse,
            "mean_dot": s.mean_dot,
            "mean_embedding": s.mean_embedding,
        }
    else:
        stats = token_stats(
            hidden=ref.hidden, head=ref.head, targets=batch.targets, memory_mb=memory_mb
        )
        record = {"logp": stats.logp}
        if format == "hidden":
            record["hidden"] = ref.hidden
    lengths = batch.lengths.tolist()
    split = {name: value.cpu().split(lengths) for name, value in record.items()}
    for i, key in enumerate(batch.keys):
        yield key, {name: parts[i] for name, parts in split.items()}


def _verify(
    cache: CachedReference,
    live: LiveReference,
    items: Sequence[Item],
    *,
    layout: Layout,
    pad_id: int,
) -> None:
    tolerance = VERIFY_TOLERANCE[live.policy.dtype]
    for batch in _batches(items, 1, layout, pad_id):
        for key, record in _records(live, batch.to(live.policy.device), cache.format):
            stored = cache.read(key)
            for name in ("logp", "lse"):
                if name not in record:
                    continue
                fits = stored[name].shape == record[name].shape
                gap = float((stored[name] - record[name]).abs().mean()) if fits else float("inf")
                if not gap <= tolerance:
                    raise ModelError(
                        f"{cache.folder}: stored {name} of sequence {key[:12]} is {gap:.3g} nats a "
                        "token off the live reference; delete the folder to compute it anew"
                    )


class _ShardWriter:
    """Collects records and writes them as whole shards."""

    def __init__(self, folder: Path, metadata: dict[str, str]) -> None:
        self.folder = folder
        self.metadata = metadata
        self.keys: list[str] = []
        self.records: list[dict[str, Tensor]] = []
        self.seen: set[str] = set()
        self.size = 0
        self.written = 0

    def add(self, key: str, record: dict[str, Tensor]) -> None:
        if key in self.seen:
            return
        self.seen.add(key)
        self.keys.append(key)
        self.records.append(record)
        self.size += sum(t.numel() * t.element_size() for t in record.values())
        if self.size >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self.keys:
            return
        lengths = torch.tensor([0, *(len(r["logp"]) for r in self.records)])
        tensors = {
            name: torch.cat([r[name] for r in self.records]).contiguous()
            for name in self.records[0]
        }
        tensors["offsets"] = lengths.cumsum(0)
        data = save(tensors, metadata=self.metadata | {"keys": json.dumps(self.keys)})
        content = hashlib.sha256("".join(self.keys).encode()).hexdigest()[:16]
        write_bytes(self.folder / f"shard-{content}-{os.getpid()}.safetensors", data)
        self.written += len(data)
        self.keys, self.records, self.size = [], [], 0
