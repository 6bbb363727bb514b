"""The trainer's parts by themselves: batch plans, schedule, optimizer copies, means."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from palate.errors import RecipeError
from palate.recipes.schema import TrainRecipe
from palate.train import checkpoint
from palate.train.launch import batch_plan, total_steps
from palate.train.meter import Meter, Sum
from palate.train.optimizer import build_optimizer, schedule, warmup_steps
from palate.train.sources.offline import BatchPlan


@pytest.mark.parametrize(
    ("n", "batch", "micro", "world"),
    [(20, 8, 4, 1), (21, 8, 3, 1), (5, 8, 2, 2), (1, 4, 1, 4), (17, 6, 2, 3), (9, 4, 1, 2)],
)
def test_every_item_once_whatever_the_processes(n: int, batch: int, micro: int, world: int) -> None:
    whole = BatchPlan(batch_size=batch, micro_batch_size=batch)
    plans = [
        BatchPlan(batch_size=batch, micro_batch_size=micro, rank=r, world_size=world)
        for r in range(world)
    ]
    shares = [plan.epoch(n, seed=5, epoch=0) for plan in plans]
    # Collectives need the same number of passes everywhere.
    for steps in zip(*shares, strict=True):
        assert len({len(slots) for slots in steps}) == 1
    slots = [slot for share in shares for step in share for slot in step]
    assert all(slot and len(slot) <= micro for slot in slots)
    assert sorted(i for slot in slots for i in slot if i >= 0) == list(range(n))
    # The items of a step are the same ones, in any cut.
    for (alone,), *cut in zip(whole.epoch(n, seed=5, epoch=0), *shares, strict=True):
        items = [i for step in cut for slot in step for i in slot]
        assert sorted(i for i in items if i >= 0) == sorted(alone)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("tokens", [None, 60])
def test_items_of_like_length_come_together(tokens: int | None, world: int) -> None:
    lengths = [random.Random(i).randrange(5, 80) for i in range(40)]
    options: dict[str, Any] = {"micro_batch_size": 4, "micro_batch_tokens": tokens}
    whole = BatchPlan(batch_size=12, micro_batch_size=12)
    plans = [BatchPlan(batch_size=12, rank=r, world_size=world, **options) for r in range(world)]
    shares = [plan.epoch(40, seed=5, epoch=0, lengths=lengths) for plan in plans]
    for (alone,), *cut in zip(whole.epoch(40, seed=5, epoch=0), *shares, strict=True):
        assert len({len(slots) for slots in cut}) == 1
        found = [[i for i in slot if i >= 0] for slots in cut for slot in slots]
        assert sorted(i for slot in found for i in slot) == sorted(alone)
        for slot in filter(None, found):
            assert tokens is None or len(slot) == 1 or sum(lengths[i] for i in slot) <= tokens
        for slots in cut:
            own = [lengths[i] for slot in slots for i in slot if i >= 0]
            assert own == sorted(own, reverse=True)
        # No process has the long ones alone.
        sums = [sum(lengths[i] for slot in slots for i in slot if i >= 0) for slots in cut]
        assert max(sums) - min(sums) <= max(lengths)


def test_order_depends_on_seed_and_epoch() -> None:
    plan = BatchPlan(batch_size=4, micro_batch_size=4)
    first, same, other = (plan.epoch(32, seed=s, epoch=0) for s in (1, 1, 2))
    assert first == same != other
    assert first != plan.epoch(32, seed=1, epoch=1)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(RecipeError, match="8 pairs a step cannot be divided over 3 processes"):
        batch_plan(TrainRecipe(batch_size_pairs=8), rank=0, world_size=3)
    with pytest.raises(RecipeError, match="each of 2 processes has 6 pairs a step, no multiple"):
        recipe = TrainRecipe(batch_size_pairs=12, micro_batch_size_pairs=4)
        batch_plan(recipe, rank=0, world_size=2)
    # A share smaller than a micro-batch is one micro-batch.
    plan = batch_plan(
        TrainRecipe(batch_size_pairs=4, micro_batch_size_pairs=4), rank=0, world_size=2
    )
    assert (plan.micro_batch_size, len(plan.micro_batches(range(4)))) == (2, 1)


def test_steps_of_a_run() -> None:
    plan = BatchPlan(batch_size=8, micro_batch_size=4)
    assert total_steps(TrainRecipe(), plan, 20) == 3
    assert total_steps(TrainRecipe(epochs=0.5), plan, 64) == 4
    assert total_steps(TrainRecipe(max_steps=7), plan, 20) == 7
    assert warmup_steps(TrainRecipe(warmup_fraction=0.1), 55) == 6


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule(kind: Any) -> None:
    factor = schedule(kind, warmup=4, total=20)
    # As in the TDPO release: min(1, (k + 1) / (warmup + 1)), never 0.
    assert [factor(k) for k in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == 1.0
    rates = [factor(k) for k in range(4, 20)]
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert factor(12) == pytest.approx({"cosine": 0.5, "linear": 0.5, "constant": 1.0}[kind])
    assert factor(20) == pytest.approx({"cosine": 0.0, "linear": 0.0, "constant": 1.0}[kind])
    assert schedule(kind, warmup=0, total=20)(0) == 1.0


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd"])
def test_copies_follow_the_float32_optimizer_and_survive_a_save(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    start = torch.randn(7, 5).bfloat16()
    low = torch.nn.Parameter(start.clone())
    full = torch.nn.Parameter(start.float())
    made = {"name": name, "learning_rate": 1e-4, "precision": "float32"}
    ours: Any = build_optimizer([{"params": [low], "weight_decay": 0.1}], **made)
    theirs = build_optimizer([{"params": [full], "weight_decay": 0.1}], **made)
    for step in range(8):
        gradient = torch.randn(7, 5).bfloat16()
        low.grad, full.grad = gradient, gradient.float()
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 1e-4 / (step + 1)
            optimizer.step()
        if step == 3:
            checkpoint.save_optimizer(ours.state_dict(), tmp_path)
            ours = build_optimizer([{"params": [low], "weight_decay": 0.1}], **made)
            ours.load_state_dict(checkpoint.load_optimizer(tmp_path))
    assert torch.equal(low, full.bfloat16())
    (copy,) = (p for p in ours.inner.param_groups[0]["params"])
    assert torch.equal(copy, full)


def test_random_states_come_back(tmp_path: Any) -> None:
    def draw() -> tuple[float, float, float, float]:
        normal = float(np.random.standard_normal())
        return random.random(), normal, float(torch.rand(())), random.gauss(0, 1)

    draw()
    checkpoint.save_random([checkpoint.random_state()], tmp_path)
    expected = [draw() for _ in range(3)]
    checkpoint.set_random_state(checkpoint.load_random(tmp_path, 0))
    assert [draw() for _ in range(3)] == expected


def test_means_do_not_depend_on_the_batches() -> None:
    values = torch.rand(10, dtype=torch.float64)
    whole, cut = Meter(), Meter()
    whole.add({"x": (values.sum(), 10.0)})
    for part in values.split([1, 4, 5]):
        cut.add({"x": (part.sum(), float(len(part)))})
    assert cut.means()["x"] == pytest.approx(whole.means()["x"], rel=1e-12)
    cut.load(cut.state())
    assert cut.means() == pytest.approx(whole.means())
    cut.merge([{"x": Sum(1.0, 1.0)}, {"y": Sum(3.0, 0.0)}])
    assert cut.means()["x"] == pytest.approx((float(values.sum()) + 1) / 11)
    assert "y" not in cut.means()


def test_margins_are_differences_of_means() -> None:
    meter = Meter()
    meter.add({"rewards/chosen": (torch.tensor(6.0), 3.0)})
    meter.add({"rewards/rejected": (torch.tensor(1.0), 2.0)})
    assert meter.means()["rewards/margins"] == pytest.approx(1.5)
    assert not math.isnan(meter.means()["rewards/margins"])
