"""The loop by itself: its hooks, workers that collate ahead, and what counts as training time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from palate.data.items import Item, PairLabel
from palate.data.layouts import PairBatch, SequenceBatch, collate
from palate.train import tune
from palate.train.callbacks import Callback
from palate.train.loop import Loop
from palate.train.sources import offline
from palate.train.sources.offline import BatchPlan, OfflineSource
from tiny import tiny_pairs
from tiny_runs import lines, tiny_recipe


def lay_out(items: Any) -> Any:
    return collate(items, layout="shared", pad_id=0)


def source(items: list[Item], **options: Any) -> OfflineSource:
    plan = BatchPlan(batch_size=4, micro_batch_size=2)
    return OfflineSource(items, plan, lay_out, seed=3, total=7, **options)


def keys(steps: Any) -> list[list[tuple[str, ...]]]:
    return [[micro.batch.keys for micro in step] for step in steps]


@pytest.mark.parametrize("workers", [1, 2])
def test_steps_are_the_same_for_any_number_of_workers(workers: int) -> None:
    items = tiny_pairs(10)
    state = torch.random.get_rng_state()
    alone = keys(source(items))
    assert len(alone) == 7
    assert keys(source(items, workers=workers)) == alone
    assert torch.equal(torch.random.get_rng_state(), state)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Those of a batch, of its parts, and of the batches in it."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else vars(value).values()
    inside = (p for p in parts if isinstance(p, (torch.Tensor, dict, PairBatch, SequenceBatch)))
    return [tensor for part in inside for tensor in tensors_of(part)]


def test_batches_are_pinned_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    loader = offline.DataLoader

    def watched(*args: Any, pin_memory: bool, **options: Any) -> Any:
        asked.append(pin_memory)
        return loader(*args, **options)

    monkeypatch.setattr(offline, "DataLoader", watched)
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        next(iter(source(tiny_pairs(4))))
    assert asked == [False, True]
    # Pinning needs a driver: what the loader calls is told by another copy.
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.clone)
    (micro,) = next(
        iter(
            OfflineSource(
                tiny_pairs(2), BatchPlan(batch_size=2, micro_batch_size=2), lay_out, seed=0, total=1
            )
        )
    )
    pinned = micro.pin_memory()
    before, after = tensors_of(micro.batch), tensors_of(pinned.batch)
    assert len(before) == len(after) > 15
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())
        assert old.data_ptr() != new.data_ptr() or old.numel() == 0
    assert (pinned.tokens, pinned.longest, pinned.counted) == (micro.tokens, micro.longest, True)


def test_copies_to_a_device_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[bool] = []
    to = torch.Tensor.to

    def watched(self: torch.Tensor, *args: Any, non_blocking: bool = False) -> torch.Tensor:
        waits.append(not non_blocking)
        return to(self, *args)

    (micro, *_) = next(iter(source(tiny_pairs(4))))
    monkeypatch.setattr(torch.Tensor, "to", watched)
    micro.to(torch.device("cpu"))
    assert len(waits) == len(tensors_of(micro.batch)) and not any(waits)


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_source_goes_on_where_its_state_was_taken(after: int) -> None:
    """Inside an epoch of three steps, at its end, and in the next one."""
    items = tiny_pairs(10)
    whole, first = keys(source(items)), source(items)
    steps = iter(first)
    for _ in range(after):
        next(steps)
    again = source(items)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.epoch == first.epoch
    assert keys(again) == whole[after:]


def test_an_epoch_counts_items() -> None:
    of_ten = source(tiny_pairs(10))
    assert [of_ten.epoch for _ in of_ten] == pytest.approx([0.4, 0.8, 1, 1.4, 1.8, 2, 2.4])


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def on_start(self, loop: Loop) -> None:
        self.calls.append(("start", loop.step))

    def on_step(self, loop: Loop) -> None:
        self.calls.append(("step", loop.step))
        loop.should_stop = loop.step == 4

    def on_log(self, loop: Loop, split: str, values: Any) -> None:
        self.calls.append((split, loop.step))

    def on_save(self, loop: Loop) -> None:
        self.calls.append(("save", loop.step))

    def on_end(self, loop: Loop) -> None:
        self.calls.append(("end", loop.step))

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}


def watched(recipe: Any, monkeypatch: pytest.MonkeyPatch, *callbacks: Callback) -> Path:
    """A run with further callbacks."""
    built = Loop.__init__

    def build(self: Loop, *args: Any, **kwargs: Any) -> None:
        built(self, *args, **kwargs)
        self.callbacks += callbacks

    monkeypatch.setattr(Loop, "__init__", build)
    return tune(recipe, quiet=True).path


def test_hooks_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recipe = tiny_recipe(tmp_path, log_every_steps=2, eval_every_steps=2, save_every_steps=3)
    run = watched(recipe, monkeypatch, recorder)
    assert recorder.calls == [
        *(("start", 0), ("step", 1), ("step", 2), ("train", 2), ("eval", 2)),
        *(("step", 3), ("save", 3), ("step", 4), ("train", 4), ("eval", 4), ("save", 4)),
        ("end", 4),
    ]
    record = json.loads((run / "checkpoints/step-000003/run.json").read_text())
    assert record["callbacks"]["Recorder"] == {"calls": 6} and record["done"] is False
    assert json.loads((run / "checkpoints/step-000004/run.json").read_text())["done"] is True


def test_evaluation_is_no_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that every evaluation moves by an hour, and a step by a second."""
    now = [0.0]
    step, evaluation = Loop.train_step, Loop.evaluation

    def timed_step(self: Loop, micro_batches: Any) -> None:
        now[0] += 1.0
        step(self, micro_batches)

    def timed_evaluation(self: Loop) -> dict[str, float]:
        now[0] += 3600.0
        return evaluation(self)

    monkeypatch.setattr(Loop, "train_step", timed_step)
    monkeypatch.setattr(Loop, "evaluation", timed_evaluation)
    monkeypatch.setattr("palate.train.loop.time.monotonic", lambda: now[0])
    run = tune(tiny_recipe(tmp_path, max_steps=3, eval_every_steps=1), quiet=True).path
    log = lines(run / "metrics.jsonl")
    rates = [line["pairs_per_second"] for line in log if line["split"] == "train"]
    assert rates == pytest.approx([4.0] * 3)


def test_workers_train_the_same_bits(tmp_path: Path) -> None:
    alone = tune(tiny_recipe(tmp_path, out="a", max_steps=3), quiet=True).path
    ahead = tune(tiny_recipe(tmp_path, out="b", max_steps=3, data_workers=2), quiet=True).path
    a, b = (load_file(run / "model/model.safetensors") for run in (alone, ahead))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_log_line_says_rate_and_norm_of_its_step(tmp_path: Path) -> None:
    run = tune(tiny_recipe(tmp_path, max_steps=2, warmup_steps=1), quiet=True).path
    train = [line for line in lines(run / "metrics.jsonl") if line["split"] == "train"]
    # (k + 1) / (warmup + 1) of the rate in the first step, all of it in the second.
    assert [line["learning_rate"] for line in train] == pytest.approx([5e-4, 1e-3])
    assert all(line["grad_norm"] > 0 for line in train)


def test_pairs_alone_have_no_sides_elsewhere() -> None:
    with pytest.raises(ValueError, match="without pairs"):
        lay_out([Item.of((1,), (2, 3))]).of_pairs()
    assert len(lay_out([Item.of((1,), (2,), (3,), label=PairLabel())]).of_pairs()) == 1
