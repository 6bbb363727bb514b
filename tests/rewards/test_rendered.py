"""A conversation that comes rendered is read as training and evaluation read it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from palate.data.schema import Content, Message
from palate.rewards.model import ModelScorer
from palate.rewards.rendered import NO_RESPONSE, NOT_ITS_PROMPT, score_rendered
from palate.rewards.rows import Outcome
from tiny_chat import CHATML, DOUBLE_END, NO_END, STRICT, byte_tokenizer
from tiny_scorer import SAID, conversation, scorer_of, spaced

PLACES = {"abs": 1e-5}


def texts(scorer: ModelScorer) -> tuple[str, str]:
    """The prompt as a policy reads it, and the response without its end."""
    prompt, response = conversation(scorer.tokenizer.chat_template is not None)
    if isinstance(prompt, str):
        return prompt, SAID
    return scorer.encoder.template.render(prompt, [response]).prompt, SAID  # type: ignore[list-item]


BYTES: list[Callable[[], PreTrainedTokenizerFast]] = [
    lambda: byte_tokenizer(adds_bos=False, template=CHATML),
    lambda: byte_tokenizer(adds_bos=True, template=CHATML),
    lambda: byte_tokenizer(adds_bos=True, template=STRICT),
    lambda: byte_tokenizer(adds_bos=False, template=NO_END),
    lambda: byte_tokenizer(adds_bos=False, template=DOUBLE_END),
    lambda: byte_tokenizer(adds_bos=True),
    lambda: byte_tokenizer(adds_bos=False),
]
IDS = ["ml", "ml-bos", "strict", "no-end", "double", "text-bos", "text"]
SPACED = [lambda: spaced(CHATML), lambda: spaced(NO_END), lambda: spaced(None)]


@pytest.mark.parametrize("whole", [False, True], ids=["ours", "others"])
@pytest.mark.parametrize(
    "make", [*BYTES, *SPACED], ids=[*IDS, "spaced-ml", "spaced-no-end", "spaced-text"]
)
def test_every_way_of_ending_and_padding_scores_as_the_conversation(
    make: Callable[[], PreTrainedTokenizerFast], whole: bool
) -> None:
    scorer = scorer_of(make(), whole=whole)
    chat = scorer.tokenizer.chat_template is not None
    prompt, response = conversation(chat)
    right = scorer.score([prompt], [response])
    assert math.isfinite(right[0])
    asked, said = texts(scorer)
    whole_chat = asked + said
    if chat:
        whole_chat = "".join(
            (found := scorer.encoder.template.render(prompt, [response])).prompt  # type: ignore
            + found.responses[0]
        )
    ended = [whole_chat, whole_chat.rstrip("\n"), asked + said, asked + said + "<eos>"]
    ended += [asked + said + "<end>", asked + said + "<eos><pad><pad>"]
    ended += ["<pad><pad>" + whole_chat, "<pad>" + asked + said + "<eos>\n<pad>"]
    found = score_rendered(scorer, ended, [asked] * len(ended))
    assert [o.score for o in found] == pytest.approx(right * len(ended), **PLACES)


@pytest.mark.parametrize("make", BYTES, ids=IDS)
def test_without_its_prompt_a_text_is_the_same_bytes(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    scorer = scorer_of(make())
    prompt, response = conversation(scorer.tokenizer.chat_template is not None)
    asked, said = texts(scorer)
    (right,) = scorer.score([prompt], [response])
    for prompts in (None, [""]):
        (found,) = score_rendered(scorer, [asked + said + "<eos>"], prompts)
        assert found.score == pytest.approx(right, **PLACES)


def test_a_beginning_that_only_the_policy_has_is_put_right() -> None:
    scorer = scorer_of(byte_tokenizer(adds_bos=True, template=CHATML))
    asked, said = texts(scorer)
    right = scorer.score(*([one] for one in conversation(True)))  # type: ignore[arg-type]
    ways = [("<bos>" + asked, asked), ("<bos>" + asked, "<bos>" + asked), (asked, asked)]
    found = score_rendered(scorer, [a + said for a, _ in ways], [b for _, b in ways])
    assert [o.score for o in found] == pytest.approx(right * 3, **PLACES)


def test_long_prompts_are_cut_as_in_training() -> None:
    for keep in ("keep_end", "keep_start"):
        scorer = scorer_of(
            byte_tokenizer(adds_bos=True, template=CHATML), max_prompt_tokens=40, prompt=keep
        )
        prompt: Content = [Message(role="user", content="a b c d e f g " * 9)]
        (right,) = scorer.score([prompt], [SAID])
        asked = scorer.encoder.template.render(prompt, []).prompt  # type: ignore[arg-type]
        (found,) = score_rendered(scorer, [asked + SAID], [asked])
        assert found.score == pytest.approx(right, **PLACES)


def test_what_cannot_be_scored_says_why() -> None:
    scorer = scorer_of(byte_tokenizer(adds_bos=False, template=CHATML))
    asked, _ = texts(scorer)
    found = score_rendered(
        scorer, [asked, asked + "<end>\n", "no", asked + "x" * 400, ""], [asked] * 4 + [""]
    )
    assert [o.reason for o in found[:3]] == [NO_RESPONSE, NO_RESPONSE, NOT_ITS_PROMPT]
    assert "longer than" in str(found[3].reason) and found[4].reason == NO_RESPONSE
    assert all(o.score is None for o in found)


def test_a_reward_that_overflows_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(byte_tokenizer(template=CHATML))
    monkeypatch.setattr(scorer, "score_encoded", lambda groups: [[math.inf] for _ in groups])
    asked, said = texts(scorer)
    assert score_rendered(scorer, [asked + said], [asked]) == [
        Outcome(None, "the score is no finite number")
    ]
