"""Videos of rows as frames: a folder of images, a list of them, or a file that PyAV reads."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.images import (
    MISSING,
    NOTHING,
    ImageError,
    ImageStore,
    find,
    find_folder,
    located_image,
)
from palate.data.schema import (
    Content,
    ImageRef,
    Part,
    Preference,
    VideoRef,
    map_parts,
    video_of,
)
from palate.errors import DataError
from palate.recipes.images import ImagesRecipe

FRAMES = 32
"""Frames taken of a video, as the scripts of MM-RLHF's benchmark do."""
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"))
"""Endings of the files of a folder that are frames."""
NO_FRAMES = "a video without frames"
UNREADABLE = "a video that cannot be read"
NO_AV = "a video file needs PyAV: pip install 'palate[video]' (folders of frames need none)"


def chosen_places(n: int, count: int) -> list[int]:
    """Which of `n` frames are taken: `count` evenly spaced ones, or all where there are no more.

    As the scripts of the benchmarks choose: `numpy.linspace` from the first to the last, rounded
    down to whole numbers.
    """
    if n <= count:
        return list(range(n))
    return [int(place) for place in np.linspace(0, n - 1, count, dtype=int)]


def framed(video: VideoRef, root: Path, count: int = FRAMES) -> VideoRef:
    """The video as its chosen frames. Those of a folder are in the order of their names, numbers in
    them by value.

    Args:
        root: folder that paths start from, where they have none of their own.

    Raises:
        ImageError: no frames, or a file that is no video.
        DataError: a video file, and PyAV is not installed.
    """
    if video.frames:
        return _chosen(video, [_rooted(frame, root) for frame in video.frames], count)
    file = video.file
    if file is None:
        raise ImageError(NOTHING)
    if file.data is not None:
        return _decoded(io.BytesIO(file.data), count)
    if file.path is None:
        raise ImageError(NOTHING)
    start = file.root or root
    try:
        folder = find_folder(file.path, start)
    except ImageError as error:
        if error.reason != MISSING:
            raise
        video_file = find(file.path, start)
        return _decoded_file(video_file, count, video_file.stat().st_mtime_ns)
    names = sorted((p.name for p in folder.iterdir() if _is_frame(p)), key=by_number)
    # A name may be a link that leads out: frames are looked up as any image is.
    frames = [ImageRef(path=f"{file.path.rstrip('/')}/{name}", root=start) for name in names]
    return _chosen(video, frames, count)


def with_frames(content: Content, root: Path, count: int, *, as_images: bool) -> Content:
    """The content with its videos as frames.

    Args:
        as_images: for models that take no videos: every frame as an image.

    Raises:
        ImageError, DataError: see `framed`.
    """

    def change(part: Part) -> Sequence[Part]:
        if part["type"] != "video":
            return [part]
        video = framed(video_of(part), root, count)
        if as_images:
            return [{"type": "image", "image": frame} for frame in video.frames]
        return [{"type": "video", "video": video}]

    return map_parts(content, change)


def located(
    row: Preference, root: Path, limits: ImagesRecipe, store: ImageStore | None = None
) -> Preference:
    """The row with its images told by what they show, wherever it is read from then on; videos as
    their frames.

    Args:
        root: folder that paths of the row start from.
        store: takes images that come as bytes; default: they stay with the row.

    Returns:
        the row, whose images have `digest`, and `path` and `root`, or `data`.

    Raises:
        ImageError: of the first image or video that cannot be used.
        DataError: a video file, and PyAV is not installed.
        RunError: a write failed.
    """

    framed_row = row.with_contents(lambda c: with_frames(c, root, FRAMES, as_images=False))
    return framed_row.with_images(lambda image: located_image(image, root, limits, store))


def _chosen(video: VideoRef, frames: Sequence[ImageRef], count: int) -> VideoRef:
    if not frames:
        raise ImageError(NO_FRAMES)
    places = chosen_places(len(frames), count)
    rate = None if video.rate is None else video.rate * len(places) / len(frames)
    return replace(video, frames=tuple(frames[place] for place in places), rate=rate)


def _rooted(frame: ImageRef, root: Path) -> ImageRef:
    return frame if frame.path is None else replace(frame, root=frame.root or root)


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def by_number(name: str) -> list[tuple[int, int, str]]:
    """So that frame 10 follows frame 9."""
    return [
        (0, int(part), part) if part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
        if part
    ]


@lru_cache(maxsize=4)
def _decoded_file(file: Path, count: int, changed: int) -> VideoRef:
    """As `_decoded`: several pairs of one row, and rows beside it, ask for the same video.

    Args:
        changed: when the file was written.
    """
    return _decoded(file, count)


def _decoded(file: Path | io.BytesIO, count: int) -> VideoRef:
    """The chosen frames of a video file, each as a PNG."""
    try:
        import av
    except ImportError:
        raise DataError(NO_AV) from None
    try:
        with av.open(file if isinstance(file, io.BytesIO) else str(file)) as container:
            n, seconds = _measured(container)
        places = chosen_places(n, count)
        if not places:
            raise ImageError(NO_FRAMES)
        if isinstance(file, io.BytesIO):
            file.seek(0)
        wanted, frames = set(places), []
        with av.open(file if isinstance(file, io.BytesIO) else str(file)) as container:
            for place, frame in enumerate(_frames(container)):
                if place in wanted:
                    out = io.BytesIO()
                    # As a telephone was held, by the file's own matrix.
                    upright = frame.to_image().rotate(frame.rotation, expand=True)
                    upright.save(out, "PNG", compress_level=1)
                    frames.append(ImageRef(data=out.getvalue()))
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        raise ImageError(UNREADABLE) from None
    rate = len(frames) / seconds if seconds else None
    return VideoRef(frames=tuple(frames), rate=rate)


def _measured(container: Any) -> tuple[int, float]:
    """Frames and seconds of a video. They are counted: what a header says may be wrong."""
    n = sum(1 for _ in _frames(container))
    rate = float(container.streams.video[0].average_rate or 0)
    return n, n / rate if rate else 0.0


def _frames(container: Any) -> Iterator[Any]:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return iter(container.decode(stream))
