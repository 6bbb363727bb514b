"""Demonstrations: prompt and completion, or messages, or text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    content,
    is_context,
    required,
    text,
    turns,
)
from palate.data.readers.meaning import LABELS, refuse
from palate.data.schema import Content, Message, Preference, Response


def prompt_and_completion(record: Record, answer: str = "completion") -> tuple[Content, Content]:
    """The fields prompt and `answer`, each text or chat turns, brought to one form."""
    prompt, completion = content(record, "prompt"), content(record, answer)
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    asked: list[Message]
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    elif completion[: len(asked)] == asked:
        completion = completion[len(asked) :]
    check_prompt(asked, "prompt")
    check_response(completion, answer)
    return asked, completion


def _read(record: Record, context: Context) -> Preference:
    prompt: Content
    response: Content
    context_answers: frozenset[int] = frozenset()
    if "completion" in record.value or "messages" in record.value:
        refuse(record, *LABELS)
    if "completion" in record.value:
        prompt, response = prompt_and_completion(record)
    elif "messages" in record.value:
        listed = required(record, "messages")
        chat = turns(listed, "messages")
        answers = [turn for turn in listed if turn["role"] == "assistant"]
        context_answers = frozenset(i for i, turn in enumerate(answers) if is_context(turn))
        # Of several answers the last; a recipe may ask for the earlier ones, too.
        prompt, response = chat[:-1], chat[-1:]
        check_response(response, "messages")
        check_prompt(prompt, "messages")
    elif "text" in record.value:
        # A label beside a text is its class, no verdict on an answer.
        prompt, response = "", text(required(record, "text"), "text")
    else:
        raise RowError("completion", "missing")
    row = context.row(
        record,
        "demonstration",
        prompt=prompt,
        responses=(Response(content=response),),
        conversation="completion" not in record.value and "messages" in record.value,
    )
    return replace(row, context_answers=context_answers) if context_answers else row


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if columns & {"chosen", "rejected", "completions", "responses"}:
        return None
    if {"prompt", "completion"} <= columns:
        return "columns prompt and completion"
    if "messages" in columns:
        return "column messages"
    if "text" in columns:
        return "column text"
    return None


READER = Reader(
    name="demonstrations",
    shape="prompt, completion | messages | text",
    kind="demonstration",
    recognise=_recognise,
    read=_read,
    reads=LABELS,
)
