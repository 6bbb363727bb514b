"""Adapters of models that see, merged: whole models that transformers loads, scores unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.test_vision_run import is_projector, recipe, write_rows
from transformers import AutoModelForImageTextToText

from palate.models.processor import load_processor
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import ModelRecipe, TuneRecipe
from palate.rewards.api import load_scorer
from palate.train import reward, tune
from palate.train.merge import merge_adapters
from tiny_vision import save_tiny_vision


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    save_tiny_vision(folder / "base", "gemma3")
    write_rows(folder)
    return folder


def adapted(root: Path, out: str, **more: Any) -> dict[str, Any]:
    values = recipe(root, out, **more)
    values["model"] = values["model"] | {"vision": {"projector": "trained"}}
    return values


def test_a_merged_policy_has_its_projector_and_processor(root: Path) -> None:
    tune(TuneRecipe.model_validate(adapted(root, "tuned", loss={"type": "dpo"})), quiet=True)
    merged = merge_adapters(root / "tuned", root / "merged-policy")
    before, after = (load_file(f / "model.safetensors") for f in (root / "base", merged))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(map(is_projector, changed)) and any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    AutoModelForImageTextToText.from_pretrained(merged)
    from palate.models.loading import load_tokenizer

    model = ModelRecipe(path=str(merged))
    assert load_processor(model, load_tokenizer(model)).mark == "<start_of_image>"


def test_a_merged_reward_model_scores_the_same(root: Path) -> None:
    reward(RewardRecipe.model_validate(adapted(root, "reward")), quiet=True)
    merged = merge_adapters(root / "reward", root / "merged-reward")
    shown: Any = [{"type": "image", "image": root / "a.png"}, {"type": "text", "text": "What?"}]
    prompt: Any = [{"role": "user", "content": shown}]
    scores = [
        load_scorer(folder).score(prompt, [" squares", " no"])
        for folder in (root / "reward" / "model", merged)
    ]
    values = [[score.value for score in of_model] for of_model in scores]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert values[0][0] != values[0][1]
