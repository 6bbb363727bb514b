"""Padding and template of a saved reward model: others read the score where we do."""

from __future__ import annotations

import pytest

from palate.models.reward_tokens import classifier_template, padding_token
from tiny_chat import CHATML, DOUBLE_END, byte_tokenizer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes\n"}]


def rendered(template: str | None, turns: list[dict[str, str]], *, opened: bool = False) -> str:
    text = byte_tokenizer().apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=opened
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("template", [CHATML, DOUBLE_END])
def test_a_chat_ends_at_the_end_of_its_turn(template: str) -> None:
    """Also where the template writes EOS behind it, as Phi's does."""
    saved = classifier_template(template, closes=True, end="<end>")
    plain = rendered(CHATML, CHAT)
    assert rendered(saved, CHAT) == plain.rstrip() and plain.endswith("<end>\n")
    assert rendered(saved, CHAT[:1], opened=True) == rendered(CHATML, CHAT[:1], opened=True)


def test_what_is_not_closed_is_left_whole() -> None:
    """A template that closes the assistant's turns alone, and a chat that ends with a user's."""
    template = CHATML.replace("'<end>\\n'", "('<end>\\n' if m.role == 'assistant' else '\\n')")
    saved = classifier_template(template, closes=True, end="<end>")
    turns = [*CHAT, {"role": "user", "content": "and?"}]
    assert rendered(saved, turns) == rendered(template, turns)
    assert rendered(saved, CHAT).endswith("yes\n<end>")


def test_padding_is_rather_no_token_that_a_text_begins_with() -> None:
    tokenizer = byte_tokenizer(template=CHATML)
    # 0 <pad>, 1 <bos>, 2 <eos>, 3 <start>, 4 <end>; the template writes the last two.
    assert padding_token(tokenizer, {4}) == "<pad>"
    assert padding_token(tokenizer, {0, 4}) == "<eos>"
    assert padding_token(tokenizer, {0, 2}) in ("<start>", "<end>")
    assert padding_token(tokenizer, {0, 2, 3, 4}) == "<bos>"
    assert padding_token(tokenizer, set(range(5))) is None
    # Of a model with two tokens.
    assert padding_token(tokenizer, {0}, vocabulary=2) == "<bos>"
