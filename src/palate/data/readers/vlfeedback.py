"""VLFeedback: four models' answers about an image, each rated by GPT-4V for three aspects.

Hub: MMInstruction/VLFeedback (80,258 instructions, no licence stated).
Shape: id, prompt, models, completions, and img_path (a path in merged_images) or image (the file).
A completion has model, response, and annotations: Helpfulness, Visual Faithfulness and Ethical
Considerations, each with a Rating (1 to 5, written as text) and a Rationale. Read by `datasets`,
completions is an object of lists instead of a list of objects.

Quirks: the aspects are called helpfulness, visual_faithfulness and ethical_considerations here. The
authors average the three and take all pairs that differ: `preset: ultrafeedback_all`. Ratings that
are no numbers are left out and counted. Part of VL-RewardBench is made in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, named, user
from palate.data.readers.fields import check_entry, check_prompt, numeral, required, text
from palate.data.readers.image_pairs import images_of
from palate.data.readers.pictures import place_images
from palate.data.schema import Preference, Response

ASPECTS = {
    "Helpfulness": "helpfulness",
    "Visual Faithfulness": "visual_faithfulness",
    "Ethical Considerations": "ethical_considerations",
}


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record, "image", "img_path", needed=True)
    asked = user(text(required(record, "prompt"), "prompt"))
    prompt = place_images(asked, images, field)
    check_prompt(prompt, "prompt")
    responses = context.usable(
        _entries(required(record, "completions")),
        "completions",
        partial(_response, context=context),
        "rated",
    )
    return context.row(record, "rated", prompt=prompt, responses=responses)


def _entries(value: Any) -> list[Any]:
    """The completions one by one, also those of an object of lists."""
    if isinstance(value, dict):
        names = [name for name in ("model", "response", "annotations") if name in value]
        lists = [value[name] for name in names]
        if not names or not all(isinstance(some, list) for some in lists):
            raise RowError("completions", "an object, not one of lists")
        if len({len(some) for some in lists}) != 1:
            raise RowError("completions", "lists that are not equally long")
        return [dict(zip(names, some, strict=True)) for some in zip(*lists, strict=True)]
    if not isinstance(value, list):
        raise RowError("completions", f"{shape_of(value)}, not a list")
    return value


def _response(entry: Any, field: str, context: Context) -> Response:
    check_entry(entry, field, "response")
    answer = text(entry["response"], f"{field}.response")
    aspects: dict[str, float] = {}
    ratings = entry.get("annotations")
    check_entry(ratings, f"{field}.annotations")
    for name, aspect in ASPECTS.items():
        at = f"{field}.annotations.{name}"
        try:
            aspects[aspect] = _rating(ratings.get(name), at)
        except RowError as error:
            context.leave_out(error.field or at, error.reason)
    if not aspects:
        raise RowError(f"{field}.annotations", "no rating")
    return Response(content=assistant(answer), aspects=aspects, generator=named(entry.get("model")))


def _rating(value: Any, field: str) -> float:
    check_entry(value, field)
    rating = numeral(value.get("Rating"), f"{field}.Rating")
    if rating is None:
        raise RowError(f"{field}.Rating", "missing")
    return rating


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"prompt", "completions"} <= columns or not columns & {"img_path", "image"}:
        return None
    for row in sample:
        try:
            entries = _entries(row.get("completions"))
        except RowError:
            continue
        first = entries[0] if entries else None
        ratings = first.get("annotations") if isinstance(first, dict) else None
        if isinstance(ratings, dict) and "Visual Faithfulness" in ratings:
            return "columns prompt and completions, annotated for Visual Faithfulness"
    return None


READER = Reader(
    name="vlfeedback",
    shape="prompt, completions of {model, response, annotations}, img_path | image",
    kind="rated",
    recognise=_recognise,
    read=_read,
    reads=("prompt", "image", "images"),
    specificity=3,
    hub=("MMInstruction/VLFeedback",),
    licence="see source",
)
