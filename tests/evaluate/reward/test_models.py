"""A trained reward model, a judge and an ensemble of both, through the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from palate.evaluate.reward import evaluate_rewards
from palate.recipes import load_recipe
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.rewards.model import ModelScorer
from palate.train import reward
from scored import flat_values
from tiny import CONFIGS
from tiny_chat import CHATML, byte_tokenizer
from tiny_runs import write_pairs

RECIPE = """\
# palate eval reward
output_dir: out
models:
  - {type: model, path: rm/model, name: scalar}
  - type: pairwise
    name: judge
    chat: {type: local, path: base, dtype: float32}
  - type: ensemble
    name: both
    combine: zscore
    members:
      - scorer: {type: model, path: rm/model}
        mean: 0.0
        deviation: 2.0
      - scorer: {type: pairwise, chat: {type: local, path: base, dtype: float32}}
        mean: 0.5
        deviation: 0.1
benchmarks:
  - type: pairs
    data: [{path: pairs.jsonl}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(adds_bos=False, template=CHATML)
    config = CONFIGS["llama"]()
    config.vocab_size = len(tokenizer)
    config.max_position_embeddings = 4096
    AutoModelForCausalLM.from_config(config).save_pretrained("base")
    tokenizer.save_pretrained("base")
    write_pairs(Path("texts.jsonl"), 12)
    rows = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        for side in ("chosen", "rejected"):
            row[side] = [{"role": "assistant", "content": row[side]}]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = RewardRecipe.model_validate(
        {
            "output_dir": "rm",
            "model": {"path": "base", "dtype": "float32"},
            "data": {"train": [{"path": "pairs.jsonl"}]},
            "train": {"batch_size_pairs": 4, "max_steps": 2},
        }
    )
    reward(recipe, quiet=True)
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


def test_models_judges_and_ensembles_through_one_interface(folder):
    found = evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml")).evaluation
    (benchmark,) = found["benchmarks"]
    rows = [json.loads(line) for line in Path("out/scores.jsonl").read_text().splitlines()]
    data = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    scorer = ModelScorer("rm/model")
    for side, place in (("chosen", 0), ("rejected", 1)):
        direct = flat_values(scorer, [row["prompt"] for row in data], [row[side] for row in data])
        assert [r["scores"]["scalar"][place] for r in rows] == pytest.approx(direct, abs=1e-5)
    for row in rows:
        own = row["scores"]
        # A comparing judge: the two wins of a pair add up to one.
        assert sum(own["judge"]) == pytest.approx(1.0)
        z = [
            (s / 2.0 + (w - 0.5) / 0.1) / 2
            for s, w in zip(own["scalar"], own["judge"], strict=True)
        ]
        assert own["both"] == pytest.approx(z, abs=1e-6)
    judge = next(model for model in found["models"] if model["name"] == "judge")
    assert judge["account"]["questions asked"] == 24
    members = next(m for m in found["models"] if m["name"] == "both")["members"]
    assert [s["name"] for s in members["raw"]] == ["scalar", "judge"]
    # The judge was asked once for both: its verdicts are kept as the evidence.
    (verdicts,) = Path("out/parts").glob("verdicts-*.jsonl")
    lines = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert len(lines) == 24 and set(lines[0]["shares"]) == {"1", "2"}
    assert "judge counted" in Path("out/report.html").read_text()
    accuracy = benchmark["results"]["judge"]["accuracy"]["all"]
    assert accuracy["n"] == 12 and accuracy["unscored"] == 0
