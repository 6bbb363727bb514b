"""What a run, and the doctor before it, say of a model and of the layouts it may have."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from model_families import FAMILIES, family_model
from palate.doctor import Check, examine
from palate.doctor.models import model_checks
from palate.errors import ModelError
from palate.models.check import layout_check
from palate.models.verdicts import FOLDER
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import ModelRecipe
from palate.train import reward, tune
from tiny_runs import tiny_recipe
from tiny_text import tiny_tokenizer


def save_family(folder: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of a family that knows the tiny tokenizer's tokens."""
    make = FAMILIES[family]

    def resized() -> Any:
        config = make()
        config.vocab_size = len(tiny_tokenizer())
        return config

    monkeypatch.setitem(FAMILIES, family, resized)
    family_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def named(checks: Any, name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


@pytest.mark.parametrize("verb", ["tune", "reward"])
@pytest.mark.parametrize("family", ["lfm2", "gpt_neo"])
def test_doctor_and_run_say_the_same(
    verb: str,
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("palate"), "propagate", True)
    save_family(tmp_path / "tiny", family, monkeypatch)
    recipe = tiny_recipe(tmp_path, max_steps=1, dtype="bfloat16")
    if verb == "reward":
        keys = recipe.model_dump(mode="json", include={"output_dir", "model", "data"})
        keys["data"].pop("length")
        recipe = RewardRecipe.model_validate(keys | {"train": {"max_steps": 1}})
    file = tmp_path / "r.yaml"
    file.write_text(
        f"# palate {verb}\n" + json.dumps(recipe.model_dump(mode="json", exclude_unset=True))
    )
    words = named(examine(str(file)), "layout")
    run = (tune if verb == "tune" else reward)(recipe, quiet=True).path
    assert words.state == "note" and words.text in caplog.text
    assert words.text.startswith("the layout is plain: the shared layout is not exact for this ")
    note = json.loads((run / "lineage.json").read_text())["layout"]
    assert note["used"] == "plain" and note["reason"] in words.text


def test_the_doctors_verdict_serves_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
    words = named(examine(str(file)), "layout")
    assert words.state == "ok" and "agrees with plain" in words.text
    monkeypatch.setattr("palate.models.verdicts.layout_check", None)
    monkeypatch.setattr("palate.models.verdicts.start_check", None)
    run = tune(recipe, quiet=True).path
    assert json.loads((run / "lineage.json").read_text())["layout"]["used"] == "shared"
    # One file for each of the two checks.
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_single_examples_have_a_layout_to_the_doctor_too(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, loss={"type": "kto"})
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
    checks = examine(str(file))
    assert named(checks, "model").state == "ok"
    assert named(checks, "layout").state == "ok"


def test_an_unknown_head_is_a_problem_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_family(tmp_path / "tiny", "modernbert_decoder", monkeypatch)
    recipe = tiny_recipe(tmp_path)
    check = named(model_checks(recipe.model, layout="auto"), "model")
    assert check.state == "problem" and "transforms its logits" in check.text
    with pytest.raises(ModelError, match="transforms its logits"):
        tune(recipe, quiet=True)


def test_a_backbone_under_another_name_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers calls Llama 4's own backbone the model itself."""
    save_family(tmp_path / "tiny", "llama4_text", monkeypatch)
    recipe = tiny_recipe(tmp_path, max_steps=1)
    checks = list(model_checks(ModelRecipe(path=str(tmp_path / "tiny")), layout="auto"))
    assert named(checks, "model").state == "ok"
    assert "chunked_attention" in named(checks, "layout").text
    assert torch.isfinite(torch.tensor(tune(recipe, quiet=True).metrics["eval_loss"]))


def test_a_layout_that_cannot_be_run_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palate.models.model import Model
    from palate.models.verdicts import kept_layout_check

    policy = Model.policy(family_model("llama"))

    def no_memory(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(policy.base.model, "forward", no_memory)
        verdict = kept_layout_check(policy, beside=tmp_path / "run")
        assert not verdict.ok and verdict.reason == "the model does not run it: out of memory"
    assert kept_layout_check(policy, beside=tmp_path / "run").ok
    assert layout_check(policy).ok
