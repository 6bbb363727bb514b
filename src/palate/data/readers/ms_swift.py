"""ms-swift's convention: a chat that ends with the chosen answer, and the rejected one beside it.

Shape: messages, and one of
  rejected_response: the text of the other answer.
  rejected_messages: the whole chat with the other answer.
  rejected_images: the same answer, to be rejected with these images in place of `images`.
With images: images, rejected_images; `<image>` in a text is the place of the next one, and without
any they stand before the first question. So do videos (paths of files or of folders of frames, or
lists of frames) at `<video>`. margin is kept. Instead of messages also query, response,
system and history (a list of [question, answer]). Licence: that of the source.

Quirks: rejected_images is `images` where it is not given. Rows with audios, tools or
objects (boxes in a picture) are refused. Roles are system, user, assistant and tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, user
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    number,
    required,
    text,
    turns,
)
from palate.data.readers.meaning import refuse
from palate.data.readers.pictures import image_refs, place_images
from palate.data.readers.trl_preference import shared_turns
from palate.data.readers.videos import place_videos, video_refs
from palate.data.schema import Message, Preference, Response

_REJECTED = ("rejected_response", "rejected_messages", "rejected_images")


def _read(record: Record, context: Context) -> Preference:
    refuse(record, "rejected_videos", "rejected_audios", "rejected_tools")
    chat, field = _chat(record)
    prompt, chosen = chat[:-1], chat[-1:]
    check_response(chosen, field)
    check_prompt(prompt, field)
    rejected, rejected_field = _rejected(record, chat)
    images = image_refs(record.value.get("images"), "images")
    others = image_refs(record.value.get("rejected_images"), "rejected_images")
    if others and len(others) != len(images):
        raise RowError("rejected_images", "not as many as images")
    if rejected == chosen and (not others or others == images):
        raise RowError(rejected_field, "identical to chosen")
    videos = video_refs(record.value.get("videos"), "videos")
    prompt = place_videos(prompt, videos, "videos")
    asked = place_images(prompt, images, "images")
    seen = place_images(prompt, others, "rejected_images") if others else asked
    return context.row(
        record,
        "pair",
        prompt=asked,
        responses=(
            Response(content=chosen),
            Response(content=rejected, prompt=None if seen == asked else seen),
        ),
        margin=number(record, "margin"),
    )


def _chat(record: Record) -> tuple[list[Message], str]:
    """The chat that ends with the chosen answer, and the field to blame."""
    if "messages" in record.value or "response" not in record.value:
        return turns(required(record, "messages"), "messages"), "messages"
    return [*spoken(record.value.get("history"), "history"), *_last(record)], "response"


def spoken(history: Any, field: str) -> list[Message]:
    """The turns of a list of [question, answer]."""
    if history is None:
        return []
    if not isinstance(history, list):
        raise RowError(field, f"{shape_of(history)}, not a list")
    chat: list[Message] = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"{field}.{i}", "not a question and an answer")
        question, answer = (text(turn_text, f"{field}.{i}.{j}") for j, turn_text in enumerate(pair))
        chat += [*user(question), *assistant(answer)]
    return chat


def _last(record: Record) -> list[Message]:
    asked = text(required(record, "query"), "query")
    return [*user(asked), *assistant(text(required(record, "response"), "response"))]


def _rejected(record: Record, chat: list[Message]) -> tuple[list[Message], str]:
    """The rejected answer, and the field that it is from."""
    if record.value.get("rejected_messages") is not None:
        field = "rejected_messages"
        rejected = turns(record.value[field], field)
        if rejected != chat and shared_turns(chat, rejected) != len(chat) - 1:
            raise RowError(field, "differs from messages in more than the last turn")
        check_response(rejected[-1:], field)
        return rejected[-1:], field
    field = "rejected_response"
    if record.value.get(field) is None and record.value.get("rejected_images"):
        return chat[-1:], "rejected_images"
    return assistant(text(required(record, field), field)), field


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    rejected = next((name for name in _REJECTED if name in columns), None)
    if rejected is None:
        return None
    if "messages" in columns:
        return f"columns messages and {rejected}"
    if {"query", "response"} <= columns:
        return f"columns query, response and {rejected}"
    return None


READER = Reader(
    name="ms_swift",
    shape="messages, rejected_response | rejected_messages | rejected_images[, images][, videos]"
    "[, margin]",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("messages", "query", "history", "images", "rejected_images", "videos"),
    specificity=2,
    licence="see source",
)
