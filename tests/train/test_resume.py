"""Interrupted runs: killed at any moment and resumed, they end bit-equal to uninterrupted ones."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from palate.errors import ModelError, PalateError, RunError
from palate.models.loading import load_model
from palate.recipes import resolve_yaml
from palate.recipes.schema import ModelRecipe
from palate.train import checkpoint, tune
from palate.train.loop import Loop
from tiny_runs import tiny_recipe

CHILD = """
import sys, time
from pathlib import Path
from palate.recipes import load_recipe
from palate.recipes.schema import TuneRecipe
from palate.recipes.schema import ModelRecipe
from palate.train import checkpoint, tune
from palate.train.loop import Loop

recipe, mode = sys.argv[1:3]
step = Loop.train_step
Loop.train_step = lambda *a, **k: (time.sleep(0.05), step(*a, **k))[1]
if mode == "slow-save":
    save = checkpoint.save_random
    def slow(states, folder):
        save(states, folder)
        Path(recipe).with_suffix(".saving").touch()
        time.sleep(60)
    checkpoint.save_random = slow
tune(load_recipe(TuneRecipe, recipe))
"""

TIMES = {"time", "pairs_per_second", "tokens_per_second", "seconds_left"}


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def assert_same(a: Path, b: Path) -> None:
    one, other = weights(a / "model"), weights(b / "model")
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert log_of(a) == log_of(b)


def start(recipe: Any, file: Path, mode: str) -> subprocess.Popen[bytes]:
    file.write_text(resolve_yaml(recipe))
    src = Path(checkpoint.__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(src), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file), mode],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition: Any, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.005)


def kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_killed_runs_end_the_same(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "loss": {"type": "tdpo2"},
        "dtype": "bfloat16",
        "n": 22,
        "epochs": 4,
        "micro_batch_size_pairs": 2,
        "save_every_steps": 5,
        "log_every_steps": 2,
        "eval_every_steps": 6,
        "keep_checkpoints": 2,
    }
    whole = tune(tiny_recipe(tmp_path, out="whole", **settings), quiet=True)
    recipe = tiny_recipe(tmp_path, out="killed", resume=True, **settings)
    run, file = recipe.output_dir, tmp_path / "recipe.yaml"

    child = start(recipe, file, "plain")
    wait_for(lambda: checkpoint.checkpoints(run / "checkpoints"), child)
    time.sleep(random.uniform(0, 0.3))
    kill(child)

    reached = checkpoint.checkpoints(run / "checkpoints")
    child = start(recipe, file, "slow-save")
    wait_for(file.with_suffix(".saving").exists, child)
    kill(child)
    # The half-written one is there, under a name that is no checkpoint's.
    assert list((run / "checkpoints").glob(".*.partial"))
    assert checkpoint.checkpoints(run / "checkpoints") == reached
    assert json.loads((run / "status.json").read_text())["state"] == "running"

    child = start(recipe, file, "plain")
    wait_for(lambda: checkpoint.checkpoints(run / "checkpoints")[-1][0] > reached[-1][0], child)
    time.sleep(random.uniform(0, 0.2))
    kill(child)

    tune(recipe, quiet=True)
    assert_same(whole.path, run)
    assert not list((run / "checkpoints").glob(".*"))
    assert len(checkpoint.checkpoints(run / "checkpoints")) == 2
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 24)


class Stop(Exception):
    pass


def interrupted(recipe: Any, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Runs until the optimizer has made `after` steps."""
    train_step = Loop.train_step

    def stopping(self: Loop, micro_batches: Any) -> None:
        if self.step == after:
            raise Stop
        train_step(self, micro_batches)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Loop, "train_step", stopping)
        tune(recipe, quiet=True)


