"""`evaluate` on real run folders of a tiny model: what it writes, resumes and refuses."""

from __future__ import annotations

import json
import random
import re
import shutil

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from palate.errors import RecipeError, RunError
from palate.evaluate import evaluate
from palate.evaluate import run as run_module
from palate.recipes import load_recipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.schema import TuneRecipe
from palate.store.files import read_json
from palate.train import tune
from tiny_text import save_classifier, save_tiny, tiny_tokenizer

WORDS = [
    "the",
    "film",
    "room",
    "food",
    "book",
    "was",
    "good",
    "bad",
    "late",
    "and",
    "we",
    "it",
    "in",
    "a",
    "new",
    "old",
]


def write_pairs(path, n, seed):
    chance = random.Random(seed)
    lines = []
    for i in range(n):
        prompt, chosen, rejected = (
            " ".join(chance.choices(WORDS, k=k)) for k in (4, chance.randint(2, 4), 3)
        )
        row = {"prompt": prompt, "chosen": f" {chosen} {i}", "rejected": f" {rejected}"}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two LoRA runs with checkpoints, from one base model and the same pairs."""
    root = tmp_path_factory.mktemp("runs")
    base = str(save_tiny(root / "base"))
    train = write_pairs(root / "train.jsonl", 8, 0)
    held = write_pairs(root / "held.jsonl", 6, 1)
    for name in ("dpo", "tdpo2"):
        recipe = {
            "output_dir": str(root / name),
            "model": {"path": base, "dtype": "float32", "lora": {"r": 2}},
            "data": {"train": [{"path": train}], "eval": [{"path": held}]},
            "loss": {"type": name},
            "train": {
                "batch_size_pairs": 4,
                "max_steps": 3,
                "learning_rate": 0.02,
                "save_every_steps": 1,
            },
        }
        tune(TuneRecipe.model_validate(recipe), quiet=True)
    return root


def recipe_of(root, out, **changes):
    values = {
        "output_dir": str(out),
        "runs": [str(root / "dpo"), str(root / "tdpo2")],
        "checkpoints": "all",
        "sampling": {"prompts": 4, "samples_per_prompt": 2, "max_new_tokens": 6},
        "reward": {"type": "lexicon"},
    }
    return EvalRecipe.model_validate(values | changes)


@pytest.fixture(scope="module")
def result(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "evaluation"
    return evaluate(recipe_of(runs, out))


def rows_of(path):
    return lines_of(path, "samples.jsonl")


def lines_of(path, name):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def margins_of(stage):
    return [pair["margin"] for pair in read_json(stage)["result"].get("pairs", [])]


def test_every_checkpoint_of_every_run_is_there(result):
    names = [p["name"] for p in result.evaluation["policies"]]
    assert names == ["dpo@1", "dpo@2", "dpo@3", "tdpo2@1", "tdpo2@2", "tdpo2@3"]
    assert [p["checkpoint"] for p in result.evaluation["policies"]] == [1, 2, 3] * 2
    assert {p["label"] for p in result.evaluation["policies"]} == {"dpo", "tdpo2"}
    assert all(p["beta"] == 0.1 for p in result.evaluation["policies"])
    reference = result.evaluation["reference"]
    assert reference["name"] == "reference"
    assert reference["samples"]["kl"] == pytest.approx(0, abs=1e-4)


def test_the_folder_is_complete(result):
    for name in (
        "recipe.yaml",
        "data.json",
        "lineage.json",
        "status.json",
        "evaluation.json",
        "samples.jsonl",
        "report.html",
    ):
        assert (result.path / name).is_file(), name
    assert read_json(result.path / "evaluation.json") == json.loads(json.dumps(result.evaluation))
    assert read_json(result.path / "status.json")["state"] == "finished"
    lineage = read_json(result.path / "lineage.json")
    assert lineage["verb"] == "eval" and len(lineage["base_model"]["digest"]) == 64
    source = read_json(result.path / "data.json")["sources"][0]
    assert source["split_role"] == "eval" and source["read"] == source["kept"] == 6


def test_the_length_baseline_is_of_answers_before_they_are_cut(runs, tmp_path):
    """Two tokens of each are left; as written the chosen one is longer in two pairs of three."""
    lines = [("good film and room", "late"), ("new book was in it", "bad"), ("we", "a food a room")]
    rows = [
        {"prompt": f"the film {i}", "chosen": f" {chosen}", "rejected": f" {rejected} old"}
        for i, (chosen, rejected) in enumerate(lines)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(
        runs,
        tmp_path / "out",
        checkpoints="last",
        sampling=None,
        reward=None,
        data=[{"path": str(file)}],
        length={"max_response_tokens": 2},
    )
    for policy in evaluate(recipe).evaluation["policies"]:
        found = policy["preference"]["all"]
        assert (found["n"], found["length_baseline"], found["cut_even"]) == (3, 2 / 3, 3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "66.7% <small>3 cut to one length</small>" in page
    # So is that at the end of a training run, and what its data.json says of length.
    training = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": str(runs / "base"), "dtype": "float32", "lora": {"r": 2}},
        "data": {
            "train": [{"path": str(runs / "train.jsonl")}],
            "eval": [{"path": str(file)}],
            "length": {"max_response_tokens": 2},
        },
        "train": {"batch_size_pairs": 4, "max_steps": 1},
    }
    path = tune(TuneRecipe.model_validate(training), quiet=True).path
    found = read_json(path / "evaluation.json")["policies"][0]["preference"]["all"]
    assert (found["n"], found["length_baseline"], found["cut_even"]) == (3, 2 / 3, 3)
    held = read_json(path / "data.json")["eval"]
    assert (held["longer_is_chosen"], held["cut_even"]) == (2 / 3, 3)
    assert "makes the responses of 3 pairs equally long" in (path / "report.html").read_text()


def test_numbers_add_up_to_the_samples(result):
    rows = rows_of(result.path)
    assert len(rows) == 7 * 8
    for policy in result.evaluation["policies"]:
        own = [
            r
            for r in rows
            if (r["policy"], r["checkpoint"]) == (policy["label"], policy["checkpoint"])
        ]
        samples = policy["samples"]
        assert samples["n"] == len(own) == 8 and samples["prompts"] == 4
        for name in ("kl", "forward_kl", "reward", "tokens"):
            assert samples[name] == pytest.approx(sum(r[name] for r in own) / 8)
        assert samples["kl"] > 0 and samples["kl_ci"][0] <= samples["kl"] <= samples["kl_ci"][1]
        assert samples["diversity"]["self_bleu_of"] == "prompt"
        assert policy["preference"]["all"]["n"] == policy["preference"]["held"]["n"] == 6


def test_training_and_evaluation_agree_on_the_held_out_pairs(runs, result):
    final = next(p for p in result.evaluation["policies"] if p["name"] == "tdpo2@3")
    own = read_json(runs / "tdpo2" / "evaluation.json")["policies"][0]
    assert final["preference"]["all"]["accuracy"] == own["preference"]["all"]["accuracy"]
    assert final["preference"]["all"]["margin"] == pytest.approx(
        own["preference"]["all"]["margin"], abs=1e-4
    )


def test_the_same_recipe_gives_the_same_numbers(runs, result, tmp_path):
    again = evaluate(recipe_of(runs, tmp_path / "again"))
    assert again.evaluation == result.evaluation
    assert rows_of(again.path) == rows_of(result.path)


def test_resume_computes_only_what_is_missing(runs, result, tmp_path, monkeypatch):
    out = tmp_path / "evaluation"
    shutil.copytree(result.path, out)
    stages = sorted((out / "stages").iterdir())
    pairs = [p for p in lines_of(result.path, "pairs.jsonl") if p["policy"] == "dpo"]
    margins = [pair["margin"] for pair in pairs if pair["checkpoint"] == 2]
    (lost,) = (p for p in stages if margins == margins_of(p))
    lost.unlink()
    (out / "evaluation.json").unlink()
    measured = []
    whole = run_module.EvaluationContext.measure

    def counting(self, target, policy, reference, layout):
        measured.append(target.name)
        return whole(self, target, policy, reference, layout)

    monkeypatch.setattr(run_module.EvaluationContext, "measure", counting)
    resumed = evaluate(recipe_of(runs, out, resume=True))
    assert measured == ["dpo@2"]
    assert resumed.evaluation == result.evaluation


def test_an_interrupted_evaluation_says_so_and_goes_on(runs, result, tmp_path, monkeypatch):
    out = tmp_path / "evaluation"
    whole = run_module.EvaluationContext.measure

    def stopping(self, target, policy, reference, layout):
        if target.name == "dpo@2":
            raise KeyboardInterrupt
        return whole(self, target, policy, reference, layout)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.EvaluationContext, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate(recipe_of(runs, out))
    assert read_json(out / "status.json")["state"] == "interrupted"
    assert len(list((out / "stages").iterdir())) == 2
    with pytest.raises(RunError, match="resume"):
        evaluate(recipe_of(runs, out))
    assert evaluate(recipe_of(runs, out, resume=True)).evaluation == result.evaluation


def test_a_folder_of_another_evaluation_is_refused(runs, result):
    other = recipe_of(runs, result.path, resume=True, seed=4)
    with pytest.raises(RunError, match="another recipe"):
        evaluate(other)


def test_last_checkpoint_and_own_data(runs, tmp_path):
    data = write_pairs(tmp_path / "mine.jsonl", 3, 5)
    values = {
        "output_dir": str(tmp_path / "out"),
        "runs": [str(runs / "dpo")],
        "data": [{"path": data, "name": "own"}],
    }
    found = evaluate(EvalRecipe.model_validate(values)).evaluation
    (policy,) = found["policies"]
    assert policy["name"] == "dpo@3" and set(policy["preference"]) == {"own", "all"}
    assert "samples" not in policy and found["reference"] is None


def test_a_model_alone_needs_a_reference_for_rewards_and_none_for_samples(runs, tmp_path):
    values = {
        "model": {"path": str(runs / "base"), "dtype": "float32"},
        "data": [{"path": str(runs / "held.jsonl")}],
        "sampling": {"prompts": 2, "max_new_tokens": 4},
    }
    alone = EvalRecipe.model_validate(
        values | {"output_dir": str(tmp_path / "a"), "preference": False}
    )
    found = evaluate(alone).evaluation
    assert found["reference"] is None
    assert "kl" not in found["policies"][0]["samples"]
    with pytest.raises(RunError, match="set `reference`"):
        evaluate(EvalRecipe.model_validate(values | {"output_dir": str(tmp_path / "b")}))


def test_any_scorer_may_score_the_samples(runs, tmp_path):
    rule = {"type": "rule", "pattern": "[aeiou]"}
    short = {"scorer": {"type": "length", "prefer": "shorter"}, "weight": 0.5}
    values = {
        "checkpoints": "last",
        "runs": [str(runs / "dpo")],
        "preference": False,
        "reward": {"type": "mixture", "members": [{"scorer": rule, "weight": 3.0}, short]},
    }
    result = evaluate(recipe_of(runs, tmp_path / "out", **values))
    rows = rows_of(result.path)
    expected = [
        3.0 * bool(re.search("[aeiou]", row["response"])) - 0.5 * len(row["response"])
        for row in rows
    ]
    assert [row["reward"] for row in rows] == pytest.approx(expected) and len(set(expected)) > 1


def test_a_reward_model_scores_chats_as_chats_and_its_weights_are_part_of_the_key(
    runs, tmp_path, monkeypatch
):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"the film {word}"}],
            "chosen": [{"role": "assistant", "content": " good"}],
            "rejected": [{"role": "assistant", "content": " bad"}],
        }
        for word in WORDS[:3]
    ]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = save_classifier(tmp_path / "reward", ["LABEL_0"])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(path)
    values = {
        "checkpoints": "last",
        "runs": [],
        "preference": False,
        "reward": {"type": "classifier", "path": path},
        "data": [{"path": str(data)}],
        "model": {"path": str(runs / "base"), "dtype": "float32", "chat_template": "plain"},
    }
    out = tmp_path / "out"
    result = evaluate(recipe_of(runs, out, **values))
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    by_prompt = {row["prompt"][0]["content"]: row["prompt"] for row in rows}
    for row in rows_of(result.path):
        (prompt,) = [p for text, p in by_prompt.items() if text in row["prompt"]]
        answer = {"role": "assistant", "content": row["response"]}
        ids = tokenizer.apply_chat_template([*prompt, answer], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert row["reward"] == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)
    measured = []

    def counting(self, target, policy, reference, layout):
        measured.append(target.name)
        return measure(self, target, policy, reference, layout)

    measure = run_module.EvaluationContext.measure
    monkeypatch.setattr(run_module.EvaluationContext, "measure", counting)
    again = recipe_of(runs, out, **values, resume=True)
    evaluate(again)
    assert measured == []
    weights = load_file(tmp_path / "reward" / "model.safetensors")
    save_file(
        {name: -tensor for name, tensor in weights.items()},
        tmp_path / "reward" / "model.safetensors",
        metadata={"format": "pt"},
    )
    before = [row["reward"] for row in rows_of(out)]
    evaluate(again)
    # The samples are there: only their rewards are asked for again.
    assert measured == []
    assert all(row["reward"] != r for row, r in zip(rows_of(out), before, strict=True))


def test_a_line_of_every_pair_makes_the_summary(result):
    lines = lines_of(result.path, "pairs.jsonl")
    policies = result.evaluation["policies"]
    for policy in policies:
        where = (policy["label"], policy["checkpoint"])
        margins = [p["margin"] for p in lines if (p["policy"], p["checkpoint"]) == where]
        right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
        assert len(margins) == policy["preference"]["all"]["n"]
        assert right / len(margins) == policy["preference"]["all"]["accuracy"]
    assert len(lines) == 6 * len(policies)


def test_evaluations_share_results(runs, tmp_path, monkeypatch):
    shared = {"results_dir": str(tmp_path / "results"), "sampling": {"prompts": 2}}
    first = evaluate(recipe_of(runs, tmp_path / "dpo", runs=[str(runs / "dpo")], **shared))
    measured = []
    whole = run_module.EvaluationContext.measure

    def counting(self, target, policy, reference, layout):
        measured.append(target.name)
        return whole(self, target, policy, reference, layout)

    monkeypatch.setattr(run_module.EvaluationContext, "measure", counting)
    one = recipe_of(runs, tmp_path / "tdpo2", checkpoints="last", **shared)
    second = evaluate(one)
    assert measured == ["tdpo2@3"]
    assert second.evaluation["reference"] == first.evaluation["reference"]


def test_samples_are_compared_with_the_references(runs, result, tmp_path):
    """By rewards as it is; by a judge that says the opposite where one is given."""
    rows = rows_of(result.path)
    reference = {(r["prompt_id"], r["index"]): r for r in rows if r["policy"] == "reference"}
    own = [row for row in rows if row["policy"] != "reference"]
    assert all(row["won"] is None for row in reference.values())
    for row in own:
        against = reference[row["prompt_id"], row["index"]]["reward"]
        assert row["won"] == (row["reward"] > against) + 0.5 * (row["reward"] == against)
    policy = result.evaluation["policies"][0]
    mine = [r["won"] for r in own if (r["policy"], r["checkpoint"]) == ("dpo", 1)]
    assert policy["samples"]["win_rate"] == pytest.approx(sum(mine) / len(mine))

    def judge(prefer, **changes):
        values = {"judge": {"type": "length", "prefer": prefer}, "preference": False}
        # The policies are measured once, whatever they are judged by.
        values |= {"results_dir": str(tmp_path / "results"), "checkpoints": "last"} | changes
        return rows_of(
            evaluate(recipe_of(runs, tmp_path / f"{prefer}{len(changes)}", **values)).path
        )

    longer, shorter = judge("longer"), judge("shorter", reward=None)
    texts = {(r["prompt_id"], r["index"]): r["response"] for r in longer if r["won"] is None}
    compared = 0
    for one, other in zip(longer, shorter, strict=True):
        if one["won"] is None:
            continue
        gap = len(one["response"]) - len(texts[one["prompt_id"], one["index"]])
        assert one["won"] == (gap > 0) + 0.5 * (gap == 0) and one["won"] + other["won"] == 1.0
        assert one["reward"] is not None and other["reward"] is None
        compared += gap != 0
    assert compared > 4
    page = (tmp_path / "longer0" / "report.html").read_text()
    assert ">win rate</th>" in page and ">length-controlled</th>" in page
    lineage = read_json(tmp_path / "longer0" / "lineage.json")
    assert [m["role"] for m in lineage["models"] if "role" in m] == ["reward", "judge"]


def test_a_judge_needs_samples_and_a_reference(runs, tmp_path):
    judge = {"type": "length"}
    with pytest.raises(ValidationError, match="needs `sampling`: it compares samples"):
        recipe_of(runs, tmp_path / "a", judge=judge, sampling=None, reward=None)
    alone = {"runs": [], "model": {"path": str(runs / "base"), "dtype": "float32"}}
    alone |= {"checkpoints": "last", "data": [{"path": str(runs / "held.jsonl")}]}
    with pytest.raises(RecipeError, match="has no reference: set `reference`"):
        evaluate(recipe_of(runs, tmp_path / "b", judge=judge, preference=False, **alone))
    assert not (tmp_path / "b").exists()


def test_pairs_of_one_prompt_are_not_independent(runs, tmp_path):
    """Twelve pairs of three prompts, of which two rows have one id."""
    prompts = [0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1]
    rows = [
        {"id": str(i // 2), "prompt": f"the film {WORDS[prompt]}", "chosen": f" {WORDS[i]} good",
         "rejected": f" {WORDS[-i]}"}
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
    sources = []
    for name, part in (("one", rows[:6]), ("two", rows[6:])):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
        sources.append({"path": str(file)})
    values = {"checkpoints": "last", "data": sources, "sampling": None, "reward": None}
    found = evaluate(recipe_of(runs, tmp_path / "out", **values))
    summary = found.evaluation["policies"][0]["preference"]
    assert (summary["all"]["n"], summary["all"]["prompts"]) == (12, 3)
    assert summary["one"]["prompts"] == 2 and summary["all"]["effective_n"] <= 12
    assert "p_value" not in summary["all"]
    lines = [row for row in lines_of(found.path, "pairs.jsonl") if row["policy"] == "dpo"]
    assert len({line["prompt_id"] for line in lines}) == 3
    assert lines[0]["prompt_id"] == lines[2]["prompt_id"] == lines[7]["prompt_id"]
    page = (found.path / "report.html").read_text()
    assert "12 <small>of 3 prompts</small>" in page


def test_a_reward_that_compares_is_refused(runs, tmp_path):
    chat = {"type": "server", "url": "http://127.0.0.1:9/v1", "model": "judge"}
    judge = {"type": "pairwise", "chat": chat}
    members = [{"scorer": judge}, {"scorer": {"type": "length"}}]
    for reward in (judge, {"type": "mixture", "members": members}):
        with pytest.raises(ValidationError, match="compares the responses to one prompt"):
            recipe_of(runs, tmp_path / "out", reward=reward)


def test_mistakes_are_one_line(runs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunError, match="not a run folder"):
        evaluate(recipe_of(runs, out, runs=[str(runs / "base")]))
    with pytest.raises(RecipeError, match="`pairing`: only with `data`"):
        evaluate(recipe_of(runs, out, pairing={"min_gap": 0.1}))
    with pytest.raises(RecipeError, match="`length`: only with `data`"):
        evaluate(recipe_of(runs, out, length={"max_prompt_tokens": 9}))
    assert not out.exists()


def test_the_written_recipe_runs_again(result):
    again = load_recipe(EvalRecipe, result.path / "recipe.yaml")
    assert again.output_dir == result.path and again.checkpoints == "all"
