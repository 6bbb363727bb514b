"""N-way ranked rows: answers to a question and, in the same order, their ranks.

Shape: prompt, responses (N texts), rankings (N whole numbers, 1 is best, equal ones are ties), and
where there are images `images` or `image` (paths or files); `<image>` in the prompt is the place of
the next one. prompt may be chat turns. Used so for reward models that compare several answers at
once, and for rows of one's own. Licence: that of the source.

Quirks: a text prompt is something said to a model and becomes a user turn. An answer or a rank that
cannot be used is left out and counted. Rows with videos are refused.
"""

from __future__ import annotations

from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError, having
from palate.data.readers.compared import assistant, listed, named, notes, user
from palate.data.readers.fields import check_prompt, finite, required, text, turns
from palate.data.readers.pictures import image_refs, place_images
from palate.data.schema import Message, Preference, Response

COLUMNS = ("prompt", "responses", "rankings")


def _read(record: Record, context: Context) -> Preference:
    field = "images" if record.value.get("images") is not None else "image"
    images = image_refs(record.value.get(field), field)
    prompt = place_images(_prompt(record), images, field)
    answers = listed(required(record, "responses"), "responses")
    ranks = listed(required(record, "rankings"), "rankings")
    if len(answers) != len(ranks):
        raise RowError("rankings", "not one for each response")
    writers = record.value.get("models")
    makers = (
        writers
        if isinstance(writers, list) and len(writers) == len(answers)
        else [None] * len(answers)
    )
    responses = []
    for i, (answer, rank, maker) in enumerate(zip(answers, ranks, makers, strict=True)):
        # One bad answer of several costs itself, not the row.
        try:
            content = assistant(text(answer, f"responses.{i}"))
            place = _rank(rank, f"rankings.{i}")
        except RowError as error:
            context.leave_out(error.field or "responses", error.reason)
        else:
            responses.append(Response(content=content, rank=place, generator=named(maker)))
    if len(responses) < 2:
        raise RowError("responses", "fewer than two usable ranked answers")
    return context.row(
        record, "rated", prompt=prompt, responses=responses, extra=notes(record, "source")
    )


def _prompt(record: Record) -> list[Message]:
    value = required(record, "prompt")
    if not isinstance(value, list):
        return user(text(value, "prompt"))
    chat = turns(value, "prompt")
    check_prompt(chat, "prompt")
    return chat


def _rank(value: Any, field: str) -> int:
    rank = finite(value, field)
    if rank != int(rank) or rank < 1:
        raise RowError(field, "not a whole number from 1")
    return int(rank)


READER = Reader(
    name="ranked",
    shape="prompt, responses as a list of texts, rankings (1 is best)[, images]",
    kind="rated",
    recognise=having(COLUMNS, "columns prompt, responses and rankings"),
    read=_read,
    reads=("prompt", "image", "images"),
    specificity=2,
    licence="see source",
)
