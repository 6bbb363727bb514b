"""Runs on rows with images: from files to a folder that plain transformers reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from palate import models
from palate.evaluate import evaluate
from palate.models import image_cache, vision
from palate.models.loading import load_trained
from palate.models.reward_files import load_reward_model
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import ModelRecipe, TuneRecipe
from palate.store.files import read_json
from palate.train import reward, tune
from palate.train.loop import Loop
from palate.train.summary import closing_lines
from palate.train.trial import measure
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


def test_mdpo_trains_on_the_same_answers_under_other_images(root: Path) -> None:
    """DPO, its image-conditional form and the anchor, alike in both layouts."""
    runs = {}
    loss = {"type": "mixture", "losses": [{"type": "dpo"}, {"type": "anchor", "weight": 0.5}]}
    for layout in ("plain", "shared"):
        values = recipe(root, f"mdpo-{layout}", loss=loss)
        values["data"] = values["data"] | {"image_contrast": {"kind": "crop"}}
        values["train"] = values["train"] | {"layout": layout, "max_steps": 8}
        tune(TuneRecipe.model_validate(values), quiet=True)
        runs[layout] = logged(root / f"mdpo-{layout}")
    losses = [row["loss"] for row in runs["plain"]]
    # Before the first step every log-ratio is 0, the anchor's too.
    assert losses[0] == pytest.approx(1.5 * math.log(2), abs=1e-5) and losses[-1] < losses[0]
    assert losses == pytest.approx([row["loss"] for row in runs["shared"]], rel=5e-3)
    data = read_json(root / "mdpo-plain" / "data.json")
    assert data["image_contrast"]["sources"] == {"pairs.image_crop": 5}
    assert (data["train"]["pairs"], data["sources"][0]["kept"]) == (11, 6)
    named = {name for row in runs["plain"] for name in row if "pairs.image_crop" in name}
    assert any("accurac" in name for name in named)


def test_a_reward_model_learns_which_image_an_answer_is_of(root: Path) -> None:
    """With contrasts alone nothing but the image tells chosen from rejected."""
    values = recipe(root, "contrast-reward", pooling="mean")
    values["data"] = values["data"] | {"image_contrast": {"kind": "blank", "replace": True}}
    # What the row without an image would be right about is left out.
    rows = (root / "pairs.jsonl").read_text().splitlines(keepends=True)
    (root / "seen.jsonl").write_text("".join(line for line in rows if '"images": []' not in line))
    values["data"]["train"] = [{"path": str(root / "seen.jsonl")}]
    values["train"] = {"batch_size_pairs": 4, "max_steps": 30, "learning_rate": 0.01}
    reward(RewardRecipe.model_validate(values), quiet=True)
    log = logged(root / "contrast-reward")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=0.2)
    assert log[-1]["accuracy"] == 1.0 and log[-1]["loss"] < 0.4


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
    vision = {"tower": "trained", "projector": "trained", "tower_learning_rate": 1e-5}
    whole["model"] = whole["model"] | {"lora": None, "vision": vision}
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


def moved(root: Path, name: str, vision: dict[str, Any] | None, **train: Any) -> dict[str, float]:
    """How far full training moves each weight at most, by its name in the file."""
    values = recipe(root, name, loss={"type": "dpo"})
    values["model"] = values["model"] | {"lora": None, "vision": vision}
    values["train"] = values["train"] | {"learning_rate": 1e-4, "max_steps": 1} | train
    tune(TuneRecipe.model_validate(values), quiet=True)
    before = load_file(root / "base" / "model.safetensors")
    after = load_file(root / name / "model" / "model.safetensors")
    gaps = {key: float((before[key] - after[key]).abs().max()) for key in before}
    return {key: gap for key, gap in gaps.items() if gap > 0}


def is_projector(name: str) -> bool:
    return "merger" in name or "multi_modal_projector" in name


def test_what_is_trained_of_a_model_that_sees(root: Path) -> None:
    """Neither tower nor projector unless it is said; each at a rate of its own."""
    default = moved(root, "parts-default", None)
    assert default and not any("vis" in n or is_projector(n) for n in default)
    aligned = {"projector": "trained", "language": "frozen"}
    only = moved(root, "parts-projector", aligned)
    assert only and all(map(is_projector, only))
    rates = {"tower": "trained", "projector": "trained", "projector_learning_rate": 1e-6}
    every = moved(root, "parts-all", rates | {"tower_learning_rate": 1e-5})
    towers = [gap for n, gap in every.items() if "vis" in n and not is_projector(n)]
    projectors = [gap for n, gap in every.items() if is_projector(n)]
    languages = [gap for n, gap in every.items() if "vis" not in n and not is_projector(n)]
    # Adam's first step moves a weight by its learning rate.
    assert max(towers) == pytest.approx(1e-5, rel=0.2)
    assert max(projectors) == pytest.approx(1e-6, rel=0.4)
    assert max(languages) == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("kind", ["tune", "reward"])
def test_a_projector_is_trained_beside_adapters(root: Path, kind: str) -> None:
    """It is saved with them, and the reference does without it."""
    out = f"beside-{kind}"
    values = recipe(root, out)
    values["model"] = values["model"] | {"vision": {"projector": "trained"}}
    values["train"] = values["train"] | {"save_every_steps": 2}
    if kind == "tune":
        tune(TuneRecipe.model_validate(values | {"loss": {"type": "dpo"}}), quiet=True)
        assert logged(root / out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    else:
        reward(RewardRecipe.model_validate(values), quiet=True)
    folder = root / out / "model"
    saved = load_file(folder / "adapter_model.safetensors")
    assert any(is_projector(name) for name in saved)
    base = load_file(root / "base" / "model.safetensors")
    if kind == "tune":
        trained = load_trained(folder, ModelRecipe(path=str(root / "base"), dtype="float32"))
    else:
        trained = load_reward_model(folder)
    copies = {
        name.replace(".modules_to_save.default", ""): value
        for name, value in trained.hf.state_dict().items()
        if ".modules_to_save." in name
    }
    for name in filter(is_projector, saved):
        part = "merger" if "merger" in name else "multi_modal_projector"
        tail = name[name.index(part) :]
        (own,) = (value for n, value in base.items() if n.endswith(tail))
        (loaded,) = (value for n, value in copies.items() if n.endswith(tail))
        assert torch.equal(loaded, saved[name]) and not torch.equal(own, loaded)


def test_features_are_computed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept on the disk, of each image once; losses are those of a tower that runs every time."""
    ran: list[int] = []
    whole = vision.image_features

    def counting(model: Any, pixels: Any, lengths: Any) -> Any:
        ran.append(len(pixels))
        return whole(model, pixels, lengths)

    for module in (vision, image_cache, models.model):
        monkeypatch.setattr(module, "image_features", counting)
    losses = {}
    for features in ("live", "cached", "auto"):
        ran.clear()
        values = recipe(root, f"features-{features}", loss={"type": "dpo"})
        kept = {} if features == "live" else {"features_dir": str(root / "kept-features")}
        values["model"] = values["model"] | {"vision": {"features": features} | kept}
        values["train"] = values["train"] | {"max_steps": 8}
        tune(TuneRecipe.model_validate(values), quiet=True)
        losses[features] = [row["loss"] for row in logged(root / f"features-{features}")]
        if features == "live":
            steps = ran[-8:]
            assert all(1 <= n <= 2 for n in steps), "policy and reference share one pass"
    assert losses["cached"] == pytest.approx(losses["live"], abs=1e-5)
    assert losses["auto"] == losses["cached"]
    # Of the last run nothing but the checks: two samples of a cache that was there.
    assert sum(ran) < 20
    (folder,) = (root / "kept-features").iterdir()
    assert len(list(folder.glob("shard-*.safetensors"))) == 1


