"""TRL's unpaired preference format: prompt, completion, label.

The answer may also be called `response`. Without `prompt` it is a chat that ends with the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader
from palate.data.readers.demonstrations import prompt_and_completion
from palate.data.readers.fields import check_prompt, check_response, flag, is_flag, required, turns
from palate.data.schema import Content, Preference, Response


def _read(record: Record, context: Context) -> Preference:
    prompt: Content
    completion: Content
    name = _answer(record.value) or "completion"
    if "prompt" in record.value or not isinstance(record.value.get(name), list):
        prompt, completion = prompt_and_completion(record, name)
    else:
        chat = turns(required(record, name), name)
        prompt, completion = chat[:-1], chat[-1:]
        check_prompt(chat[:-1], name)
        check_response(chat[-1:], name)
    return context.row(
        record,
        "unpaired",
        prompt=prompt,
        responses=(Response(content=completion, label=flag(record, "label")),),
    )


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    name = _answer(columns)
    if name is None or not any(is_flag(row.get("label")) for row in sample):
        return None
    if "prompt" in columns:
        return f"columns prompt, {name} and label"
    if any(isinstance(row.get(name), list) for row in sample):
        return f"columns {name}, a chat, and label"
    return None


def _answer(columns: Collection[str]) -> str | None:
    return next((name for name in ("completion", "response") if name in columns), None)


READER = Reader(
    name="trl_unpaired",
    shape="prompt, completion | response, label",
    kind="unpaired",
    recognise=_recognise,
    read=_read,
    reads=("label",),
    specificity=1,
)
