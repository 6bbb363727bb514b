"""Rules: patterns, lengths, right answers, and where a pattern matched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from palate.data.scorer import Group, Span
from palate.errors import DataError, RecipeError
from palate.evaluate.reward import score_files
from palate.evaluate.reward.check import check_scorers
from palate.recipes.load import check_recipe
from palate.recipes.scorers import RemoteScorer
from palate.recipes.scorers import RuleScorer as Recipe
from palate.recipes.serving import ScoreRecipe
from palate.rewards.build import make_scorer
from palate.rewards.identity import key_of
from palate.rewards.remote import Remote
from palate.rewards.rule import NO_ANSWER_KNOWN
from scored import flat_values
from tiny_serve import client, run


def recipe(**keys: Any) -> Recipe:
    document = {"output_dir": "out", "data": [{"path": "rows.jsonl"}]}
    scorer = {"type": "rule"} | keys
    return check_recipe(ScoreRecipe, document | {"scorer": scorer}, "test").scorer  # type: ignore[return-value]


def kept(responses: list[Any], **keys: Any) -> list[float]:
    return flat_values(make_scorer(recipe(**keys)), ["p"] * len(responses), responses)


def test_a_pattern_is_searched_for() -> None:
    assert kept(["yes", "oh yes!", "no", ""], pattern="yes") == [1.0, 1.0, 0.0, 0.0]
    assert kept(["12", "12 or so"], pattern=r"\A\d+\Z", kept=5, broken=-1) == [5.0, -1.0]
    turns = [{"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "and no"}]
    assert kept([turns], pattern="and") == [1.0]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"max": 5}, [1.0, 1.0, 0.0]),
        ({"min": 5}, [0.0, 1.0, 1.0]),
        ({"min": 5, "max": 5}, [0.0, 1.0, 0.0]),
        ({"unit": "words", "max": 1}, [1.0, 0.0, 0.0]),
        ({"unit": "words", "min": 2, "max": 2}, [0.0, 1.0, 0.0]),
    ],
)
def test_lengths_in_characters_and_words(length: Any, expected: list[float]) -> None:
    assert kept(["four", " a b ", "three little words"], length=length) == expected


def test_all_rules_that_are_given_must_be_kept() -> None:
    both = {"pattern": "a", "length": {"max": 3}}
    assert kept(["a", "aaaa", "b", "bbbb"], **both) == [1.0, 0.0, 0.0, 0.0]
    assert make_scorer(recipe(**both)).name == "matches a and ..3 characters"


def test_matches_are_spans() -> None:
    ((score, other),) = make_scorer(recipe(pattern="a+", kept=2)).score(
        [Group("p", ("aa ba", "b"))]
    )
    assert score.spans == (Span(0, 2, 2.0), Span(4, 5, 2.0)) and other.spans == ()
    assert {span.unit for span in score.spans} == {"characters"}


def answers(folder: Path, *rows: dict[str, Any]) -> list[dict[str, str]]:
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [{"path": str(file)}]


def test_the_right_answer_to_each_prompt(tmp_path: Path) -> None:
    data = answers(
        tmp_path,
        {"prompt": "2 + 2?", "completion": "4"},
        {"prompt": [{"role": "user", "content": "3 + 3?"}], "completion": [said(" 6 ")]},
    )
    scorer = make_scorer(recipe(answers=data))
    prompts = ["2 + 2?", "2 + 2?", "3 + 3?", [{"role": "user", "content": "2 + 2?"}]]
    assert flat_values(scorer, prompts, ["4\n", "5", "6", "4"]) == [1.0, 0.0, 1.0, 1.0]
    ((unknown,),) = scorer.score([Group("4 + 4?", ("8",))])
    assert (unknown.value, unknown.reason) == (None, NO_ANSWER_KNOWN)
    # The last match, its group where it has one.
    for extract in (r"\d+", r"is (\d+)"):
        scorer = make_scorer(recipe(answers=data, extract=extract))
        given = ["It is 5. No: it is 4.", "it is 4 or is 5", "four"]
        assert flat_values(scorer, ["2 + 2?"] * 3, given) == [1.0, 0.0, 0.0]
    before = key_of(recipe(answers=data))
    answers(tmp_path, {"prompt": "2 + 2?", "completion": "5"})
    assert key_of(recipe(answers=data)) != before


def test_the_right_answer_in_a_column_of_the_prompt() -> None:
    scorer = make_scorer(recipe(answer_column="answer", extract=r"\d+"))
    groups = [
        Group("2 + 2?", ("It is 4", "5"), columns={"answer": 4}),
        Group("3 + 3?", ("6",), columns={"answer": "6 "}),
        Group("4 + 4?", ("8",)),
    ]
    (right, wrong), (other,), (unknown,) = scorer.score([groups[0].part([0, 1]), *groups[1:]])
    assert (right.value, wrong.value, other.value) == (1.0, 0.0, 1.0)
    assert (unknown.value, unknown.reason) == (None, "nothing in column answer of its prompt")
    assert scorer.traits.reads_prompt and scorer.name == "right answer"
    # Members of a mixture get the columns, too.
    rule = {"type": "rule", "answer_column": "answer"}
    members = [{"scorer": rule}, {"scorer": {"type": "length"}, "weight": 0.5}]
    document = {"output_dir": "out", "data": [{"path": "rows.jsonl"}]}
    mixed = {"scorer": {"type": "mixture", "members": members}}
    mixture = make_scorer(check_recipe(ScoreRecipe, document | mixed, "test").scorer)
    assert [
        s.value for s in mixture.score([Group("p", ("4", "5"), columns={"answer": "4"})])[0]
    ] == [
        1.5,
        0.5,
    ]


def test_a_part_of_a_group_keeps_what_belongs_to_it() -> None:
    group = Group("p", ("a", "b"), "source", {"answer": 1}, ((1,), (2, 3)))
    assert group.part([1]) == Group("p", ("b",), "source", {"answer": 1}, ((2, 3),))


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_answers_that_contradict_one_another_are_an_error(tmp_path: Path) -> None:
    one, other = ({"prompt": "q", "completion": text} for text in ("1", "2"))
    make_scorer(recipe(answers=answers(tmp_path, one, one)))
    with pytest.raises(DataError, match=r"answers.jsonl, row 2: another answer to an earlier"):
        make_scorer(recipe(answers=answers(tmp_path, one, other)))
    with pytest.raises(DataError, match="several responses: which answer is right"):
        make_scorer(recipe(answers=answers(tmp_path, {"prompt": "q", "responses": ["1", "2"]})))
    with pytest.raises(DataError, match="no such file"):
        check_scorers([recipe(answers=[{"path": str(tmp_path / "none.jsonl")}])])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "no rule: give `pattern`, `length`, `answers` or `answer_column`"),
        ({"answers": [{"path": "a"}], "answer_column": "b"}, "instead of `answers`"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "a", "extract": "b"}, "extract`: only with `answers` or `answer_column`"),
        ({"pattern": "a", "kept": 0}, "the same as `kept`"),
        ({"length": {}}, "give `min`, `max` or both"),
        ({"length": {"min": 3, "max": 2}}, "above max (2)"),
    ],
)
def test_rules_that_say_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**keys)
    assert message in str(caught.value)


def test_spans_are_in_files_of_scores_and_answers_of_a_server(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "p", "chosen": "a b a", "rejected": "c"}) + "\n")
    expected = [{"start": n, "stop": n + 1, "value": 1.0, "unit": "characters"} for n in (0, 4)]
    for form in ("jsonl", "parquet"):
        document = {
            "output_dir": tmp_path / form,
            "data": [{"path": str(file)}],
            "scorer": {"type": "rule", "pattern": "a"},
            "format": form,
        }
        scores = score_files(check_recipe(ScoreRecipe, document, "test")).scores
        if form == "jsonl":
            lines = [json.loads(line) for line in scores.read_text().splitlines()]
        else:
            lines = pq.read_table(scores).to_pylist()
        assert [line.get("spans") for line in lines] == [expected, None]

    async def test() -> None:
        async with client(make_scorer(recipe(pattern="a"))) as c:
            body = {"prompt": "p", "responses": ["a b a", "c"]}
            found = (await c.post("/score", json=body)).json()
            assert found["scores"] == [1.0, 0.0] and found["spans"] == [expected, []]
            again = {"prompt": "p", "responses": ["c"]}
            assert "spans" not in (await c.post("/score", json=again)).json()

    run(test)


def test_columns_go_to_a_server_and_its_scorer() -> None:
    async def test() -> None:
        async with client(make_scorer(recipe(answer_column="answer"))) as c:
            body = {"prompt": "p", "responses": ["4", "5"], "columns": {"answer": 4, "more": []}}
            assert (await c.post("/score", json=body)).json()["scores"] == [1.0, 0.0]
            del body["columns"]
            answer = (await c.post("/score", json=body)).json()
            assert answer["reasons"] == ["nothing in column answer of its prompt"] * 2

    run(test)
    sent: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        sent.extend(json.loads(request.content)["items"])
        return httpx.Response(200, json={"items": [{"scores": [1.0]} for _ in sent]})

    remote = RemoteScorer(url="http://s:1", columns=("answer",))
    group = Group("p", ("4",), columns={"answer": 4, "more": 5})
    Remote(remote, transport=httpx.MockTransport(answer)).score([group])
    assert sent == [{"prompt": "p", "responses": ["4"], "columns": {"answer": 4}}]
    with pytest.raises(ValueError, match="only with `route: score`"):
        RemoteScorer(url="http://s:1", columns=("answer",), route="get_reward")
