"""RLHF-V: answers about an image, and the same with their errors corrected by people.

Hub: openbmb/RLHF-V-Dataset (5,733 pairs, CC-BY-NC-4.0).
Shape: ds_name, image (the file: bytes and path), text (question, chosen and rejected as JSON in a
text), origin_dataset, origin_split, idx, image_path.

Quirks: chosen is rejected with segments rewritten, so the two are alike for most of their length:
near-duplicate removal must compare pairs, not answers. 68 pairs of VL-RewardBench are from here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, notes, user
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import image_pair, images_of
from palate.data.schema import Preference, Response

KEYS = ("question", "chosen", "rejected")


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record, "image", needed=True)
    inner = _inside(required(record, "text"))
    if inner is None:
        raise RowError("text", f"{shape_of(record.value['text'])}, not an object in JSON")
    texts = []
    for name in KEYS:
        if inner.get(name) is None:
            raise RowError(f"text.{name}", "null" if name in inner else "missing")
        texts.append(text(inner[name], f"text.{name}"))
    question, chosen, rejected = texts
    return image_pair(
        record,
        context,
        prompt=user(question),
        sides=(Response(content=assistant(chosen)), Response(content=assistant(rejected))),
        images=images,
        fields=("text.question", field, "text.rejected"),
        extra=notes(record, "origin_dataset", "ds_name"),
    )


def _inside(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"text", "image"} <= columns:
        return None
    if any((fields := _inside(row.get("text"))) and set(KEYS) <= fields.keys() for row in sample):
        return "columns image and text, with question, chosen and rejected in the text"
    return None


READER = Reader(
    name="rlhf_v",
    shape="image, text with question, chosen and rejected as JSON in it",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("image", "images"),
    specificity=3,
    hub=("openbmb/RLHF-V-Dataset",),
    licence="CC-BY-NC-4.0",
)
