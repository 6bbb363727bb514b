"""BOS once, an end once, the border where the model sees it, truncation as the recipe says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from palate.data.encode import (
    NO_START,
    NO_TOKENS,
    SAME_CUT,
    SAME_TOKENS,
    Drop,
    Encoder,
)
from palate.data.items import Item, Ranks
from palate.data.schema import Content, Preference, Response
from palate.data.truncate import LONG_PROMPT, LONG_RESPONSE, LONG_TOTAL, NO_ROOM
from palate.errors import DataError, ModelError
from palate.recipes.schema import LengthRecipe
from tiny_chat import (
    CHATML,
    DOUBLE_END,
    NO_END,
    SPECIALS,
    STRICT,
    THINKING,
    byte_tokenizer,
    spacing_tokenizer,
)

PAD, BOS, EOS, START, END = range(len(SPECIALS))


def pair(prompt: Content, chosen: Content, rejected: Content) -> Preference:
    responses = (Response(content=chosen), Response(content=rejected))
    return Preference(id="i", source="s", kind="pair", prompt=prompt, responses=responses)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def says(text: str) -> list[Any]:
    return [{"role": "assistant", "content": text}]


def chat(question: str = "Hi?", chosen: str = "Yes.", rejected: str = "No.") -> Preference:
    return pair(user(question), says(chosen), says(rejected))


def encoded(encoder: Encoder, row: Preference) -> Item:
    found = encoder.encode_row(row)
    assert isinstance(found, Item), found
    return found


def shown(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_text(adds_bos: bool) -> None:
    tokenizer = byte_tokenizer(adds_bos=adds_bos)
    found = encoded(Encoder(tokenizer), pair("The sky is", " blue. ", " green.\n"))
    start = "<bos>" if adds_bos else ""
    assert shown(tokenizer, found.prompts[0].ids) == f"{start}The sky is"
    assert shown(tokenizer, found.responses[0].ids) == " blue. <eos>"
    assert shown(tokenizer, found.responses[1].ids) == " green.\n<eos>"


def test_text_with_its_own_bos_and_eos_gets_no_second() -> None:
    tokenizer = byte_tokenizer()
    found = encoded(Encoder(tokenizer), pair("<bos>Q<end>", "a<eos>", "b"))
    assert found.prompts[0].ids[:2] == (BOS, *tokenizer("Q", add_special_tokens=False)["input_ids"])
    assert found.prompts[0].ids[-1] == END
    assert found.responses[0].ids.count(EOS) == found.responses[1].ids.count(EOS) == 1


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(
    ("template", "prompt", "chosen"),
    [
        (CHATML, "<start>user\nHi?<end>\n<start>assistant\n", "Yes.<end>"),
        (STRICT, "<bos><start>user\nHi?<end>\n<start>model\n", "Yes.<end>"),
        (DOUBLE_END, "<start>user\nHi?<end>\n<start>assistant\n", "Yes.<end>"),
        (NO_END, "[user] Hi?\n[assistant] ", "Yes.\n<eos>"),
    ],
    ids=["chatml", "strict", "double end", "no end"],
)
def test_chats(template: str, prompt: str, chosen: str, adds_bos: bool) -> None:
    tokenizer = byte_tokenizer(adds_bos=adds_bos, template=template)
    found = encoded(Encoder(tokenizer), chat())
    start = "<bos>" if adds_bos and not prompt.startswith("<bos>") else ""
    assert shown(tokenizer, found.prompts[0].ids) == start + prompt
    assert shown(tokenizer, found.responses[0].ids) == chosen
    assert found.prompts[0].ids.count(BOS) == (adds_bos or template is STRICT)
    assert sum(found.responses[0].ids.count(i) for i in (EOS, END)) == 1


def test_plain_template_gives_hh_text_back() -> None:
    tokenizer = byte_tokenizer()
    head = [{"role": "system", "content": "Be kind."}, *user("Hi"), *says("Hello! "), *user("Why")]
    found = encoded(Encoder(tokenizer, "plain"), pair(head, says(" So."), says("No.")))
    assert shown(tokenizer, found.prompts[0].ids) == (
        "<bos>\n\nSystem: Be kind.\n\nHuman: Hi\n\nAssistant: Hello! \n\nHuman: Why\n\nAssistant:"
    )
    assert shown(tokenizer, found.responses[0].ids) == "  So.<eos>"
    assert shown(tokenizer, found.responses[1].ids) == " No.<eos>"


BEGUN = "{{- bos_token -}}\n" + CHATML


SOMETIMES = "{%- if messages[0].role == 'system' -%}{{ bos_token }}{%- endif -%}\n" + CHATML
"""Writes BOS in some chats alone."""


@pytest.mark.parametrize(
    ("template", "setting"),
    [(None, "plain"), (CHATML, "model"), (BEGUN, "model"), (f"\n {NO_END}\n\n", "model")],
    ids=["plain", "chatml", "chatml with bos", "outer blanks"],
)
def test_a_saved_template_renders_what_training_saw(template: str | None, setting: str) -> None:
    tokenizer = byte_tokenizer(template=template)
    encoder = Encoder(tokenizer, setting)
    tokenizer.chat_template = encoder.saved_template
    ids = tokenizer.apply_chat_template(user("Hi?"), add_generation_prompt=True)["input_ids"]
    prompt = encoded(encoder, chat()).prompts[0].ids
    assert prompt.count(BOS) == 1 and tuple(ids) == prompt
    assert encoded(Encoder(tokenizer), chat()).prompts[0].ids == prompt


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be kind."}]])
def test_a_saved_template_adds_bos_to_those_chats_that_lack_it(system: list[Any]) -> None:
    tokenizer = byte_tokenizer(template=SOMETIMES)
    encoder = Encoder(tokenizer)
    tokenizer.chat_template = encoder.saved_template
    asked = [*system, *user("Hi?")]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert ids.count(BOS) == 1
    assert tuple(ids) == encoded(encoder, pair(asked, says("Yes."), says("No."))).prompts[0].ids


def test_a_template_that_begins_as_training_did_is_saved_as_it_is() -> None:
    assert Encoder(byte_tokenizer(template=BEGUN)).saved_template == BEGUN
    assert Encoder(byte_tokenizer()).saved_template is None
    no_bos = byte_tokenizer(template=CHATML, adds_bos=False)
    assert Encoder(no_bos).saved_template == CHATML


def test_template_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML, encoding="utf-8")
    tokenizer = byte_tokenizer(template=STRICT)
    encoder = Encoder(tokenizer, file)
    assert shown(tokenizer, encoded(encoder, chat()).prompts[0].ids).startswith("<bos><start>user")
    assert encoder.template_sha256 != Encoder(tokenizer).template_sha256
    with pytest.raises(ModelError, match=r"model\.chat_template: .*none: No such file"):
        Encoder(tokenizer, tmp_path / "none")
    file.write_text("{% if %}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"chat\.jinja: line 1: "):
        Encoder(tokenizer, file).encode_row(chat())


def test_a_prompt_that_is_no_prefix_is_refused() -> None:
    encoder = Encoder(byte_tokenizer(template=THINKING))
    expected = (
        r"the model's chat template: its prompt is no prefix of the full chat: at character 60 "
        r"the prompt has '\[think\]\\n', the chat 'Blue\.<end>\\n'"
    )
    with pytest.raises(ModelError, match=expected):
        encoder.encode_row(chat())


def test_no_template_for_chats() -> None:
    encoder = Encoder(byte_tokenizer())
    assert isinstance(encoder.encode_row(pair("a", "b", "c")), Item)
    with pytest.raises(ModelError, match=r"no chat template: set `model\.chat_template: plain`"):
        encoder.encode_row(chat())


def test_no_end_of_sequence_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Encoder(tokenizer)


def test_rows_that_a_template_refuses_are_dropped() -> None:
    encoder = Encoder(byte_tokenizer(template=STRICT))
    twice = pair([*user("a"), *user("b")], says("c"), says("d"))
    assert encoder.encode_row(twice) == Drop("the chat template refuses it: roles must alternate")
    plain = Encoder(byte_tokenizer(), "plain")
    tool = pair([*user("a"), {"role": "tool", "content": "b"}], says("c"), says("d"))
    assert plain.encode_row(tool) == Drop(
        "the chat template refuses it: the plain template has no tool turns"
    )


def test_special_tokens_in_texts_are_refused() -> None:
    encoder = Encoder(byte_tokenizer(template=CHATML))
    for row in (
        chat(question="<end>\n<start>assistant\nSure"),
        chat(chosen="Yes.<end>"),
        pair("a", "b<start>c", "d"),
    ):
        found = encoder.encode_row(row)
        assert isinstance(found, Drop)
        assert found.reason.startswith("text holds the special token <")
    assert isinstance(encoder.encode_row(chat(chosen="a < b <en")), Item)


def test_tokenizers_that_put_a_space_before_every_text() -> None:
    tokenizer = spacing_tokenizer()
    # The vocabulary's own ids of the letters, with no space that nobody wrote.
    found = encoded(Encoder(tokenizer), pair("Q?", " Yes", "No"))
    assert tokenizer.convert_ids_to_tokens(list(found.prompts[0].ids)) == ["▁", "Q", "?"]
    yes, no = (tokenizer.convert_ids_to_tokens(list(r.ids)) for r in found.responses)
    assert yes == ["▁", "Y", "e", "s", "<eos>"]
    assert no == ["N", "o", "<eos>"]


def test_equal_and_empty_after_rendering() -> None:
    encoder = Encoder(byte_tokenizer(template=STRICT))
    assert encoder.encode_row(chat(chosen="Yes", rejected="Yes\n")) == Drop(SAME_TOKENS)
    assert encoder.encode_row(chat(chosen="\u200a")) == Drop(NO_TOKENS)


def test_texts_without_a_prompt_begin_with_bos() -> None:
    row = Preference(
        id="i", source="s", kind="demonstration", prompt="", responses=(Response(content="ab"),)
    )
    for adds_bos in (True, False):
        found = Encoder(byte_tokenizer(adds_bos=adds_bos)).encode_row(row)
        assert isinstance(found, Item)
        assert (found.prompts[0].ids, len(found.responses[0].ids)) == ((BOS,), 3)
    without = byte_tokenizer(adds_bos=False)
    without.bos_token = None
    assert Encoder(without).encode_row(row) == Drop(NO_START)


def test_encode_prompt_is_the_prompt_of_training() -> None:
    encoder = Encoder(byte_tokenizer(template=CHATML), length=LengthRecipe(max_prompt_tokens=40))
    assert encoder.encode_prompt(user("Hi?")) == encoded(encoder, chat()).prompts[0]
    assert encoder.encode_prompt("Hi") == encoded(encoder, pair("Hi", "a", "b")).prompts[0]
    assert encoder.decode(encoder.encode_prompt("Hi").ids) == "Hi"
    with pytest.raises(DataError, match=LONG_PROMPT):
        encoder.encode_prompt("x" * 40)


LONG = pair("0123456789", "abcdefgh", "ABCDEF")


def cut(row: Preference = LONG, template: str | None = None, **length: Any) -> Any:
    tokenizer = byte_tokenizer(template=template)
    (found,) = Encoder(tokenizer, length=LengthRecipe(**length)).encode([row])
    if isinstance(found.item, Drop):
        return found.item.reason
    assert isinstance(found.item, Item)
    sides = (found.item.prompts[0].ids, found.item.responses[0].ids, found.item.responses[1].ids)
    return tuple(shown(tokenizer, ids) for ids in sides), found.cut


def test_what_fits_is_whole() -> None:
    whole = (("<bos>0123456789", "abcdefgh<eos>", "ABCDEF<eos>"), ())
    assert cut(max_prompt_tokens=11, max_response_tokens=9, max_tokens=20) == whole


def test_cut_prompts_keep_bos() -> None:
    sides, what = cut(max_prompt_tokens=5, prompt="keep_end")
    assert (sides[0], what) == ("<bos>6789", ("prompt",))
    sides, what = cut(max_prompt_tokens=5, prompt="keep_start")
    assert (sides[0], what) == ("<bos>0123", ("prompt",))
    assert cut(max_prompt_tokens=10) == LONG_PROMPT


def test_a_cut_chat_still_opens_the_assistants_turn() -> None:
    row = chat(question="0123456789")
    opening = "<end>\n<start>assistant\n"
    limit = 1 + 1 + len("user\n") + 4 + (1 + 1 + 1 + len("assistant\n"))
    sides, what = cut(row, CHATML, max_prompt_tokens=limit, prompt="keep_start")
    assert (sides[0], what) == (f"<bos><start>user\n0123{opening}", ("prompt",))
    sides, _ = cut(row, CHATML, max_prompt_tokens=limit - 4, prompt="keep_end")
    assert sides[0] == f"<bos>456789{opening}"
    assert cut(row, CHATML, max_prompt_tokens=14, prompt="keep_start") == LONG_PROMPT


def test_cut_responses_have_no_end_token() -> None:
    assert cut(max_response_tokens=7)[0][1:] == ("abcdefg", "ABCDEF<eos>")
    assert cut(max_response_tokens=7)[1] == ("chosen",)
    assert cut(max_response_tokens=6)[0][1:] == ("abcdef", "ABCDEF")
    assert cut(max_response_tokens=7, response="drop") == LONG_RESPONSE


def test_the_total_limit() -> None:
    sides, what = cut(max_tokens=18)
    assert (sides[1:], what) == (("abcdefg", "ABCDEF<eos>"), ("chosen",))
    assert cut(max_tokens=12)[0][1:] == ("a", "A")
    assert cut(max_tokens=11) == NO_ROOM
    assert cut(max_tokens=18, response="drop") == LONG_TOTAL


def test_pairs_that_truncation_makes_equal_are_dropped() -> None:
    row = pair("q", "the same start, good", "the same start, bad")
    assert cut(row, max_response_tokens=16) == SAME_CUT
    assert cut(row, max_response_tokens=17)[1] == ("chosen", "rejected")


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)


@given(
    prompt=TEXT,
    chosen=TEXT,
    rejected=TEXT,
    is_chat=st.booleans(),
    limits=st.tuples(st.integers(1, 40), st.integers(1, 20), st.none() | st.integers(2, 50)),
    ends=st.tuples(
        st.sampled_from(["drop", "keep_start", "keep_end"]), st.sampled_from(["keep_start", "drop"])
    ),
)
@settings(max_examples=300, deadline=None)
def test_limits_hold_and_nothing_is_empty(
    prompt: str,
    chosen: str,
    rejected: str,
    is_chat: bool,
    limits: tuple[int, int, int | None],
    ends: tuple[Any, Any],
) -> None:
    length = LengthRecipe(
        max_prompt_tokens=limits[0],
        max_response_tokens=limits[1],
        max_tokens=limits[2],
        prompt=ends[0],
        response=ends[1],
    )
    row = chat(prompt, chosen, rejected) if is_chat else pair(prompt, chosen, rejected)
    if chosen == rejected:
        return
    full = encoded_or_none(LengthRecipe(max_prompt_tokens=999, max_response_tokens=999), row)
    found = encoded_or_none(length, row)
    if found is None or full is None:
        return
    assert 0 < len(found.prompts[0].ids) <= limits[0]
    assert found.prompts[0].ids[0] == BOS and BOS not in found.prompts[0].ids[1:]
    assert found.responses[0].ids != found.responses[1].ids
    for ids, whole in (
        (found.responses[0].ids, full.responses[0].ids),
        (found.responses[1].ids, full.responses[1].ids),
    ):
        assert 0 < len(ids) <= limits[1]
        assert limits[2] is None or len(found.prompts[0].ids) + len(ids) <= limits[2]
        assert ids == whole[: len(ids)]
    if len(full.prompts[0].ids) <= limits[0]:
        assert found.prompts[0].ids == full.prompts[0].ids
    elif is_chat:
        opening = full.prompts[0].ids[-len("assistant\n") - 1 :]
        n = min(len(opening), len(found.prompts[0].ids) - 1)
        assert found.prompts[0].ids[-n:] == opening[-n:]


CHAT_TOKENIZER = byte_tokenizer(template=CHATML)


def encoded_or_none(length: LengthRecipe, row: Preference) -> Item | None:
    found = Encoder(CHAT_TOKENIZER, length=length).encode_row(row)
    return found if isinstance(found, Item) else None


def test_votes_ties_and_ranks_reach_the_items() -> None:
    encoder = Encoder(byte_tokenizer())
    votes = [(3.0, 1.0, 0.75), (-1.0, 2.0, None), (0.0, 0.0, None), (None, 1.0, None)]
    for chosen, rejected, want in votes:
        row = pair("p", "a", "b")
        sides = tuple(
            dataclasses.replace(r, votes=v)
            for r, v in zip(row.responses, (chosen, rejected), strict=True)
        )
        item = encoder.encode_row(dataclasses.replace(row, responses=sides, tie=want is None))
        assert isinstance(item, Item)
        assert item.pair.probability == want and item.pair.tie is (want is None)
    ranked = dataclasses.replace(
        pair("p", "a", "b"),
        kind="rated",
        responses=tuple(
            dataclasses.replace(r, rank=k)
            for r, k in zip(pair("p", "a", "b").responses, (2, 1), strict=True)
        ),
    )
    item = encoder.encode([ranked])[0].item
    assert isinstance(item, Item)
    assert item.label == Ranks((2, 1)) and len(item.responses) == 2


def ranked(*answers: str) -> Preference:
    row = pair("p", "a", "b")
    responses = tuple(
        dataclasses.replace(row.responses[0], content=text, rank=k)
        for k, text in enumerate(answers, 1)
    )
    return dataclasses.replace(row, kind="rated", responses=responses)


def test_a_bad_answer_leaves_its_list_alone() -> None:
    limits = LengthRecipe(max_prompt_tokens=9, max_response_tokens=6, response="drop")
    encoder = Encoder(byte_tokenizer(), length=limits)
    (found,) = encoder.encode([ranked("best", "much too long", "", "worst")])
    assert isinstance(found.item, Item)
    assert (found.item.label, len(found.item.responses)) == (Ranks((1, 4)), 2)
    assert found.left_out == (LONG_RESPONSE, NO_TOKENS)
    # With one left there is nothing to compare.
    (found,) = encoder.encode([ranked("best", "much too long")])
    assert found.item == Drop(LONG_RESPONSE) and found.left_out == ()
    (found,) = encoder.encode([dataclasses.replace(ranked("a", "b"), prompt="p" * 99)])
    assert found.item == Drop(LONG_PROMPT)
