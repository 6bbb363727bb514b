"""TRL's preference format: chosen and rejected, text or chat turns, prompt explicit or implicit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    content,
    number,
    refuse_unread,
    text,
    turns,
)
from palate.data.schema import Content, Message, Preference, Response


def shared_text(chosen: str, rejected: str) -> str:
    """The prompt of two texts that both begin with it.

    As TRL's `extract_prompt`: the longest common prefix, less a space at its end, which belongs to
    the responses. Unlike TRL, a word is never cut in two and no response is left empty.
    """
    # Both responses must hold something that is not blank.
    short = max(0, min(len(chosen.rstrip()), len(rejected.rstrip())) - 1)
    end = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    while end and _cuts_a_word(chosen, rejected, end):
        end -= 1
    return chosen[: end - 1] if end and chosen[end - 1] == " " else chosen[:end]


def _cuts_a_word(chosen: str, rejected: str, at: int) -> bool:
    return chosen[at - 1].isalnum() and (chosen[at].isalnum() or rejected[at].isalnum())


def shared_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns both chats begin with; all but the last of each, or it is no pair."""
    short = min(len(chosen), len(rejected))
    end = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    if len(chosen) != end + 1 or len(rejected) != end + 1:
        raise RowError(None, "chosen and rejected differ in more than the last turn")
    return end


def _read(record: Record, context: Context) -> Preference:
    refuse_unread(record)
    chosen, rejected = content(record, "chosen"), content(record, "rejected")
    if chosen == rejected:
        raise RowError("rejected", "identical to chosen")
    prompt = record.value.get("prompt")
    if record.textual and prompt == "":
        prompt = None
    if isinstance(chosen, str) and isinstance(rejected, str):
        found = _texts(prompt, chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        found = _chats(prompt, chosen, rejected)
    else:
        raise RowError("rejected", "text beside chat turns")
    return Preference(
        id=context.id,
        source=context.source,
        kind="pair",
        prompt=found[0],
        responses=(Response(content=found[1]), Response(content=found[2])),
        margin=_margin(record),
        row=record.row,
    )


def _texts(prompt: Any, chosen: str, rejected: str) -> tuple[Content, Content, Content]:
    if isinstance(prompt, list):
        asked = turns(prompt, "prompt")
        check_prompt(asked, "prompt")
        return asked, _answer(chosen), _answer(rejected)
    if prompt is not None:
        return text(prompt, "prompt"), chosen, rejected
    shared = shared_text(chosen, rejected)
    if not shared.strip():
        raise RowError("prompt", "missing, and chosen and rejected begin with no common text")
    return shared, chosen[len(shared) :], rejected[len(shared) :]


def _chats(
    prompt: Any, chosen: list[Message], rejected: list[Message]
) -> tuple[Content, Content, Content]:
    if prompt is None:
        n = shared_turns(chosen, rejected)
        asked, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    elif isinstance(prompt, list):
        asked = turns(prompt, "prompt")
        n = len(asked)
        # Some data sets repeat the prompt at the head of both responses.
        if chosen[:n] == asked and rejected[:n] == asked:
            chosen, rejected = chosen[n:], rejected[n:]
    else:
        question = text(prompt, "prompt")
        if chosen[0]["role"] == "assistant":
            asked = [{"role": "user", "content": question}]
        else:
            n = shared_turns(chosen, rejected)
            asked, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
            if all(turn["content"] != question for turn in asked if turn["role"] == "user"):
                raise RowError("prompt", "not a turn that chosen and rejected share")
    check_prompt(asked, "prompt")
    check_response(chosen, "chosen")
    check_response(rejected, "rejected")
    return asked, chosen, rejected


def _margin(record: Record) -> float | None:
    margin = number(record, "margin")
    if margin is not None:
        return margin
    chosen, rejected = number(record, "score_chosen"), number(record, "score_rejected")
    return None if chosen is None or rejected is None else chosen - rejected


def _answer(answer: str) -> list[Message]:
    return [{"role": "assistant", "content": answer}]


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"chosen", "rejected"} <= columns:
        return None
    prompt = "a prompt" if "prompt" in columns else "the prompt they share"
    return f"columns chosen and rejected, with {prompt}"


READER = Reader(
    name="trl_preference",
    shape="chosen, rejected[, prompt][, margin]",
    kind="pair",
    recognise=_recognise,
    read=_read,
)
