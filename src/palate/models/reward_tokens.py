"""What a saved reward model's tokenizer needs, for others to read the score where we do.

Classifiers of transformers read it at the rightmost token that is not padding. So padding must not
be the token that responses end with, and a chat must end with that token: most templates write a
line break after it, at which the model never learnt to score.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any


def padding_token(
    tokenizer: Any, ends: Collection[int], *, vocabulary: int | None = None
) -> str | None:
    """Text of a padding token that ends no response; None where the tokenizer has no such token.

    Its own where that serves, then the unknown token, then any other special one, those that a
    text may begin with last: padding before a text is told from it by the token alone.

    Args:
        vocabulary: how many tokens the model has, some tokenizers having one more, for padding;
            default: as many as the tokenizer.
    """
    template = str(tokenizer.chat_template or "")
    known = len(tokenizer) if vocabulary is None else vocabulary
    special = [
        str(token)
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if getattr(token, "special", False)
    ]
    special.sort(key=lambda text: (text == tokenizer.bos_token, text in template))
    for text in (tokenizer.pad_token, tokenizer.unk_token, *special):
        token = known if text is None else tokenizer.convert_tokens_to_ids(text)
        if token < known and token not in ends:
            return str(text)
    return None


def classifier_template(
    template: str | None, *, closes: bool, end: str | None = None
) -> str | None:
    """The chat template, a finished chat ending with the token that a response ends with.

    The prompt of a chat, which ends with the opening of the assistant's turn, stays as it is.

    Args:
        closes: the template itself closes a turn with a special token: what it writes after that
            is taken off. Otherwise EOS is added, as in training.
        end: text of the token that closes, after which blanks and an EOS of the whole chat go;
            default: blanks alone.
    """
    if template is None:
        return None
    if not closes:
        parts, keep, whole = "", "add_generation_prompt", "rendered_chat + eos_token"
    elif end is None:
        parts, keep, whole = "", "add_generation_prompt", "rendered_chat.rstrip()"
    else:
        parts = f"{{%- set parts = rendered_chat.rpartition({json.dumps(end)}) -%}}"
        keep = "add_generation_prompt or parts[2].replace(eos_token, '').strip()"
        whole = "parts[0] + parts[1]"
    # The signs keep Jinja from taking the template's own outer blanks away, or adding one.
    body = template.removesuffix("\n")
    last = f"{{{{- rendered_chat if {keep} else {whole} -}}}}"
    return "{%- set rendered_chat +%}" + body + "{%+ endset -%}" + parts + last
