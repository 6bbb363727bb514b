"""What a step takes: tokens, layout and micro-batches as the run has them; told at its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from palate.cli import app
from palate.data.items import Item, PairLabel
from palate.data.layouts import collate
from palate.recipes.load import resolve_yaml
from palate.store.records import Foresight, Status, read_record
from palate.train import foresight, reward, sft, trial, tune
from palate.train.foresight import StepMeter, kept, kept_file, predict
from palate.train.operations import Shape, volume_of
from palate.train.summary import closing_lines
from palate.train.trial import Timings, measure
from tiny_rewards import recipe as reward_recipe
from tiny_runs import tiny_recipe

LORA = {"r": 2, "alpha": 4.0}
Kind = Callable[..., Any]
CASES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "shared": (tiny_recipe, {}),
    "plain": (tiny_recipe, {"layout": "plain"}),
    "accumulated": (tiny_recipe, {"micro_batch_size_pairs": 2}),
    "tokens": (tiny_recipe, {"micro_batch_size_pairs": None, "micro_batch_tokens": 30}),
    "tdpo2, LoRA": (tiny_recipe, {"loss": {"type": "tdpo2"}, "lora": LORA}),
    "cached": (tiny_recipe, {"reference": {"kind": "cache"}, "gradient_checkpointing": True}),
    "kto": (tiny_recipe, {"loss": {"type": "kto"}}),
    "sft": (tiny_recipe, {"kind": "sft"}),
    "short run": (tiny_recipe, {"max_steps": 2, "optimizer": "sgd"}),
    "reward": (reward_recipe, {"train": {"micro_batch_size_pairs": 2}}),
}


def case(name: str, folder: Path) -> Any:
    make, options = CASES[name]
    if options.get("micro_batch_tokens"):
        made = make(folder)
        train = made.train.model_dump(exclude={"micro_batch_size_pairs"})
        train["micro_batch_tokens"] = options["micro_batch_tokens"]
        return type(made).model_validate(made.model_dump() | {"train": train})
    return make(folder, **options)


def train(recipe: Any) -> Path:
    verbs = {"SftRecipe": sft, "RewardRecipe": reward}
    return verbs.get(type(recipe).__name__, tune)(recipe, quiet=True).path


@pytest.mark.parametrize("name", CASES)
def test_the_run_is_what_was_foreseen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = case(name, tmp_path)
    before = measure(recipe)
    assert not recipe.output_dir.exists()
    assert before.seconds > before.fixed_seconds > 0 and before.memory_bytes > 2**20
    assert before.rows is None and before.operations["backbone"] > 0

    # Embeddings are looked up once a pass; those with gradients are the trained ones.
    tokens: list[int] = []
    steps: list[int] = []
    step = trial.Loop.train_step

    def counted(self: Any, micro_batches: Any) -> None:
        def count(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled():
                tokens.append(inputs[0].numel())

        hook = torch.nn.modules.module.register_module_forward_hook(count)
        step(self, micro_batches)
        hook.remove()
        steps.append(sum(micro.items for micro in micro_batches))

    monkeypatch.setattr(trial.Loop, "train_step", counted)
    run = train(recipe)
    assert recipe.train.max_steps in (None, len(steps))
    assert before.tokens == pytest.approx(sum(tokens) / len(tokens))
    assert before.most_tokens == max(tokens)
    assert before.micro_batches == pytest.approx(len(tokens) / len(steps))
    assert before.items == pytest.approx(sum(steps) / len(steps))
    lineage = json.loads((run / "lineage.json").read_text())
    assert before.layout == lineage["layout"]["used"]
    cost = read_record(run / "status.json", Status).step_cost
    assert cost is not None and cost.seconds > 0 and cost.memory_bytes > 2**20


def test_a_frozen_backbone_runs_no_tokens(tmp_path: Path) -> None:
    recipe = reward_recipe(tmp_path, backbone="frozen")
    before = measure(recipe)
    assert (before.tokens, before.items, before.layout) == (0, 4, "plain")
    # What the trial computed is a part of what the run needs.
    assert (tmp_path / "features").is_dir()
    assert train(recipe).is_dir()


def test_of_many_rows_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "ROWS", 8)
    assert measure(tiny_recipe(tmp_path)).rows == 8


# What a micro-batch comes to ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "window", "tokens", "seen"),
    [
        # Prompt of 3, two branches of 1 (the last token is not run), each of which sees 4.
        ("shared", None, 5, 1 + 2 + 3 + 4 + 4),
        ("shared", 2, 5, 1 + 2 + 2 + 2 + 2),
        # Two rows of 4.
        ("plain", None, 8, 2 * (1 + 2 + 3 + 4)),
    ],
)
def test_operations_by_hand(layout: Any, window: int | None, tokens: int, seen: int) -> None:
    item = Item.of((5, 6, 7), (8, 2), (9, 2), label=PairLabel())
    batch = collate([item], layout=layout, pad_id=0)
    volume = volume_of(batch, [window, window], unpadded=True)
    assert (volume.items, volume.tokens, volume.targets, volume.seen) == (1, tokens, 4, seen)
    shape = Shape(
        layers=100, attention=10, head=7, layer_passes=4, attention_passes=4.5, head_passes=5
    )
    assert volume.operations(shape) == {
        "backbone": 2 * 100 * tokens * 4,
        "attention": 4 * 10 * seen * 4.5,
        "head": 2 * 7 * 4 * 5,
    }


def test_padding_counts_where_it_is_run() -> None:
    items = [Item.of((5,) * n, (8,) * n, (9,) * n, label=PairLabel(), id=str(n)) for n in (2, 4)]
    batch = collate(items, layout="shared", pad_id=0)
    real = sum(n + 2 * (n - 1) for n in (2, 4))
    assert volume_of(batch, [None], unpadded=True).tokens == real
    assert volume_of(batch, [None], unpadded=False).tokens == batch.inputs["input_ids"].numel()
    assert batch.inputs["input_ids"].numel() > real


def test_other_micro_batches_are_on_the_line_through_the_timed_ones() -> None:
    timings = Timings(operations=100.0, seconds_of_mean=2.0, slope=0.01, fixed=0.5)
    assert [timings.seconds(n) for n in (100.0, 150.0, 0.0)] == [2.0, 2.5, 1.0]


# Told at the end ----------------------------------------------------------------------------------


def test_steps_are_timed_without_what_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(foresight, "time", SimpleNamespace(monotonic=lambda: now))
    loop: Any = SimpleNamespace(job=SimpleNamespace(folder=SimpleNamespace(costs={})))
    meter = StepMeter(None)
    meter.on_start(loop)
    for seconds, evaluation in ((9.0, 0.0), (2.0, 50.0), (4.0, 0.0)):
        now += seconds
        meter.on_step(loop)
        now += evaluation / 2
        meter.on_log(loop, "eval", {})
        now += evaluation / 2
        meter.on_save(loop)
    # The first waits for memory.
    assert loop.job.folder.costs["step_cost"].seconds == 3.0


def in_this_process(command: list[str], **options: Any) -> Any:
    """What the other process would do."""
    assert command[:3] == [sys.executable, "-P", "-c"]
    argv, sys.argv = sys.argv, ["-c", *command[4:]]
    try:
        exec(command[3], {})
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(command, 0, "", "")


def test_doctor_predicts_and_the_run_tells_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "subprocess", SimpleNamespace(run=in_this_process))
    recipe = tiny_recipe(tmp_path, max_steps=3)
    file = tmp_path / "recipe.yaml"
    file.write_text(resolve_yaml(recipe))
    result = CliRunner().invoke(app, ["doctor", str(file)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "4 items in 1 micro-batch, each of" in words and "shared layout" in words
    assert "GiB" in words[words.index("step memory") :]

    predicted = kept(recipe)
    assert predicted is not None
    monkeypatch.undo()
    monkeypatch.setattr("palate.report.write_report", lambda runs: None)
    run = train(recipe)
    status = read_record(run / "status.json", Status)
    assert status.foresight == predicted and status.step_cost is not None
    (line,) = [line for line in closing_lines(run) if line.startswith("a step took")]
    assert f"{status.step_cost.seconds:.3g} s" in line
    assert f"(predicted: {predicted.seconds:.3g} s" in line
    # Of another recipe nothing was said.
    assert kept(tiny_recipe(tmp_path, max_steps=4)) is None
    kept_file(recipe).write_text("{")
    assert kept(recipe) is None


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (subprocess.CompletedProcess([], -9, "", ""), "ended by signal 9"),
        (subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: no\n"), "ValueError: no"),
        (subprocess.CompletedProcess([], 3, "", ""), "exit status 3"),
    ],
)
def test_a_trial_that_dies_is_a_note(
    done: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palate.doctor.steps import step_checks

    monkeypatch.setattr(foresight, "subprocess", SimpleNamespace(run=lambda *_, **__: done))
    (check,) = step_checks(tiny_recipe(tmp_path))
    assert check.state == "note" and check.text.startswith("not predicted") and words in check.text


def test_what_cannot_be_predicted_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palate.doctor.steps import step_checks

    recipe = tiny_recipe(tmp_path)
    away = recipe.model.model_copy(update={"path": "someone/a-model"})
    (check,) = step_checks(recipe.model_copy(update={"model": away}))
    assert check.state == "note" and "someone/a-model is not on this machine" in check.text
    (check,) = step_checks(recipe, "no steps were tried")
    assert check.text == "not predicted: no steps were tried"

    # An error in the other process comes back as its one line.
    def broken(*_: Any) -> None:
        raise RuntimeError("not enough\nmemory")

    monkeypatch.setattr(foresight, "subprocess", SimpleNamespace(run=in_this_process))
    monkeypatch.setattr(trial, "timed", broken)
    (check,) = step_checks(recipe)
    assert check.text == "not predicted: the trial steps failed: not enough memory"


@pytest.mark.parametrize(("room", "state"), [(1.0, "note"), (4.0, "ok")])
def test_too_little_memory_is_a_note(
    room: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palate.doctor import steps

    answer = Foresight(
        seconds=1.234, memory_bytes=2 * 2**30, layout="plain", items=2.5, micro_batches=1,
        tokens=1234.4, most_tokens=2000, rows=5000,
    )  # fmt: skip
    monkeypatch.setattr(foresight, "predict", lambda recipe: answer)
    monkeypatch.setattr(steps, "machine_memory", lambda: (8 * 2**30, int(room * 2**30)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    step, memory = steps.step_checks(tiny_recipe(tmp_path))
    assert step.text == (
        "about 1.23 s: 2.5 items in 1 micro-batch, each of 1,234 tokens (the largest 2,000), "
        "plain layout; from 5,000 rows of each source"
    )
    assert memory.state == state and "2.00 GiB" in memory.text


@pytest.mark.slow
def test_the_other_process(tmp_path: Path) -> None:
    answer = predict(tiny_recipe(tmp_path, max_steps=1))
    assert answer.seconds > 0 and answer.memory_bytes > 2**27