def test_a_reward_model_sees(root: Path) -> None:
    values = recipe(root, "reward")
    reward(RewardRecipe.model_validate(values), quiet=True)
    losses = [row["loss"] for row in logged(root / "reward")]
    assert losses[-1] < losses[0]
    assert read_json(root / "reward" / "data.json")["sources"][0]["kept"] == 6


def test_what_comes_as_bytes_is_kept_once_under_its_content(root: Path) -> None:
    """What comes as a path is read where it lies."""
    data = (root / "b.png").read_bytes()
    pictures = [[{"bytes": data, "path": None}]] * 2
    sides = [[{"role": "assistant", "content": text}] for text in (" yes", " no", " never")]
    asked: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    table = {"prompt": [asked] * 2, "chosen": sides[:2], "rejected": sides[1:], "images": pictures}
    (root / "bytes").mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(table), root / "bytes" / "rows.parquet")
    values = recipe(root, "bytes/run", data={"train": [{"path": str(root / "bytes/rows.parquet")}]})
    tune(TuneRecipe.model_validate(values | {"loss": {"type": "dpo"}}), quiet=True)
    stored = {file.read_bytes() for file in (root / "bytes" / "images").iterdir()}
    own = {(root / f"{name}.png").read_bytes() for name in "ab"}
    assert data in stored and len(stored & own) == 1


