"""`palate judge` as a user meets it: pipelines, accounts, resuming, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import palate.train.judge.run as module
from palate.cli import app
from palate.errors import DataError, ModelError, RecipeError, RunError
from palate.evaluate.reward import score_files
from palate.models.loading import load_tokenizer
from palate.recipes import ScoreRecipe, ServeRecipe, load_recipe, resolve_yaml, shipped_recipes
from palate.recipes.judge import JudgeRecipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.schema import ModelRecipe
from palate.recipes.scorers import LocalChat
from palate.recipes.yaml import parse_yaml
from palate.rewards.build import make_scorer
from palate.rewards.chat import open_chat
from palate.rewards.questions import opened
from palate.store.folders import lock_folder
from palate.train.judge import train_judge
from palate.train.judge.prepare import ALL_RIGHT, ALL_WRONG, NONE_READ, Prepared
from palate.train.judge.stages import check_template
from palate.train.loop import Loop
from scored import values
from tiny_judge import BAD, FAST, GOOD, FakeWriter, judge_document, save_judge, write_toy
from tiny_runs import lines, read, write_rows

INSTRUCTIONS = "Good is right."
THOUGHT = "<think>because</think><answer>{}</answer>"


def recipe(folder: Path, *, out: str = "run", n: int = 32, **more: Any) -> JudgeRecipe:
    """Over the tiny judge and n toy pairs, made in `folder` on first use."""
    document = judge_document(
        folder,
        out=out,
        n=n,
        answer_tokens=16,
        columns={"why": lambda i: "because" if i % 4 else None},
        held_columns={"why": lambda i: "because"},
    )
    document["judge"] = {"type": "pairwise", "instructions": INSTRUCTIONS}
    document["sft"] = FAST | {"max_steps": 2}
    for key, value in more.items():
        own = document.get(key)
        document[key] = own | value if isinstance(own, dict) and isinstance(value, dict) else value
    return JudgeRecipe.model_validate(document)


def rated(path: Path, n: int = 24) -> Path:
    rows = [
        {
            "id": str(i),
            "prompt": f"{i % 10}?",
            "completions": [
                {"text": f"{GOOD} sun", "rating": 5, "why": "praise"},
                {"text": f"{BAD} sea", "rating": 1, "why": "blame"},
                {"text": "sky sky", "rating": None},
            ],
        }
        for i in range(n)
    ]
    return write_rows(path, rows)


def said(row: Any, key: str = "completion") -> str:
    (turn,) = row[key]
    return str(turn["content"])


def right_one(text: str) -> str:
    """The place of the good response in a question."""
    first = re.search(r"\[Response 1\]\n(\w+)", text)
    assert first is not None
    return "1" if first[1] == GOOD else "2"


def reconciles(account: dict[str, Any]) -> None:
    for stage in account["stages"].values():
        for split in ("train", "eval"):
            own = stage[split]
            assert own["questions"] == own["written"] + sum(own["dropped"].values())


def same_files(a: Path, b: Path) -> None:
    """Weights, question files and results of two runs are equal, bit for bit."""
    kinds = ("**/model/*.safetensors", "**/merged/*.safetensors", "questions/**/*.json*")
    for kind in kinds:
        names = sorted(path.relative_to(a) for path in a.glob(kind))
        assert names == sorted(path.relative_to(b) for path in b.glob(kind))
        for name in names:
            if name.suffix == ".safetensors":
                one, other = load_file(a / name), load_file(b / name)
                assert all(torch.equal(one[k], other[k]) for k in one), name
            else:
                assert (a / name).read_bytes() == (b / name).read_bytes(), name
    one, other = read(a / "evaluation.json")["stages"], read(b / "evaluation.json")["stages"]
    assert [e | {"model": None} for e in one] == [e | {"model": None} for e in other]


def test_a_bare_judge_learns_a_rule_with_report(tmp_path: Path) -> None:
    own = recipe(tmp_path, n=128, sft=FAST | {"max_steps": 45})
    result = train_judge(own, quiet=True)
    base, trained = result.evaluation
    assert (base["stage"], trained["stage"]) == ("base", "1-sft")
    assert base["verdicts"]["accuracy"] < 0.8
    assert trained["verdicts"]["accuracy"] > 0.9 and trained["pairs"]["accuracy"] > 0.9
    low, high = trained["verdicts"]["accuracy_ci"]
    assert low < trained["verdicts"]["accuracy"] <= high
    assert trained["swap"]["n"] == 6 and trained["swap"]["agreement"] > 0.9
    account = read(result.path / "data.json")
    assert account["stages"]["1-sft"]["train"]["verdicts"] == {"1": 64, "2": 64}
    reconciles(account)
    for row in lines(result.path / "questions/1-sft/train.jsonl"):
        assert said(row) == f"<answer>{right_one(said(row, 'prompt'))}</answer>"
    assert (result.path / "report.html").is_file()
    assert (result.path / "1-sft/report.html").is_file()
    assert "single verdicts right" in (result.path / "report.html").read_text()
    # As its comment says, what is below `scorer:` is a model to evaluate ...
    text = result.scorer.read_text()
    assert "What is below `scorer:` is an entry of `models`" in text
    entry = text.partition("scorer:\n")[2].replace("  ", "- ", 1)
    evaluation = tmp_path / "evaluation.yaml"
    benchmarks = "benchmarks: [{type: pairs, data: [{path: held.jsonl}]}]"
    evaluation.write_text(f"output_dir: out\n{benchmarks}\nmodels:\n{entry}")
    (model,) = load_recipe(RewardEvalRecipe, evaluation).models
    assert model == load_recipe(ServeRecipe, result.scorer).scorer
    # ... and the file serves as it is, and scores files with a source added.
    assert load_recipe(ServeRecipe, result.scorer).scorer.type == "pairwise"
    data = json.dumps([{"path": str(own.data.eval[0].path)}])
    more = [f"data={data}", f"output_dir={tmp_path / 'scores'}"]
    score_files(load_recipe(ScoreRecipe, result.scorer, more))
    scores = [line["score"] for line in lines(tmp_path / "scores/scores.jsonl")]
    assert len(scores) == 12 and all(a > b for a, b in zip(scores[::2], scores[1::2], strict=True))


def test_a_judge_is_asked_in_the_tokens_that_it_was_trained_on(tmp_path: Path) -> None:
    own = recipe(tmp_path)
    result = train_judge(own, quiet=True)
    scorer = load_recipe(ServeRecipe, result.scorer).scorer
    assert scorer.method == "logits"  # type: ignore[union-attr]
    row = lines(result.path / "questions/1-sft/train.jsonl")[0]
    from palate.data.encode import Encoder

    encoder = Encoder(load_tokenizer(own.model), "plain")
    from palate.data.schema import Preference, Response

    item: Any = encoder.encode_row(
        Preference(
            id="",
            source="",
            kind="demonstration",
            prompt=row["prompt"],
            responses=(Response(content=row["completion"]),),
        )
    )
    trained: Any = open_chat(scorer.chat)  # type: ignore[union-attr]
    assert trained._ids(row["prompt"]).ids == item.prompts[0].ids
    (question, answer), tails = trained._with_options(opened(row["prompt"]), ["1", "2"])
    begun = (*question.ids, *answer)
    verdict = trained.tokenizer(said(row)[len("<answer>")], add_special_tokens=False)["input_ids"]
    whole = (*item.prompts[0].ids, *item.responses[0].ids)
    assert (*begun, *verdict) == whole[: len(begun) + len(verdict)]
    assert tuple(verdict) in tails
    assert item.responses[0].ids[-1] in trained._ends()
    # The starting model, too, is asked behind its BOS.
    base: Any = open_chat(LocalChat(path=own.model.path, dtype="float32", chat_template="plain"))
    assert base._ids(row["prompt"]).ids == item.prompts[0].ids


def test_questions_with_special_tokens_are_not_asked(tmp_path: Path) -> None:
    save_judge(tmp_path / "tiny")
    chat = open_chat(LocalChat(path=str(tmp_path / "tiny"), chat_template="plain"))
    asked = [[{"role": "user", "content": "sun <eos> sun"}], [{"role": "user", "content": "sun"}]]
    found = chat.reply(asked, samples=2, max_new_tokens=2)  # type: ignore[arg-type]
    assert [reply.text for reply in found[0]] == ["", ""] and len(found[1]) == 2
    begun = [opened(question) for question in asked]  # type: ignore[arg-type]
    nothing, some = chat.choose(begun, ["1", "2"])
    assert nothing is None and some is not None


def test_pointwise_learns_ratings(tmp_path: Path) -> None:
    data = {
        "train": [{"path": str(rated(tmp_path / "rated.jsonl", 40))}],
        "eval": [{"path": str(rated(tmp_path / "held_rated.jsonl", 5))}],
    }
    judge = {"type": "pointwise", "best": 3, "instructions": INSTRUCTIONS}
    own = recipe(tmp_path, judge=judge, data=data, sft=FAST | {"max_steps": 60})
    result = train_judge(own, quiet=True)
    account = read(result.path / "data.json")
    assert account["scale"] == {"cut_points": [2.0, 4.0], "lowest": 1.0, "highest": 5.0}
    assert account["sources"][0]["items"] == 80
    assert account["stages"]["1-sft"]["train"]["verdicts"] == {"1": 40, "3": 40}
    reconciles(account)
    _, trained = result.evaluation
    assert trained["verdicts"]["accuracy"] > 0.9 and trained["pairs"]["accuracy"] == 1.0
    assert trained["error"] < 0.5
    scorer = make_scorer(load_recipe(ServeRecipe, result.scorer).scorer)
    ((high, low),) = values(scorer, ["3?"], [[f"{GOOD} sun", f"{BAD} sea"]])
    assert high > low


def test_no_reasoning_is_trained_on_that_the_judge_could_not_end(tmp_path: Path) -> None:
    document = judge_document(
        tmp_path,
        out="run",
        n=8,
        answer_tokens=11,
        columns={"why": lambda i: "because because" if i % 4 == 0 else "because"},
    )
    document |= {
        "judge": {"type": "pairwise", "reasoning": True},
        "texts": {"type": "column", "column": "why"},
        "sft": FAST | {"max_steps": 1},
        "evaluate_after": "last",
    }
    result = train_judge(JudgeRecipe.model_validate(document), quiet=True)
    # The space after the role, <think> \n because \n </think> \n <answer> 1 </answer> <eos>.
    (source,) = [
        own
        for own in read(result.path / "1-sft/data.json")["sources"]
        if own["split_role"] == "train"
    ]
    assert source["dropped"] == {"response longer than max_response_tokens": 2}
    assert source["kept"] == 6


def test_reasoning_from_a_column(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        judge={"reasoning": True},
        texts={"type": "column", "column": "why"},
        evaluate_after="last",
    )
    result = train_judge(own, quiet=True)
    account = read(result.path / "data.json")
    assert account["sources"][0]["dropped"] == {"no text in its column: why": 8}
    assert account["stages"]["1-sft"]["train"]["written"] == 24
    reconciles(account)
    row = lines(result.path / "questions/1-sft/train.jsonl")[0]
    verdict = right_one(said(row, "prompt"))
    assert said(row) == f"<think>\nbecause\n</think>\n<answer>{verdict}</answer>"
    (entry,) = result.evaluation
    assert entry["stage"] == "1-sft" and entry["verdicts"]["n"] == 12
    scorer = parse_yaml(result.scorer.read_text(), "test")["scorer"]
    assert (scorer["method"], scorer["reasoning"]) == ("sampled", True)


def test_a_writer_whose_verdicts_are_checked_then_preference_on_policy(tmp_path: Path) -> None:
    """Reasoning of a fake writer, wrong at first on some questions and always on others.

    The better response has an odd sum of digits: the tiny judge learns to answer, not to be right.
    """
    sums = {n: sum(map(int, str(n))) % 2 for n in range(100, 300)}
    sides = [[n for n in sums if sums[n] == parity] for parity in (1, 0)]

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "id": str(i),
            "prompt": turn("user", f"{i}?"),
            "chosen": turn("assistant", f"sun {sides[0][i]}"),
            "rejected": turn("assistant", f"sun {sides[1][i]}"),
        }
        for i in range(70)
    ]
    write_rows(tmp_path / "odd.jsonl", rows[:64])
    write_rows(tmp_path / "held_odd.jsonl", rows[64:])

    def right_one(text: str) -> str:
        found = re.search(r"\[Response 1\]\nsun (\d+)", text)
        assert found is not None
        return "1" if sums[int(found[1])] else "2"

    def say(text: str, number: int) -> str:
        right = right_one(text)
        wrong = "2" if right == "1" else "1"
        if "7?" in text or (number == 0 and "3?" in text):
            return THOUGHT.format(wrong)
        return THOUGHT.format(right)

    own = recipe(
        tmp_path,
        data={
            "train": [{"path": str(tmp_path / "odd.jsonl")}],
            "eval": [{"path": str(tmp_path / "held_odd.jsonl")}],
        },
        judge={"reasoning": True},
        texts={"type": "chat", "attempts": 2, "temperature": 1.0},
        sft=FAST | {"max_steps": 20},
        preference={
            "rounds": 2,
            "samples": 6,
            "temperature": 1.0,
            "questions": 24,
            "train": FAST | {"max_steps": 2, "learning_rate": 1e-4},
        },
    )
    writer = FakeWriter(say)
    result = train_judge(own, quiet=True, writer=writer)
    assert [call["n"] for call in writer.calls] == [64, 13, 6, 1]
    account = read(result.path / "data.json")
    reconciles(account)
    own_sft = account["stages"]["1-sft"]["train"]
    assert own_sft["dropped"] == {"no reply with the right verdict": 6}
    assert own_sft["replies_refused"] == {"wrong verdict": 7 + 6 + 6}
    assert [e["stage"] for e in result.evaluation] == [
        "base", "1-sft", "2-preference-1", "3-preference-2",
    ]  # fmt: skip
    for name, before in (("2-preference-1", "1-sft"), ("3-preference-2", "2-preference-1")):
        counts = account["stages"][name]["train"]
        assert counts["questions"] == 24 and counts["not_selected"] == 40
        assert sum(counts["replies"].values()) == 24 * 6 and counts["written"] > 0
        for row in lines(result.path / f"questions/{name}/train.jsonl"):
            right = right_one(said(row, "prompt"))
            assert said(row, "chosen").endswith(f"<answer>{right}</answer>")
            assert said(row, "rejected").endswith("</answer>")
            assert not said(row, "rejected").endswith(f"<answer>{right}</answer>")
        # Each round goes on from the last model.
        stage = parse_yaml((result.path / name / "recipe.yaml").read_text(), "test")
        assert stage["model"]["path"] == str(result.path / before / "model")
    ids = [
        {row["id"] for row in lines(result.path / f"questions/{name}/train.jsonl")}
        for name in ("2-preference-1", "3-preference-2")
    ]
    assert ids[0] != ids[1]


def test_bare_verdicts_as_pairs_with_adapters(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        n=64,
        model={"lora": {"r": 4}},
        judge={"ties": True, "orders": "both"},
        sft=None,
        preference={"loss": {"type": "ipo_mean"}, "train": FAST | {"max_steps": 2}},
    )
    result = train_judge(own, quiet=True)
    account = read(result.path / "data.json")
    reconciles(account)
    assert account["stages"]["1-preference-1"]["train"]["written"] == 128
    for row in lines(result.path / "questions/1-preference-1/train.jsonl"):
        right = right_one(said(row, "prompt"))
        assert said(row, "chosen") == f"<answer>{right}</answer>"
        assert said(row, "rejected") != said(row, "chosen")
    # The judge is the merged model, which needs no adapter.
    merged = result.path / "1-preference-1/merged"
    assert parse_yaml(result.scorer.read_text(), "test")["scorer"]["chat"]["path"] == str(merged)
    assert not list(merged.glob("adapter*"))
    for own in (merged, merged.with_name("model")):
        names = read(own / "tokenizer_config.json")
        assert names["tokenizer_class"] == "PreTrainedTokenizerFast" and not names["add_bos_token"]
    assert read(result.path / "1-preference-1/evaluation.json")["policies"]


@pytest.mark.parametrize(
    ("dropped", "left_out"),
    [
        ({ALL_RIGHT: 3}, True),
        ({ALL_RIGHT: 3, ALL_WRONG: 1}, True),
        ({ALL_WRONG: 4}, False),
        ({ALL_RIGHT: 3, NONE_READ: 1}, False),
    ],
)
def test_a_round_with_nothing_to_tell_apart_is_left_out(
    dropped: dict[str, int], left_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"questions": 4, "written": 0, "dropped": dropped}
    monkeypatch.setattr(
        module.QuestionWriter,
        "preference",
        lambda *_: Prepared(train=(), eval=(), account={"train": account, "eval": account}),
    )
    own = recipe(
        tmp_path,
        judge={"reasoning": True},
        texts={"type": "column", "column": "why"},
        preference={"rounds": 3, "train": FAST},
        evaluate_after="last",
    )
    if not left_out:
        with pytest.raises(DataError, match="2-preference-1: no question is left to train on"):
            train_judge(own, quiet=True)
        return
    result = train_judge(own, quiet=True)
    scorer = parse_yaml(result.scorer.read_text(), "test")["scorer"]
    assert scorer["chat"]["path"] == str(result.path / "1-sft/model")
    said = read(result.path / "conclusion.json")["lines"]
    assert any("2-preference-1: left out" in line and f"({3})" in line for line in said)


class Stopped(BaseException):
    pass


def stops(monkeypatch: pytest.MonkeyPatch, where: str, after: int) -> None:
    """Makes the run stop at the call number `after` of what is at `where`."""
    owner: Any
    if where == "training":
        owner, name = Loop, "train_step"
    elif where == "writing questions":
        owner, name = module.QuestionWriter, "_stage"
    elif where == "merging":
        owner, name = module, "trained_model"
    else:
        owner, name = module, where
    whole: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def stopping(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Stopped
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopping)


STOPPABLE: dict[str, Any] = {
    "model": {"lora": {"r": 4, "dropout": 0.2}},
    "sft": FAST | {"max_steps": 3, "save_every_steps": 1},
    "preference": {"train": FAST | {"max_steps": 3, "learning_rate": 1e-4}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return train_judge(recipe(folder, **STOPPABLE), quiet=True).path


@pytest.mark.parametrize(
    ("where", "after"),
    [
        ("writing questions", 1),
        ("training", 2),
        ("merging", 1),
        ("writing questions", 2),
        ("training", 5),
        ("measure_pairwise", 2),
        ("judge_yaml", 1),
    ],
)
def test_stopped_anywhere_it_ends_the_same(
    where: str, after: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stops(patch, where, after)
        train_judge(recipe(tmp_path, **STOPPABLE), quiet=True)
    again = train_judge(recipe(tmp_path, resume=True, **STOPPABLE), quiet=True)
    same_files(whole, again.path)
    assert read(again.path / "status.json")["state"] == "finished"
    # And a finished one is left alone.
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_rows", lambda *_: pytest.fail("read again"))
        train_judge(recipe(tmp_path, resume=True, **STOPPABLE), quiet=True)


def test_a_writer_is_not_asked_twice_after_a_stop(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "n": 100,
        "judge": {"reasoning": True},
        "texts": {"type": "chat"},
        "sft": FAST | {"max_steps": 1},
        "evaluate_after": "last",
    }
    whole = train_judge(
        recipe(tmp_path, out="whole", **settings),
        quiet=True,
        writer=FakeWriter(lambda text, _: THOUGHT.format(right_one(text))),
    )

    def dies(text: str, number: int) -> str:
        if len(first.attempt) > 80:
            raise Stopped
        return THOUGHT.format(right_one(text))

    first = FakeWriter(dies)
    with pytest.raises(Stopped):
        train_judge(recipe(tmp_path, **settings), quiet=True, writer=first)
    second = FakeWriter(lambda text, _: THOUGHT.format(right_one(text)))
    result = train_judge(recipe(tmp_path, resume=True, **settings), quiet=True, writer=second)
    # 64 of 100 were answered and kept, and then there are the six held-out ones.
    assert [call["n"] for call in second.calls] == [36, 6]
    same_files(whole.path, result.path)


def test_a_used_folder_other_recipes_and_other_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stops(patch, "training", 1)
        train_judge(recipe(tmp_path), quiet=True)
    with pytest.raises(RunError, match="holds a run already; set `resume: true`"):
        train_judge(recipe(tmp_path), quiet=True)
    with (
        lock_folder(tmp_path / "run"),
        pytest.raises(RunError, match="another process writes to it"),
    ):
        train_judge(recipe(tmp_path, resume=True), quiet=True)
    with pytest.raises(RunError, match=r"judge.orders: balanced then, both now"):
        train_judge(recipe(tmp_path, resume=True, judge={"orders": "both"}), quiet=True)
    rows = tmp_path / "rows32.jsonl"
    kept = rows.read_text()
    write_toy(rows, 31)
    with pytest.raises(RunError, match="the data changed since the run began"):
        train_judge(recipe(tmp_path, resume=True), quiet=True)
    rows.write_text(kept)
    train_judge(recipe(tmp_path, resume=True), quiet=True)


def test_rows_that_give_no_question_are_counted(tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "1?"}]
    answers = [[{"role": "assistant", "content": text}] for text in (f"{GOOD} sun", f"{BAD} sea")]
    row = {
        "prompt": turn, "chosen": answers[0], "rejected": answers[1], "source": "s", "tie": False,
    }  # fmt: skip
    rows = [row | {"id": str(i), "tie": i == 1} for i in range(8)]
    path = write_rows(tmp_path / "mixed.jsonl", rows)
    data = {"train": [{"path": str(path)}], "eval": [], "eval_fraction": 0.5}
    with pytest.raises(RecipeError, match="leaves none to train on"):
        train_judge(recipe(tmp_path, data=data), quiet=True)
    data = {"train": [{"path": str(path)}], "eval": []}
    result = train_judge(recipe(tmp_path, data=data), quiet=True)
    source = read(result.path / "data.json")["sources"][0]
    assert source["read"] == 8 and source["kept"] == 7
    assert source["dropped"] == {"a tie: neither response is preferred": 1}
    assert result.evaluation == []
    assert read(result.path / "conclusion.json")["lines"][0].startswith("nothing was held out")
    tied = train_judge(recipe(tmp_path, out="ties", data=data, judge={"ties": True}), quiet=True)
    labels = read(tied.path / "data.json")["stages"]["1-sft"]["train"]["verdicts"]
    assert labels["tie"] == 1 and sum(labels.values()) == 8


def test_held_out_rows_are_drawn_and_prompts_in_both_are_counted(tmp_path: Path) -> None:
    data = {"eval": [{"path": str(tmp_path / "rows32.jsonl"), "limit": 6}], "max_eval_rows": 4}
    result = train_judge(recipe(tmp_path, data=data), quiet=True)
    held = read(result.path / "data.json")["eval"]
    assert held == {"items": 4, "not_selected": 2, "prompts_in_train": 4}
    assert result.evaluation[0]["pairs"]["n"] == 4
    fraction = {"eval": [], "eval_fraction": 0.3}
    result = train_judge(recipe(tmp_path, out="fraction", data=fraction), quiet=True)
    account = read(result.path / "data.json")
    assert account["eval"]["prompts_in_train"] == 0
    assert account["train"]["items"] + account["eval"]["items"] == 32


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"judge": {"reasoning": True}}, "`texts`: says where the reasoning"),
        ({"texts": {"type": "column", "column": "why"}}, "bare verdicts are made of the labels"),
        ({"texts": {"type": "column"}}, "give either `column`"),
        (
            {"judge": {"reasoning": True}, "texts": {"type": "chat", "attempts": 2}},
            "all alike at temperature 0",
        ),
        (
            {"judge": {"reasoning": True},
             "texts": {"type": "column", "chosen": "a", "rejected": "b"}},
            "is for critiques",
        ),
        ({"sft": None}, "nothing to train"),
        ({"preference": {"rounds": 2}}, "bare verdicts are not sampled"),
        ({"preference": {"samples": 4}}, "bare verdicts are not sampled"),
        ({"preference": {"loss": {"type": "simpo"}, "reference": {}}}, "simpo has no reference"),
        ({"reward": {}}, "is a critic's"),
        ({"judge": {"instructions": ""}}, "at least 1 character"),
        ({"judge": {"type": "critic", "instructions": None}}, "instructions"),
        ({"model": {"trust_remote_code": True}}, "no code"),
        ({"data": {"pairing": {"ties": "as_ties"}}}, "needs `judge.ties`"),
        ({"data": {"eval_fraction": 0.5}}, "only without `eval`"),
        ({"data": {"eval": []}, "evaluate_after": "last"}, "nothing is held out"),
        ({"data": {"eval": []}, "sft": {"eval_every_steps": 1}}, "needs `data.eval`"),
        ({"data": {"eval": [], "max_eval_rows": 3}}, "nothing is held out"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(
    more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        recipe(tmp_path, **more)


def test_null_in_a_file_leaves_a_stage_out(tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text(
        "output_dir: o\nmodel: {path: m}\njudge: {type: pairwise}\n"
        "data: {train: [{path: x}]}\nsft: null\npreference: {}\n"
    )
    loaded = load_recipe(JudgeRecipe, file)
    assert loaded.sft is None and loaded.preference is not None
    written = tmp_path / "again.yaml"
    written.write_text(resolve_yaml(loaded))
    assert load_recipe(JudgeRecipe, written) == loaded
    assert load_recipe(JudgeRecipe, file, ["sft.max_steps=3"]).sft is not None
    with pytest.raises(RecipeError, match="`sft`: nothing to train"):
        load_recipe(JudgeRecipe, file, ["preference=null"])


def test_pointwise_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    base = {"output_dir": "o", "model": {"path": "m"}, "data": {"train": [{"path": "x"}]}}
    for judge, pairing, words in (
        ({"lowest": 1.0, "scale": "quantile"}, None, "only with `scale: linear`"),
        ({"lowest": 2.0, "highest": 1.0}, None, "not above"),
        ({}, {"chosen": "every"}, "delete chosen"),
        ({}, {"score": "rank"}, "no rating on a scale"),
    ):
        document = base | {"judge": {"type": "pointwise"} | judge}
        document = document | {"data": {"train": [{"path": "x"}], "pairing": pairing}}
        with pytest.raises(ValueError, match=words):
            JudgeRecipe.model_validate(document)


def test_data_without_what_is_asked_of_it_is_one_line(tmp_path: Path) -> None:
    pairs = str(recipe(tmp_path).data.train[0].path)
    for number, (more, error, words) in enumerate(
        (
            (
                {"judge": {"type": "pointwise"}},
                DataError,
                r"nothing usable is left of the train data \(rows32\): responses without a rating",
            ),
            (
                {"data": {"train": [{"path": str(rated(tmp_path / "r.jsonl"))}]}},
                RecipeError,
                "'r' holds ratings, not pairs",
            ),
            (
                {"judge": {"reasoning": True}, "texts": {"type": "column", "column": "missing"}},
                DataError,
                "no text in its column: missing",
            ),
            ({"data": {"pairing": {}}}, RecipeError, "no source holds ratings"),
            ({"data": {"length": {"max_question_tokens": 9}}}, DataError, "longer than"),
            ({"model": {"chat_template": "model"}}, ModelError, "has no chat template"),
            ({"data": {"train": [{"path": f"{pairs}.no"}]}}, DataError, "no such|not"),
        )
    ):
        with pytest.raises(error, match=words) as found:
            train_judge(recipe(tmp_path, out=f"bad{number}", **more), quiet=True)
        assert len(str(found.value).splitlines()) == 1


def test_one_text_a_row_is_of_one_pair(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"{i}?",
            "why": "because",
            "completions": [
                {"text": f"{word} sun", "rating": rating}
                for word, rating in ((GOOD, 5), ("sky", 3), (BAD, 1))
            ],
        }
        for i in range(4)
    ]
    path = write_rows(tmp_path / "rated.jsonl", rows)
    own: dict[str, Any] = {
        "judge": {"reasoning": True},
        "texts": {"type": "column", "column": "why"},
        "evaluate_after": "each",
    }
    data = {"train": [{"path": str(path)}], "eval": []}
    every = data | {"pairing": {"chosen": "every", "rejected": "every"}}
    with pytest.raises(RecipeError, match=r"one text a row.*several pairs of row 1") as found:
        train_judge(recipe(tmp_path, out="every", data=every, **own), quiet=True)
    assert len(str(found.value).splitlines()) == 1
    one = data | {"pairing": {"rejected": "worst"}}
    train_judge(recipe(tmp_path, data=one, **own), quiet=True)


def test_the_scorer_recipe_works_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Names of templates are not those of files that happen to be there.
    (tmp_path / "model").mkdir()
    own = recipe(Path(), sft=None, preference={"train": FAST | {"max_steps": 1}})
    result = train_judge(own, quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written = parse_yaml((tmp_path / result.scorer).read_text(), "test")["scorer"]["chat"]
    assert written["chat_template"] == "model"
    scorer = make_scorer(load_recipe(ServeRecipe, tmp_path / result.scorer).scorer)
    assert len(values(scorer, ["1?"], [["sun", "sea"]])[0]) == 2


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="one process"):
        train_judge(recipe(tmp_path), quiet=True)


def test_a_template_that_training_cannot_use_is_found_first(tmp_path: Path) -> None:
    save_judge(tmp_path / "tiny")
    bad = tmp_path / "bad.jinja"
    bad.write_text("{{ raise_exception('no') }}")
    with pytest.raises(ModelError):
        check_template(ModelRecipe(path=str(tmp_path / "tiny"), chat_template=bad))


@pytest.mark.parametrize("name", sorted(shipped_recipes("judge")))
def test_shipped_recipes_load(name: str) -> None:
    loaded = load_recipe(JudgeRecipe, name)
    assert resolve_yaml(loaded).startswith("# palate judge\n")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    file = tmp_path / "judge.yaml"
    file.write_text(resolve_yaml(recipe(tmp_path)))
    shown = CliRunner().invoke(app, ["judge", "--help"])
    for key in ("judge.type: pairwise", "judge-pairwise-small", "preference.rounds"):
        assert key in shown.output
    printed = CliRunner().invoke(app, ["judge", str(file), "--print-recipe"])
    (tmp_path / "again.yaml").write_text(printed.stdout)
    assert load_recipe(JudgeRecipe, tmp_path / "again.yaml") == load_recipe(JudgeRecipe, file)
    done = CliRunner().invoke(app, ["judge", str(file)])
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'run'}\n"
    wrong = CliRunner().invoke(app, ["judge", str(file), "--set", "judge.type=judge"])
    assert wrong.exit_code == 2
