"""What `palate judge` writes for reward models that read critiques: a prompt on each side.

chosen_prompt, chosen, rejected_prompt, rejected (text, or chat turns, all four alike), tie, source,
id. Image parts of the prompts hold their images. A critic's question holds the response that it is
about, so the two sides of a pair ask other questions. Only training on pairs takes such rows;
everything else refuses and counts them. Licence: that of the data they were made of.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError, having
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    content,
    flag,
    required,
    text,
)
from palate.data.readers.typed import typed_turns, with_places_filled
from palate.data.schema import Content, Preference, Response

COLUMNS = ("chosen_prompt", "chosen", "rejected_prompt", "rejected", "tie", "source", "id")


def _read(record: Record, context: Context) -> Preference:
    prompts, sides = [], []
    for name in ("chosen", "rejected"):
        prompt, side = _prompt(record, f"{name}_prompt"), content(record, name)
        if isinstance(prompt, str) is not isinstance(side, str):
            raise RowError(name, "text beside chat turns")
        if not isinstance(prompt, str) and not isinstance(side, str):
            check_prompt(prompt, f"{name}_prompt")
            check_response(side, name)
        prompts.append(prompt)
        sides.append(side)
    if isinstance(prompts[0], str) is not isinstance(prompts[1], str):
        raise RowError("rejected_prompt", "text beside chat turns")
    if prompts[0] == prompts[1] and sides[0] == sides[1]:
        raise RowError("rejected", "identical to chosen")
    rejected_prompt = None if prompts[0] == prompts[1] else prompts[1]
    return Preference(
        id=text(required(record, "id"), "id"),
        source=text(required(record, "source"), "source"),
        kind="pair",
        prompt=prompts[0],
        responses=(Response(content=sides[0]), Response(content=sides[1], prompt=rejected_prompt)),
        tie=flag(record, "tie"),
        row=record.row,
    )


def _prompt(record: Record, name: str) -> Content:
    value = required(record, name)
    if not isinstance(value, list):
        return content(record, name)
    chat, places = typed_turns(value, name)
    return with_places_filled(chat, places, (), name)


READER = Reader(
    name="palate_sides",
    shape=", ".join(COLUMNS),
    kind="pair",
    recognise=having(COLUMNS, "chosen and rejected, each with a prompt of its own"),
    read=_read,
    specificity=6,
    licence="see source",
)
