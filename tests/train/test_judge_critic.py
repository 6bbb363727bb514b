"""Critics: both training stages, the exact tokens that are scored in use, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import palate.train.judge.run as module
from palate.data.build import build
from palate.data.encode import Encoder
from palate.errors import DataError, RecipeError
from palate.models.loading import load_tokenizer
from palate.recipes import RewardRecipe, ServeRecipe, load_recipe
from palate.recipes.judge import JudgeRecipe
from palate.recipes.schema import DataSource
from palate.recipes.yaml import parse_yaml
from palate.rewards.build import make_scorer
from palate.rewards.model import ModelScorer
from palate.rewards.questions import critique_question
from palate.train import reward
from palate.train.judge import JudgeResult, train_judge
from scored import flat_values
from tiny_judge import BAD, FAST, GOOD, FakeWriter, judge_document, save_judge
from tiny_runs import lines, read, write_rows

COLUMNS = {"type": "column", "chosen": "for", "rejected": "against"}


def recipe(folder: Path, *, out: str = "run", n: int = 32, **more: Any) -> JudgeRecipe:
    """Over the tiny model and n toy pairs with critiques, made in `folder` on first use."""
    words = {"for": lambda i: "right praise", "against": lambda i: "wrong blame"}
    document = judge_document(folder, out=out, n=n, answer_tokens=12, columns=words) | {
        "judge": {"type": "critic"},
        "texts": COLUMNS,
        "sft": FAST | {"max_steps": 2},
        "reward": {"critiques": "gold", "train": FAST | {"max_steps": 2}},
    }
    return JudgeRecipe.model_validate(document | more)


def test_a_critic_learns_a_rule_and_scores(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        n=64,
        sft=FAST | {"max_steps": 40},
        reward={"critiques": "self", "train": FAST | {"max_steps": 20, "learning_rate": 1e-3}},
    )
    result = train_judge(own, quiet=True)
    account = read(result.path / "data.json")
    assert account["stages"]["1-sft"]["train"]["written"] == 128
    assert account["stages"]["2-reward"]["train"] == {
        "questions": 64,
        "written": 64,
        "dropped": {},
        "replies_refused": {},
    }
    rows = lines(result.path / "questions/2-reward/train.jsonl")
    said = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
    assert said == {("right praise", "wrong blame")}
    (entry,) = result.evaluation
    assert entry["stage"] == "2-reward" and entry["pairs"]["accuracy"] == 1.0
    assert entry["critiques"] == {"n": 12, "cut": 0, "empty": 0, "unasked": 0}
    scorer = make_scorer(load_recipe(ServeRecipe, result.scorer).scorer)
    high, low = flat_values(scorer, ["3?", "3?"], [f"{GOOD} sun", f"{BAD} sun"])
    assert high > low
    held = read(result.path / "2-reward/evaluation.json")["policies"][0]["preference"]
    assert held["all"]["n"] == 6 and set(held) == {"all", "held"}


@pytest.mark.parametrize("layout", ["shared", "plain"])
def test_training_reads_exactly_the_tokens_that_are_scored_in_use(
    layout: str, tmp_path: Path
) -> None:
    own = recipe(
        tmp_path, reward={"critiques": "gold", "train": FAST | {"max_steps": 2, "layout": layout}}
    )
    result = train_judge(own, quiet=True)
    stage = load_recipe(RewardRecipe, result.path / "2-reward/recipe.yaml")
    assert read(result.path / "2-reward/lineage.json")["layout"]["used"] == layout
    encoder = Encoder(load_tokenizer(stage.model), stage.model.chat_template, stage.data.length)
    pairs = build(stage.data, encoder, kind="pair", seed=stage.seed)
    scorer = ModelScorer(str(result.path / "2-reward/model"))
    by_id = {item.id: item for item in (*pairs.train, *pairs.eval)}
    asked = [*lines(tmp_path / "rows32.jsonl"), *lines(tmp_path / "held.jsonl")]
    scores: dict[str, list[float]] = {}
    for row in asked:
        name = "rows32" if int(row["id"]) < 200 else "held"
        pair = by_id[f"{name}:{row['id']}"]
        assert pair.prompts[0] != pair.prompts[1]
        for side, critique, ids in zip(
            ("chosen", "rejected"), ("right praise", "wrong blame"), pair.sequences, strict=True
        ):
            # As `Critic.score` asks its reward model.
            question = critique_question(row["prompt"], row[side])
            assert scorer._encoded(question, [critique]) == [tuple(part.ids for part in ids)]
            scores.setdefault(pair.id, []).extend(flat_values(scorer, [question], [critique]))
    # And the rewards that the run measured at its end are those scores.
    held = read(result.path / "2-reward/evaluation.json")["policies"][0]
    margins = [scores[item.id][0] - scores[item.id][1] for item in pairs.eval]
    assert held["preference"]["all"]["margin"] == pytest.approx(
        sum(margins) / len(margins), abs=1e-4
    )


def test_critiques_by_a_writer_who_hears_the_label(tmp_path: Path) -> None:
    def say(text: str, number: int) -> str:
        if "5?" in text:
            return ""
        return (
            "praise" if "found it better" in text else "blame" if "found it worse" in text else "?"
        )

    own = recipe(tmp_path, texts={"type": "chat", "told_label": True})
    writer = FakeWriter(say)
    result = train_judge(own, quiet=True, writer=writer)
    account = read(result.path / "data.json")["stages"]
    # Nobody writes for the second stage again: it finds the critiques of the first.
    assert [call["n"] for call in writer.calls] == [64, 12]
    assert account["1-sft"]["train"]["dropped"] == {"a response without a critique": 6}
    assert account["1-sft"]["train"]["replies_refused"] == {"empty": 6}
    assert account["2-reward"]["train"]["dropped"] == {"a response without a critique": 3}
    for row in lines(result.path / "questions/1-sft/train.jsonl"):
        (turn,) = row["prompt"]
        assert "found it" not in turn["content"]
        better = f"\n{GOOD}" in turn["content"]
        assert row["completion"][0]["content"] == ("praise" if better else "blame")


def test_short_critiques_of_the_data_are_written_out_in_full(tmp_path: Path) -> None:
    def say(text: str, number: int) -> str:
        noted = text.partition("[Notes]\n")[2].partition("\n[End of notes]")[0]
        return {"right praise": "praise because right", "wrong blame": "blame"}.get(noted, "?")

    expands = {"chosen": "for", "rejected": "against"}
    own = recipe(tmp_path, texts={"type": "chat", "expands": expands})
    result = train_judge(own, quiet=True, writer=FakeWriter(say))
    for row in lines(result.path / "questions/1-sft/train.jsonl"):
        (turn,) = row["prompt"]
        assert "Notes" not in turn["content"]
        better = f"\n{GOOD}" in turn["content"]
        said = row["completion"][0]["content"]
        assert said == ("praise because right" if better else "blame")
    # Beside what the critic writes, the data's own critiques are measured.
    (entry,) = result.evaluation
    assert entry["pairs_given"]["n"] == entry["pairs"]["n"] == 6


def test_critiques_in_a_list_of_a_rated_row(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"{i}?",
            "completions": [
                {"text": f"{BAD} sea", "rating": 1, "critique": "blame"},
                {"text": f"{GOOD} sun", "rating": 5, "critique": "praise" if i else None},
            ],
        }
        for i in range(8)
    ]
    path = write_rows(tmp_path / "rated.jsonl", rows)
    data = {
        "train": [{"path": str(path)}],
        "pairing": {"rejected": "worst"},
        "length": {"max_answer_tokens": 12},
    }
    texts = {"type": "column", "column": "completions.critique"}
    result = train_judge(recipe(tmp_path, data=data, texts=texts), quiet=True)
    source = read(result.path / "data.json")["sources"][0]
    assert source["kept"] == 7
    assert source["dropped"] == {"no text in its column: completions.critique": 1}
    written = lines(result.path / "questions/2-reward/train.jsonl")
    assert {row["chosen"][0]["content"] for row in written} == {"praise"}
    with pytest.raises(RecipeError, match="lists a critique for each response"):
        train_judge(recipe(tmp_path, out="columns", data=data), quiet=True)


def test_ties_reach_the_reward_model_and_adapters_its_backbone(tmp_path: Path) -> None:
    turns = {
        "prompt": [{"role": "user", "content": "1?"}],
        "chosen": [{"role": "assistant", "content": f"{GOOD} sun"}],
        "rejected": [{"role": "assistant", "content": f"{BAD} sun"}],
        "source": "s", "for": "praise", "against": "blame",
    }  # fmt: skip
    rows = [turns | {"id": str(i), "tie": i == 0} for i in range(6)]
    path = write_rows(tmp_path / "ties.jsonl", rows)
    own = recipe(
        tmp_path,
        model={
            "path": str(save_judge(tmp_path / "tiny")),
            "dtype": "float32",
            "chat_template": "plain",
            "lora": {"r": 4},
        },
        data={
            "train": [{"path": str(path)}],
            "pairing": {"ties": "as_ties"},
            "length": {"max_answer_tokens": 12},
        },
        reward={
            "critiques": "gold",
            "loss": {"type": "rao_kupper"},
            "pooling": "mean",
            "train": FAST | {"max_steps": 2},
        },
    )
    result = train_judge(own, quiet=True)
    written = lines(result.path / "questions/2-reward/train.jsonl")
    assert sum(row["tie"] for row in written) == 1 and len(written) == 6
    stage = parse_yaml((result.path / "2-reward/recipe.yaml").read_text(), "test")
    assert stage["model"]["path"] == str(result.path / "1-sft/merged")
    assert (result.path / "2-reward/model/adapter_config.json").exists()
    scorer = make_scorer(load_recipe(ServeRecipe, result.scorer).scorer)
    assert len(flat_values(scorer, ["1?"], ["sun"])) == 1


def test_a_base_backbone_and_a_writing_base_model(tmp_path: Path) -> None:
    """Without the first stage the untrained model writes, and the reward model reads that."""
    own = recipe(
        tmp_path,
        texts=None,
        sft=None,
        reward={"critiques": "self", "start": "base", "train": FAST | {"max_steps": 1}},
    )
    result = train_judge(own, quiet=True)
    assert [path.name for path in sorted(result.path.glob("1-*"))] == ["1-reward"]
    scorer = parse_yaml(result.scorer.read_text(), "test")["scorer"]
    assert scorer["chat"]["path"] == own.model.path


STOPPABLE = {"reward": {"critiques": "self", "train": FAST | {"max_steps": 2}}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> JudgeResult:
    """A run that was never stopped."""
    return train_judge(recipe(tmp_path_factory.mktemp("whole"), **STOPPABLE), quiet=True)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_between_stages_it_ends_the_same(
    after: int, whole: JudgeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    class Stopped(BaseException):
        pass

    def stopping(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Stopped
        return run(*args, **kwargs)

    name = "run_stage" if after < 3 else "judge_yaml"
    run = getattr(module, name)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(module, name, stopping)
        if after == 3:
            calls = 2
        train_judge(recipe(tmp_path, **STOPPABLE), quiet=True)
    again = train_judge(recipe(tmp_path, resume=True, **STOPPABLE), quiet=True)
    for part in ("1-sft/model/model.safetensors", "2-reward/model/model.safetensors"):
        assert (whole.path / part).read_bytes() == (again.path / part).read_bytes()
    assert whole.evaluation[0]["pairs"] == again.evaluation[0]["pairs"]


def test_refusals(tmp_path: Path) -> None:
    for more, words in (
        ({"reward": None}, "a critic needs it"),
        ({"preference": {}}, "a critic gives no verdict"),
        ({"texts": None}, "says where the critiques"),
        ({"texts": {"type": "chat", "attempts": 2}}, "no verdict that could be wrong"),
        ({"texts": {"type": "column", "chosen": "a"}}, "give both or neither"),
        ({"evaluate_after": "last"}, "scores at the end alone"),
        (
            {"data": {"train": [{"path": "x"}], "pairing": {"ties": "as_ties"}}},
            "as_ties needs `reward.loss` rao_kupper or davidson",
        ),
        ({"sft": None, "reward": {"critiques": "self"}}, "nothing learns from them"),
        ({"texts": {"type": "chat", "expands": {"chosen": "for"}}}, "give both or neither"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe(tmp_path, **more)
    with pytest.raises(DataError, match="no text in its column: missing"):
        texts = {"type": "column", "chosen": "missing", "rejected": "against"}
        train_judge(recipe(tmp_path, texts=texts), quiet=True)


def test_sides_with_other_prompts_are_taken_by_training_on_pairs_alone(tmp_path: Path) -> None:
    from palate.evaluate.reward.pairs import Pairs

    result = train_judge(recipe(tmp_path), quiet=True)
    file = result.path / "questions/2-reward/train.jsonl"
    with pytest.raises(DataError, match="no pair to evaluate on"):
        Pairs().read([DataSource(path=str(file))], 0)
    stage = load_recipe(RewardRecipe, result.path / "2-reward/recipe.yaml")
    lists = stage.model_dump(mode="json") | {
        "loss": {"type": "plackett_luce"},
        "output_dir": str(tmp_path / "lists"),
        "resume": False,
    }
    with pytest.raises(DataError, match="a prompt of their own"):
        reward(RewardRecipe.model_validate(lists), quiet=True)
    assert torch.isfinite(torch.tensor(result.evaluation[0]["pairs"]["margin"]))
