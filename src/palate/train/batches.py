"""Which items each process runs in each micro-batch, and their collation.

An optimizer step is a set of items that depends on seed, epoch and batch size alone: neither on the
number of processes nor on the accumulation. Within a step every process runs the same number of
micro-batches, as collectives need; a slot without items is filled with one that does not count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from palate.data.items import Item
from palate.data.layouts import SequenceBatch

Slot = list[int]
"""Indices of one micro-batch; negative (bitwise complement): run, but not counted."""


@dataclass(frozen=True)
class Micro:
    """One forward pass of one process.

    Attributes:
        counted: False for a filler that only keeps the processes in step.
        tokens: prompt and response tokens of its items, each prompt once.
    """

    batch: SequenceBatch
    counted: bool
    tokens: int

    @property
    def items(self) -> int:
        return len(self.batch.ids) if self.counted else 0

    def to(self, device: torch.device) -> Micro:
        return Micro(self.batch.to(device), self.counted, self.tokens)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How `batch_size` items of a step are cut.

    Attributes:
        batch_size: items of a step, over all processes.
        micro_batch_size: most items of one forward pass.
        rank, world_size: of this process.
    """

    batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def accumulation(self) -> int:
        """Micro-batches of a full step on each process."""
        return _slots(self.batch_size, self)

    def steps(self, n: int) -> int:
        """Steps of one epoch over n items; the last one may be smaller."""
        return -(-n // self.batch_size)

    def micro_batches(self, step: Sequence[int]) -> list[Slot]:
        """This process's share of a step's items, spread evenly over its micro-batches."""
        own = list(step[self.rank :: self.world_size])
        slots = _slots(len(step), self)
        size, more = divmod(len(own), slots)
        found, start = [], 0
        for i in range(slots):
            stop = start + size + (i < more)
            found.append(own[start:stop] or [~step[0]])
            start = stop
        return found


def _slots(n: int, plan: BatchPlan) -> int:
    share = -(-n // plan.world_size)
    return -(-share // plan.micro_batch_size)


class StepSampler(Sampler[Slot]):
    """Micro-batches of an epoch for one process; every item once, order drawn from the seed."""

    def __init__(self, n: int, plan: BatchPlan, *, seed: int) -> None:
        self.n = n
        self.plan = plan
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.n, self.plan.batch_size)
        return full * self.plan.accumulation + _slots(rest, self.plan)

    def __iter__(self) -> Iterator[Slot]:
        order = list(range(self.n))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, self.n, self.plan.batch_size):
            yield from self.plan.micro_batches(order[start : start + self.plan.batch_size])


class _Items(torch.utils.data.Dataset[tuple[Item, bool]]):
    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, bool]:
        return (self.items[index], True) if index >= 0 else (self.items[~index], False)


class StepLoader(DataLoader[Micro]):
    """A data loader over a `StepSampler` that can be told the epoch."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


Collate = Callable[[Sequence[Any]], SequenceBatch]


def train_loader(
    items: Sequence[Item], plan: BatchPlan, collate: Collate, *, seed: int
) -> StepLoader:
    """Micro-batches of this process; touches no global random state."""
    rows: Any = _Items(items)  # the loader yields what the collator makes of them
    return StepLoader(
        rows,
        batch_sampler=StepSampler(len(items), plan, seed=seed),
        collate_fn=_Collator(collate),
        generator=torch.Generator(),
    )


class _Collator:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[tuple[Item, bool]]) -> Micro:
        return micro([item for item, _ in rows], self.collate, counted=rows[0][1])


def micro(items: Sequence[Item], collate: Collate, *, counted: bool = True) -> Micro:
    """One micro-batch of items."""
    tokens = sum(item.n_tokens for item in items) if counted else 0
    return Micro(batch=collate(items), counted=counted, tokens=tokens)


def eval_batches(items: Sequence[Item], plan: BatchPlan, collate: Collate) -> Iterator[Micro]:
    """All items once over the processes, alike lengths together; any order gives the same means."""
    order = sorted(range(len(items)), key=lambda i: (-items[i].n_tokens, i))
    size = plan.micro_batch_size * plan.world_size
    for start in range(0, len(order), size):
        (slot,) = plan.micro_batches(order[start : start + size])
        counted = slot[0] >= 0
        yield micro([items[i if counted else ~i] for i in slot], collate, counted=counted)
