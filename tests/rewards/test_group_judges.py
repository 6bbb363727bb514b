"""Judges of a whole group: some opponents, one ranking; rubrics; what a judge's answer is worth."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from palate.data.containers import open_records
from palate.data.scorer import Group
from palate.errors import RecipeError
from palate.recipes.judge import CriticKind, JudgeRecipe
from palate.recipes.load import check_recipe
from palate.recipes.schema import DataSource
from palate.recipes.scorers import Criterion, JudgeVerdictScorer, PairwiseJudge, RubricScorer
from palate.recipes.scorers import LocalChat as LocalRecipe
from palate.recipes.serving import ScoreRecipe
from palate.rewards.judge import ALONE, ASKED, UNREADABLE, Pairwise, drawn_pairs
from palate.rewards.judge_verdict import UNTOLD, JudgeVerdict
from palate.rewards.names import name_of
from palate.rewards.questions import rank_question, read_ranking
from palate.rewards.ranking import Ranking
from palate.rewards.rubric import HARD, Rubric
from palate.train.judge.ask import pair_questions
from palate.train.judge.policy_prompts import judge_prompts, write_judge_prompts
from palate.train.judge.rows import read_rows
from scripted_chat import FakeChat

CHAT = LocalRecipe(path="unused")


def judge(**keys: Any) -> PairwiseJudge:
    return PairwiseJudge(chat=CHAT, method="sampled", **keys)


def sides(text: str) -> list[str]:
    return re.findall(r"\[Response \d+\]\n(.*?)\n\[End", text, re.S)


def longer(text: str) -> str:
    first, second = map(len, sides(text))
    return f"<answer>{1 if first > second else 2 if second > first else 'tie'}</answer>"


@pytest.mark.parametrize("n", [3, 4, 5, 6, 9])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 20])
def test_each_response_meets_as_many_others(n: int, k: int) -> None:
    pairs = drawn_pairs(n, k, random.Random(7))
    assert len(set(pairs)) == len(pairs) and all(0 <= i < j < n for i, j in pairs)
    met = Counter(place for pair in pairs for place in pair)
    # An odd number of responses cannot each meet an odd number.
    expected = min(k + (n * k) % 2, n - 1) if k < n else n - 1
    assert set(met.values()) == {expected} and len(met) == n


def test_some_opponents_instead_of_all() -> None:
    chat = FakeChat(longer)
    scorer = Pairwise(judge(group="opponents", opponents=2, ties=True), chat)
    group = Group("p", ("a" * 9, "b", "c" * 5, "d" * 3, "e" * 7))
    (scores,) = scorer.score([group])
    assert scorer.counts[ASKED] == 5 * 2  # five pairs, in both orders
    assert [scores[0].value, scores[1].value] == [1.0, 0.0]
    assert scorer.score([group])[0] == scores
    (alone,), (first, second) = scorer.score([Group("p", ("a",)), Group("p", ("aa", "b"))])
    assert alone.reason == ALONE and (first.value, second.value) == (1.0, 0.0)


def ranked(text: str) -> str:
    """By length, equal ones as ties."""
    lengths = [len(side) for side in sides(text)]
    order = sorted(set(lengths), reverse=True)
    groups = [[str(i + 1) for i, size in enumerate(lengths) if size == length] for length in order]
    return f"<answer>{', '.join(' = '.join(alike) for alike in groups)}</answer>"


def test_one_question_ranks_a_group_in_both_orders() -> None:
    chat = FakeChat(ranked)
    scorer = Ranking(judge(group="rank", ties=True), chat)
    (scores,) = scorer.score([Group("p", ("aaa", "b", "ccccc", "ddd"))])
    assert [score.value for score in scores] == [0.5, 0.0, 1.0, 0.5]
    assert scorer.counts == {ASKED: 2, Pairwise.AGREE: 6}
    forward, backward = (question[0]["content"] for question in chat.asked)
    assert sides(forward) == sides(backward)[::-1] == ["aaa", "b", "ccccc", "ddd"]
    assert scores[0].text and "[1: response 4, 2: response 3" in scores[0].text
    # All pairs, one by one, say the same.
    pairs = Pairwise(judge(ties=True), FakeChat(longer))
    assert [s.value for s in pairs.score([Group("p", ("aaa", "b", "ccccc", "ddd"))])[0]] == [
        score.value for score in scores
    ]


def test_what_the_place_decides_cancels_in_a_ranking() -> None:
    scorer = Ranking(judge(group="rank"), FakeChat(lambda _: "<answer>1, 2, 3</answer>"))
    (scores,) = scorer.score([Group("p", ("a", "b", "c"))])
    assert [score.value for score in scores] == [0.5, 0.5, 0.5]
    assert scorer.counts[Pairwise.DISAGREE] == 3
    once = Ranking(judge(group="rank", swap=False), FakeChat(lambda _: "<answer>1, 2, 3</answer>"))
    assert [s.value for s in once.score([Group("p", ("a", "b", "c"))])[0]] == [1.0, 0.5, 0.0]


def test_rankings_that_cannot_be_read_give_no_score() -> None:
    answers = iter(["<answer>1, 2</answer>", "<answer>1, 2, 2</answer>"] * 9)
    scorer = Ranking(judge(group="rank"), FakeChat(lambda _: next(answers)))
    (scores, (alone,)) = scorer.score([Group("p", ("a", "b", "c")), Group("p", ("a",))])
    assert [score.value for score in scores] == [None] * 3 and scorer.counts[UNREADABLE] == 2
    assert alone.reason == ALONE


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("<answer>3,1,2</answer>", [1, 2, 0]),
        ("<think>2, 1, 3</think><answer> 1 = 3 , 2 </answer>", [0, 1, 0]),
        ("<answer>1, 2, 4</answer>", None),
        ("<answer>1, , 3</answer>", None),
        ("<answer>1, 2, ³</answer>", None),
        ("<answer>-1, 2, 3</answer>", None),
        ("1, 2, 3", None),
    ],
)
def test_rankings_are_read_strictly(text: str, ranks: list[int] | None) -> None:
    assert read_ranking(text, 3, ties=True) == ranks


def test_ranking_recipes() -> None:
    with pytest.raises(ValueError, match="a ranking is written"):
        PairwiseJudge(chat=CHAT, group="rank")
    with pytest.raises(ValueError, match="only with `group: opponents`"):
        judge(opponents=3)
    assert name_of(judge(group="rank")) == "unused (ranking)"
    (turn,) = rank_question("q", ["a", "b", "c"], ties=True, reasoning=True)
    assert "[Response 3]" in turn["content"] and "=" in turn["content"]


def holds(text: Any) -> str:
    """Whether the word that the statement names is in the response."""
    word = re.search(r"\[Statement\]\nsays (\w+)", text)
    return f"<answer>{'yes' if word and word[1] in sides_of(text) else 'no'}</answer>"


def sides_of(text: str) -> str:
    return re.findall(r"\[Response\]\n(.*?)\n\[End", text, re.S)[0]


def rubric(**keys: Any) -> RubricScorer:
    return RubricScorer(chat=CHAT, method="sampled", **keys)


def test_a_rubric_is_the_weighed_share_of_its_criteria() -> None:
    criteria = (
        Criterion(text="says sun", weight=3.0),
        Criterion(text="says sea", name="the sea"),
        Criterion(text="says vile", weight=-2.0),
    )
    scorer = Rubric(rubric(criteria=criteria), FakeChat(holds))
    (scores,) = scorer.score([Group("p", ("sun sea", "sun", "sea vile", ""))])
    assert [score.value for score in scores] == [1.0, 0.75, -0.25, 0.0]
    assert {name: part.value for name, part in scores[1].parts.items()} == {
        "says sun": 1.0,
        "the sea": 0.0,
        "says vile": 0.0,
    }
    assert scorer.counts[ASKED] == 12 and not scorer.traits.relative


def test_hard_criteria_fail_a_response() -> None:
    criteria = (
        Criterion(text="says sun", hard=True),
        Criterion(text="says vile", weight=-1.0, hard=True),
        Criterion(text="says sea"),
    )
    scorer = Rubric(rubric(criteria=criteria, failed=-1.0), FakeChat(holds))
    (scores,) = scorer.score([Group("p", ("sun", "sea", "sun sea vile"))])
    assert [score.value for score in scores] == [0.5, -1.0, -1.0]
    assert scorer.counts[HARD] == 2 and len(scores[2].parts) == 3


def test_criteria_of_each_prompt_come_from_its_row() -> None:
    scorer = Rubric(rubric(criteria_column="rubric"), FakeChat(holds))
    given = [
        ["says sun", "says sea"],
        json.dumps([{"criterion": "says sun", "points": 4}, {"text": "says sea", "weight": 1}]),
        [{"criterion": "says sun", "weigth": 1}],
        "no list",
        [{"text": "says sun", "weight": -1}],
        None,
    ]
    scored = scorer.score([Group("p", ("sun",), columns={"rubric": entry}) for entry in given])
    values = [score.value for (score,) in scored]
    assert values == [0.5, 0.8, None, None, None, None]
    reasons = [str(score.reason) for (score,) in scored]
    assert "no list of criteria in column rubric" in reasons[2] and "no list'" in reasons[3]
    assert "weight above 0" in reasons[4] and "nothing in column rubric" in reasons[5]


def test_a_criterion_without_a_verdict_gives_no_score() -> None:
    criteria = (Criterion(text="says sun"), Criterion(text="says sea"))
    chat = FakeChat(lambda text: "hm" if "says sea" in text else "<answer>yes</answer>")
    ((score,),) = Rubric(rubric(criteria=criteria), chat).score([Group("p", ("sun",))])
    assert score.value is None and score.parts["says sun"].value == 1.0
    for keys, message in (
        ({}, "give it, or `criteria_column`"),
        ({"criteria": ({"text": "a", "weight": -1.0},)}, "no weight is above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            rubric(**keys)


WELL = "<think>The second is true.</think>\n<answer>2</answer>"


def verdict_values(*responses: str, chat: Any = None, right: Any = "2", **keys: Any) -> list[Any]:
    recipe = JudgeVerdictScorer(**keys)
    scorer = JudgeVerdict(recipe, chat)
    (scores,) = scorer.score([Group("q", responses, columns={"right": right})])
    return [score.value for score in scores]


def test_a_verdict_is_worth_its_result_its_form_and_its_consistency() -> None:
    """result x (1 + 0.5 consistency) + 0.5 format, by hand."""
    wrong, formless = WELL.replace(">2<", ">1<"), "It is the second. <answer>2</answer>"
    unread, double = "<think>a</think> 2", f"<think>x</think>{WELL}"
    responses = (WELL, wrong, formless, unread, double)
    assert verdict_values(*responses) == [1.5, 0.5, 1.0, 0.0, 1.0]
    referee = FakeChat(lambda text: f"<answer>{'yes' if 'second' in text else 'no'}</answer>")
    bare = WELL.replace("second", "first")
    assert verdict_values(WELL, bare, wrong, chat=referee, referee=CHAT) == [2.0, 1.5, 0.5]
    assert len(referee.asked) == 2
    coded = {"referee": CHAT, "inconsistent": -1.0, "format_weight": 0.0}
    assert verdict_values(WELL, bare, chat=referee, **coded) == [1.5, 0.5]
    assert verdict_values("<answer>2</answer>", WELL, reasoning=False) == [1.5, 1.0]
    assert verdict_values("<think>a</think><answer>tie</answer>", right="tie") == [1.5]
    assert verdict_values("<think>a</think><answer>7</answer>", right=7) == [None]


def test_parts_and_counts_of_a_verdict() -> None:
    scorer = JudgeVerdict(JudgeVerdictScorer(referee=CHAT), FakeChat(lambda _: "hm"))
    columns = {"right": 7, "options": ["6", "7"]}
    groups = [Group("q", (WELL.replace(">2<", ">7<"), "x"), columns=columns), Group("q", ("x",))]
    (good, bad), (unknown,) = scorer.score(groups)
    assert (good.value, bad.value) == (1.5, 0.0)
    assert {n: p.value for n, p in good.parts.items()} == {
        "result": 1.0,
        "format": 1.0,
        "consistency": 0.0,
    }
    assert scorer.counts[UNTOLD] == 1 and "nothing in column right" in str(unknown.reason)
    with pytest.raises(ValueError, match="only with `referee`"):
        JudgeVerdictScorer(inconsistent=-1.0)


def judge_recipe(folder: Path, **kind: Any) -> JudgeRecipe:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"vile {i}"} for i in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "output_dir": folder / "out",
        "model": {"path": "unused"},
        "judge": {"type": "pairwise", "reasoning": True} | kind,
        "data": {"train": [{"path": str(folder / "rows.jsonl")}], "eval_fraction": 0.3},
        "texts": {"type": "chat"},
    }
    return check_recipe(JudgeRecipe, document, "test")


def test_preference_data_becomes_prompts_in_the_words_of_palate_judge(tmp_path: Path) -> None:
    recipe = judge_recipe(tmp_path)
    prompts = judge_prompts(recipe)
    assert len(prompts.train) + len(prompts.eval) == 10 and prompts.eval
    ones = [prompt.columns["right"] for prompt in prompts.train].count("1")
    assert abs(2 * ones - len(prompts.train)) <= 1
    asked = pair_questions(read_rows(recipe).train, recipe.judge, recipe.seed)  # type: ignore[arg-type]
    assert [p.content for p in prompts.train] == [question.asked for question in asked]
    for prompt in prompts.train:
        text = prompt.content[0]["content"]
        assert isinstance(text, str)
        right = sides(text)[int(prompt.columns["right"]) - 1]
        assert right.startswith("good")
        # The scorer reads what the prompt brings.
        scorer = JudgeVerdict(JudgeVerdictScorer())
        said = f"<think>so</think><answer>{prompt.columns['right']}</answer>"
        group = Group(prompt.content, (said,), columns=prompt.columns)
        assert scorer.score([group])[0][0].value == 1.5
    with pytest.raises(RecipeError, match="a critic gives no verdict"):
        judge_prompts(recipe.model_copy(update={"judge": CriticKind()}))


def test_prompts_are_written_with_their_images(tmp_path: Path) -> None:
    recipe = judge_recipe(tmp_path)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    row = {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
        "images": ["a.png"],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "vile"}],
    }
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(2)))
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"eval_fraction": None})}
    )
    files = write_judge_prompts(recipe, tmp_path / "prompts")
    assert set(files) == {"train"}
    records = open_records(DataSource(path=str(files["train"])))
    lines = [record.value for record in records.fetch(range(len(records)))]  # type: ignore[union-attr]
    assert len(lines) == 2 and {line["right"] for line in lines} == {"1", "2"}
    (image,) = lines[0]["images"]
    assert (tmp_path / "prompts" / image).read_bytes() == (tmp_path / "a.png").read_bytes()
    assert {"type": "image"} in lines[0]["prompt"][0]["content"]


def test_recipes_of_all_of_these_are_read() -> None:
    chat = {"type": "server", "url": "http://127.0.0.1:1/v1", "model": "m"}
    for scorer in (
        {"type": "pairwise", "chat": chat, "method": "sampled", "group": "rank"},
        {"type": "rubric", "chat": chat, "criteria": [{"text": "a", "weight": 2}]},
        {"type": "judge_verdict", "referee": chat},
    ):
        document = {"output_dir": "o", "data": [{"path": "d"}], "scorer": scorer}
        assert check_recipe(ScoreRecipe, document, "test").scorer.type == scorer["type"]
