"""A rule first, then a model: BaseReward's reward for policies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from palate.data.schema import ImageRef
from palate.data.scorer import Group
from palate.doctor.scorers import scoring_checks
from palate.errors import DataError, ModelError, RecipeError
from palate.evaluate.reward import score_files
from palate.evaluate.reward.check import check_scorers
from palate.evaluate.reward.score_cache import ScoreCache
from palate.recipes.load import check_recipe
from palate.recipes.scorers import HybridScorer
from palate.recipes.serving import ScoreRecipe
from palate.rewards import Baselines, Hybrid, make_scorer
from palate.rewards.columns import columns_read
from palate.rewards.hybrid import NO_BASELINE
from palate.rewards.identity import key_of
from scored import Numbers

RULE = {"type": "rule", "answer_column": "answer"}
MODEL = {"type": "length"}


def recipe(**keys: Any) -> HybridScorer:
    document = {"output_dir": "out", "data": [{"path": "rows.jsonl"}]}
    scorer = {"type": "hybrid", "rule": RULE, "model": MODEL} | keys
    made = check_recipe(ScoreRecipe, document | {"scorer": scorer}, "test").scorer
    assert isinstance(made, HybridScorer)
    return made


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_right_is_one_and_wrong_is_centred_and_capped() -> None:
    given = recipe(baseline_column="mu")
    assert columns_read(given) == ("mu", "answer")
    scorer = make_scorer(given)
    group = Group("p", ("yes", "abcd", "abcdef"), columns={"answer": "yes", "mu": 5})
    ((right, below, above),) = scorer.score([group])
    assert right.value == 1.0 and set(right.parts) == {"right answer"}
    assert below.value == pytest.approx(0.5 * sigmoid(4 - 5))
    assert above.value == pytest.approx(0.5 * sigmoid(6 - 5))
    values = {name: part.value for name, part in above.parts.items()}
    assert values == {"right answer": 0.0, "longer wins": 6.0, "baseline": 5.0}
    ((_, low, _),) = make_scorer(recipe(baseline_column="mu", cap=0.1)).score([group])
    assert low.value == pytest.approx(0.1 * sigmoid(-1))
    # The paper's form: a score far from 0 is worth as much as being right.
    ((right, *wrong),) = make_scorer(recipe(form="paper")).score([group])
    assert [s.value for s in wrong] == pytest.approx([sigmoid(4), sigmoid(6)])
    assert "baseline" not in wrong[0].parts and right.value == 1.0


def test_what_is_not_known_gives_no_score() -> None:
    scorer = make_scorer(recipe(baseline_column="mu"))
    unknown, (right, wrong) = scorer.score(
        [
            Group("p", ("a",), columns={"mu": 1.0}),
            Group("p", ("a", "b"), columns={"answer": "a", "mu": "1"}),
        ]
    )
    assert unknown[0].reason == "nothing in column answer of its prompt"
    assert right.value == 1.0 and wrong.reason == "nothing in column mu of its prompt"


class Huge(Numbers):
    name = "huge"

    def numbers(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        return [1e4 if r == "+" else -1e4 if r == "-" else math.nan for r in responses]


def test_scores_of_any_size() -> None:
    scorer = Hybrid(make_scorer(recipe(form="paper").rule), Huge(), baselines=None, cap=0.5)
    ((high, low, none),) = scorer.score([Group("p", ("+", "-", "x"), columns={"answer": "a"})])
    assert (high.value, low.value, none.value) == (0.5, 0.0, None) and none.reason


def test_a_table_of_baselines_that_palate_measured(tmp_path: Path) -> None:
    """Of a text, and of a chat with an image, told by the image's content."""
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "same.png")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "other.png")
    seen = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    rows = [
        {"prompt": "p", "responses": ["abc", "abcde"]},
        {"prompt": "q", "responses": ["a"]},
        {"prompt": "p", "responses": ["abcdefghijk"]},
    ]
    pair = {"prompt": seen, "images": ["a.png"], "chosen": "a", "rejected": "abc"}
    for name, lines in (("rows", rows), ("pairs", [pair])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    document = {
        "output_dir": tmp_path / "out",
        "data": [{"path": str(tmp_path / f"{name}.jsonl")} for name in ("rows", "pairs")],
        "scorer": MODEL,
        "baselines": True,
        "block_rows": 1,
    }
    score_files(check_recipe(ScoreRecipe, document, "test"))
    table = tmp_path / "out" / "baselines.jsonl"
    first = json.loads(table.read_text().splitlines()[0])
    assert (first["n"], first["mean"], first["deviation"]) == (2, 4.0, 1.0)
    scorer = make_scorer(recipe(baselines=str(table)))
    columns = {"answer": "z"}

    def shown(name: str) -> Any:
        image = {"type": "image", "image": ImageRef(path=name, root=tmp_path)}
        return [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]

    prompts = ["p", [{"role": "user", "content": "q"}], shown("same.png"), shown("other.png"), "r"]
    scored = scorer.score([Group(prompt, ("ab",), columns=columns) for prompt in prompts])
    means = [score.parts["baseline"].value for (score,) in scored[:3]]
    assert means == pytest.approx([(3 + 5 + 11) / 3, 1.0, 2.0])
    assert [score.reason for (score,) in scored[3:]] == [NO_BASELINE, NO_BASELINE]
    before = key_of(recipe(baselines=str(table)))
    table.write_text(table.read_text() * 2)
    assert key_of(recipe(baselines=str(table))) != before
    with pytest.raises(DataError, match=r"no baselines.jsonl of a `palate score`"):
        make_scorer(recipe(baselines=str(tmp_path / "rows.jsonl")))


def test_a_table_that_is_missing_is_said_before_anything_is_loaded() -> None:
    given = recipe(baselines="none.jsonl")
    problems = [str(check.text) for check in scoring_checks(given) if check.state == "problem"]
    assert problems == ["`baselines`: no file none.jsonl"]
    with pytest.raises(ModelError, match=r"`baselines`: no file none.jsonl"):
        check_scorers([given])


def test_baselines_measured_in_python() -> None:
    model = make_scorer(recipe(form="paper").model)
    table = Baselines.measured(model, [Group("p", ("a", "abc")), Group("q", ())])
    assert len(table) == 1 and table.mean(Group("p", ())) == 2.0


def test_members_are_kept_in_a_cache() -> None:
    scorer = ScoreCache().scorer(recipe(baseline_column="mu"))
    groups = [Group("p", ("ab",), columns={"answer": "z", "mu": mu}) for mu in (1, 2)]
    values = [scores[0].value for scores in scorer.score(groups)]
    assert values == pytest.approx([0.5 * sigmoid(1), 0.5 * sigmoid(0)])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give it, or `baseline_column`"),
        ({"baseline_column": "a", "baselines": "b"}, "give it, or `baseline_column`"),
        ({"form": "paper", "cap": 0.3}, "only with `form: corrected`"),
        ({"form": "paper", "baseline_column": "a"}, "only with `form: corrected`"),
        ({"baseline_column": "a", "cap": 1.5}, "cap"),
        (
            {"form": "paper", "model": {"type": "remote", "url": "http://a:1", "relative": True}},
            "compares responses",
        ),
    ],
)
def test_recipes_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**keys)
