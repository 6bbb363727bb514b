"""`tune` as a user meets it: files, equivalences, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from palate.errors import DataError, ModelError, RecipeError, RunError
from palate.models.check import LayoutCheck
from palate.models.reference import FrozenCopy
from palate.store.folders import lock_folder
from palate.train import sft, tune
from tiny_runs import tiny_recipe
from tiny_text import save_tiny


def read_log(run: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


def assert_close(a: Path, b: Path, *, atol: float = 2e-6) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=atol, msg=name)
    for x, y in zip(read_log(a), read_log(b), strict=True):
        assert x["step"] == y["step"]
        assert x["loss"] == pytest.approx(y["loss"], abs=1e-5)
        # A step of single examples may have none of one kind, and then no margin.
        assert x.get("rewards/margins") == pytest.approx(y.get("rewards/margins"), abs=1e-5)


def test_the_run_folder_with_report(tmp_path: Path) -> None:
    result = tune(tiny_recipe(tmp_path, loss={"type": "tdpo2"}, max_steps=3, save_every_steps=2))
    run = result.path
    for name in (
        "recipe.yaml", "data.json", "quarantine.jsonl", "metrics.jsonl", "lineage.json",
        "status.json", "evaluation.json", "report.html", "model/model.safetensors",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert (run / "recipe.yaml").read_text().startswith("# palate tune\n")
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 3)
    assert status["ended"] > status["started"]
    lineage = json.loads((run / "lineage.json").read_text())
    assert lineage["layout"]["used"] == "shared"
    assert lineage["layout"]["check"]["max_abs_difference"] < 1e-3
    assert lineage["reference"]["digest"] == lineage["base_model"]["digest"]
    assert len(lineage["tokenizer"]["digest"]) == 64
    assert lineage["data"][0]["sha256"]
    document = json.loads((run / "evaluation.json").read_text())
    (entry,) = document["policies"]
    assert entry["preference"]["all"]["n"] == 7
    assert entry["preference"]["all"]["accuracy"] == result.metrics["preference/accuracy"]
    assert result.metrics["eval_rewards/accuracies"] == result.metrics["preference/accuracy"]
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoints/step-000002/../../model")
    assert len(tokenizer) == model.config.vocab_size
    AutoModelForCausalLM.from_pretrained(run / "checkpoints/step-000002/model")


@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize(
    "loss",
    [{"type": "tdpo2"}, {"type": "orpo"}, {"type": "kto"}],
    ids=lambda loss: loss["type"],
)
def test_accumulation_changes_nothing(loss: dict[str, Any], micro: int, tmp_path: Path) -> None:
    """A step of 8 at once, in twos ... gives one update; ORPO also has a mean over tokens.

    21 rows: the last step of an epoch has 5, over uneven micro-batches.
    """
    settings: dict[str, Any] = {"loss": loss, "n": 21, "batch_size_pairs": 8, "epochs": 2}
    whole = tune(
        tiny_recipe(tmp_path, out="whole", micro_batch_size_pairs=8, **settings), quiet=True
    )
    cut = tune(
        tiny_recipe(tmp_path, out="cut", micro_batch_size_pairs=micro, **settings), quiet=True
    )
    assert len(read_log(whole.path)) == 6
    # Adam divides by the size of a gradient, so that noise in tiny ones grows.
    assert_close(whole.path, cut.path, atol=2e-4)
    assert whole.metrics["eval_loss"] == pytest.approx(cut.metrics["eval_loss"], abs=1e-4)


def test_layouts_checkpointing_and_cache_train_the_same(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"loss": {"type": "tdpo2"}, "optimizer": "sgd", "max_steps": 3}
    settings |= {"learning_rate": 0.05, "scheduler": "constant"}
    shared = tune(tiny_recipe(tmp_path, out="shared", **settings), quiet=True).path
    plain = tune(tiny_recipe(tmp_path, out="plain", layout="plain", **settings), quiet=True).path
    saving = tiny_recipe(tmp_path, out="saving", gradient_checkpointing=True, **settings)
    cached = tiny_recipe(tmp_path, out="cached", reference={"kind": "cache"}, **settings)
    assert_close(shared, plain)
    assert_close(shared, tune(saving, quiet=True).path)
    assert_close(shared, tune(cached, quiet=True).path)
    assert json.loads((plain / "lineage.json").read_text())["layout"]["used"] == "plain"
    assert (tmp_path / "reference_cache").is_dir()


@pytest.mark.parametrize(("kind", "loss"), [("sft", None), ("tune", {"type": "kto"})])
def test_single_examples_train_the_same_without_padding(
    kind: str, loss: dict[str, Any] | None, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"kind": kind, "loss": loss, "optimizer": "sgd", "max_steps": 3}
    settings |= {"learning_rate": 0.05, "scheduler": "constant"}
    verb = sft if kind == "sft" else tune
    shared = verb(tiny_recipe(tmp_path, out="shared", **settings), quiet=True).path
    plain = verb(tiny_recipe(tmp_path, out="plain", layout="plain", **settings), quiet=True).path
    assert json.loads((shared / "lineage.json").read_text())["layout"]["used"] == "shared"
    assert_close(shared, plain)


def test_a_model_that_fails_the_layout_check_runs_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = LayoutCheck(3.0, False, "log-probs differ by up to 3 nats (mean 1)")
    monkeypatch.setattr("palate.train.preflight.kept_layout_check", lambda *args, **options: found)
    monkeypatch.setattr(logging.getLogger("palate"), "propagate", True)
    run = tune(tiny_recipe(tmp_path, max_steps=1, layout="shared"), quiet=True).path
    assert "the layout is plain" in caplog.text
    note = json.loads((run / "lineage.json").read_text())["layout"]
    assert note == {
        "used": "plain",
        "check": {"max_abs_difference": 3.0},
        "reason": "log-probs differ by up to 3 nats (mean 1)",
    }


def test_a_reference_that_is_not_the_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = FrozenCopy.__init__

    def half_trained(self: FrozenCopy, policy: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.05)
        init(self, policy, **kwargs)

    monkeypatch.setattr(FrozenCopy, "__init__", half_trained)
    with pytest.raises(ModelError, match="the reference is not the starting policy"):
        tune(tiny_recipe(tmp_path, max_steps=1), quiet=True)


def test_another_reference_model(tmp_path: Path) -> None:
    save_tiny(tmp_path / "other", seed=3)
    recipe = tiny_recipe(tmp_path, reference={"path": str(tmp_path / "other")}, max_steps=1)
    run = tune(recipe, quiet=True).path
    assert read_log(run)[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)
    assert json.loads((run / "lineage.json").read_text())["reference"]["path"].endswith("other")


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tune(tiny_recipe(tmp_path, report_to=("tensorboard",), max_steps=2), quiet=True).path
    assert list(run.rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"report_to": ("tensorbored",)}, RecipeError, "no tracker tensorbored"),
        (
            {"reference": {"kind": "cache"}, "extra_metrics": ("reverse_kl",)},
            RecipeError,
            "reverse_kl needs",
        ),
    ],
)
def test_refused_before_anything_is_written(
    settings: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, **settings)
    with pytest.raises(error, match=words) as found:
        tune(recipe, quiet=True)
    assert len(str(found.value).splitlines()) == 1
    assert not recipe.output_dir.exists()


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    (tmp_path / "rows20.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    with pytest.raises(DataError, match="identical to chosen"):
        tune(recipe, quiet=True)
    assert json.loads((recipe.output_dir / "status.json").read_text())["state"] == "failed"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, loss={"type": "ipo_sum"}, learning_rate=1e30, optimizer="sgd", max_grad_norm=1e9
    )
    with pytest.raises(RunError, match=r"the loss is not finite; lower train\.learning_rate"):
        tune(recipe, quiet=True)


@pytest.mark.parametrize(
    ("train", "number"),
    [
        # One step, which is finite itself.
        ({"learning_rate": 1e30, "max_steps": 1}, r"step 1: eval_\S+ is not finite"),
        # No line of the log before the checkpoint at the end.
        ({"learning_rate": 1e30, "max_steps": 3, "log_every_steps": 100}, r"is not finite"),
    ],
)
def test_a_number_that_is_not_finite_stops_the_run(
    train: dict[str, Any], number: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        tmp_path, loss={"type": "ipo_sum"}, optimizer="sgd", max_grad_norm=1e9, **train
    )
    with pytest.raises(RunError, match=number):
        tune(recipe, quiet=True)


def test_a_sequence_beyond_the_positions_of_the_model_is_one_line(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.path)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(recipe.model.path)
    with pytest.raises(RecipeError, match=r"a sequence has \d+ tokens, and .* has places for 8"):
        tune(recipe, quiet=True)


def test_plain_lines_of_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tune(tiny_recipe(tmp_path, max_steps=2))
    lines = capfd.readouterr().err.splitlines()
    opening = next(line for line in lines if line.startswith("training on"))
    assert "20 pairs (7 held out), 2 steps of 4" in opening
    assert any(line.startswith("step 2/2, 0 s left: loss ") for line in lines)
    assert any(line.startswith("held-out preference accuracy") for line in lines)


def test_two_processes_cannot_write_one_run(tmp_path):
    """The second is refused at once, and the first goes on."""
    run = tiny_recipe(tmp_path)
    with lock_folder(run.output_dir), pytest.raises(RunError, match="another process writes to it"):
        tune(run, quiet=True)
    assert tune(run, quiet=True).path.exists()
