"""Scores kept on disk: each response once, nothing asked twice, judges seeing whole groups."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest

from palate.data.schema import Content
from palate.data.scorer import NOT_FINITE, Group, Score, Traits, part_values
from palate.errors import DataError, ModelError, RecipeError
from palate.evaluate.reward.candidates import NOT_RATED, own_gold, read_candidates
from palate.evaluate.reward.items import BenchmarkItem, as_groups, values_of
from palate.evaluate.reward.score_cache import CachedScorer, ScoreCache
from palate.recipes.pairing import PairingRecipe
from palate.recipes.reward_eval import RobustnessRecipe
from palate.recipes.schema import DataSource
from palate.recipes.scorers import (
    ClassifierScorer,
    EnsembleScorer,
    LengthScorer,
    LexiconScorer,
    LocalChat,
    MemberRecipe,
    ModelScorer,
    PointwiseJudge,
)
from palate.rewards.build import _fitting, make_scorer
from palate.rewards.ensemble import Ensemble
from palate.rewards.identity import key_of
from palate.rewards.names import name_of, names_of


class Asked:
    """Scores by length and remembers every question."""

    name = "asked"
    traits = Traits()

    def __init__(self):
        self.groups = []
        self.counts = Counter()

    def score(self, groups):
        self.groups += [(group.prompt, group.responses) for group in groups]
        return [[self.one(response) for response in group.responses] for group in groups]

    def one(self, response):
        return Score(len(response)) if response else Score(None, "empty")


def scores(scorer, items):
    return values_of(scorer.score(as_groups(items)))


def items(*groups):
    return [
        BenchmarkItem(id=str(n), source="s", prompt=prompt, responses=tuple(responses))
        for n, (prompt, *responses) in enumerate(groups)
    ]


THREE = items(("p", "a", "bb"), ("q", "ccc", ""), ("p", "bb", "dddd"))


def test_responses_of_a_prompt_are_asked_about_together_and_once():
    scorer = Asked()
    found = scores(CachedScorer(lambda: scorer), THREE)
    assert scorer.groups == [("p", ("a", "bb", "dddd")), ("q", ("ccc", ""))]
    assert found[0] == [1.0, 2.0] and found[2] == [2.0, 4.0]
    assert found[1][0] == 3.0 and math.isnan(found[1][1])


def test_a_response_is_asked_about_once_whatever_it_stands_beside(tmp_path):
    scorer = Asked()
    book = CachedScorer(lambda: scorer, tmp_path / "scores.jsonl")
    scores(book, items(("p", "a", "")))
    assert scores(book, items(("p", "a", "changed"), ("p", "", "a")))[0] == [1.0, 7.0]
    assert scorer.groups == [("p", ("a", "")), ("p", ("changed",))]
    assert book.counts == {"empty": 1}
    # As a later run finds it.
    again = CachedScorer(lambda: scorer, tmp_path / "scores.jsonl")
    assert scores(again, items(("p", "changed", "a"))) == [[7.0, 1.0]]
    assert len(scorer.groups) == 2 and again.counts == {"empty": 1}


def test_infinite_scores_are_none_and_counted(tmp_path):
    class Wide(Asked):
        def one(self, response):
            return Score.of(math.inf if len(response) > 2 else 1.0)

    book = CachedScorer(Wide, tmp_path / "scores.jsonl")
    found = scores(book, THREE)
    assert math.isnan(found[1][0]) and found[1][1] == 1.0
    assert book.counts[NOT_FINITE] == 2
    again = CachedScorer(Wide, tmp_path / "scores.jsonl")
    assert again.counts == book.counts and math.isnan(scores(again, THREE)[1][0])


def test_a_judge_that_compares_sees_groups_as_they_are():
    scorer = Asked()
    scores(CachedScorer(lambda: scorer, relative=True), THREE)
    assert scorer.groups == [("p", ("a", "bb")), ("q", ("ccc", "")), ("p", ("bb", "dddd"))]


def test_large_groups_are_parted():
    scorer = Asked()
    many = items(("p", *["x" * n for n in range(1, 21)]))
    assert scores(CachedScorer(lambda: scorer), many) == [[float(n) for n in range(1, 21)]]
    assert [len(group) for _, group in scorer.groups] == [8, 8, 4]


def test_what_is_on_disk_is_not_asked_again(tmp_path):
    file = tmp_path / "scores.jsonl"
    first = CachedScorer(Asked, file, chunk=1)
    expected = scores(first, THREE)

    def never():
        raise AssertionError("loaded")

    again = CachedScorer(never, file)
    assert np.array_equal(scores(again, THREE)[1], expected[1], equal_nan=True)
    assert again.counts == first.counts == Counter({"empty": 1})
    # A line that a kill cut off costs its groups alone.
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1][:20])
    scorer = Asked()
    assert scores(CachedScorer(lambda: scorer, file), THREE)[0] == [1.0, 2.0]
    assert len(scorer.groups) == 1


def ensemble(*members, **more):
    parts = tuple(MemberRecipe(scorer=member) for member in members)
    return EnsembleScorer(members=parts, **more)


def test_an_ensemble_is_made_of_its_members_kept_scores(tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path)
    scores(cache.scorer(LengthScorer()), THREE)
    both = cache.scorer(ensemble(LengthScorer(), LengthScorer(prefer="shorter")))
    assert isinstance(both, Ensemble)
    # What the one scorer was asked about is not asked about again.
    kept = both.members[0].scorer
    monkeypatch.setattr(kept, "load", lambda: pytest.fail("loaded"))
    cache.release()
    scored = both.score(as_groups(THREE))
    assert values_of(scored) == [[0.0, 0.0]] * 3
    longer, shorter = zip(*(part_values(s).values() for own in scored for s in own), strict=True)
    assert longer == (1, 2, 3, 0, 2, 4) and shorter == (-1, -2, -3, 0, -2, -4)


def test_what_has_no_score_keeps_its_reason(tmp_path):
    group = [Group("p", ("a", ""))]
    expected = [[Score(1), Score(None, "empty")]]
    for scorer in (Asked, None):
        assert CachedScorer(scorer, tmp_path / "scores.jsonl").score(group) == expected


def test_two_names_of_one_scorer_share_what_is_kept(tmp_path):
    cache = ScoreCache(tmp_path)
    one = cache.scorer(LengthScorer(name="one"))
    two = cache.scorer(LengthScorer(name="two"))
    scores(one, THREE)
    cache.release()
    two.load = lambda: pytest.fail("loaded")
    assert (one.name, two.name) == ("one", "two") and scores(two, THREE) == scores(one, THREE)


def test_statistics_of_an_ensemble_come_from_its_validation_pairs(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "aaaa", "rejected": "aa"},
        {"prompt": "q", "chosen": "a", "rejected": "aaa"},
        {"prompt": "r", "chosen": "aaa", "rejected": "a"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = (DataSource(path=str(file)),)
    members = (LengthScorer(), LengthScorer(prefer="shorter"))
    book = ScoreCache().scorer(ensemble(*members, combine="weighted", validation=source))
    assert [m.weight for m in book.members] == pytest.approx([2 / 3, 1 / 3])
    z = ScoreCache().scorer(ensemble(*members, combine="zscore", validation=source))
    lengths = np.asarray([4, 2, 1, 3, 3, 1.0])
    assert z.members[0].mean == pytest.approx(lengths.mean())
    assert z.members[1].deviation == pytest.approx(lengths.std())
    by_margin = ensemble(*members, combine="weighted", weigh_by="margin", validation=source)
    # A member whose mean margin is negative has no say.
    assert [m.weight for m in ScoreCache().scorer(by_margin).members] == pytest.approx([2 / 3, 0.0])


def test_members_are_measured_on_the_prompts_that_they_are_asked_about(tmp_path):
    def turn(role, content):
        return [{"role": role, "content": content}]

    seen = [{"type": "image"}, {"type": "text", "text": "what?"}]
    rows = [
        {"prompt": turn("user", prompt), "images": images}
        | {"chosen": turn("assistant", a), "rejected": turn("assistant", b)}
        for prompt, images, a, b in (
            ("p", [], "aaaa", "aa"),
            ("q", [], "bbb", "b"),
            (seen, ["sea.png"], "a" * 30, "a" * 10),
        )
    ]
    file = tmp_path / "pairs.jsonl"

    def means(*modalities):
        parts = tuple(MemberRecipe(scorer=LengthScorer(), modality=m) for m in modalities)
        source = (DataSource(path=str(file)),)
        recipe = EnsembleScorer(members=parts, combine="zscore", validation=source)
        return [member.mean for member in ScoreCache().scorer(recipe).members]

    def write(given):
        file.write_text("".join(json.dumps(row) + "\n" for row in given))

    write(rows)
    assert means("text", "image", "any") == pytest.approx([2.5, 20.0, 50 / 6])
    write(rows[:2])
    assert means("text", "any") == pytest.approx([2.5, 2.5])
    with pytest.raises(ModelError, match=r"longer wins: .* no pair for it: .* with images"):
        means("text", "image")


def test_a_scorer_that_reads_no_images_is_measured_on_the_other_prompts():
    image: Content = [{"role": "user", "content": [{"type": "image"}]}]
    text = ("p", "good", "bad")
    both = [text, (image, "great", "awful")]
    member = MemberRecipe(scorer=LengthScorer())
    assert _fitting(both, member, Asked()) == [text]
    assert _fitting(both, member, make_scorer(LengthScorer())) == both


def test_weights_that_are_all_zero_are_refused():
    parts = tuple(MemberRecipe(scorer=LengthScorer(), weight=0.0) for _ in range(2))
    with pytest.raises(ValueError, match="no weight is above 0"):
        EnsembleScorer(members=parts, combine="weighted")


def test_a_change_is_asked_for_once():
    with pytest.raises(ValueError, match="upper_case is there twice"):
        RobustnessRecipe(changes=("upper_case", "appended", "upper_case"))


def test_names_and_keys():
    one = ModelScorer(path="runs/rm/model")
    assert name_of(one) == "rm"
    assert name_of(ClassifierScorer(path="a/b", label="good")) == "b P(good)"
    assert names_of([one, one, LexiconScorer()]) == ["rm", "rm (2)", "VADER compound"]
    assert key_of(one) == key_of(one.model_copy(update={"name": "other"}))
    assert key_of(one) != key_of(one.model_copy(update={"normalised": True}))


def test_a_key_changes_with_what_a_model_reads_with(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    template = tmp_path / "mine.jinja"
    template.write_text("a")
    model = ModelScorer(path=str(tmp_path))
    away = LocalChat(path="not/here", chat_template=template)
    judge = PointwiseJudge(chat=away)
    before = key_of(model), key_of(judge)
    template.write_text("b")
    assert key_of(model) != before[0] and key_of(judge) != before[1]
    between = key_of(model)
    (tmp_path / "tokenizer.json").write_text('{"version": 2}')
    assert key_of(model) != between


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


def sample(prompt, response, reward, policy="m", index=0):
    return {
        "prompt_id": prompt,
        "index": index,
        "prompt": prompt,
        "policy": policy,
        "checkpoint": None,
        "response": response,
        "reward": reward,
    }


def test_candidates_of_samples(tmp_path):
    rows = [sample("p", "a", 1.0), sample("p", "b", None), sample("q", "c", 2.0)]
    rows += [sample("p", "d", 0.5, policy="n"), sample("p", "e", 0.25, policy="n")]
    found = read_candidates([write(tmp_path / "samples.jsonl", rows)], None, 0)
    assert [item.responses for item in found.items] == [("a", "b"), ("d", "e")]
    assert found.gold[1] == [0.5, 0.25] and math.isnan(found.gold[0][1])
    entry = found.entries[0]
    assert (entry["read"], entry["kept"], entry["dropped"]) == (
        5,
        4,
        {"fewer than two candidates": 1},
    )
    with pytest.raises(DataError, match="no prompt with two candidates"):
        read_candidates([write(tmp_path / "one.jsonl", rows[2:3])], None, 0)


def test_unfit_and_repeated_samples_are_named(tmp_path):
    rows = [sample("p", "a", 1.0), sample("p", "b", "high"), sample("p", "c", math.inf)]
    rows += [sample("p", "a", 1.0), sample("p", None, 1.0), sample("p", "d", 2, index=1)]
    found = read_candidates([write(tmp_path / "samples.jsonl", rows)], None, 0)
    assert found.items[0].responses == ("a", "d") and found.gold == [[1.0, 2.0]]
    entry = found.entries[0]
    assert entry["read"] == entry["kept"] + sum(entry["rejected"].values())
    reasons = {(line["row"], line["field"]): line["reason"] for line in found.quarantine}
    assert reasons == {
        (2, "reward"): "text, not a number",
        (3, "reward"): "not a finite number",
        (4, None): "a row that an earlier one gave already",
        (5, None): "no text in prompt or response",
    }


def test_samples_of_other_prompts_do_not_compete(tmp_path):
    rows = [sample("p", "a", 1.0), sample("p", "b", 1.0)]
    rows += [row | {"prompt": "another"} for row in rows]
    found = read_candidates([write(tmp_path / "samples.jsonl", rows)], None, 0)
    assert [item.prompt for item in found.items] == ["p", "another"]
    assert len({item.id for item in found.items}) == 2


def test_a_limit_of_samples_is_of_prompts(tmp_path):
    rows = [sample(f"p{n // 3}", "x" * (n + 1), 1.0) for n in range(12)]
    source = write(tmp_path / "samples.jsonl", rows).model_copy(update={"limit": 2})
    found = read_candidates([source], None, 0)
    assert [len(item.responses) for item in found.items] == [3, 3]
    assert (found.entries[0]["kept"], found.entries[0]["not_selected"]) == (6, 6)


def test_candidates_of_ratings(tmp_path):
    rows = [
        {"prompt": "p", "responses": [{"content": c, "rating": n} for n, c in enumerate("abc")]}
    ]
    found = read_candidates([write(tmp_path / "rated.jsonl", rows)], PairingRecipe(), 0)
    assert found.gold == [[0.0, 1.0, 2.0]] and found.items[0].responses == ("a", "b", "c")
    assert found.entries[0]["kept"] == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"combine": "zscore"}, "give mean and deviation, or `validation`"),
        ({"combine": "weighted"}, "give weight, or `validation`"),
        ({"combine": "median", "penalty": 2.0}, "only with `combine: uncertainty`"),
        ({"standardise": True}, "is `combine: zscore`"),
        ({"validation": (DataSource(path="x"),)}, "nothing is left to measure"),
    ],
)
def test_recipes_that_contradict_themselves(keys, message):
    with pytest.raises(ValueError, match=message.replace("`", "`")):
        ensemble(LengthScorer(), LexiconScorer(), **keys)
    assert RecipeError  # the loader turns these into one line


def test_answers_are_candidates_without_gold_of_their_own(tmp_path):
    rows = [{"prompt": "p", "responses": ["a", "bb", "ccc"]}, {"prompt": "q", "response": "a"}]
    found = read_candidates([write(tmp_path / "answers.jsonl", rows)], None, 0)
    assert [item.responses for item in found.items] == [("a", "bb", "ccc")]
    assert np.isnan(found.gold[0]).all()
    assert found.entries[0]["dropped"] == {NOT_RATED: 1}
    with pytest.raises(RecipeError, match="no rating of their own: name a scorer"):
        own_gold(found)
