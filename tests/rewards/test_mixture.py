"""Mixtures: weighted sums, z-scores by saved and by the group's own numbers, and gates."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

import palate
from palate.data.scorer import HAS_IMAGES, TEXT_AND_IMAGES, Group, Score, Traits, part_values
from palate.errors import DataError, ModelError, RecipeError
from palate.evaluate.reward import evaluate_rewards, score_files
from palate.evaluate.reward.check import check_scorers
from palate.evaluate.reward.score_cache import ScoreCache
from palate.recipes.load import check_recipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.scorers import MixtureScorer
from palate.recipes.serving import ScoreRecipe
from palate.rewards.combined import Member
from palate.rewards.groups import score_groups
from palate.rewards.identity import key_of
from palate.rewards.mixture import NO_STATISTICS, Gate, WeightedSum
from palate.rewards.rendered import reads_rendered, why_not_rendered
from scored import Numbers, flat_values, groups_of, values
from tiny_chat import CHATML, byte_tokenizer
from tiny_scorer import scorer_of
from tiny_serve import client, run

PICTURE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]


class Table(Numbers):
    """Scores by a table of responses; remembers what it was asked."""

    traits = Traits(modalities=TEXT_AND_IMAGES)
    why = "not in the table"

    def __init__(self, name: str, **table: float) -> None:
        self.name = name
        self.table = table
        self.asked: list[str] = []
        self.groups = 0

    def score(self, groups: Any) -> list[list[Score]]:
        self.groups += len(groups)
        return super().score(groups)

    def numbers(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        self.asked += responses
        return [self.table.get(response, math.nan) for response in responses]


def a() -> Table:
    return Table("a", x=1.0, y=2.0, z=4.0)


def b() -> Table:
    return Table("b", x=30.0, y=-10.0)


def mixture(**keys: Any) -> MixtureScorer:
    return check_recipe(
        ScoreRecipe,
        {
            "output_dir": "out",
            "data": [{"path": "rows.jsonl"}],
            "scorer": {"type": "mixture", "members": TWO} | keys,
        },
        "test",
    ).scorer  # type: ignore[return-value]


TWO: list[dict[str, Any]] = [
    {"scorer": {"type": "length"}},
    {"scorer": {"type": "rule", "pattern": "yes"}, "weight": -2.5},
]


def test_a_weighted_sum_by_hand() -> None:
    mixed = WeightedSum([Member(scorer=a(), weight=2.0), Member(scorer=b(), weight=-0.1)])
    (scores,) = mixed.score([Group("p", ("x", "y", "z"))])
    assert [score.value for score in scores] == [2.0 - 3.0, 4.0 + 1.0, None]
    assert part_values(scores[0]) == {"a": 1.0, "b": 30.0}
    # A term less is another sum.
    assert scores[2].reason == "not in the table" and part_values(scores[2]) == {
        "a": 4.0,
        "b": None,
    }


def test_zscores_by_numbers_that_are_given() -> None:
    members = [
        Member(scorer=a(), weight=1.0, mean=1.0, deviation=2.0),
        Member(scorer=b(), weight=3.0, mean=10.0, deviation=20.0),
    ]
    found = flat_values(WeightedSum(members, zscores="given"), ["p", "p"], ["x", "y"])
    assert found == pytest.approx([0.0 + 3 * 1.0, 0.5 + 3 * -1.0])


def test_zscores_by_the_group_are_those_of_its_own_responses() -> None:
    mixed = WeightedSum(
        [Member(scorer=a(), weight=1.0), Member(scorer=b(), weight=2.0)], zscores="group"
    )
    assert mixed.traits.relative
    ((x, y),) = values(mixed, ["p"], [["x", "y"]])
    # Of two numbers the z-scores are 1 and -1, whatever they are.
    assert (x, y) == pytest.approx((-1.0 + 2.0, 1.0 - 2.0))
    only = Table("only", x=3.0, y=5.0, z=10.0, w=3.0)
    one = WeightedSum(
        [Member(scorer=only, weight=1.0), Member(scorer=a(), weight=0.0)], zscores="group"
    )
    (found,) = values(one, ["p"], [["x", "y", "z"]])
    mean, deviation = statistics.fmean([3, 5, 10]), statistics.pstdev([3, 5, 10])
    assert found == pytest.approx([(s - mean) / deviation for s in (3, 5, 10)])
    # Each group by itself, however many are asked about at once.
    assert values(one, ["p", "q"], [["x", "y", "z"], ["x", "y"]]) == [
        pytest.approx(found),
        pytest.approx([-1.0, 1.0]),
    ]


def test_a_group_without_numbers_of_its_own_has_no_zscores() -> None:
    same = Table("same", x=0.1, y=0.1, z=0.1)
    mixed = WeightedSum(
        [Member(scorer=same, weight=5.0), Member(scorer=a(), weight=1.0)], zscores="group"
    )
    # Equal scores tell nothing apart: three times 0.1 has a deviation a little above zero.
    assert values(mixed, ["p"], [["x", "y"]]) == [[-1.0, 1.0]]
    ((alone,),) = mixed.score([Group("p", ("x",))])
    assert alone.value is None and alone.reason == NO_STATISTICS
    # Nor has one beside others that have no score.
    beside = mixed.score([Group("p", ("x", "?", "??"))])[0]
    assert [score.reason for score in beside] == [NO_STATISTICS, same.why, same.why]
    # Groups are not parted, even of more responses than a scorer gets at once.
    many = Table("many", **{f"r{n}": float(n) for n in range(20)})
    whole = WeightedSum([Member(scorer=many, weight=1.0)] * 2, zscores="group")
    (found,) = score_groups(whole, groups_of(["p"], [[f"r{n}" for n in range(20)]]))
    spread = statistics.pstdev(range(20))
    assert found[0].value == pytest.approx(2 * (0 - 9.5) / spread)


def test_a_gate_stands_where_it_is_not_passed_and_asks_no_further() -> None:
    gate, model = Table("gate", x=0.2, y=0.5, z=math.nan), b()
    gated = Gate(gate, model)
    (scores,) = gated.score([Group("p", ("x", "y", "z"))])
    assert [score.value for score in scores] == [0.2, -10.0, None]
    assert model.asked == ["y"]
    assert [part_values(score) for score in scores] == [
        {"gate": 0.2},
        {"gate": 0.5, "b": -10.0},
        {"gate": None},
    ]
    # Of a prompt none of whose responses passes the model hears nothing.
    assert values(gated, ["p", "q"], [["x"], ["y"]]) == [[0.2], [-10.0]] and model.groups == 2
    assert gated.name == "b behind gate"
    assert flat_values(Gate(a(), b(), threshold=1.5), ["p", "p"], ["x", "y"]) == [1.0, -10.0]


def test_what_a_member_does_not_see_leaves_no_score() -> None:
    blind = Table("blind", x=1.0)
    blind.traits = Traits()
    for mixed in (
        WeightedSum([Member(scorer=a(), weight=1.0), Member(scorer=blind, weight=1.0)]),
        Gate(a(), blind),
    ):
        ((score,),) = score_groups(mixed, [Group(PICTURE, ("x",))])  # type: ignore[arg-type]
        assert (score.value, score.reason) == (None, HAS_IMAGES)


def test_recipes_make_them_and_mixtures_of_mixtures() -> None:
    scorer = palate.load_scorer(mixture())
    scores = scorer.score("p", ["yes!", "no"])
    assert [score.value for score in scores] == [4.0 - 2.5, 2.0]
    assert scorer.name == "weighted sum of longer wins, matches yes"
    nested = palate.load_scorer(
        {
            "type": "mixture",
            "combine": "gate",
            "threshold": 1.0,
            "members": [
                {"scorer": {"type": "rule", "length": {"max": 5}, "broken": -100}},
                {"scorer": {"type": "mixture", "members": TWO}},
            ],
        }
    )
    assert [score.value for score in nested.score("p", ["yes", "much too long"])] == [0.5, -100.0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"combine": "gate"}, "members.1.weight`: only with `combine: weighted_sum`"),
        ({"combine": "gate", "members": [TWO[0]] * 3}, "a gate has two"),
        ({"combine": "gate", "members": [TWO[0]] * 2, "zscores": "group"}, "zscores`: only"),
        ({"threshold": 1.0}, "threshold`: only with `combine: gate`"),
        ({"zscores": "given"}, "members.0.mean`: `zscores: given` needs it"),
        ({"members": [{**TWO[0], "mean": 1.0}, TWO[1]]}, "goes with `mean`"),
        (
            {"members": [{**TWO[0], "mean": 1.0, "deviation": 1.0}, TWO[1]]},
            "only with `zscores: given`",
        ),
        ({"members": [{**TWO[0], "weight": 0}] * 2}, "no weight is other than 0"),
        ({"members": TWO[:1]}, "members"),
        ({"combine": "mean"}, "weighted_sum or gate"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        mixture(**keys)
    assert message in str(caught.value)


def test_code_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a: weight None"):
        WeightedSum([Member(scorer=a())] * 2)
    with pytest.raises(ValueError, match="a: weight nan"):
        WeightedSum([Member(scorer=a(), weight=math.nan)] * 2)
    with pytest.raises(ValueError, match="no mean and deviation"):
        WeightedSum([Member(scorer=a(), weight=1.0)] * 2, zscores="given")


def test_numbers_from_the_summary_of_scores_of_the_same_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = ["yes", "no", "yes sir", "well, no", "yes yes yes"]
    rows = [{"prompt": f"p{n}", "completion": answer} for n, answer in enumerate(answers)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def score(out: str, **keys: Any) -> list[float | None]:
        keys = {"type": "mixture", "members": TWO} | keys
        document = {"output_dir": out, "scorer": keys, "data": [{"path": "rows.jsonl"}]}
        result = score_files(check_recipe(ScoreRecipe, document, "test"))
        return [json.loads(line)["score"] for line in result.scores.read_text().splitlines()]

    lengths, matches = [float(len(text)) for text in answers], [float("yes" in t) for t in answers]
    raw = score("raw")
    assert raw == [n - 2.5 * m for n, m in zip(lengths, matches, strict=True)]
    z = [
        [(x - statistics.fmean(own)) / statistics.pstdev(own) for x in own]
        for own in (lengths, matches)
    ]
    expected = [n - 2.5 * m for n, m in zip(*z, strict=True)]
    assert score("zscored", zscores="raw/summary.json") == pytest.approx(expected)
    summary = json.loads(Path("zscored/summary.json").read_text())
    assert summary["scorer"]["name"] == "weighted sum of longer wins, matches yes"
    assert [m["deviation"] for m in summary["members"]["entering"]] == pytest.approx([1.0, 2.5])
    # The numbers are part of what the scores were made of.
    recipe = mixture(zscores="raw/summary.json")
    before = key_of(recipe)
    Path("raw/summary.json").write_text(json.dumps(summary | {"scored": 0}))
    assert key_of(recipe) != before
    with pytest.raises(
        DataError, match=r"summary.json: no member matches x; it has longer wins, matches yes"
    ):
        palate.load_scorer(
            mixture(
                members=[TWO[0], {"scorer": {"type": "rule", "pattern": "x"}}],
                zscores="raw/summary.json",
            )
        )
    Path("raw/summary.json").write_text("{}")
    with pytest.raises(DataError, match=r"raw/summary.json: no summary.json of a `palate score`"):
        palate.load_scorer(recipe)
    with pytest.raises(ModelError, match="no file nowhere"):
        check_scorers([mixture(zscores="nowhere.json")])


def test_an_evaluation_keeps_the_members_scores_and_counts_what_they_count(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "yes, quite", "rejected": "no"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    document = {
        "output_dir": tmp_path / "out",
        "models": [
            {"type": "length", "name": "len"},
            {"type": "mixture", "name": "mixed", "members": TWO},
            {"type": "mixture", "name": "by group", "members": TWO, "zscores": "group"},
        ],
        "benchmarks": [{"type": "pairs", "data": [{"path": str(tmp_path / "rows.jsonl")}]}],
        "best_of_n": {
            "candidates": [{"path": str(tmp_path / "rated.jsonl")}],
            "gold": {"type": "mixture", "members": TWO},
        },
    }
    rated = {"prompt": "q", "responses": [{"content": "y" * n, "rating": n} for n in range(1, 5)]}
    (tmp_path / "rated.jsonl").write_text(json.dumps(rated) + "\n")
    found = evaluate_rewards(check_recipe(RewardEvalRecipe, document, "test")).evaluation
    _, mixed, by_group = found["models"]
    assert [own["name"] for own in mixed["members"]["raw"]] == ["len", "matches yes"]
    assert mixed["scores"]["mean"] == pytest.approx((10 - 2.5 + 2) / 2)
    # z-scores of two are 1 and -1: 1 - 2.5 and -1 + 2.5.
    assert (by_group["scores"]["min"], by_group["scores"]["max"]) == pytest.approx((-1.5, 1.5))
    assert by_group["members"]["entering"][1]["deviation"] == pytest.approx(2.5 * math.sqrt(2 / 6))
    assert found["best_of_n"]["models"]["len"]["points"][-1]["gold"] == 4.0
    # One file of scores for each of the two members, and none for the mixtures.
    assert len(list((tmp_path / "out" / "parts").glob("scores-*.jsonl"))) == 2


def test_a_cache_asks_a_gated_model_about_nothing_that_the_gate_stops() -> None:
    cache = ScoreCache()
    recipe = mixture(
        combine="gate",
        members=[{"scorer": {"type": "rule", "pattern": "yes"}}, {"scorer": {"type": "length"}}],
    )
    assert values(cache.scorer(recipe), ["p"], [["yes!", "no"]]) == [[4.0, 0.0]]
    assert values(cache.scorer(recipe), ["p"], [["no", "yes!"]]) == [[0.0, 4.0]]


def test_a_server_serves_one() -> None:
    async def test() -> None:
        scorer = palate.load_scorer(mixture()).scorer
        async with client(scorer, recipe={"scorer": mixture()}) as c:
            body = {"prompt": "p", "responses": ["yes!", "no"]}
            found = (await c.post("/score", json=body)).json()
            assert found["scores"] == [1.5, 2.0]
            assert found["members"] == {"longer wins": [4.0, 2.0], "matches yes": [1.0, 0.0]}
            info = (await c.get("/info")).json()
            assert info["scorer"]["name"] == "weighted sum of longer wins, matches yes"
            assert info["members"]["rule"] == "weighted_sum"

    run(test)


def test_rendered_conversations_are_read_by_members_that_read_them() -> None:
    model = scorer_of(byte_tokenizer(adds_bos=True, template=CHATML))
    twice = WeightedSum([Member(scorer=model, weight=1.0), Member(scorer=model, weight=2.0)])
    assert reads_rendered(twice) and why_not_rendered(twice) is None
    by_group = WeightedSum(twice.members, zscores="group")
    assert not reads_rendered(by_group)
    assert "compares the responses to one prompt" in str(why_not_rendered(by_group))
    assert "does not: use /score" in str(why_not_rendered(Gate(a(), model)))
