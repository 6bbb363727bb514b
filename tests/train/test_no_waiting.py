"""A step asks the device for everything and waits for nothing: no number of it comes to the host.

There is no GPU here: what waits is told by the operation. Attention goes as on an accelerator (its
kernel aside); the vocabulary head has kernels of its own there, and is left out.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import palate
from palate.models import block_attention
from palate.train import reward, sft, tune
from palate.train.loop import Loop
from palate.train.meter import Meter
from palate.train.sources.base import MicroBatch
from tiny_rewards import recipe as reward_recipe
from tiny_runs import tiny_recipe

WAITING = {
    *("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"),
    *("aten::nonzero", "aten::masked_select", "aten::bincount", "aten::repeat_interleave"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
}
FETCHING = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
HEAD = str(Path(palate.__file__).parent / "kernels")


class Watch:
    """Where a step waits: the lines of ours that lead there."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.is_on = True
        self.steps = 0

    def note(self, what: str) -> None:
        frames = traceback.extract_stack(sys._getframe(1))
        if self.is_on and not any(frame.filename.startswith(HEAD) for frame in frames):
            at = [f for f in frames if "/palate/" in f.filename][-1]
            self.waits.append(f"{what} at {Path(at.filename).name}:{at.lineno}")

    @contextmanager
    def off(self) -> Iterator[None]:
        self.is_on, before = False, self.is_on
        yield
        self.is_on = before


class Operations(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_flags = name in {"aten::index", "aten::index_put", "aten::index_put_"} and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or by_flags:
            self.watch.note(name)
        return func(*args, **(kwargs or {}))


class Fetches(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FETCHING:
            self.watch.note(func.__name__)
        return func(*args, **(kwargs or {}))


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, scale: float, **_: Any):
    """In the place of FlexAttention, which is torch's own and has no gradients here."""
    place = torch.arange(q.shape[2])
    row = torch.arange(len(q))[:, None, None]
    mask = block_mask.mask_mod(row, 0, place[:, None], place)[:, None]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, scale=scale)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setenv("PALATE_COMPILED", "0")
    monkeypatch.setattr(block_attention, "DEVICES", {"cpu"})
    monkeypatch.setattr(block_attention, "LEAST_HEAD", 1)
    monkeypatch.setattr(block_attention, "_compiled", lambda: dense_attention)
    step, move, total = Loop.train_step, MicroBatch.to, Loop._counts
    on_device: list[Any] = []

    def watched(self: Loop, micro_batches: list[MicroBatch]) -> None:
        counted = self.job.objective.counts

        def counts(batch: Any) -> Any:
            # Of a batch that is on the host still, they are numbers of the host.
            with nullcontext() if any(batch is moved for moved in on_device) else watch.off():
                return counted(batch)

        monkeypatch.setattr(self.job.objective, "counts", counts)
        watch.steps += 1
        with Operations(watch), Fetches(watch):
            step(self, micro_batches)
        monkeypatch.setattr(self.job.objective, "counts", counted)

    def to(self: MicroBatch, device: torch.device) -> MicroBatch:
        result = move(self, device)
        on_device.append(result.batch)
        return result

    def counts_of_step(self: Loop, *args: Any) -> Any:
        # Sums of numbers of the host.
        with watch.off():
            return total(self, *args)

    monkeypatch.setattr(Loop, "_counts", counts_of_step)
    monkeypatch.setattr(Loop, "train_step", watched)
    monkeypatch.setattr(MicroBatch, "to", to)
    return watch


TRAIN = {"max_steps": 3, "micro_batch_size_pairs": 2, "log_every_steps": 3}


@pytest.mark.parametrize("kind", ["dpo", "tdpo2", "weighted", "sft", "float32 copies"])
def test_a_step_of_a_policy_waits_for_nothing(kind: str, watch: Watch, tmp_path: Path) -> None:
    train: dict[str, Any] = dict(TRAIN)
    if kind == "sft":
        sft(tiny_recipe(tmp_path, kind="sft", **train), quiet=True)
    else:
        options: dict[str, Any] = {"loss": {"type": "dpo"}}
        if kind == "tdpo2":
            train["extra_metrics"] = ["reverse_kl", "entropy"]
            options["loss"] = {"type": "tdpo2"}
        if kind == "weighted":
            options["token_weights"] = {"type": "ld"}
        if kind == "float32 copies":
            options["dtype"] = "bfloat16"
        tune(tiny_recipe(tmp_path, **options, **train), quiet=True)
    assert watch.steps == 3 and watch.waits == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"regularise": {"likelihood": {}, "centring": 0.01}, "pooling": "mean"},
        {"ensemble": {"heads": 2, "bootstrap": True}, "pooling": "attention"},
        {"loss": {"type": "plackett_luce"}},
    ],
    ids=["", "likelihood", "heads", "lists"],
)
def test_a_step_of_a_reward_model_waits_for_nothing(
    options: dict[str, Any], watch: Watch, tmp_path: Path
) -> None:
    reward(reward_recipe(tmp_path, train=TRAIN, **options), quiet=True)
    assert watch.steps == 3 and watch.waits == []


def test_a_meter_fetches_once(watch: Watch) -> None:
    meter, values = Meter(), [0.1, 0.2, 0.3]
    rounded = [float(torch.tensor(value)) for value in values]
    with Operations(watch), Fetches(watch):
        for value in values:
            meter.add({"loss": (torch.tensor(value), 0.0), "x": (torch.tensor(1), torch.tensor(2))})
            meter.last = {"grad_norm": torch.tensor(value), "learning_rate": 0.5}
        meter.merge([])
        assert watch.waits == []
        assert meter.last == {"grad_norm": rounded[-1], "learning_rate": 0.5}
        assert meter.means() == {"x": 0.5}
        assert meter.sums["loss"].total == sum(rounded)
    assert [wait.partition(" at ")[0] for wait in watch.waits] == ["tolist"]
