"""Runs on rows with images: from files to a folder that plain transformers reads."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import TuneRecipe
from palate.store.files import read_json
from palate.train import reward, tune
from palate.train.loop import Loop
from text_formats import FIXTURES
from tiny_vision import save_tiny_vision


def write_rows(folder: Path) -> Path:
    """Pairs about two pictures, of which one is named by two rows, and one without."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        squares = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((64, 48), Image.Resampling.NEAREST).save(
            folder / f"{name}.png"
        )
    rows = []
    for i, shown in enumerate((["a"], ["b"], ["a", "b"], [], ["b"], ["a"])):
        parts: list[Any] = [{"type": "image"} for _ in shown]
        parts.append({"type": "text", "text": f"What is here, {i}?"})
        content: Any = parts if shown else f"What is here, {i}?"
        rows.append(
            {
                "prompt": [{"role": "user", "content": content}],
                "chosen": [{"role": "assistant", "content": f" squares {i}"}],
                "rejected": [{"role": "assistant", "content": " nothing"}],
                "images": [f"{name}.png" for name in shown],
            }
        )
    rows.append(rows[0] | {"images": ["missing.png"], "chosen": rows[1]["chosen"]})
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module", params=["qwen2_5_vl", "gemma3"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    save_tiny_vision(folder / "base", request.param)
    write_rows(folder)
    return folder


def recipe(root: Path, out: str, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(root / out),
        "model": {"path": str(root / "base"), "dtype": "float32", "lora": {"r": 2}},
        "data": {"train": [{"path": str(root / "pairs.jsonl")}]},
        "train": {"batch_size_pairs": 3, "max_steps": 4, "learning_rate": 0.01},
    } | changes


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "train"]


@pytest.mark.parametrize("loss", ["dpo", "tdpo2"])
@pytest.mark.parametrize("reference", ["live", "cache"])
def test_preferences_are_trained_on_with_images(root: Path, loss: str, reference: str) -> None:
    kind = {} if reference == "live" else {"reference": {"kind": "cache"}}
    out = f"{loss}-{reference}"
    tune(TuneRecipe.model_validate(recipe(root, out, loss={"type": loss}, **kind)), quiet=True)
    folder = root / out
    losses = [row["loss"] for row in logged(folder)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < losses[0]
    source = read_json(folder / "data.json")["sources"][0]
    assert (source["kept"], source["dropped"]) == (6, {"no such file": 1})
    # The adapters are the language model's; the processor is there for whoever loads it.
    weights = load_file(folder / "model" / "adapter_model.safetensors")
    assert weights and all("language_model" in name for name in weights)
    assert (folder / "model" / "preprocessor_config.json").exists() or (
        folder / "model" / "processor_config.json"
    ).exists()


def test_layouts_and_reference_kinds_agree(root: Path) -> None:
    """The same losses whether rows are shared, and whether the reference is kept."""
    runs = {}
    for layout in ("plain", "shared"):
        values = recipe(root, f"layout-{layout}", loss={"type": "tdpo2"})
        values["train"] = values["train"] | {"layout": layout}
        tune(TuneRecipe.model_validate(values), quiet=True)
        runs[layout] = [row["loss"] for row in logged(root / f"layout-{layout}")]
    assert runs["plain"] == pytest.approx(runs["shared"], abs=1e-4)


def test_images_decide(root: Path) -> None:
    """Rows that differ in their picture alone are not one prompt, and other pictures give other
    losses."""
    first = recipe(root, "as-they-are", loss={"type": "dpo"})
    tune(TuneRecipe.model_validate(first), quiet=True)
    text = (root / "pairs.jsonl").read_text()
    (root / "swapped.jsonl").write_text(text.replace('["a.png"]', '["b.png"]'))
    swapped = recipe(root, "swapped", data={"train": [{"path": str(root / "swapped.jsonl")}]})
    tune(TuneRecipe.model_validate(swapped | {"loss": {"type": "dpo"}}), quiet=True)
    losses = [[row["loss"] for row in logged(root / out)] for out in ("as-they-are", "swapped")]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    assert abs(losses[0][-1] - losses[1][-1]) > 1e-6


def test_full_weights_resume_bit_for_bit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower is trained with the rest; a run that was stopped ends as one that was not."""
    whole = recipe(root, "whole", loss={"type": "dpo"})
    whole["model"] = whole["model"] | {"lora": None}
    whole["train"] = whole["train"] | {"learning_rate": 1e-4, "save_every_steps": 2}
    tune(TuneRecipe.model_validate(whole), quiet=True)
    stopped = whole | {"output_dir": str(root / "stopped")}
    step, steps = Loop.train_step, []

    def stopping(self: Loop, *given: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            tune(TuneRecipe.model_validate(stopped), quiet=True)
    tune(TuneRecipe.model_validate(stopped | {"resume": True}), quiet=True)
    folders = [root / name / "model" / "model.safetensors" for name in ("whole", "stopped")]
    after, again = map(load_file, folders)
    assert all(torch.equal(after[name], again[name]) for name in after)
    before = load_file(root / "base" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    tower = {name for name in moved if "vis" in name}
    assert tower and moved - tower
    # Plain transformers reads what was saved.
    AutoModelForImageTextToText.from_pretrained(root / "whole" / "model")


def test_a_reward_model_sees(root: Path) -> None:
    values = recipe(root, "reward")
    reward(RewardRecipe.model_validate(values), quiet=True)
    losses = [row["loss"] for row in logged(root / "reward")]
    assert losses[-1] < losses[0]
    assert read_json(root / "reward" / "data.json")["sources"][0]["kept"] == 6


def test_pictures_are_kept_once_under_their_content(root: Path) -> None:
    kept = sorted((root / "images").iterdir())
    own = {(root / f"{name}.png").read_bytes() for name in "ab"}
    assert own <= {file.read_bytes() for file in kept}
    assert len(kept) == len({file.read_bytes() for file in kept})
    for file in kept:
        Image.open(io.BytesIO(file.read_bytes())).verify()


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_videos_are_trained_on(family: str, tmp_path: Path) -> None:
    """A model that takes videos is given one of three frames, another one three images."""
    save_tiny_vision(tmp_path / "base", family)
    source = FIXTURES / "mm_rlhf" / "dpo_pairs.jsonl"
    values = recipe(tmp_path, "out", loss={"type": "dpo"}, data={"train": [{"path": str(source)}]})
    values["train"] = values["train"] | {"max_steps": 2}
    tune(TuneRecipe.model_validate(values), quiet=True)
    told = read_json(tmp_path / "out" / "data.json")
    (rows,) = told["sources"]
    # Two pairs about an image each, one about a video, one of text; a tie is none.
    assert (rows["kept"], sum(rows["dropped"].values())) == (4, 1)
    placed = 2 + (2 if family == "qwen3_vl" else 3)
    assert (told["images"]["rows"], told["images"]["placed"]) == (3, placed)
    assert all(math.isfinite(row["loss"]) for row in logged(tmp_path / "out"))
