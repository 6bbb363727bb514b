"""One record of a file of prompts as a row without responses."""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.content import with_images
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import check_prompt, holds, text
from palate.data.readers.image_pairs import images_of
from palate.data.readers.meaning import QUESTIONS, SYSTEM, chat_of
from palate.data.readers.pictures import place_images
from palate.data.readers.typed import filled, typed_turns
from palate.data.readers.videos import FIELDS, place_videos, videos_of, with_videos
from palate.data.schema import Content, Preference, has_video

NAME = "prompts"
PROMPT_COLUMNS = ("prompt", "messages", *QUESTIONS)
"""Where the prompt may be, in order; whatever else of these a row has must repeat it."""
_READ = frozenset((*PROMPT_COLUMNS, *SYSTEM, "id", "image", "images", *FIELDS))


def _read(record: Record, context: Context) -> Preference:
    name = next((name for name in PROMPT_COLUMNS if holds(record.value.get(name))), None)
    if name is None:
        there = next((name for name in PROMPT_COLUMNS if name in record.value), None)
        raise RowError(there or "prompt", "missing" if there is None else "empty")
    others = {name: value for name, value in record.value.items() if name not in _READ}
    return context.row(
        record,
        "prompt",
        prompt=_prompt(record, name),
        responses=(),
        extra=others or None,
    )


def _prompt(record: Record, name: str) -> Content:
    images, images_field = images_of(record, "images", "image")
    videos, videos_field = videos_of(record)
    value = record.value[name]
    asked: Content
    if isinstance(value, list) or name == "messages":
        asked, places = typed_turns(value, name, videos=True)
    else:
        asked, places = text(value, name), []
        if name != "prompt":  # `prompt` is text that a model goes on from
            asked = chat_of(asked, "user")
    if images or places or videos or has_video(asked):
        chat = chat_of(asked, "user")
        if places:
            asked = chat_of(with_images(chat, filled(places, images, images_field)), "user")
        else:
            asked = place_images(chat, images, images_field)
        place = with_videos if has_video(asked) else place_videos
        asked = place(asked, videos, videos_field)
    if not isinstance(asked, str):
        check_prompt(asked, name)
    return asked


READER = Reader(
    name=NAME,
    shape="prompt | messages | question[, images][, videos][, columns for rewards]",
    kind="prompt",
    recognise=lambda columns, sample: None,
    read=_read,
    reads=("prompt", "image", "images", *FIELDS),
)
"""Not among `readers()`: no other verb takes prompts without a response."""
