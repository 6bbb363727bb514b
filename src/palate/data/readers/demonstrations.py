"""Demonstrations: prompt and completion, or messages, or text alone.

With images: parts of the turns of what is asked hold them, or an `images` column, as in preference
data of TRL. Answers hold none.
"""

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
)
from palate.data.readers.image_pairs import images_of
from palate.data.readers.meaning import LABELS, refuse
from palate.data.readers.typed import typed_turns, with_places_filled
from palate.data.schema import Content, ImageRef, Message, Preference, Response, images_in


def prompt_and_completion(
    record: Record,
    answer: str = "completion",
    *,
    images: Sequence[ImageRef] = (),
    field: str = "images",
) -> tuple[Content, Content]:
    """The fields prompt and `answer`, each text or chat turns, brought to one form.

    Args:
        images: of a column. field: its name, for messages.
    """
    given = required(record, "prompt")
    prompt, places = typed_turns(given, "prompt") if isinstance(given, list) else (given, [])
    completion = content(record, answer)
    if not isinstance(prompt, list):
        prompt = text(prompt, "prompt")
    if isinstance(prompt, str) and isinstance(completion, str) and not images:
        return prompt, completion
    asked: list[Message]
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked = with_places_filled(asked, places, images, field)
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
    images, field = images_of(record, "images", "image")
    if "completion" in record.value or "messages" in record.value:
        refuse(record, *LABELS)
    if "completion" in record.value:
        prompt, response = prompt_and_completion(record, images=images, field=field)
    elif "messages" in record.value:
        listed = required(record, "messages")
        chat, places = typed_turns(listed, "messages")
        chat = with_places_filled(chat, places, images, field)
        if any(images_in([turn]) for turn in chat if turn["role"] == "assistant"):
            raise RowError("messages", "an image in an answer")
        answers = [turn for turn in listed if turn["role"] == "assistant"]
        context_answers = frozenset(i for i, turn in enumerate(answers) if is_context(turn))
        # Of several answers the last; a recipe may ask for the earlier ones, too.
        prompt, response = chat[:-1], chat[-1:]
        check_response(response, "messages")
        check_prompt(prompt, "messages")
    elif "text" in record.value:
        if images:
            raise RowError(field, "beside a text alone, which has no place for them")
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
    shape="prompt, completion | messages | text[, images]",
    kind="demonstration",
    recognise=_recognise,
    read=_read,
    reads=(*LABELS, "image", "images"),
)
