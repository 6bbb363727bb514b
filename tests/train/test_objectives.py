"""Every loss through the whole of `tune`: it trains, and its log says what happened."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from palate.train import sft, tune
from tiny_runs import tiny_recipe

LOSSES = {
    "dpo": {"type": "dpo"},
    "cdpo": {"type": "dpo", "label_smoothing": 0.1},
    "rdpo": {"type": "rdpo"},
    "ipo_mean": {"type": "ipo_mean"},
    "ipo_sum": {"type": "ipo_sum"},
    "hinge": {"type": "hinge"},
    "simpo": {"type": "simpo"},
    "dpo_norm": {"type": "dpo_norm"},
    "kto": {"type": "kto"},
    "orpo": {"type": "orpo"},
    "cpo": {"type": "cpo"},
    "fdpo": {"type": "fdpo", "divergence": "js"},
    "tdpo1": {"type": "tdpo1"},
    "tdpo2": {"type": "tdpo2"},
    "sft": {"type": "sft"},
    "mdpo": {"type": "mixture", "losses": [{"type": "dpo"}, {"type": "anchor", "weight": 0.5}]},
    "mixture": {
        "type": "mixture",
        "losses": [{"type": "tdpo2"}, {"type": "sft", "weight": 0.1}],
    },
}
STARTS_AT_LN2 = ("dpo", "cdpo", "tdpo1", "tdpo2", "dpo_norm", "fdpo")


def read_log(run: Path, split: str = "train") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(name: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        loss=LOSSES[name],
        batch_size_pairs=8,
        micro_batch_size_pairs=4,
        max_steps=6,
        scheduler="constant",
        n=8,
    )
    run = tune(recipe, quiet=True).path
    log = read_log(run)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    losses = [line["loss"] for line in log]
    assert all(map(math.isfinite, losses))
    # Every step sees all rows, so the loss of the same rows must fall.
    assert losses[-1] < losses[0]
    if name in STARTS_AT_LN2:
        assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    before, after = load_file(tmp_path / "tiny" / "model.safetensors"), weights(run)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_metrics_of_a_preference_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        loss={"type": "dpo"},
        extra_metrics=("kl", "reverse_kl", "entropy"),
        eval_every_steps=2,
        max_steps=3,
        micro_batch_size_pairs=2,
    )
    run = tune(recipe, quiet=True).path
    wanted = {
        "loss", "learning_rate", "grad_norm", "examples", "epoch", "seconds_left",
        "pairs_per_second", "tokens_per_second", "rewards/chosen", "rewards/rejected",
        "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "kl/chosen",
        "kl/rejected", "kl/margin", "kl/token_chosen", "kl/token_rejected", "reverse_kl/chosen",
        "reverse_kl/rejected", "reverse_kl/margin", "entropy", "length/chosen", "length/rejected",
        "displacement/chosen", "displacement/fraction", "accuracies/log_ratio",
    }  # fmt: skip
    train, held = read_log(run), read_log(run, "eval")
    assert wanted <= train[-1].keys()
    assert [line["step"] for line in held] == [2, 3]
    assert [line["examples"] for line in train] == [4, 8, 12]
    first, last = train[0], train[-1]
    for name in ("rewards/margins", "kl/chosen", "kl/rejected", "reverse_kl/chosen"):
        assert first[name] == pytest.approx(0, abs=1e-5)
    assert last["kl/chosen"] > 1e-4
    assert last["kl/margin"] == pytest.approx(last["kl/chosen"] - last["kl/rejected"])
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"]
    )
    assert 0 < last["entropy"] < math.log(300)
    assert "rewards/accuracies/rows20" in train[0]


def test_statistics_for_the_log_change_no_weight(tmp_path: Path) -> None:
    plain = tune(tiny_recipe(tmp_path, out="a", max_steps=3), quiet=True)
    shown = tiny_recipe(tmp_path, out="b", max_steps=3, extra_metrics=("kl", "entropy"))
    a, b = weights(plain.path), weights(tune(shown, quiet=True).path)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-6)


def test_lora_trains_adapters_alone(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path, loss={"type": "tdpo2"}, lora={"r": 4}, dtype="bfloat16", max_steps=3
    )
    run = tune(recipe, quiet=True).path
    found = weights(run)
    assert all("lora_" in name for name in found)
    assert {t.dtype for t in found.values()} == {torch.float32}
    assert any(t.abs().max() > 0 for name, t in found.items() if "lora_B" in name)
    lineage = json.loads((run / "lineage.json").read_text())
    assert lineage["reference"]["kind"] == "adapter_off"
    assert lineage["reference"]["digest"] == lineage["base_model"]["digest"]
    assert read_log(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_token_weights_leave_the_likelihood_term_whole(tmp_path: Path) -> None:
    both = {"type": "mixture", "losses": [{"type": "dpo"}, {"type": "sft"}]}
    weighted = tiny_recipe(
        tmp_path, loss=both, token_weights={"type": "d2po", "gamma": 0.5}, max_steps=2, out="a"
    )
    plain = tiny_recipe(tmp_path, loss=both, max_steps=2, out="b")
    a, b = read_log(tune(weighted, quiet=True).path), read_log(tune(plain, quiet=True).path)
    name = next(n for n in a[0] if n.startswith("loss/") and "sft" in n)
    other = next(n for n in b[0] if n.startswith("loss/") and "sft" in n)
    assert a[0][name] == pytest.approx(b[0][other])
    assert a[0]["logps/chosen"] == pytest.approx(b[0]["logps/chosen"])
    assert a[1]["grad_norm"] != pytest.approx(b[1]["grad_norm"])


def test_supervised_fine_tuning(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, kind="sft", epochs=2, extra_metrics=("entropy",))
    run = sft(recipe, quiet=True).path
    log = read_log(run)
    assert log[-1]["loss"] < log[0]["loss"]
    tokens = log[0]["length/chosen"]
    # The loss is per token: the mean log-prob of a response over the mean length.
    assert log[0]["loss"] == pytest.approx(-log[0]["logps/chosen"] / tokens, rel=1e-4)
    assert not (run / "evaluation.json").exists()
    assert "rewards/margins" not in log[0]


def test_small_updates_survive_in_bfloat16(tmp_path: Path) -> None:
    def moved(precision: str) -> float:
        recipe = tiny_recipe(
            tmp_path,
            out=precision,
            dtype="bfloat16",
            learning_rate=1e-6,
            scheduler="constant",
            optimizer_precision=precision,
            batch_size_pairs=2,
            micro_batch_size_pairs=2,
            max_steps=2,
            save_every_steps=2,
        )
        run = tune(recipe, quiet=True).path
        state = load_file(run / "checkpoints/step-000002/trainer/optimizer.safetensors")
        assert {v.dtype for k, v in state.items() if "exp_avg" in k} == {
            torch.float32 if precision == "float32" else torch.bfloat16
        }
        if precision == "model":
            before, after = load_file(tmp_path / "tiny/model.safetensors"), weights(run)
            gaps = [(before[k].bfloat16() != after[k]).float().mean().item() for k in before]
            return sum(gaps) / len(gaps)
        copies = [v for k, v in state.items() if k.endswith("/copy")]
        rounded = [(c != c.bfloat16().float()).float().mean().item() for c in copies]
        return sum(rounded) / len(rounded)

    # The copies hold what the rounded weights cannot.
    assert moved("float32") > 0.9
    assert moved("model") < 0.1