def test_a_policy_that_sees_is_evaluated(root: Path) -> None:
    """On pairs, and on samples of prompts with images, by a reward model that sees them too."""
    values = recipe(root, "evaluated", loss={"type": "dpo"})
    values["data"] = values["data"] | {"eval": [{"path": str(root / "pairs.jsonl")}]}
    values["train"] = values["train"] | {"eval_every_steps": 4}
    run = tune(TuneRecipe.model_validate(values), quiet=True)
    reward(RewardRecipe.model_validate(recipe(root, "evaluated-by")), quiet=True)
    given = {
        "output_dir": str(root / "evaluation"),
        "runs": [str(root / "evaluated")],
        "sampling": {"prompts": 6, "samples_per_prompt": 2, "max_new_tokens": 5},
        "reward": {"type": "model", "path": str(root / "evaluated-by" / "model")},
    }
    result = evaluate(EvalRecipe.model_validate(given)).evaluation
    (policy,) = result["policies"]
    preference = policy["preference"]["all"]
    assert preference["n"] == 6
    assert preference["accuracy"] == pytest.approx(run.metrics["preference/accuracy"])
    samples = policy["samples"]
    # Six prompts, of which three have the same words of their own each; KL to the reference is
    # computed on what was drawn under the images.
    assert (samples["n"], samples["prompts"]) == (12, 6) and samples["kl"] > 0
    assert "unscored" not in samples and math.isfinite(samples["reward"])
    assert len((root / "evaluation" / "samples.jsonl").read_text().splitlines()) == 24


def test_runs_say_whether_the_model_looks(root: Path) -> None:
    """Held-out pairs again without their images, and with those of others."""
    held = {"eval": [{"path": str(root / "pairs.jsonl")}]}
    data = {"data": {"train": [{"path": str(root / "pairs.jsonl")}]} | held}
    reward(RewardRecipe.model_validate(recipe(root, "looking-reward", **data)), quiet=True)
    for kind in ("adapter_off", "cache"):
        values = recipe(root, f"looking-{kind}", **data)
        values |= {"loss": {"type": "dpo"}, "reference": {"kind": kind}}
        tune(TuneRecipe.model_validate(values), quiet=True)
    looks = {}
    for name in ("reward", "adapter_off", "cache"):
        (policy,) = read_json(root / f"looking-{name}" / "evaluation.json")["policies"]
        looks[name] = policy["look"]
        assert (policy["look"]["items"], policy["look"]["n"]) == (5, 5)
        assert policy["look"]["others"]["n"] == 4, "one has both images"
        lines = closing_lines(root / f"looking-{name}")
        assert any(line.startswith("images of held-out pairs: ") for line in lines)
    assert looks["adapter_off"]["blind"] == looks["cache"]["blind"]


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


def test_steps_on_images_are_foreseen(root: Path) -> None:
    """Positions on several axes and rows with images do not stand in the way of trial steps."""
    loaded = TuneRecipe.model_validate(recipe(root, "foreseen", loss={"type": "dpo"}))
    seen = measure(loaded)
    assert seen.seconds > 0 and seen.memory_bytes > 0
