"""Rows with images and rows without on two processes, with a trained tower: what one process does.

In most steps one of the processes has no image while the other has; both must run the tower, or the
one waits for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.test_vision_run import recipe, write_rows

from launched import FSDP_CHILD, fsdp, launch
from palate.recipes import resolve_yaml
from palate.recipes.schema import TuneRecipe
from palate.train import tune
from tiny_vision import save_tiny_vision


def mixed(root: Path, out: str) -> TuneRecipe:
    """Every second row has no image, and each step has two rows."""
    rows = [json.loads(line) for line in write_rows(root).read_text().splitlines()]
    seen, texts = [row for row in rows if row["images"]][:4], []
    for i, row in enumerate(seen):
        asked = [{"role": "user", "content": f"What is there, {i}?"}]
        texts.append(row | {"prompt": asked, "images": []})
    (root / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*seen, *texts]))
    data = [{"path": str(root / "mixed.jsonl")}]
    vision = {"tower": "trained", "projector": "trained", "tower_learning_rate": 1e-4}
    values = recipe(root, out, loss={"type": "tdpo2"}, data={"train": data, "eval": data})
    values["model"] = values["model"] | {"lora": None, "vision": vision}
    values["train"] = {"batch_size_pairs": 2, "learning_rate": 1e-4, "optimizer": "sgd"}
    values["train"] |= {"eval_every_steps": 2, "max_steps": 4, "micro_batch_size_pairs": 1}
    return TuneRecipe.model_validate(values)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_with_mixed_rows_train_what_one_does(kind: str, tmp_path: Path) -> None:
    save_tiny_vision(tmp_path / "base", "qwen2_5_vl")
    one = tune(mixed(tmp_path, "one"), quiet=True).path
    two = mixed(tmp_path, "two")
    file, child = tmp_path / "recipe.yaml", tmp_path / "child.py"
    file.write_text(resolve_yaml(two))
    child.write_text(FSDP_CHILD)
    layers = "Qwen2_5_VLDecoderLayer,Qwen2_5_VLVisionBlock"
    done = (
        launch("--multi_gpu", "-m", "palate.cli", "tune", str(file))
        if kind == "ddp"
        else launch(fsdp(layers), str(child), str(file))
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for x, y in zip(log_of(one), log_of(two.output_dir), strict=True):
        assert x["loss"] == pytest.approx(y["loss"], abs=1e-5)
        if "grad_norm" in x:
            assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)
    before, alone, both = (
        load_file(next(folder.glob("*.safetensors")))
        for folder in (tmp_path / "base", one / "model", two.output_dir / "model")
    )
    assert any("visual" in name and not torch.equal(before[name], alone[name]) for name in before)
    for name in alone:
        torch.testing.assert_close(alone[name], both[name], rtol=1e-4, atol=1e-6, msg=name)
