"""MMPR: InternVL's pairs of reasoned answers about images, one JSONL file a source.

Hub: OpenGVLab/MMPR, OpenGVLab/MMPR-v1.1 and -v1.2 (2 to 3 million pairs, MIT).
Shape: image (a path, or a list of them), question, chosen, rejected. Beside the folder of
annotations lies meta.json: for each source its `root` (folder of its images), `annotation` (file)
and repeat_time.

Quirks:
  - Paths of images start from the source's `root`. Where meta.json lies in the folder of the file
    or in one of the two above it and names the file, the root is put before them: `image_root` is
    then the folder that the roots start from, mostly the one that holds the folder MMPR.
    repeat_time is not read: `mixture` says how much of a source is taken.
  - A question without `<image>` has its one image before it, as InternVL's loader has it. Of
    several images each has its `<image>`. Without images the row is a text. In files named
    `..._wo_image` the rejected answer was written without seeing the image.
  - 70% of BaseReward's data is from here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, user
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import image_pair, images_of
from palate.data.readers.pictures import PLACE
from palate.data.schema import ImageRef, Preference, Response
from palate.errors import PalateError
from palate.store.files import read_json

COLUMNS = ("image", "question", "chosen", "rejected")
META = "meta.json"
_LARGEST = 4 << 20
_UP = 3


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record)
    if len(images) > 1 and PLACE not in str(record.value.get("question")):
        raise RowError("question", f"no {PLACE}, where there are several images")
    root = image_root(record.file)
    if root is not None:
        images = tuple(
            dataclasses.replace(image, path=f"{root}/{image.path}") if _below(image) else image
            for image in images
        )
    question = text(required(record, "question"), "question")
    chosen, rejected = (text(required(record, name), name) for name in ("chosen", "rejected"))
    return image_pair(
        record,
        context,
        prompt=user(question),
        sides=(Response(content=assistant(chosen)), Response(content=assistant(rejected))),
        images=images,
        fields=("question", field, "rejected"),
    )


def _below(image: ImageRef) -> bool:
    # What leads elsewhere must still be seen to do so where images are looked up.
    path = image.path or ""
    return bool(path) and not path.startswith(("/", "\\")) and "://" not in path


@lru_cache(maxsize=256)
def image_root(file: str) -> str | None:
    """What meta.json says of the images of an annotation file: their folder, without a slash at
    its end. None where there is none, or where it says nothing or two things of the file."""
    path = Path(os.path.abspath(file))
    for folder in path.parents[:_UP]:
        roots = {root for name, root in _sources(folder / META) if name == path.name}
        if roots:
            return roots.pop() if len(roots) == 1 else None
    return None


def _sources(path: Path) -> list[tuple[str, str]]:
    """Names of annotation files, each with the folder of its images."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return []
        entries = read_json(path)
    except (OSError, ValueError, RecursionError, PalateError):
        return []
    sources = []
    for entry in entries.values() if isinstance(entries, dict) else ():
        if isinstance(entry, dict):
            file, root = entry.get("annotation"), entry.get("root")
            if isinstance(file, str) and isinstance(root, str) and root.strip("/"):
                sources.append((file.rpartition("/")[2], root.rstrip("/")))
    return sources


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if set(COLUMNS) <= columns and "prompt" not in columns:
        return "columns image, question, chosen and rejected"
    return None


READER = Reader(
    name="mmpr",
    shape="image, question, chosen, rejected",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("question", "image", "images"),
    specificity=2,
    hub=("OpenGVLab/MMPR", "OpenGVLab/MMPR-v1.1", "OpenGVLab/MMPR-v1.2"),
    licence="MIT",
)
