"""A conversation that comes rendered is read as training and evaluation read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from palate.data.schema import Content, Message
from palate.data.scorer import Score, part_values
from palate.recipes.scorers import RuleScorer as RuleRecipe
from palate.rewards.classifier import TOO_LONG, ClassifierScorer
from palate.rewards.combined import NO_MEMBER, Member
from palate.rewards.ensemble import Ensemble
from palate.rewards.groups import score_groups
from palate.rewards.length import Length
from palate.rewards.members import Rule
from palate.rewards.mixture import Gate
from palate.rewards.model import ModelScorer
from palate.rewards.rendered import (
    NO_RESPONSE,
    NOT_ITS_PROMPT,
    reads_rendered,
    score_rendered,
    why_not_rendered,
)
from palate.rewards.rule import RuleScorer
from scored import Alike, flat_values, groups_of
from tiny import CONFIGS
from tiny_chat import CHATML, DOUBLE_END, NO_END, STRICT, byte_tokenizer
from tiny_scorer import SAID, conversation, heads_of, scorer_of, spaced

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
    right = flat_values(scorer, [prompt], [response])
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
    assert [o.value for o in found] == pytest.approx(right * len(ended), **PLACES)


@pytest.mark.parametrize("make", BYTES, ids=IDS)
def test_without_its_prompt_a_text_is_the_same_bytes(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    scorer = scorer_of(make())
    prompt, response = conversation(scorer.tokenizer.chat_template is not None)
    asked, said = texts(scorer)
    (right,) = flat_values(scorer, [prompt], [response])
    for prompts in (None, [""]):
        (found,) = score_rendered(scorer, [asked + said + "<eos>"], prompts)
        assert found.value == pytest.approx(right, **PLACES)


def test_a_beginning_that_only_the_policy_has_is_put_right() -> None:
    scorer = scorer_of(byte_tokenizer(adds_bos=True, template=CHATML))
    asked, said = texts(scorer)
    right = flat_values(scorer, *([one] for one in conversation(True)))  # type: ignore[arg-type]
    ways = [("<bos>" + asked, asked), ("<bos>" + asked, "<bos>" + asked), (asked, asked)]
    found = score_rendered(scorer, [a + said for a, _ in ways], [b for _, b in ways])
    assert [o.value for o in found] == pytest.approx(right * 3, **PLACES)


def test_long_prompts_are_cut_as_in_training() -> None:
    for keep in ("keep_end", "keep_start"):
        scorer = scorer_of(
            byte_tokenizer(adds_bos=True, template=CHATML), max_prompt_tokens=40, prompt=keep
        )
        prompt: Content = [Message(role="user", content="a b c d e f g " * 9)]
        (right,) = flat_values(scorer, [prompt], [SAID])
        asked = scorer.encoder.template.render(prompt, []).prompt  # type: ignore[arg-type]
        (found,) = score_rendered(scorer, [asked + SAID], [asked])
        assert found.value == pytest.approx(right, **PLACES)


def test_what_cannot_be_scored_says_why() -> None:
    scorer = scorer_of(byte_tokenizer(adds_bos=False, template=CHATML))
    asked, _ = texts(scorer)
    found = score_rendered(
        scorer, [asked, asked + "<end>\n", "no", asked + "x" * 400, ""], [asked] * 4 + [""]
    )
    assert [o.reason for o in found[:3]] == [NO_RESPONSE, NO_RESPONSE, NOT_ITS_PROMPT]
    assert "longer than" in str(found[3].reason) and found[4].reason == NO_RESPONSE
    assert all(o.value is None for o in found)


def test_a_reward_that_overflows_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(byte_tokenizer(template=CHATML))
    monkeypatch.setattr(scorer, "_rewards", lambda items, layout: [math.inf] * len(items))
    asked, said = texts(scorer)
    assert score_rendered(scorer, [asked + said], [asked]) == [
        Score(None, "the score is no finite number")
    ]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rule", ["mean", "min", "uncertainty"])
def test_an_ensemble_of_models_reads_each_text_as_its_members_do(rule: Rule, exact: bool) -> None:
    scorer = heads_of(byte_tokenizer(adds_bos=True, template=CHATML), rule=rule)
    first = scorer.members[0].scorer
    assert (
        isinstance(first, ModelScorer)
        and reads_rendered(scorer)
        and why_not_rendered(scorer) is None
    )
    prompt, _ = conversation(True)
    asked, said = texts(first)
    said_here = [said, "no", "x" * 400]
    right = score_groups(
        scorer, groups_of([prompt] * 3, [[text] for text in said_here]), exact=exact
    )
    rendered = [asked + said + "<eos>", "<bos>" + asked + "no<end>\n", asked + "x" * 400]
    found = score_rendered(scorer, rendered, [asked] * 3, exact=exact)
    for (wanted,), own in zip(right[:2], found[:2], strict=True):
        assert own.value is not None and own.reason is None
        if exact:
            assert own == wanted
        assert part_values(own) == pytest.approx(part_values(wanted), **PLACES)
        assert len(part_values(own)) == 3
    assert found[2].value is None and "longer than" in str(found[2].reason)
    assert part_values(found[2]) == dict.fromkeys(scorer.names)
    nothing = score_rendered(scorer, [asked, "no"], [asked] * 2)
    assert [own.reason for own in nothing] == [NO_RESPONSE, NOT_ITS_PROMPT]


def test_an_ensemble_is_read_by_those_members_that_score_texts() -> None:
    model = scorer_of(byte_tokenizer(adds_bos=True, template=CHATML))
    asked, said = texts(model)

    def together(modality: Any, other: Any = Alike) -> Ensemble:
        return Ensemble([Member(scorer=model), Member(scorer=other(), modality=modality)])

    mixed = together("text")
    assert not reads_rendered(mixed)
    assert "tiny reads conversations" in str(why_not_rendered(mixed)) and "alike" in str(
        why_not_rendered(mixed)
    )
    nested = Ensemble([Member(scorer=mixed), Member(scorer=Alike())])
    assert not reads_rendered(nested) and why_not_rendered(nested) is not None
    # Who scores nothing but images is asked about no text.
    beside = together("image")
    assert reads_rendered(beside) and why_not_rendered(beside) is None
    (found,) = score_rendered(beside, [asked + said], [asked])
    (right,) = score_rendered(model, [asked + said], [asked])
    assert (found.value, part_values(found)) == (right.value, {"tiny": right.value})
    nobody = Ensemble([Member(scorer=model, modality="image")] * 2)
    assert score_rendered(nobody, [asked + said], [asked]) == [Score(None, NO_MEMBER)]
    plain = Ensemble([Member(scorer=Length()), Member(scorer=Length("shorter"))])
    assert not reads_rendered(plain) and why_not_rendered(plain) is None


@pytest.mark.parametrize("reader", ["model", "classifier"])
def test_a_rule_before_a_model_reads_the_response_without_the_templates_marks(
    reader: str, tmp_path: Path
) -> None:
    model: Any = scorer_of(byte_tokenizer(adds_bos=True, template=CHATML))
    if reader == "classifier":
        model = classifier(tmp_path, CHATML)
        render = model.tokenizer.apply_chat_template
        prompt, _ = conversation(True)
        asked = str(render(prompt, tokenize=False, add_generation_prompt=True))
    else:
        asked = texts(model)[0]
    # No longer than what is said, and no mark of the template.
    words = {"unit": "characters", "max": len(SAID)}
    rule = RuleScorer(
        RuleRecipe.model_validate({"pattern": "^[^<>]*$", "length": words, "broken": -1})
    )
    gated = Gate(rule, model, threshold=0.5)
    assert reads_rendered(gated) and why_not_rendered(gated) is None
    (right,) = score_rendered(model, [asked + SAID], [asked])
    sent = [asked + SAID + "<eos>", asked + SAID + "!", asked + SAID + "<end>\n", asked]
    scores = score_rendered(gated, sent, [asked] * 4)
    assert scores[0].value == scores[2].value == pytest.approx(right.value, **PLACES)
    assert scores[1].value == -1.0 and list(scores[1].parts) == [rule.name]
    assert scores[3].reason == NO_RESPONSE
    # Without the prompt nobody knows where the response begins.
    (unknown,) = score_rendered(gated, [asked + SAID])
    assert unknown.value is None and "`prompts`" in str(unknown.reason)
    # One that looks at prompts would read the template's marks as words.
    answers = RuleScorer(
        RuleRecipe.model_validate({"answers": [{"path": "a.jsonl"}]}), {"What?": "So."}
    )
    assert not reads_rendered(Gate(answers, model))
    assert "which looks at prompts" in str(why_not_rendered(Gate(answers, model)))


def classifier(folder: Path, template: str, **more: Any) -> ClassifierScorer:
    torch.manual_seed(0)
    config, tokenizer = CONFIGS["llama"](), byte_tokenizer(adds_bos=True, template=template)
    config.vocab_size, config.num_labels = len(tokenizer), 1
    config.pad_token_id = tokenizer.pad_token_id
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ClassifierScorer(str(folder), **more)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("template", [CHATML, STRICT, NO_END], ids=["ml", "strict", "no-end"])
def test_a_classifier_reads_a_chat_as_its_template_renders_it(
    template: str, exact: bool, tmp_path: Path
) -> None:
    scorer = classifier(tmp_path, template)
    prompt, response = conversation(True)
    right = flat_values(scorer, [prompt], [response])
    render = scorer.tokenizer.apply_chat_template
    asked = str(render(prompt, tokenize=False, add_generation_prompt=True))  # type: ignore[arg-type]
    ends = ("", "<eos>", "<end>\n", "<eos><pad><pad>")
    ways = [asked + SAID + end for end in ends] + ["<pad><pad>" + asked + SAID]
    bare = asked.removeprefix("<bos>")
    ways += [bare + SAID, "<bos>" + bare + SAID]
    prompts = [asked] * 5 + [bare, "<bos>" + bare]
    assert reads_rendered(scorer)
    found = score_rendered(scorer, ways, prompts, exact=exact)
    assert [own.value for own in found] == pytest.approx(right * len(ways), **PLACES)
    last = score_rendered(scorer, [asked + "x" * 400, asked, "no"], [asked] * 3)
    assert [own.reason for own in last] == [TOO_LONG, NO_RESPONSE, NOT_ITS_PROMPT]
    # One that reads texts has no template to tell a conversation by.
    joined = ClassifierScorer(str(tmp_path), input="joined")
    assert not reads_rendered(joined) and why_not_rendered(joined) is None


def test_a_beginning_that_others_models_have_is_put_where_their_template_puts_it() -> None:
    for template in (STRICT, CHATML):
        scorer = scorer_of(byte_tokenizer(adds_bos=True, template=template), whole=True)
        right = flat_values(scorer, *([one] for one in conversation(True)))  # type: ignore[arg-type]
        asked = texts(scorer)[0].removeprefix("<bos>")
        ways = [asked, "<bos>" + asked]
        found = score_rendered(scorer, [way + SAID for way in ways], ways)
        assert [o.value for o in found] == pytest.approx(right * 2, **PLACES)


class Copied(str):
    """A text that counts the characters of its copies."""

    count = 0

    def _copy(self, text: str) -> Copied:
        Copied.count += len(text)
        return Copied(text)

    def __getitem__(self, key: Any) -> Copied:
        return self._copy(super().__getitem__(key))

    def rstrip(self, *args: Any) -> Copied:
        return self._copy(super().rstrip(*args))

    def removesuffix(self, *args: Any) -> Copied:
        return self._copy(super().removesuffix(*args))

    def removeprefix(self, *args: Any) -> Copied:
        return self._copy(super().removeprefix(*args))


@pytest.mark.parametrize("repeated", ["<eos>", "<pad>", "<end>\n", " ", "<eos>\n "])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_text_full_of_end_tokens_is_read_once(repeated: str, ahead: bool) -> None:
    scorer = scorer_of(byte_tokenizer(adds_bos=False, template=CHATML))
    asked, said = texts(scorer)
    many = repeated * 2000
    text = many + asked + said if ahead else asked + said + many
    Copied.count = 0
    score_rendered(scorer, [Copied(text)], [Copied("" if ahead else asked)])
    assert Copied.count < 10 * len(text)
