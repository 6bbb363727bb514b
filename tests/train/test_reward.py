"""`palate reward` as a user meets it: files, equivalences, resuming, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from palate.data.layouts import collate
from palate.errors import RunError
from palate.models.reward_files import load_reward_model
from palate.recipes import load_recipe
from palate.recipes.load import resolve_yaml, shipped_recipes
from palate.recipes.reward import RewardRecipe
from palate.report import write_report
from palate.rewards.api import load_scorer
from palate.train import reward
from palate.train.loop import Loop
from tiny_rewards import assert_close, log_of, recipe, weights
from tiny_runs import WORDS, write_rows


def test_the_run_folder_with_report(tmp_path: Path) -> None:
    run = reward(recipe(tmp_path, train={"epochs": 6.0, "save_every_steps": 15})).path
    for name in (
        "recipe.yaml", "data.json", "metrics.jsonl", "lineage.json", "status.json",
        "evaluation.json", "report.html", "model/model.safetensors", "model/reward_config.json",
        "examples.jsonl",
        "model/tokenizer.json", "checkpoints/step-000015/model/reward_config.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert (run / "recipe.yaml").read_text().startswith("# palate reward\n")
    first, *_, last = log_of(run)
    assert first["loss"] == pytest.approx(math.log(2), abs=0.6)
    assert last["accuracy"] == 1.0 and last["margin"] > first["margin"]
    assert last["min_reward"] < last["mean_reward"] < last["max_reward"]
    (entry,) = json.loads((run / "evaluation.json").read_text())["policies"]
    held = entry["preference"]["all"]
    assert held["n"] == 7 and held["accuracy_ci"][0] < held["accuracy"] <= 1.0
    assert 0.0 <= held["length_baseline"] <= 1.0
    (evaluated,) = log_of(run, "eval")
    assert evaluated["accuracy"] == pytest.approx(held["accuracy"])
    assert json.loads((run / "lineage.json").read_text())["layout"]["used"] == "shared"
    model = load_reward_model(run / "model")
    assert model.spec.end_tokens == {2: "<eos>"}
    assert model.spec.scale is not None and model.spec.scale.n == 40
    assert (run / "report.html").read_text().count("accuracy") > 1


def check_errors(run: Path, lists: int) -> None:
    """examples.jsonl has exactly the held-out prompts that the saved model gets wrong, scored as
    it scores them."""
    scorer = load_scorer(run / "model")
    lines = [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]
    (entry,) = json.loads((run / "evaluation.json").read_text())["policies"]
    held = entry["preference"]["all"]
    assert len(lines) <= lists and (held["accuracy"] == 1.0) == (lines == [])
    margins = []
    for line in lines:
        texts = [line[side]["text"] for side in ("chosen", "rejected")]
        scores = scorer.score(line["prompt"]["text"], texts)
        better, worse = line["scores"][run.name]
        assert [s.value for s in scores] == pytest.approx([better, worse], abs=1e-4)
        margins.append(better - worse)
    assert margins == sorted(margins) and all(margin <= 0 for margin in margins)


def test_what_an_untrained_model_gets_wrong_is_kept(tmp_path: Path) -> None:
    run = reward(recipe(tmp_path, train={"max_steps": 1, "learning_rate": 1e-9}), quiet=True).path
    check_errors(run, lists=7)
    assert (run / "examples.jsonl").read_text()
    assert "Worst errors on held-out pairs" in write_report([run]).read_text()


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("micro", [2, 4])
def test_neither_layout_nor_accumulation_changes_anything(
    layout: str, micro: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "n": 21,
        "head": {"layers": 2},
        "regularise": {"centring": 0.01, "magnitude": 0.02, "likelihood": {"weight": 0.1}},
    }
    cut = {"batch_size_pairs": 8, "layout": layout, "micro_batch_size_pairs": micro}
    whole = {"batch_size_pairs": 8, "layout": "shared", "micro_batch_size_pairs": 8}
    a = reward(recipe(tmp_path, out="whole", train=whole, **settings), quiet=True).path
    b = reward(recipe(tmp_path, out="cut", train=cut, **settings), quiet=True).path
    assert_close(a, b)
    for x, y in zip(log_of(a), log_of(b), strict=True):
        assert x["loss"] == pytest.approx(y["loss"], abs=1e-5)
        for name in ("accuracy", "min_reward", "max_reward", "loss/centring", "loss/likelihood"):
            assert x[name] == pytest.approx(y[name], abs=1e-5)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    "case",
    [
        {"head": {"layers": 2, "dropout": 0.3}},
        {"lora": {"r": 4, "dropout": 0.2}},
        {"lora": {"r": 4}, "pooling": "attention"},
        {"backbone": "frozen", "head": {"layers": 2, "dropout": 0.3}},
    ],
    ids=str,
)
def test_an_interrupted_run_ends_bit_equal(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"epochs": 2.0, "save_every_steps": 4}
    whole = reward(recipe(tmp_path, out="whole", train=train, **case), quiet=True).path
    step = Loop.train_step

    def stops(self: Loop, *args: Any, **kwargs: Any) -> Any:
        if self.step == 6:
            raise Stopped
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "train_step", stops)
    with pytest.raises(Stopped):
        reward(recipe(tmp_path, out="cut", train=train, **case), quiet=True)
    monkeypatch.undo()
    monkeypatch.setattr("palate.report.write_report", lambda runs: runs[0] / "report.html")
    cut = reward(recipe(tmp_path, out="cut", train=train, resume=True, **case), quiet=True).path
    one, other = weights(whole), weights(cut)
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert log_of(whole) == log_of(cut)
    assert log_of(whole, "eval") == log_of(cut, "eval")


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_a_frozen_backbone_trains_the_head_as_the_live_one_would(
    pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"head": {"layers": 2}, "pooling": pooling, "backbone": "frozen"}
    a = reward(recipe(tmp_path, out="a", **settings), quiet=True).path
    cache = next((tmp_path / "features").iterdir())
    assert sum(1 for _ in cache.glob("shard-*")) == 1
    # Found again, and not computed again.
    monkeypatch.setattr(
        "palate.store.cache.save", lambda *_: pytest.fail("features were computed twice")
    )
    again = reward(recipe(tmp_path, out="again", **settings), quiet=True).path
    monkeypatch.undo()
    monkeypatch.setattr("palate.report.write_report", lambda runs: runs[0] / "report.html")
    one, other = weights(a), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    # With the backbone run in every step instead.
    import palate.train.reward_run as module

    class Live:
        def __init__(self, model: Any, items: Any, **_: Any) -> None:
            self.model = model

        def fill(self, **_: Any) -> None: ...

        def index(self) -> None: ...

        def collate(self, items: Any) -> Any:
            return collate(items, layout="plain", pad_id=0, keep_last=True)

    monkeypatch.setattr(module, "FeatureTable", Live)
    live = reward(recipe(tmp_path, out="live", **settings), quiet=True).path
    assert_close(a, live)
    loaded = load_reward_model(a / "model")
    assert loaded.spec.head.layers == 2


def test_ranked_lists_ties_and_votes(tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        answers = [" ".join(WORDS[3 * k + i % 3 :][: 1 + i % 2]) for k in range(3)]
        completions = [
            {"response": text, "overall_score": [5.0, 3.0, 3.0 if i % 2 else 1.0][k]}
            for k, text in enumerate(answers)
        ]
        rows.append({"instruction": f"{i}: ", "completions": completions})
    write_rows(tmp_path / "lists.jsonl", rows)
    data = {"train": [{"path": str(tmp_path / "lists.jsonl")}], "eval_fraction": 0.25}
    run = reward(
        recipe(tmp_path, data=data, loss={"type": "plackett_luce"}, train={"epochs": 8.0}),
        quiet=True,
    ).path
    document = json.loads((run / "data.json").read_text())
    assert document["train"]["lists"] == 9
    log = log_of(run)
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["accuracy"] > 0.8
    (entry,) = json.loads((run / "evaluation.json").read_text())["policies"]
    # Three lists, of three comparisons or, with a tie, of two.
    assert 6 <= entry["preference"]["all"]["n"] <= 9
    check_errors(run, lists=3)
    ties = {**data, "pairing": {"ties": "as_ties", "chosen": "every", "rejected": "every"}}
    run = reward(
        recipe(tmp_path, out="ties", data=ties, loss={"type": "rao_kupper"}), quiet=True
    ).path
    assert json.loads((run / "data.json").read_text())["train"]["pairs"] == 27
    assert log_of(run)[0]["loss"] > 0


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    for more, words in (
        ({"backbone": "frozen", "lora": {"r": 4}}, "backbone"),
        ({"backbone": "frozen", "pooling": "attention"}, "attention needs every state"),
        ({"features_dir": "x"}, "only with `backbone: frozen`"),
        ({"loss": {"type": "plackett_luce"}, "regularise": {"centring": 0.1}}, "of pairs"),
        ({"head": {"width": 5}}, "no hidden layer"),
        ({"data": {"train": [{"path": "x"}], "length": {"response": "keep_start"}}}, "response"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe(tmp_path, **more)


def test_a_last_step_that_blows_the_weights_up_is_one_line(tmp_path: Path) -> None:
    train = {"learning_rate": 1e36, "max_steps": 1}
    found = recipe(tmp_path, train=train, backbone="frozen", head={"layers": 2})
    data = found.data.model_copy(update={"eval": ()})
    with pytest.raises(RunError, match=r"rewards are not finite; lower train\.learning_rate"):
        reward(found.model_copy(update={"data": data}))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("name", sorted(shipped_recipes("reward")))
def test_shipped_recipes_load(name: str) -> None:
    loaded = load_recipe(RewardRecipe, name)
    assert resolve_yaml(loaded).startswith("# palate reward\n")
