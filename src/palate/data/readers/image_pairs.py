"""What readers of pairs about images share: the question with its images, and chats by `from`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, RowError
from palate.data.readers.compared import Verdict, compared
from palate.data.readers.fields import check_prompt, check_response, check_turn, turns
from palate.data.readers.pictures import PLACE, image_refs, place_images
from palate.data.schema import ImageRef, Message, Preference, Response, text_in

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_FIELDS = ("image", "images")
_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def images_of(
    record: Record, *fields: str, needed: bool = False
) -> tuple[tuple[ImageRef, ...], str]:
    """The images of the first of these fields that holds any, and its name.

    Args:
        fields: default: image, images. needed: a row without images is none.
    """
    names = fields or _FIELDS
    for name in names:
        images = image_refs(record.value.get(name), name)
        if any((image.path or "").lower().endswith(_VIDEOS) for image in images):
            raise RowError(name, "a video, not read by this format")
        if images:
            _refuse_others(record, name)
            return images, name
    if needed:
        there = next((name for name in names if name in record.value), None)
        raise RowError(there or names[0], "missing" if there is None else "no image")
    _refuse_others(record, names[0])
    return (), names[0]


def _refuse_others(record: Record, used: str) -> None:
    """Other images must not be dropped in silence; the same ones may stand there twice."""
    read = record.value.get(used)
    for name in _FIELDS:
        value = record.value.get(name)
        if name == used or value in (None, "", [], {}, read, [read]) or [value] == read:
            continue
        raise RowError(name, f"beside {used}" if read else "not read by this format")


def image_pair(
    record: Record,
    context: Context,
    *,
    prompt: list[Message],
    sides: tuple[Response, Response],
    images: tuple[ImageRef, ...],
    fields: tuple[str, str, str],
    verdict: Verdict = "first",
    place: str = PLACE,
    margin: float | None = None,
    extra: dict[str, Any] | None = None,
) -> Preference:
    """The pair of two answers to a question about images.

    Images stand where the turns have `<image>`, or without any before the first question. Of a row
    without images no turn may have a place for one.

    Args:
        sides: first and second answer. verdict: which is the better one.
        fields: of the prompt, of the images and of the second answer, for messages.
        place: what stands for an image.
    """
    asked, pictured, second_field = fields
    if not images and any(place in text_in(turn["content"]) for turn in prompt):
        raise RowError(pictured, f"none, where the turns have {place}")
    placed = place_images(prompt, images, pictured, place=place)
    check_prompt(placed, asked)
    return compared(
        record,
        context,
        prompt=placed,
        sides=sides,
        verdict=verdict,
        field=second_field,
        margin=margin,
        extra=extra,
    )


def by_from(value: Any, field: str) -> list[Message]:
    """Turns of {from, value}, as LLaVA and its kin have them."""
    if not isinstance(value, list):
        raise RowError(field, f"{shape_of(value)}, not a list of turns")
    chat = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise RowError(f"{field}.{i}", f"{shape_of(turn)}, not a turn with from and value")
        who = turn.get("from")
        role = _ROLES.get(who.lower()) if isinstance(who, str) else None
        if role is None:
            raise RowError(f"{field}.{i}.from", "nobody who is known")
        if turn.get("value") is None:
            raise RowError(f"{field}.{i}.value", "null" if "value" in turn else "missing")
        answer = role == "assistant" and i == len(value) - 1
        check_turn(turn, f"{field}.{i}", ("from", "value"), answer=answer)
        chat.append({"role": role, "content": turn["value"]})
    return turns(chat, field)


def answered(
    first: Sequence[Message], second: Sequence[Message], fields: tuple[str, str]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The turns that two chats share, which are all but the last, and the two answers."""
    if list(first[:-1]) != list(second[:-1]):
        raise RowError(None, "the conversations differ before the last answer")
    check_response(list(first[-1:]), fields[0])
    check_response(list(second[-1:]), fields[1])
    return list(first[:-1]), list(first[-1:]), list(second[-1:])
