"""Verdicts on layouts are run once a model, and again when anything that they depend on changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from palate.errors import ModelError
from palate.models import verdicts
from palate.models.adapters import add_lora
from palate.models.backbone import Backbone
from palate.models.check import layout_check
from palate.models.model import Model
from palate.models.reward_config import RewardSpec
from palate.models.verdicts import kept_layout_check, kept_start_check, verdict_key
from palate.recipes.schema import LoraRecipe, ModelRecipe
from tiny import tiny_model


@pytest.fixture
def passes() -> Iterator[list[str]]:
    """Grows with every forward pass of a backbone."""
    count: list[str] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: count.append("") if type(module).__name__.endswith("Model") else None
    )
    yield count
    hook.remove()


def test_a_second_run_asks_the_model_nothing(tmp_path: Path, passes: list[str]) -> None:
    first = kept_layout_check(Model.policy(tiny_model()), beside=tmp_path / "a")
    assert first.ok and len(passes) > 5
    passes.clear()
    again = kept_layout_check(Model.policy(tiny_model()), beside=tmp_path / "b")
    assert again == first and not passes
    assert [path.suffix for path in (tmp_path / verdicts.FOLDER).iterdir()] == [".json"]
    # Shorter rows are answered by it.
    assert kept_layout_check(Model.policy(tiny_model()), longest=70, beside=tmp_path / "b").ok
    assert not passes
    assert layout_check(Model.policy(tiny_model())) == first and passes


def test_longer_rows_are_looked_at_anew(tmp_path: Path, passes: list[str]) -> None:
    policy = Model.policy(tiny_model())
    short = kept_layout_check(policy, longest=60, beside=tmp_path / "run")
    passes.clear()
    long = kept_layout_check(policy, longest=200, beside=tmp_path / "run")
    assert passes and (short.tokens, long.tokens) == (64, 256)


def test_a_refusal_is_kept_for_rows_as_long(
    tmp_path: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Model.policy(tiny_model("mistral"))
    monkeypatch.setattr(Backbone, "windows", {"": 30})
    verdict = kept_layout_check(policy, longest=80, beside=tmp_path / "run")
    assert not verdict.ok and verdict.tokens == 94
    passes.clear()
    assert kept_layout_check(policy, longest=500, beside=tmp_path / "run") == verdict
    assert not passes


def test_an_unreadable_file_is_written_anew(tmp_path: Path, passes: list[str]) -> None:
    policy = Model.policy(tiny_model())
    verdict = kept_layout_check(policy, beside=tmp_path / "run")
    (file,) = (tmp_path / verdicts.FOLDER).iterdir()
    for text in ("{", '[{"colour": 1}]', "[]"):
        file.write_text(text)
        passes.clear()
        assert kept_layout_check(policy, beside=tmp_path / "run") == verdict
        assert passes
    passes.clear()
    assert kept_layout_check(policy, beside=tmp_path / "run") == verdict and not passes


def test_a_model_that_passed_starts_without_a_pass(tmp_path: Path, passes: list[str]) -> None:
    kept_start_check(Model.policy(tiny_model()), beside=tmp_path / "a")
    assert passes
    passes.clear()
    kept_start_check(Model.policy(tiny_model()), beside=tmp_path / "b")
    assert not passes
    # Other weights are another model, and without a folder nothing is kept.
    kept_start_check(Model.policy(tiny_model(seed=1)), beside=tmp_path / "b")
    assert passes
    passes.clear()
    kept_start_check(Model.policy(tiny_model()))
    assert passes


def test_a_model_that_failed_is_checked_again(tmp_path: Path) -> None:
    policy = Model.policy(tiny_model())
    policy.base.config.logit_scale = 0.5
    for _ in range(2):
        with pytest.raises(ModelError, match="transforms its logits"):
            kept_start_check(policy, beside=tmp_path / "run")
    assert not (tmp_path / verdicts.FOLDER).exists()


def test_the_key_covers_what_a_verdict_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [verdict_key(Model.policy(tiny_model()))]

    def add(model: Any) -> None:
        keys.append(verdict_key(model))

    assert verdict_key(Model.policy(tiny_model())) == keys[0]
    add(Model.policy(tiny_model("qwen3")))
    add(Model.policy(tiny_model(dtype=torch.bfloat16)))
    add(Model.policy(tiny_model(seed=1)))
    moved = tiny_model()
    with torch.no_grad():
        moved.model.layers[2].mlp.down_proj.weight.mul_(1.01)
    add(Model.policy(moved))
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    add(Model.policy(eager))
    scaled = tiny_model()
    scaled.config.rms_norm_eps = 0.1
    add(Model.policy(scaled))
    add(Model.reward(tiny_model().base_model, RewardSpec(model=ModelRecipe(path="tiny"))))
    add(Model.policy(add_lora(tiny_model(), LoraRecipe(r=2))))
    torch.manual_seed(9)
    drawn = Model.policy(add_lora(tiny_model(), LoraRecipe(r=2)))
    assert verdict_key(drawn) == keys[-1], "adapters begin as nothing, whatever their draw"
    with torch.no_grad():
        next(p for n, p in drawn.named_parameters() if "lora_B" in n).add_(1.0)
    add(drawn)
    monkeypatch.setattr(verdicts.transformers, "__version__", "0")
    add(Model.policy(tiny_model()))
    monkeypatch.setattr(verdicts, "_code_digest", lambda: "other")
    add(Model.policy(tiny_model()))
    assert len(set(keys)) == len(keys)
