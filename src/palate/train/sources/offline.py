"""Steps over a fixed list of items: which items each process runs in each micro-batch.

An optimizer step is a set of items that depends on seed, epoch and batch size alone: neither on the
number of processes nor on the accumulation, nor on lengths. Within a step items of like length
come together, and every process has its share of the long ones. Every process runs the same number
of micro-batches, as collectives need; a slot without items is filled with one that does not count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from palate.data.items import Item
from palate.data.layouts import SequenceBatch
from palate.train.meter import Statistics
from palate.train.sources.base import MicroBatch

Slot = list[int]
"""Indices of one micro-batch; negative (bitwise complement): run, but not counted."""
Collate = Callable[[Sequence[Any]], SequenceBatch]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How `batch_size` items of a step are cut.

    Attributes:
        batch_size: items of a step, over all processes.
        micro_batch_size: most items of one forward pass.
        micro_batch_tokens: most tokens of one forward pass; an item with more is alone in its own.
        rank, world_size: of this process.
    """

    batch_size: int
    micro_batch_size: int
    micro_batch_tokens: int | None = None
    rank: int = 0
    world_size: int = 1

    def steps(self, n: int) -> int:
        """Steps of one epoch over n items; the last one may be smaller."""
        return -(-n // self.batch_size)

    def micro_batches(
        self, step: Sequence[int], lengths: Sequence[int] | None = None
    ) -> list[Slot]:
        """This process's share of a step's items, spread evenly over its micro-batches.

        Args:
            lengths: tokens of every item; None leaves the step's order as it is.
        """
        if lengths is not None:
            step = sorted(step, key=lambda i: -lengths[i])
        shares = [list(step[rank :: self.world_size]) for rank in range(self.world_size)]
        cuts = [self._cut(share, len(shares[0]), lengths) for share in shares]
        slots = cuts[self.rank]
        return slots + [[~step[0]]] * (max(map(len, cuts)) - len(slots))

    def _cut(self, share: Slot, largest: int, lengths: Sequence[int] | None) -> list[Slot]:
        """The micro-batches of one process.

        Args:
            largest: items of the largest share.
        """
        slots: list[Slot] = []
        if self.micro_batch_tokens is not None:
            assert lengths is not None
            used = 0
            for i in share:
                if not slots or used + lengths[i] > self.micro_batch_tokens:
                    slots.append([])
                    used = 0
                slots[-1].append(i)
                used += lengths[i]
            return slots
        count = -(-largest // self.micro_batch_size)
        size, more = divmod(len(share), count)
        start = 0
        for k in range(count):
            stop = start + size + (k < more)
            if start < stop:
                slots.append(share[start:stop])
            start = stop
        return slots

    def epoch(
        self, n: int, *, seed: int, epoch: int, lengths: Sequence[int] | None = None
    ) -> list[list[Slot]]:
        """The steps of an epoch over n items: every item once, order drawn from the seed."""
        order = list(range(n))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        starts = range(0, n, self.batch_size)
        return [self.micro_batches(order[i : i + self.batch_size], lengths) for i in starts]


class OfflineSource:
    """The steps of a run over items; touches no global random state.

    Args:
        collate: lays out items.
        total: steps of the run.
        workers: processes that collate ahead; 0 collates in this one. Steps are the same.
    """

    def __init__(
        self,
        items: Sequence[Item],
        plan: BatchPlan,
        collate: Collate,
        *,
        seed: int,
        total: int,
        workers: int = 0,
    ) -> None:
        self.total = total
        self.n_items = len(items)
        self.step = 0
        self._items = items
        self._lengths = [item.n_tokens for item in items]
        self._plan = plan
        self._collate = _Collator(collate)
        self._seed = seed
        self._workers = workers

    @property
    def epoch(self) -> float:
        full, rest = divmod(self.step, self._plan.steps(len(self._items)))
        return full + rest * self._plan.batch_size / len(self._items)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        while self.step < self.total:
            epoch, done = divmod(self.step, self._plan.steps(len(self._items)))
            steps = self.steps(epoch)[done:]
            batches = iter(self._loader([slot for step in steps for slot in step]))
            for step in steps:
                micro_batches = [next(batches) for _ in step]
                # A checkpoint is written before the next step is asked for.
                self.step += 1
                yield micro_batches

    def steps(self, epoch: int) -> list[list[Slot]]:
        """The micro-batches of each step of an epoch, as far as the run goes."""
        n, before = len(self._items), epoch * self._plan.steps(len(self._items))
        steps = self._plan.epoch(n, seed=self._seed, epoch=epoch, lengths=self._lengths)
        return steps[: max(0, self.total - before)]

    def held(self) -> tuple[nn.Parameter, ...]:
        """None."""
        return ()

    def after_step(self) -> Statistics:
        """Nothing: rows do not change."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])

    def _loader(self, slots: list[Slot]) -> DataLoader[MicroBatch]:
        rows: Any = _Rows(self._items)  # the loader yields what the collator makes of them
        return DataLoader(
            rows,
            batch_sampler=slots,
            collate_fn=self._collate,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )


class _Rows(Dataset[tuple[Item, bool]]):
    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> tuple[Item, bool]:
        return (self.items[index], True) if index >= 0 else (self.items[~index], False)


class _Collator:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[tuple[Item, bool]]) -> MicroBatch:
        return micro_batch([item for item, _ in rows], self.collate, counted=rows[0][1])


def micro_batch(items: Sequence[Item], collate: Collate, *, counted: bool = True) -> MicroBatch:
    """One micro-batch of items."""
    lengths = [item.n_tokens for item in items]
    tokens = sum(lengths) if counted else 0
    return MicroBatch(
        batch=collate(items), counted=counted, tokens=tokens, longest=max(lengths, default=0)
    )


def eval_batches(items: Sequence[Item], plan: BatchPlan, collate: Collate) -> Iterator[MicroBatch]:
    """All items once over the processes, alike lengths together; any order gives the same means."""
    order = sorted(range(len(items)), key=lambda i: (-items[i].n_tokens, i))
    size = plan.micro_batch_size * plan.world_size
    for start in range(0, len(order), size):
        (slot,) = plan.micro_batches(order[start : start + size])
        counted = slot[0] >= 0
        yield micro_batch([items[i if counted else ~i] for i in slot], collate, counted=counted)
