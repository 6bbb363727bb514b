"""Nectar: seven models' answers to a prompt, ranked by GPT-4.

Hub: berkeley-nest/Nectar (182,954 prompts, Apache-2.0, with terms of its own on the hub).
Shape: prompt (flat, "\\n\\nHuman: ...\\n\\nAssistant: "), answers (answer, model, rank), turns,
num_responses, source (a list), good_natured.

Quirks: rank is a number with a fraction in the file (1.0 is best), equal ranks are ties. The
prompt ends by opening the assistant's turn, which is not part of it here. Tulu 2.5 takes rank 1
against a random other one: the preset `nectar`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, has, named
from palate.data.readers.fields import check_entry, check_prompt, finite, required, text
from palate.data.readers.hh_rlhf import parse_dialogue
from palate.data.schema import Message, Preference, Response


def _read(record: Record, context: Context) -> Preference:
    prompt = _prompt(text(required(record, "prompt"), "prompt"))
    responses = context.usable(required(record, "answers"), "answers", _response, "ranked")
    source = record.value.get("source")
    names = [name for item in source if (name := named(item))] if isinstance(source, list) else []
    return context.row(
        record,
        "rated",
        prompt=prompt,
        responses=responses,
        extra={"source": names} if names else None,
    )


def _prompt(flat: str) -> list[Message]:
    chat = parse_dialogue(flat, "prompt")
    last = chat.pop()
    if last["role"] != "assistant" or str(last["content"]).strip():
        raise RowError("prompt", "does not end by opening the assistant's turn")
    check_prompt(chat, "prompt")
    return chat


def _response(entry: Any, field: str) -> Response:
    check_entry(entry, field, "answer", "rank")
    rank = finite(entry["rank"], f"{field}.rank")
    if rank != int(rank) or rank < 1:
        raise RowError(f"{field}.rank", "not a whole number from 1")
    answer = text(entry["answer"], f"{field}.answer")
    return Response(content=assistant(answer), rank=int(rank), generator=named(entry.get("model")))


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if {"prompt", "answers"} <= columns and has(sample, "answers", "answer", "rank"):
        return "columns prompt and answers, whose entries have an answer and a rank"
    return None


READER = Reader(
    name="nectar",
    shape="prompt as a flat dialogue, answers as a list of {answer, model, rank}",
    kind="rated",
    recognise=_recognise,
    read=_read,
    reads=("prompt",),
    specificity=2,
    hub=("berkeley-nest/Nectar", "ThWu/filtered_nectar"),
    licence="Apache-2.0",
)
