"""What `palate data build` writes: TRL's columns, and each row's own source and id.

prompt, chosen, rejected (text, or chat turns whose content is text or parts), tie, source, id, and
where the build has them images (paths from the built folder on, or the files themselves) and margin
(`partial_margin` where some rows have none). Rows keep their source and id, so that metrics are by
the data sets that went in and not by the folder that holds them. Licence: that of the sources, see
the folder's README.md.
"""

from __future__ import annotations

from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.content import UNPLACED, with_images
from palate.data.readers.base import Context, Reader, RowError, having
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    flag,
    number,
    required,
    text,
    turns,
)
from palate.data.schema import (
    Content,
    ImageRef,
    Message,
    Part,
    Preference,
    Response,
    images_in,
)

COLUMNS = ("prompt", "chosen", "rejected", "tie", "source", "id")


def _read(record: Record, context: Context) -> Preference:
    prompt = _content(record, "prompt")
    chosen, rejected = _content(record, "chosen"), _content(record, "rejected")
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        pass
    elif isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list):
        check_prompt(prompt, "prompt")
        check_response(chosen, "chosen")
        check_response(rejected, "rejected")
    else:
        raise RowError("prompt", "text beside chat turns")
    if chosen == rejected:
        raise RowError("rejected", "identical to chosen")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if images_in(side):
            raise RowError(name, "an image in an answer")
    images = _images(record)
    if len(images_in(prompt)) != len(images):
        raise RowError("images", "not as many as the prompt has places for")
    margin = number(record, "margin")
    return Preference(
        id=text(required(record, "id"), "id"),
        source=text(required(record, "source"), "source"),
        kind="pair",
        prompt=with_images(prompt, images),
        responses=(Response(content=chosen), Response(content=rejected)),
        margin=number(record, "partial_margin") if margin is None else margin,
        tie=flag(record, "tie"),
        row=record.row,
    )


def _content(record: Record, name: str) -> Content:
    value = required(record, name)
    if not isinstance(value, list):
        return text(value, name)
    parts: dict[int, list[Part]] = {}
    plain: list[Any] = []
    for i, turn in enumerate(value):
        if isinstance(turn, dict) and isinstance(turn.get("content"), list):
            parts[i] = _parts(turn["content"], f"{name}.{i}.content")
            joined = "".join(part["text"] for part in parts[i] if part["type"] == "text")
            turn = {**turn, "content": joined}
        plain.append(turn)
    chat = turns(plain, name)
    for i, several in parts.items():
        if any(part["type"] == "image" for part in several):
            chat[i] = Message(role=chat[i]["role"], content=several)
    return chat


def _parts(value: list[Any], field: str) -> list[Part]:
    parts: list[Part] = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            parts.append({"type": "image", "image": UNPLACED})
        elif kind == "text":
            part_text = text(part.get("text"), f"{field}.{i}.text", blank=True)
            parts.append({"type": "text", "text": part_text})
        else:
            raise RowError(f"{field}.{i}", "neither a text nor an image part")
    return parts


def _images(record: Record) -> tuple[ImageRef, ...]:
    value = record.value.get("images")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowError("images", f"{shape_of(value)}, not a list")
    images = []
    for i, item in enumerate(value):
        if isinstance(item, str) and item:
            images.append(ImageRef(path=item))
        elif isinstance(item, dict) and isinstance(item.get("bytes"), bytes):
            images.append(ImageRef(data=item["bytes"]))
        else:
            raise RowError(f"images.{i}", f"{shape_of(item)}, neither a path nor an image")
    return tuple(images)


READER = Reader(
    name="palate_pairs",
    shape=", ".join(COLUMNS),
    kind="pair",
    recognise=having(
        COLUMNS, "the columns that `palate data build` writes, tie, source and id among them"
    ),
    read=_read,
    reads=("prompt", "images"),
    specificity=5,
    licence="see source",
)
