"""Answers with a label each, good or bad, as LLaMA-Factory and ms-swift have them for KTO.

Shape: a chat that ends with the answer, `messages` or `conversations` (turns of {role, content} or
{from, value}), or instruction, input and output as texts; and `label` or `kto_tag`: true for a
desirable answer. system, history and images as in the ranking layouts. Where dataset_info.json lies
beside the data and names a `kto_tag`, columns, keys and roles are those that it gives. OpenRLHF's
instruction, output and label are such rows, too. Licence: that of the source.

Quirks: for `palate sft` the desirable answers are the demonstrations, the others are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader
from palate.data.readers.compared import assistant
from palate.data.readers.dataset_info import (
    Layout,
    declared_as,
    images_named,
    layout_of,
    whole_row,
)
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    flag,
    holds,
    is_flag,
    required,
    text,
)
from palate.data.readers.llamafactory_alpaca import alpaca_prompt
from palate.data.readers.llamafactory_sharegpt import FORMATS, sharegpt_chat
from palate.data.readers.meaning import MEANING
from palate.data.readers.pictures import place_images
from palate.data.schema import Preference, Response

_LABELS = ("label", "kto_tag")
_CHATS = ("messages", "conversations")
_QUESTIONS = ("instruction", "question", "query")
_ANSWERS = ("output", "response")
_OPTIONAL = ("system", "history", "images", "tools", "videos", "audios")


def _read(record: Record, context: Context) -> Preference:
    layout = layout_of(record.file)
    if layout is None or layout.ranking:
        layout = _usual(record)
    if layout.formatting in FORMATS:
        field = layout.column("messages", "conversations")
        chat, _ = sharegpt_chat(record, layout, context)
        prompt, response = chat[:-1], chat[-1:]
        check_response(response, field)
        check_prompt(prompt, field)
        images = images_named(record, layout)
    else:
        prompt, images = alpaca_prompt(record, layout)
        field = layout.column("response", "output")
        response = assistant(text(required(record, field), field))
    row = context.row(
        record,
        "unpaired",
        prompt=place_images(prompt, *images),
        responses=(
            Response(content=response, label=flag(record, layout.column("kto_tag", "label"))),
        ),
    )
    return whole_row(record, row, layout, context)


def _usual(record: Record) -> Layout:
    """The columns of a record that no dataset_info.json describes."""
    columns = {name: name for name in _OPTIONAL}
    chat = next((name for name in _CHATS if name in record.value), None)
    if chat is not None:
        columns["messages"] = chat
    else:
        columns["prompt"] = next((n for n in _QUESTIONS if n in record.value), _QUESTIONS[0])
        columns["query"] = "input"
        columns["response"] = next((n for n in _ANSWERS if n in record.value), _ANSWERS[0])
    columns["kto_tag"] = next((n for n in _LABELS if holds(record.value.get(n))), _LABELS[0])
    return Layout("", "alpaca" if chat is None else "sharegpt", columns, {}, False)


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    label = next((name for name in _LABELS if any(is_flag(row.get(name)) for row in sample)), None)
    chat = next((name for name in _CHATS if name in columns), None)
    asked = next((name for name in _QUESTIONS if name in columns), None)
    answer = next((name for name in _ANSWERS if name in columns), None)
    if label is None or {"chosen", "rejected", "completion"} & columns:
        return None
    if chat is not None:
        return f"columns {chat} and {label}"
    return None if asked is None or answer is None else f"columns {asked}, {answer} and {label}"


def _declared(file: Path, columns: set[str]) -> str | None:
    chat, text = {"messages": "conversations"}, {"prompt": "instruction", "response": "output"}
    return declared_as(file, columns, FORMATS, chat, ranking=False) or declared_as(
        file, columns, ("alpaca",), text, ranking=False
    )


READER = Reader(
    name="llamafactory_kto",
    shape="messages | instruction, output, and label (true: desirable)[, system][, images]",
    kind="unpaired",
    recognise=_recognise,
    read=_read,
    reads=tuple(MEANING),
    specificity=1,
    licence="see source",
    declared=_declared,
)
