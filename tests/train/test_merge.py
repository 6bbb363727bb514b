"""Adapters and their base as one whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from typer.testing import CliRunner

from palate.cli import app
from palate.errors import ModelError, RunError
from palate.models.loading import load_model, load_trained
from palate.recipes.schema import ModelRecipe
from palate.rewards.model import ModelScorer
from palate.train import reward, tune
from palate.train.merge import merge_adapters
from scored import flat_values
from tiny_rewards import recipe as reward_recipe
from tiny_runs import tiny_recipe


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.report.write_report", lambda runs: runs[0] / "report.html")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A reward model with adapters that matter."""
    train = {"learning_rate": 1e-2}
    found = reward_recipe(tmp_path, lora={"r": 4}, head={"layers": 1}, train=train)
    return reward(found, quiet=True).path


PROMPTS, RESPONSES = ["a: ", "b: "], ["red", "blue fast"]


def test_a_reward_model_keeps_its_scores_and_is_read_elsewhere(run: Path, tmp_path: Path) -> None:
    whole = merge_adapters(run, tmp_path / "whole")
    ours = flat_values(ModelScorer(run / "model"), PROMPTS, RESPONSES)
    assert flat_values(ModelScorer(whole), PROMPTS, RESPONSES) == pytest.approx(ours, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    model = AutoModelForSequenceClassification.from_pretrained(whole, dtype=torch.float32)
    texts = [p + r + tokenizer.eos_token for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    with torch.no_grad():
        found = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
    assert found == pytest.approx(ours, abs=1e-5)
    assert not list(whole.glob("adapter*"))
    # As a run without adapters would have saved it.
    full = reward(reward_recipe(tmp_path, out="full", head={"layers": 1}), quiet=True).path
    assert {f.name for f in whole.iterdir()} == {f.name for f in (full / "model").iterdir()}
    for file in whole.glob("*token*"):
        assert file.read_bytes() == (run / "model" / file.name).read_bytes()
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_policy_keeps_its_log_probs(tmp_path: Path) -> None:
    found = tiny_recipe(tmp_path, lora={"r": 4}, learning_rate=1e-2, max_steps=3)
    run = tune(found, quiet=True).path
    whole = merge_adapters(run / "model", tmp_path / "whole")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        base = load_model(found.model)(ids).logits
        ours = load_trained(run / "model", found.model).hf(ids).logits
        read = AutoModelForCausalLM.from_pretrained(whole)(ids).logits
    torch.testing.assert_close(read, ours, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(read, base, atol=1e-3)
    # It is a model to go on from.
    model = found.model.model_copy(update={"path": str(whole)})
    tune(found.model_copy(update={"model": model, "output_dir": tmp_path / "on"}), quiet=True)


def test_dtype_is_that_of_the_weights_written(run: Path, tmp_path: Path) -> None:
    whole = merge_adapters(run, tmp_path / "whole", dtype="bfloat16")
    assert AutoModelForSequenceClassification.from_pretrained(whole).dtype == torch.bfloat16


def test_what_cannot_be_merged_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no LoRA adapters to merge"):
        merge_adapters(tmp_path, tmp_path / "whole")
    with pytest.raises(RunError, match=r"run: is there already"):
        merge_adapters(run, run)
    with pytest.raises(ModelError, match=r"LoRA adapters alone; `palate merge .*model -o FOLDER`"):
        load_model(ModelRecipe(path=str(run / "model")))
    again: Any = reward_recipe(tmp_path, out="again").model_copy(
        update={"model": ModelRecipe(path=str(run / "model"), dtype="float32")}
    )
    with pytest.raises(ModelError, match=r"LoRA adapters alone; `palate merge"):
        reward(again, quiet=True)


def test_the_command(run: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "whole")
    done = CliRunner().invoke(app, ["merge", str(run), "-o", out, "--dtype", "float32"])
    assert (done.exit_code, done.stdout) == (0, out + "\n")
    bad = CliRunner().invoke(app, ["merge", str(run), "-o", f"{out}2", "--dtype", "int8"])
    assert bad.exit_code == 2 and "--dtype int8: not one of bfloat16" in bad.output
