"""The reference cache: what a loss needs of the reference, stored by content.

The identity of a cache is the digest and dtype of the reference's weights, attention kernel, batch
layout, format and version of this code; an entry's key is the digest of its sequence, so that runs,
losses, betas and data mixtures share one. Three formats:

  logps    log-prob of each response token                        (losses without token KL)
  summary  + logsumexp, E_ref[W], and its dot with the state      (exact KL, frozen shared head)
  hidden   + last hidden state                                    (exact KL, any head)

On load a sample of stored sequences is run live and compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from palate.data.items import Item, sequence_key
from palate.data.layouts import Collator, Layout, SequenceBatch
from palate.errors import ModelError
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
from palate.models.compiled import kernels_of
from palate.models.model import Model
from palate.store.cache import Column, Entry, TensorCache, share_of

if TYPE_CHECKING:
    from palate.models.reference import LiveReference

Format = Literal["logps", "summary", "hidden"]
VERSION = 2
"""Of the stored numbers and files: raised whenever the same inputs would give others."""
VERIFY_SEQUENCES = 4
VERIFY_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.06,
    torch.float16: 0.02,
}
"""Accepted mean difference of stored and live log-probs, nats a token: batches of other shapes
round differently, another model is off by tenths and more."""


@dataclass
class CacheCounts:
    """Items that were there, and items that this process computed."""

    cached: int = 0
    computed: int = 0


@dataclass
class CachedReference:
    """A reference read from a cache. Build it with `cached_reference`."""

    cache: TensorCache
    format: Format
    identity: dict[str, Any]
    head: Head | None
    counts: CacheCounts

    @property
    def folder(self) -> Path:
        return self.cache.folder

    def inputs(self, batch: SequenceBatch, *, kl: bool) -> RefInputs:
        entries = [self.cache.read(bytes.fromhex(key)) for key in batch.keys]
        device = batch.targets.device

        def column(name: str) -> Tensor:
            return torch.cat([entry[name] for entry in entries]).to(device)

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

    def index(self) -> None:
        """Takes in what other processes have written meanwhile."""
        self.cache.refresh()


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
        folder: root of all caches.
        batch_size: items of one forward pass.
        progress: called with (items done, items to do).
        rank, world_size: each process computes its share; call a barrier and `index()` after.

    Raises:
        ModelError: stored numbers do not fit the live model.
        RunError: an unreadable shard, or a write that failed.
    """
    policy = live.policy
    collate = policy.collator(layout, pad_id=pad_id)
    identity = dict(live.identity, kind="cache", of=live.identity["kind"])
    store = TensorCache(
        folder,
        {
            "kind": "reference",
            "version": VERSION,
            "format": format,
            "layout": layout,
            "digest": identity["digest"],
            "dtype": identity["dtype"],
            "kernels": kernels_of(policy.base),
            "torch": torch.__version__.split("+")[0],
            **policy.shown,
        },
        _columns(policy, format),
    )
    store.refresh()
    known: list[Item] = []
    missing: list[Item] = []
    for item in items:
        complete = all(key in store for key in _keys(item))
        (known if complete else missing).append(item)
    if known:
        sample = random.Random(seed).sample(known, min(VERIFY_SEQUENCES, len(known)))
        store.compare(
            _records(live, _batches(sample, 1, collate), format),
            _distance,
            tolerance=VERIFY_TOLERANCE[policy.dtype],
            of="reference, in nats a token",
        )
    share = [item for item in missing if share_of(next(_keys(item)), world_size) == rank]
    # Long sequences first, alike lengths together: less padding, and memory peaks at once.
    share.sort(key=lambda item: (-item.n_tokens, item.id))
    with store.writing():
        done = 0
        for start in range(0, len(share), batch_size):
            part = share[start : start + batch_size]
            batches = _batches(part, batch_size, collate)
            store.add(dict(_records(live, batches, format)))
            done += len(part)
            if progress is not None:
                progress(done, len(share))
    store.refresh()
    return CachedReference(
        cache=store,
        format=format,
        identity=identity,
        head=live.frozen_head() if format == "hidden" else None,
        counts=CacheCounts(cached=len(known), computed=len(share)),
    )


def _columns(policy: Model, format: Format) -> dict[str, Column]:
    width = policy.backbone.hidden_size
    columns = {"logp": Column()}
    if format == "summary":
        columns |= {"lse": Column(), "mean_dot": Column(), "mean_embedding": Column((width,))}
    if format == "hidden":
        columns["hidden"] = Column((width,), policy.dtype)
    return columns


def _keys(item: Item) -> Iterator[bytes]:
    return (bytes.fromhex(sequence_key(*sequence)) for sequence in item.all_sequences)


def _batches(items: Sequence[Item], size: int, collate: Collator) -> Iterator[SequenceBatch]:
    for start in range(0, len(items), size):
        batch = collate(items[start : start + size])
        yield batch
        # Mismatched sequences (KTO) are rows of their own.
        if batch.mismatched is not None:
            yield batch.mismatched


@torch.no_grad()
def _records(
    live: LiveReference, batches: Iterable[SequenceBatch], format: Format
) -> Iterator[tuple[bytes, Entry]]:
    for batch in batches:
        yield from _of_batch(live, batch.to(live.policy.device), format)


def _of_batch(
    live: LiveReference, batch: SequenceBatch, format: Format
) -> Iterator[tuple[bytes, Entry]]:
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
        yield bytes.fromhex(key), {name: parts[i] for name, parts in split.items()}


def _distance(stored: Entry, live: Entry) -> float:
    """Largest mean difference of log-probs, and of their normalisers where stored."""
    return max(
        float((stored[name] - live[name]).abs().mean()) for name in ("logp", "lse") if name in live
    )
