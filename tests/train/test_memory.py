"""A micro-batch that the device's memory does not hold: one line that says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from palate.errors import RunError
from palate.models.model import Model
from palate.train import tune
from palate.train.loop import Loop
from tiny_runs import tiny_recipe, write_rows


def rows(folder: Path, name: str, lengths: list[int]) -> None:
    """Pairs of so many characters, which are the tiny tokenizer's tokens."""
    write_rows(
        folder / name,
        [{"prompt": "p", "chosen": "a" * n, "rejected": "b" * (n // 2)} for n in lengths],
    )


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int, *, training: bool) -> None:
    """A model that has memory for rows of so many tokens alone, in training or in evaluation."""
    forward = Model.forward

    def run(self: Model, batch: Any, *args: Any, **options: Any) -> Any:
        if self.training is training and batch.inputs["input_ids"].shape[1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, batch, *args, **options)

    monkeypatch.setattr(Model, "forward", run)


def of_lengths(folder: Path, train: list[int], held_out: list[int], **options: Any) -> Any:
    recipe = tiny_recipe(folder, n=len(train), batch_size_pairs=2, **options)
    rows(folder, f"rows{len(train)}.jsonl", train)
    rows(folder, "held.jsonl", held_out)
    return recipe


def line(recipe: Any) -> str:
    with pytest.raises(RunError) as raised:
        tune(recipe, quiet=True)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    return str(raised.value)


def test_training_names_the_pair_and_what_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 60, training=True)
    # Steps of two pairs: the long one is somewhere after the first of them.
    recipe = of_lengths(tmp_path, [10, 12, 14, 16, 80, 18], [8], micro_batch_size_pairs=1)
    seen: dict[str, int] = {}
    step = Loop.train_step

    def watched(self: Loop, micro_batches: Any) -> None:
        seen["step"] = self.step + 1
        seen["long"] = max(micro.longest for micro in micro_batches)
        step(self, micro_batches)
        seen["fitted"] = max(seen.get("fitted", 0), seen["long"])

    monkeypatch.setattr(Loop, "train_step", watched)
    text = line(recipe)
    before = f"{seen['fitted']} tokens" if "fitted" in seen else "none"
    assert text == (
        f"step {seen['step']}, training: the device's memory does not hold a micro-batch of one "
        f"pair, {seen['long']} tokens, the longest pair {seen['long']} (longest that fitted so "
        f"far: {before}): lower `data.length.max_tokens`, or set "
        "`train.gradient_checkpointing: true`"
    )
    assert seen["long"] > 120 and seen.get("fitted", 0) < 40


def test_several_pairs_name_the_size_of_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 60, training=True)
    recipe = of_lengths(
        tmp_path, [80, 20], [8], micro_batch_size_pairs=2, gradient_checkpointing=True
    )
    text = line(recipe)
    assert "step 1, training: " in text and "micro-batch of 2 pairs" in text
    assert text.endswith(
        "(longest that fitted so far: none): lower `train.micro_batch_size_pairs` or "
        "`data.length.max_tokens`"
    )


def test_evaluation_names_its_own_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 60, training=False)
    # The reference is asked through another call.
    text = line(of_lengths(tmp_path, [10, 12], [80, 8]))
    assert "step 1, evaluation: " in text and "micro-batch of 2 pairs" in text
    assert text.endswith("lower `train.eval_batch_size_pairs` or `data.length.max_tokens`")


def test_the_optimizer_s_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    text = line(of_lengths(tmp_path, [10, 12], [8]))
    assert text.startswith("step 1: the device's memory does not hold the optimizer's state")
    assert "`train.optimizer_precision: model`" in text
