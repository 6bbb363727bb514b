"""Two processes train what one does: data parallel as launched, and FSDP2's sharded weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launched import FSDP_CHILD, fsdp, launch
from palate.errors import RecipeError, RunError
from palate.recipes import resolve_yaml
from palate.train import tune
from palate.train.checkpoint import newest_intact
from palate.train.launch import check_launch
from tiny_runs import tiny_recipe


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_close(a: Path, b: Path) -> None:
    one, other = (load_file(next((run / "model").glob("*.safetensors"))) for run in (a, b))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4, msg=name)
    exact = ("step", "split", "examples", "length/chosen")
    for x, y in zip(log_of(a), log_of(b), strict=True):
        assert x.keys() == y.keys()
        assert [x.get(name) for name in exact] == [y.get(name) for name in exact]
        for name in ("loss", "rewards/chosen", "logps/chosen", "kl/rejected", "kl_baseline"):
            if name in x:
                assert x[name] == pytest.approx(y[name], abs=1e-3, rel=1e-4)


# 13 rows in steps of 4: the last step of an epoch has one row, so one process has none.
SETTINGS: dict[str, Any] = {
    "n": 13,
    "epochs": 2,
    "micro_batch_size_pairs": 2,
    "save_every_steps": 3,
    "eval_every_steps": 4,
}


@pytest.mark.parametrize("loss", ["tdpo2", "kto"])
def test_two_processes_train_what_one_does(loss: str, tmp_path: Path) -> None:
    settings = SETTINGS | {"loss": {"type": loss}}
    one = tune(tiny_recipe(tmp_path, out="one", **settings), quiet=True).path
    recipe = tiny_recipe(tmp_path, out="two", **settings)
    file = tmp_path / "recipe.yaml"
    file.write_text(resolve_yaml(recipe))
    done = launch("--multi_gpu", "-m", "palate.cli", "tune", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((recipe.output_dir / "lineage.json").read_text())["processes"] == 2
    assert_close(one, recipe.output_dir)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_sharded_weights_train_and_resume(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    settings = SETTINGS | {"loss": {"type": "tdpo2"}, "lora": lora}
    one = tune(tiny_recipe(tmp_path, out="one", **settings), quiet=True).path
    recipe = tiny_recipe(tmp_path, out="two", resume=True, **settings)
    file, child = tmp_path / "recipe.yaml", tmp_path / "child.py"
    file.write_text(resolve_yaml(recipe))
    child.write_text(FSDP_CHILD)
    if lora is None:
        stopped = launch(fsdp("LlamaDecoderLayer"), str(child), str(file), "4")
        assert "stopped" in stopped.stderr, stopped.stderr[-3000:]
        parts = sorted((recipe.output_dir / "checkpoints/step-000003/trainer/shards").iterdir())
        assert [part.name for part in parts] == ["rank-00000.safetensors", "rank-00001.safetensors"]
        # Each has half of everything, and there is no whole copy beside them.
        assert not (recipe.output_dir / "checkpoints/step-000003/model").exists()
        halves = [load_file(part)["model/trunks.policy.hf.lm_head.weight"] for part in parts]
        assert abs(len(halves[0]) - len(halves[1])) <= 1
        shutil.copytree(recipe.output_dir / "checkpoints", tmp_path / "damaged")
        part = tmp_path / "damaged/step-000003/trainer/shards/rank-00001.safetensors"
        part.write_bytes(part.read_bytes()[:-1] + b"!")
        with pytest.raises(RunError, match=r"shards/rank-00001.safetensors is not as it was writt"):
            newest_intact(tmp_path / "damaged")
        shutil.copytree(recipe.output_dir, tmp_path / "alone")
        alone = recipe.model_copy(update={"output_dir": tmp_path / "alone"})
        assert_close(one, tune(alone, quiet=True).path)
    done = launch(fsdp("LlamaDecoderLayer"), str(child), str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("from step 3" in done.stderr) == (lora is None)
    assert_close(one, recipe.output_dir)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP 1 is not supported"),
        (
            {"PARALLELISM_CONFIG_CP_SIZE": "2"},
            "--parallelism_config_cp_size 2: context parallelism.* `data.length.max_tokens`",
        ),
        ({"PARALLELISM_CONFIG_SP_SIZE": "4"}, "--parallelism_config_sp_size 4: sequence"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, "--parallelism_config_tp_size 2: tensor"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed .* pickled files"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "offloaded"),
    ],
)
def test_launches_that_would_lose_something_are_refused(
    environment: dict[str, str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=words):
        check_launch(tiny_recipe(tmp_path, dtype="bfloat16"))


def test_sharded_copies_and_sizes_of_one_are_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CP_SIZE", "SP_SIZE", "TP_SIZE"):
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_launch(tiny_recipe(tmp_path, dtype="bfloat16"))
