"""Judges and critics: what they ask, what they read, what they count, and that they never guess."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.scorer import Group, Score
from palate.errors import DataError
from palate.recipes.scorers import CriticScorer, ModelScorer, PairwiseJudge, PointwiseJudge
from palate.recipes.scorers import LocalChat as LocalRecipe
from palate.rewards.critic import Critic
from palate.rewards.given import NOT_GIVEN
from palate.rewards.judge import ASKED, CUT, UNREADABLE, Pairwise, Pointwise
from palate.rewards.names import name_of
from palate.rewards.questions import (
    critique_question,
    pair_question,
    rating_question,
    read_verdict,
)
from scored import Numbers, flat_values, values
from scripted_chat import FakeChat

CHAT = LocalRecipe(path="unused")
CHOICES = ("1", "2")


def responses_in(text):
    return re.findall(r"\[Response 1\]\n(.*?)\n\[End.*\[Response 2\]\n(.*?)\n\[End", text, re.S)[0]


def longer(text):
    a, b = responses_in(text)
    return "<answer>1</answer>" if len(a) > len(b) else "<answer>2</answer>"


def sampled(**more):
    return PairwiseJudge(chat=CHAT, method="sampled", **more)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<answer>1</answer>", "1"),
        ("<think>1 is <b>bad</b></think>\n<answer> 2 </answer> \n", "2"),
        ("<answer>TIE</answer>", None),
        ("<answer>1</answer> is my answer", None),
        ("<answer>1</answer><answer>1</answer>", None),
        ("<answer><answer>1</answer>", None),
        ("<answer>3</answer>", None),
        ("<answer>1 or 2</answer>", None),
        ("<answer></answer>", None),
        ("<answer>1", None),
        ("1", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(text, verdict):
    assert read_verdict(text, CHOICES) == verdict


@given(st.text())
def test_no_text_is_misread(text):
    found = read_verdict(text, CHOICES)
    assert found is None or text.count("<answer>") == 1
    assert read_verdict(f"{text.replace('<answer>', '')}<answer>2</answer>", CHOICES) in ("2", None)


def test_questions_hold_both_responses_in_order_and_all_turns():
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    (turn,) = pair_question(chat, "AAA", "BBB", ties=True, reasoning=True)
    assert turn["role"] == "user"
    assert responses_in(turn["content"]) == ("AAA", "BBB")
    assert "User: Hi\n\nAssistant: Hello\n\nUser: Why?" in turn["content"]
    assert "<think>" in turn["content"] and "tie" in turn["content"]
    (turn,) = rating_question("Q", "R", best=5, reasoning=False, instructions="Be strict.")
    assert "1, worst, to 5, best" in turn["content"] and "Be strict." in turn["content"]
    assert "<think>" not in turn["content"]


def test_pairwise_in_both_orders():
    judge = Pairwise(sampled(), FakeChat(longer))
    assert judge.compare(["p", "p"], ["aaa", "a"], ["b", "bbb"]) == [1.0, 0.0]
    assert judge.counts[judge.AGREE] == 2 and judge.counts[ASKED] == 4
    assert judge.name == "fake (pairwise)"


def test_what_the_place_decides_cancels():
    always_first = FakeChat(lambda text: "<answer>1</answer>")
    judge = Pairwise(sampled(), always_first)
    assert judge.compare(["p"], ["a"], ["b"]) == [0.5]
    assert judge.counts[judge.DISAGREE] == 1 and judge.counts[judge.FIRST_SLOT] == 2
    once = Pairwise(sampled(swap=False), always_first)
    assert once.compare(["p"], ["a"], ["b"]) == [1.0]
    assert once.counts[ASKED] == 1


def test_scores_are_mean_wins_within_a_prompt():
    judge = Pairwise(sampled(), FakeChat(longer))
    groups = values(judge, ["p", "q"], [["aaaa", "bb", "c"], ["alone"]])
    assert groups == [[1.0, 0.5, 0.0], [None]]
    assert judge.traits.relative
    assert values(judge, ["p", "q"], [["aa", "c"], ["b", "ddd"]]) == [[1.0, 0.0], [0.0, 1.0]]


def test_unreadable_verdicts_are_counted_and_give_no_score():
    judge = Pairwise(sampled(), FakeChat(lambda text: "I like both."))
    assert judge.compare(["p"], ["a"], ["b"]) == [None]
    assert judge.counts[UNREADABLE] == 2 and judge.counts[judge.AGREE] == 0
    cut = Pairwise(sampled(), FakeChat(lambda text: "<answer>1</answer>", finished=False))
    assert cut.compare(["p"], ["a"], ["b"]) == [None]
    assert (cut.counts[CUT], cut.counts[UNREADABLE]) == (2, 0)
    # One order alone is no verdict either.
    half = Pairwise(sampled(), FakeChat(lambda t: longer(t) if "[Response 1]\naa" in t else "?"))
    assert half.compare(["p"], ["aa"], ["b"]) == [None]


def test_votes_count_and_ties_are_half():
    said = ["<answer>1</answer>", "<answer>tie</answer>", "<answer>1</answer>", "hm"]
    recipe = sampled(swap=False, ties=True, votes=4, temperature=0.7)
    judge = Pairwise(recipe, FakeChat(lambda text: said))
    assert judge.compare(["p"], ["a"], ["b"]) == pytest.approx([2.5 / 3])
    assert judge.counts[UNREADABLE] == 1


def test_logits_are_probabilities_over_the_verdicts():
    recipe = PairwiseJudge(chat=CHAT, swap=False)
    judge = Pairwise(recipe, FakeChat(lambda text: {"1": math.log(0.3), "2": math.log(0.1)}))
    assert judge.compare(["p"], ["a"], ["b"]) == pytest.approx([0.75])
    assert judge.chat.asked[0][-1] == {"role": "assistant", "content": "<answer>"}
    silent = Pairwise(recipe, FakeChat(lambda text: None))
    assert silent.compare(["p"], ["a"], ["b"]) == [None]
    assert silent.counts[UNREADABLE] == 1


@given(st.floats(-8, 8), st.floats(-8, 8))
def test_swapping_the_responses_turns_the_verdict_round(a, b):
    def answer(text):
        first, second = (float(x) for x in responses_in(text))
        return {"1": first + 0.7, "2": second}  # a liking for the first place

    judge = Pairwise(PairwiseJudge(chat=CHAT), FakeChat(answer))
    (forward,) = judge.compare(["p"], [str(a)], [str(b)])
    (backward,) = judge.compare(["p"], [str(b)], [str(a)])
    assert forward + backward == pytest.approx(1.0)
    if abs(a - b) > 1e-3:
        assert (forward > 0.5) == (a > b)


def test_pointwise_is_the_expected_rating():
    recipe = PointwiseJudge(chat=CHAT, best=5)
    judge = Pointwise(recipe, FakeChat(lambda text: {"1": 0.0, "5": 0.0}))
    assert flat_values(judge, ["p"], ["a"]) == pytest.approx([3.0])
    voted = Pointwise(
        PointwiseJudge(chat=CHAT, method="sampled", reasoning=True, votes=3, temperature=1.0),
        FakeChat(lambda t: ["<answer>9</answer>", "<answer>10</answer>", "<answer>6</answer>"]),
    )
    assert flat_values(voted, ["p"], ["a"]) == [7.5] and voted.counts[UNREADABLE] == 1
    assert voted.name == "fake (pointwise, reasoning)"


def test_every_question_and_answer_can_be_kept():
    judge = Pairwise(sampled(swap=False), FakeChat(longer))
    kept = []
    judge.transcript = kept.append
    judge.compare(["p"], ["aa"], ["b"])
    assert kept[0]["texts"] == ["<answer>1</answer>"] and kept[0]["shares"] == {"1": 1.0}


class Counting(Numbers):
    """A reward model that counts a word of the critique."""

    name = "counting"

    def numbers(self, prompts, responses):
        self.prompts = prompts
        return [float(response.count("good")) for response in responses]


def test_a_critic_scores_what_is_read_with_the_critique():
    recipe = CriticScorer(chat=CHAT, scorer=ModelScorer(path="unused"))
    words = {"fine": "good good", "bad": "poor"}
    chat = FakeChat(lambda text: next((w for k, w in words.items() if k in text), " "))
    rewards = Counting()
    critic = Critic(recipe, rewards, chat)
    found = flat_values(critic, ["p", "p", "p"], ["fine", "bad", "mute"])
    assert found == [2.0, 0.0, None]
    assert critic.counts[Critic.EMPTY] == 1
    assert rewards.prompts[0] == critique_question("p", "fine")
    assert critic.name == "counting given critiques of fake"


def test_critiques_may_be_those_of_the_data(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "fine", "rejected": "bad", "for": "good good", "against": " "},
        {"prompt": "p", "chosen": "fine", "rejected": "so so", "for": "good", "against": "good"},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"data": [{"path": str(file)}], "chosen": "for", "rejected": "against"}
    recipe = {"given": columns, "scorer": {"type": "model", "path": "unused"}}
    rewards = Counting()
    critic = Critic(CriticScorer.model_validate(recipe), rewards)
    # A chat of one turn is the same prompt; of two critiques of one response the first counts.
    asked = [Group("p", ("fine", "bad")), Group([{"role": "user", "content": "p"}], ("so so",))]
    (fine, bad), (so,) = critic.score(asked)
    assert (fine.value, fine.text, so.value) == (2.0, "good good", 1.0)
    assert (bad.value, bad.reason) == (None, NOT_GIVEN)
    assert critic.counts[Critic.REPEATED] == 1 and critic.counts[Critic.EMPTY] == 1
    assert critic.name == "counting given critiques of the data"
    assert name_of(critic.recipe).endswith("given critiques of the data")
    for more in ({}, {"chat": CHAT.model_dump(), **recipe}):
        with pytest.raises(ValueError, match="give either `chat`"):
            CriticScorer.model_validate({"scorer": recipe["scorer"], **more})
    missing = {**columns, "chosen": "none", "rejected": "neither"}
    with pytest.raises(DataError, match="no critique to give: no critique in its column"):
        Critic(CriticScorer.model_validate({**recipe, "given": missing}), rewards)


def test_a_critic_tells_why_its_reward_model_gave_no_score():
    class Short(Numbers):
        name = "short"
        why = "prompt longer than max_prompt_tokens"

        def numbers(self, prompts, responses):
            return [math.nan] * len(prompts)

    recipe = CriticScorer(chat=CHAT, scorer=ModelScorer(path="unused"))
    critic = Critic(recipe, Short(), FakeChat(lambda _: "good"))
    (scores,) = critic.score([Group("p", ("a", "b"))])
    assert scores == [Score(None, Short.why, "good")] * 2
