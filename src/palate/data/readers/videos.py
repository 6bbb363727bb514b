"""Videos of a record, and their places in its turns, each of which is a `<video>` in a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import RowError
from palate.data.readers.fields import holds
from palate.data.readers.pictures import image_refs, place_parts
from palate.data.schema import Message, Part, VideoRef, map_parts

PLACE = "<video>"
FIELDS = ("videos", "video")
UNPLACED = VideoRef()
"""Placeholder in a part whose video comes from a column; see `with_videos`."""


def video_refs(value: Any, field: str, *, single: bool = False) -> tuple[VideoRef, ...]:
    """The videos of a field: paths of folders or files, or lists of frames.

    Args:
        single: a list is the frames of one video, not a list of videos.
    """
    if value is None or value in ("", []):
        return ()
    if isinstance(value, list) and not single:
        return tuple(_video(item, f"{field}.{i}") for i, item in enumerate(value))
    return (_video(value, field),)


def videos_of(record: Record) -> tuple[tuple[VideoRef, ...], str]:
    """The videos of the column `videos`, or of `video`, which holds one, and its name."""
    there = [name for name in FIELDS if holds(record.value.get(name))]
    if len(there) > 1:
        raise RowError(there[1], f"beside {there[0]}")
    name = there[0] if there else FIELDS[0]
    return video_refs(record.value.get(name), name, single=name == "video"), name


def place_videos(turns: list[Message], videos: Sequence[VideoRef], field: str) -> list[Message]:
    """As `place_images`, by `<video>`."""
    parts: list[Part] = [{"type": "video", "video": video} for video in videos]
    return place_parts(turns, parts, field, place=PLACE)


def with_videos(turns: list[Message], videos: Iterable[VideoRef], field: str) -> list[Message]:
    """The turns with these videos in the parts that have none of their own, in order.

    Args:
        field: of the videos, for messages.
    """
    rest = list(videos)

    def change(part: Part) -> list[Part]:
        if part["type"] != "video" or part["video"].refs:
            return [part]
        if not rest:
            raise RowError(field, "not as many as the turns have places for")
        return [{"type": "video", "video": rest.pop(0)}]

    made = map_parts(turns, change)
    if rest:
        raise RowError(field, "not as many as the turns have places for")
    assert not isinstance(made, str)
    return made


def video_in(part: dict[str, Any], field: str) -> VideoRef:
    """The video that a part holds; `UNPLACED` where it is to come from a column."""
    for name in ("video", "video_url", "path", "url"):
        value = part.get(name)
        if name == "video_url" and isinstance(value, dict):
            value = value.get("url")
        refs = video_refs(value, f"{field}.{name}", single=True)
        if refs:
            return refs[0]
    return UNPLACED


def _video(value: Any, field: str) -> VideoRef:
    if isinstance(value, list):
        frames = image_refs(value, field)
        if not frames:
            raise RowError(field, "a video without frames")
        return VideoRef(frames=frames)
    if not isinstance(value, str | bytes | dict):
        raise RowError(field, f"{shape_of(value)}, neither a path nor frames")
    (file,) = image_refs(value, field) or (None,)
    if file is None:
        raise RowError(field, "empty")
    return VideoRef(file=file)
