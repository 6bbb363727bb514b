"""One interface for all kinds of rewards: values, texts and reasons."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import palate
from palate.data.scorer import HAS_IMAGES, values_by_part
from palate.errors import DataError, ModelError, RecipeError
from palate.models.reward_files import save_reward_model
from palate.recipes.scorers import (
    CriticScorer,
    LengthScorer,
    LocalChat,
    ModelScorer,
    PairwiseJudge,
    PointwiseJudge,
    ServerChat,
)
from palate.rewards.api import RewardScorer, load_scorer
from palate.rewards.chat import Reply
from palate.rewards.combined import NO_MEMBER, Member
from palate.rewards.critic import NO_CRITIQUE, Critic
from palate.rewards.ensemble import Ensemble
from palate.rewards.groups import NO_ANSWER, NO_QUESTION, score_groups
from palate.rewards.judge import ALONE, NO_VERDICT, Pairwise, Pointwise
from palate.rewards.length import Length
from palate.train.reward_run import reward as train_reward
from scored import Numbers, flat_values, groups_of, values
from tiny_rewards import recipe as reward_recipe

CHAT = LocalChat(path="unused")
PICTURE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]


class Says:
    """A model that answers by a function of the question."""

    name = "says"
    blind = HAS_IMAGES

    def __init__(self, answer):
        self.answer = answer

    def reply(self, questions, *, samples=1, **_):
        return [
            [Reply(text=self.answer(q[0]["content"]), finished=True)] * samples for q in questions
        ]

    def choose(self, questions, options):
        return [{"1": math.log(0.25), "2": math.log(0.75)} for _ in questions]


class Words(Numbers):
    """A reward model of critiques, which cannot score long ones."""

    name = "words"
    why = "too long"

    def numbers(self, prompts, responses):
        return [math.nan if len(text) > 20 else len(text) / 10 for text in responses]


class Found:
    """Scores by what there is to know of them."""

    def __init__(self, scores):
        self.scores = [score.value for score in scores]
        self.texts = [score.text for score in scores]
        self.reasons = [score.reason for score in scores]
        self.members = values_by_part(scores)


def critic(answer):
    return Critic(CriticScorer(chat=CHAT, scorer=ModelScorer(path="unused")), Words(), Says(answer))


def test_baselines_and_recipes_of_all_forms(tmp_path):
    file = tmp_path / "scorer.yaml"
    file.write_text("scorer: {type: length, prefer: shorter}\n")
    for source in (file, str(file), {"type": "length", "prefer": "shorter"}):
        assert Found(load_scorer(source).score("p", ["aaa", "b"])).scores == [-3.0, -1.0]
    found = Found(palate.load_scorer(LengthScorer()).score("p", ["aaa", [turn("b")]]))
    assert (found.scores, found.texts, found.reasons) == ([3.0, 1.0], [None] * 2, [None] * 2)


def test_what_is_no_scorer_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="lenght"):
        load_scorer({"type": "lenght"})
    with pytest.raises(ModelError, match="nothing"):
        load_scorer(tmp_path / "nothing")
    scorer = load_scorer({"type": "length"})
    with pytest.raises(TypeError, match="a list"):
        scorer.score("p", "one text")
    with pytest.raises(ValueError, match="2 prompts and 1 lists"):
        scorer.score_many(["p", "q"], [["x"]])
    for prompt, responses in (
        (None, ["x"]),
        ([], ["x"]),
        ([{"role": "user"}], ["x"]),
        ([{"role": "user", "content": 5}], ["x"]),
        ([{"role": "user", "content": ["why"]}], ["x"]),
        ([{"role": None, "content": "why"}], ["x"]),
        ("p", [3]),
    ):
        with pytest.raises(TypeError, match=r"is a text or turns like \{'role': 'user'"):
            scorer.score(prompt, responses)
    with pytest.raises(DataError, match="a response holds half of a surrogate pair"):
        scorer.score("p", ["a\ud800"])


def test_a_run_folder_is_told_from_its_model(tmp_path):
    run = train_reward(reward_recipe(tmp_path), quiet=True).path
    for open_model in (load_scorer, palate.load_reward_model):
        with pytest.raises(ModelError, match=r"a run's folder; its model is .*run/model$"):
            open_model(run)
    with pytest.raises(ModelError, match=r"a run's folder"):
        load_scorer({"type": "heads", "path": str(run)})


def test_weights_that_add_up_to_nothing(tmp_path):
    """Both members are wrong about every pair of the validation data."""
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "bad bad"}) + "\n")
    members = [{"scorer": {"type": "length"}}] * 2
    given = {"type": "ensemble", "members": members, "combine": "weighted", "weigh_by": "margin"}
    with pytest.raises(ModelError, match=r"no member has a weight above zero by margin on .*rows"):
        load_scorer(given | {"validation": [{"path": str(data)}]})


def test_a_reward_model_says_why_it_has_no_score(tmp_path):
    run = train_reward(reward_recipe(tmp_path), quiet=True)
    scorer = load_scorer(run.path / "model")
    found = Found(scorer.score("p", ["yes", "y" * 400, "no"]))
    assert found.scores[0] is not None and found.scores[2] is not None
    assert found.scores[1] is None and found.reasons[1] and found.reasons[0] is None
    many = [Found(own) for own in scorer.score_many(["p", "q"], [["yes", "no"], ["yes"]])]
    assert many[0].scores == pytest.approx([found.scores[0], found.scores[2]], abs=1e-6)


def test_a_critic_gives_its_critiques():
    scorer = RewardScorer(critic(lambda q: {"A": "good", "B": " "}.get(answer_in(q), "x" * 30)))
    found = Found(scorer.score("p", ["A", "B", "C"]))
    assert found.scores == [0.4, None, None]
    assert found.texts == ["good", None, "x" * 30]
    assert found.reasons == [None, NO_CRITIQUE, "too long"]


def test_a_rating_comes_with_its_words():
    recipe = PointwiseJudge(chat=CHAT, method="sampled", votes=2, temperature=1.0)
    says = Says(lambda q: "<answer>7</answer>" if answer_in(q) == "A" else "well")
    found = Found(RewardScorer(Pointwise(recipe, says)).score("p", ["A", "B"]))
    assert found.scores == [7.0, None] and found.reasons == [None, NO_VERDICT]
    assert found.texts == ["<answer>7</answer>\n\n<answer>7</answer>", "well\n\nwell"]


def test_a_comparison_is_told_to_both_sides_with_their_places():
    recipe = PairwiseJudge(chat=CHAT, method="sampled")
    first = "<answer>1</answer>"
    says = Says(lambda q: first if "[Response 1]\nlong" in q else "<answer>2</answer>")
    scorer = RewardScorer(Pairwise(recipe, says))
    found = Found(scorer.score("p", ["long", "b"]))
    assert scorer.traits.relative and found.scores == [1.0, 0.0]
    both = (
        "[1: response 1, 2: response 2]\n<answer>1</answer>\n\n"
        "[1: response 2, 2: response 1]\n<answer>2</answer>"
    )
    assert found.texts == [both, both]
    assert Found(scorer.score("p", ["long"])).reasons == [ALONE]


def test_probabilities_write_nothing():
    found = Found(
        RewardScorer(Pairwise(PairwiseJudge(chat=CHAT), Says(str))).score("p", ["a", "b"])
    )
    assert found.scores == [0.5, 0.5] and found.texts == [None, None]


def test_an_ensemble_tells_what_its_members_do():
    members = [Member(scorer=Length()), Member(scorer=critic(lambda q: "good" * len(answer_in(q))))]
    found = Found(RewardScorer(Ensemble(members)).score("p", ["A", "AAAAAAAA"]))
    assert found.scores == [pytest.approx(0.7), None]
    assert found.texts[0] == "words given critiques of says:\ngood"
    assert found.reasons == [None, "too long"]
    routed = Ensemble([Member(scorer=Length(), modality="image")] * 2)
    assert Found(RewardScorer(routed).score("p", ["A"])).reasons == [NO_MEMBER]


def test_scores_and_judgements_are_the_same_numbers():
    scorer = critic(lambda q: "good")
    assert values(scorer, ["p", "q"], [["A"], ["B", "C"]]) == [[0.4], [0.4, 0.4]]
    assert flat_values(scorer, ["p"], ["A"]) == [0.4]


def test_texts_are_in_files_of_scores(tmp_path, monkeypatch):
    from palate.evaluate.reward import score as module

    monkeypatch.setattr(module, "make_scorer", lambda recipe, seed: critic(lambda q: "good"))
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "p", "chosen": "A", "rejected": "B"}) + "\n")
    for form in ("jsonl", "parquet"):
        recipe = palate.ScoreRecipe.model_validate(
            {
                "output_dir": tmp_path / form,
                "scorer": {"type": "length"},
                "data": [{"path": str(data)}],
                "format": form,
            }
        )
        found = module.score_files(recipe)
        assert [line["text"] for line in lines_of(found.scores)] == ["good", "good"]


def lines_of(path: Path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def answer_in(question):
    return question.split("[Response]\n")[1].split("\n[End of response]")[0]


def turn(text):
    return {"role": "assistant", "content": text}


def test_saved_and_loaded_alike(tmp_path):
    run = train_reward(reward_recipe(tmp_path), quiet=True)
    model = palate.load_reward_model(run.path / "model")
    save_reward_model(model, tmp_path / "copy")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "copy" / file).write_bytes((run.path / "model" / file).read_bytes())
    one, other = (
        load_scorer(path).score("p", ["a", "bb"])
        for path in (run.path / "model", tmp_path / "copy")
    )
    assert one == other


def test_an_ensemble_shows_its_members(tmp_path):
    two = {"type": "ensemble", "members": [{"scorer": {"type": "length"}}] * 2}
    found = Found(load_scorer(two).score("p", ["aa", "b"]))
    assert found.members == {"longer wins": [2.0, 1.0], "longer wins (2)": [2.0, 1.0]}
    assert Found(load_scorer({"type": "length"}).score("p", ["aa"])).members == {}


def test_what_no_scorer_sees_has_no_score():
    judge = RewardScorer(Pointwise(PointwiseJudge(chat=CHAT), Says(str)))
    found = [Found(own) for own in judge.score_many([PICTURE, "p"], [["x", "y"], ["x"]])]
    assert found[0].scores == [None, None] and found[0].reasons == [HAS_IMAGES] * 2
    assert found[1].scores[0] is not None
    # A length looks at no prompt, and so at no image.
    assert Found(load_scorer({"type": "length"}).score(PICTURE, ["x", "yy"])).scores == [1.0, 2.0]


def test_prompts_are_routed_to_the_members_that_read_them():
    judge = Pointwise(PointwiseJudge(chat=CHAT), Says(str))
    routed = Ensemble(
        [Member(scorer=judge, modality="text"), Member(scorer=Length(), modality="image")]
    )
    found = [
        Found(own) for own in RewardScorer(routed).score_many([PICTURE, "p"], [["xxx"], ["xxx"]])
    ]
    assert found[0].scores == [3.0] and list(found[0].members) == ["longer wins"]
    assert found[1].scores == pytest.approx([1.75]) and list(found[1].members) == [
        "says (pointwise)"
    ]
    # A member that is asked and sees nothing leaves the ensemble without a score.
    blind = Ensemble([Member(scorer=judge), Member(scorer=Length())])
    found = Found(RewardScorer(blind).score(PICTURE, ["xxx"]))
    assert (found.scores, found.reasons) == ([None], [HAS_IMAGES])


def test_a_prompt_that_is_answered_already_has_no_score():
    found = Found(load_scorer({"type": "length"}).score([turn("hello")], ["x"]))
    assert (found.scores, found.reasons) == ([None], [NO_QUESTION])


def test_a_response_is_the_assistants_from_its_first_turn_to_its_last():
    def said(role, content):
        return {"role": role, "content": content}

    good = [[said("assistant", "a"), said("tool", "t"), said("assistant", "bb")], "ccc"]
    bad = [[said("user", "no")], [said("assistant", "a"), said("user", "and?")]]
    mixed = [bad[0], good[0], bad[1], good[1]]
    found = Found(load_scorer({"type": "length"}).score([said("user", "q")], mixed))
    assert found.scores == [None, 8.0, None, 3.0]
    assert found.reasons == [NO_ANSWER, None, NO_ANSWER, None]
    # A judge that compares sees the others alone, however many there are.
    judge = RewardScorer(Pairwise(PairwiseJudge(chat=CHAT), Says(str)))
    assert Found(judge.score("q", mixed)).reasons == [NO_ANSWER, None, NO_ANSWER, None]
    assert Found(judge.score("q", [*bad, "c"])).reasons == [NO_ANSWER, NO_ANSWER, ALONE]
    assert Found(judge.score("q", bad)).reasons == [NO_ANSWER, NO_ANSWER]
    # Those of one prompt that are put to a scorer together stay together.
    many = Found(
        load_scorer({"type": "length"}).score("q", [*bad * 9, *["x" * n for n in range(20)]])
    )
    assert many.scores == [None] * 18 + [float(n) for n in range(20)]


def test_a_server_is_asked_for_all_at_once_and_a_local_model_one_by_one():
    def asked(chat):
        says, calls = Says(lambda q: "<answer>7</answer>"), []
        reply = says.reply
        says.reply = lambda questions, **more: calls.append(len(questions)) or reply(questions)
        judge = Pointwise(PointwiseJudge(chat=chat, method="sampled"), says)
        score_groups(judge, groups_of(["p", "q"], [["a", "b"], ["c"]]), exact=True)
        return calls

    assert asked(ServerChat(url="http://127.0.0.1:1/v1", model="m")) == [3]
    assert asked(CHAT) == [1, 1, 1]
    both = [Member(scorer=Length()), Member(scorer=Length())]
    assert Ensemble(both).traits.independent
    assert not Ensemble([both[0], Member(scorer=Words())]).traits.independent
