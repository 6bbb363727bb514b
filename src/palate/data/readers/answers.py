"""Answers that nobody judged, to be scored or chosen from: one or more to a prompt.

Shape: prompt (text or chat turns) or instruction, and `response` or a list of `responses`, each
text or the assistant's turns: as a server is asked, and as `palate eval` writes its samples. Any
other reader that recognises a file goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import (
    check_response,
    prompt_or_instruction,
    required,
    text,
    turns,
)
from palate.data.schema import Content, Message, Preference, Response


def _read(record: Record, context: Context) -> Preference:
    prompt = prompt_or_instruction(record)
    if record.value.get("responses") is None:
        listed, fields = [required(record, "response")], ["response"]
    else:
        listed = record.value["responses"]
        if not isinstance(listed, list):
            raise RowError("responses", f"{shape_of(listed)}, not a list")
        if not listed:
            raise RowError("responses", "an empty list")
        fields = [f"responses.{i}" for i in range(len(listed))]
    usable, faults = [], []
    for value, field in zip(listed, fields, strict=True):
        try:
            usable.append(Response(content=_answer(value, field, prompt)))
        except RowError as error:
            faults.append(error)
    if not usable:
        raise faults[0]
    for fault in faults:
        # One bad answer of many costs itself, not the row.
        context.leave_out(fault.field or "responses", fault.reason)
    return context.row(record, "answers", prompt=prompt, responses=tuple(usable))


def _answer(value: Any, field: str, prompt: Content) -> Content:
    """Text after text, turns after turns."""
    if isinstance(value, list):
        if isinstance(prompt, str):
            raise RowError(field, "chat turns after a prompt of plain text")
        answer = turns(value, field)
        check_response(answer, field)
        return answer
    answer_text = text(value, field)
    reply: list[Message] = [{"role": "assistant", "content": answer_text}]
    return answer_text if isinstance(prompt, str) else reply


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    asked = next((c for c in ("prompt", "instruction") if c in columns), None)
    answers = next((c for c in ("responses", "response") if c in columns), None)
    if asked is None or answers is None:
        return None
    if answers == "responses" and not any(_is_answers(row.get(answers)) for row in sample):
        return None
    return f"columns {asked} and {answers}"


def _is_answers(value: Any) -> bool:
    """A list of texts or of turns; objects with ratings are another format."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], (str, list))


READER = Reader(
    name="answers",
    shape="prompt | instruction, response | responses as a list of texts or turns",
    kind="answers",
    recognise=_recognise,
    read=_read,
    specificity=-1,
)