@pytest.mark.parametrize("after", [1, 5, 6, 9])
def test_resume_from_any_step(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a checkpoint, on the border of an epoch (5 steps), and inside the second one."""
    settings: dict[str, Any] = {
        "epochs": 2,
        "save_every_steps": 5,
        "log_every_steps": 2,
        "micro_batch_size_pairs": 2,
        "lora": {"r": 4, "dropout": 0.2},
        "optimizer": "rmsprop",
    }
    whole = tune(tiny_recipe(tmp_path, out="whole", **settings), quiet=True)
    interrupted(tiny_recipe(tmp_path, **settings), monkeypatch, after)
    run = tmp_path / "run"
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    tune(tiny_recipe(tmp_path, resume=True, **settings), quiet=True)
    assert_same(whole.path, run)


def test_resume_after_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tune(tiny_recipe(tmp_path, out="whole", max_steps=3), quiet=True)

    def die(*args: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("palate.train.run.save_final_model", die)
        tune(tiny_recipe(tmp_path, max_steps=3), quiet=True)
    tune(tiny_recipe(tmp_path, max_steps=3, resume=True), quiet=True)
    assert_same(whole.path, tmp_path / "run")


def test_a_used_folder_is_refused_and_a_finished_run_left_alone(tmp_path: Path) -> None:
    run = tune(tiny_recipe(tmp_path, max_steps=2), quiet=True).path
    with pytest.raises(RunError, match=r"holds a run already; set `resume: true`"):
        tune(tiny_recipe(tmp_path, max_steps=2), quiet=True)
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    again = tune(tiny_recipe(tmp_path, max_steps=2, resume=True), quiet=True)
    assert again.metrics["step"] == 2
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_that_never_began_leaves_its_folder_free(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    wrong = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"path": str(tmp_path / "none")})}
    )
    with pytest.raises(PalateError, match="no such folder"):
        tune(wrong, quiet=True)
    assert tune(recipe, quiet=True).metrics["step"] == 1


def test_another_recipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tiny_recipe(tmp_path, save_every_steps=2), monkeypatch, 3)
    with pytest.raises(RunError, match=r"train.learning_rate: 0.001 then, 0.002 now"):
        tune(tiny_recipe(tmp_path, save_every_steps=2, learning_rate=2e-3, resume=True), quiet=True)


def test_other_data_or_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_runs import write_pairs
    from tiny_text import save_tiny

    interrupted(tiny_recipe(tmp_path, save_every_steps=2), monkeypatch, 3)
    resumed = tiny_recipe(tmp_path, save_every_steps=2, resume=True)
    rows = tmp_path / "rows20.jsonl"
    kept = rows.read_text()
    write_pairs(rows, 20, seed=9)
    with pytest.raises(RunError, match="the training data changed"):
        tune(resumed, quiet=True)
    rows.write_text(kept)
    save_tiny(tmp_path / "tiny", seed=1)
    with pytest.raises(RunError, match="the base weights changed"):
        tune(resumed, quiet=True)


def test_a_full_disk_is_one_line_and_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save_file
    written = 0

    def full(tensors: Any, path: Path) -> None:
        nonlocal written
        written += 1
        if written > 3:  # an optimizer and a random state make one checkpoint
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="the disk is full") as found:
        patch.setattr(checkpoint, "save_file", full)
        tune(tiny_recipe(tmp_path, save_every_steps=2), quiet=True)
    assert len(str(found.value).splitlines()) == 1
    run = tmp_path / "run"
    assert [step for step, _ in checkpoint.checkpoints(run / "checkpoints")] == [2]
    assert not list((run / "checkpoints").glob(".*"))
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    whole = tune(tiny_recipe(tmp_path, out="whole", save_every_steps=2), quiet=True)
    tune(tiny_recipe(tmp_path, save_every_steps=2, resume=True), quiet=True)
    assert_same(whole.path, run)


def test_early_stop_counts_across_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def falls_until_step_4(self: Loop) -> dict[str, float]:
        return {"loss": 1.0 + abs(self.step - 4)}

    monkeypatch.setattr(Loop, "evaluation", falls_until_step_4)
    settings: dict[str, Any] = {
        "epochs": 4,
        "eval_every_steps": 1,
        "save_every_steps": 2,
        "early_stop_patience": 3,
    }
    whole = tune(tiny_recipe(tmp_path, out="whole", **settings), quiet=True)
    assert whole.metrics["step"] == 7
    # Step 6 has a checkpoint, with two evaluations counted.
    interrupted(tiny_recipe(tmp_path, **settings), monkeypatch, 6)
    tune(tiny_recipe(tmp_path, resume=True, **settings), quiet=True)
    assert_same(whole.path, tmp_path / "run")
    assert (whole.path / "checkpoints/step-000007").is_dir()


def test_nothing_is_pickled(tmp_path: Path) -> None:
    run = tune(tiny_recipe(tmp_path, max_steps=2), quiet=True).path
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".yaml", ".html"}
    assert not [path for path in files if path.read_bytes()[:2] == b"\x80\x04"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("saved")
    return tune(tiny_recipe(folder, save_every_steps=2, keep_checkpoints=3), quiet=True).path


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip_bit, truncate, empty, Path.unlink])
def test_any_damage_to_any_file_is_seen(
    harm: Any, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = saved / "checkpoints/step-000005"
    names = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    assert {"model.safetensors", "optimizer.safetensors", "random.safetensors", "run.json"} <= {
        name.name for name in names
    }
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        for step in ("step-000004", "step-000005"):
            shutil.copytree(saved / "checkpoints" / step, folder / step)
        assert checkpoint.newest_intact(folder) == folder / "step-000005"
        harm(folder / "step-000005" / name)
        caplog.clear()
        with caplog.at_level("WARNING", "palate"):
            assert checkpoint.newest_intact(folder) == folder / "step-000004", name
        # Set aside, so that neither evaluation nor rotation takes it for a checkpoint.
        assert (folder / "damaged-step-000005").is_dir()
        first, second = caplog.messages
        assert first.startswith(f"{folder / 'step-000005'}: ") and "kept as damaged-" in first
        assert second == f"{folder / 'step-000004'}: intact: going on from here"


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("trainer/optimizer.safetensors", flip_bit),
        ("model/model.safetensors", truncate),
        ("run.json", empty),
    ],
)
def test_a_run_goes_on_from_the_older_checkpoint(
    file: str, harm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"save_every_steps": 1, "keep_checkpoints": 2}
    whole = tune(tiny_recipe(tmp_path, out="whole", **settings), quiet=True)
    interrupted(tiny_recipe(tmp_path, **settings), monkeypatch, 4)
    harm(tmp_path / "run/checkpoints/step-000004" / file)
    tune(tiny_recipe(tmp_path, resume=True, **settings), quiet=True)
    assert_same(whole.path, tmp_path / "run")


def test_without_an_intact_checkpoint_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tiny_recipe(tmp_path, save_every_steps=1), monkeypatch, 2)
    for folder in (tmp_path / "run/checkpoints").glob("step-*"):
        flip_bit(folder / "trainer/scheduler.json")
    with pytest.raises(
        RunError, match=r"no checkpoint is intact \(step-000002: trainer/sched"
    ) as e:
        tune(tiny_recipe(tmp_path, save_every_steps=1, resume=True), quiet=True)
    assert "\n" not in str(e.value)


def test_a_damaged_checkpoint_is_not_loaded_elsewhere(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "checkpoints/step-000004", tmp_path / "step")
    load_model(ModelRecipe(path=str(tmp_path / "step/model")))
    flip_bit(tmp_path / "step/model/model.safetensors")
    with pytest.raises(ModelError, match=r"step: damaged: model/model\.safetensors is not as it"):
        load_model(ModelRecipe(path=str(tmp_path / "step/model")))
