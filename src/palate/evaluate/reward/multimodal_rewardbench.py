"""Multimodal RewardBench, arXiv:2502.14191: pairs about images in seven categories.

Data: facebookresearch/multimodal_rewardbench, data/all_data.json as its script 0_download_data.py
makes it, beside the folder images: ID, Text, Image, Output1, Output2, Better (Output1 or Output2),
Category. The paper has 5,211 pairs; 4,711 are public, those of Hateful Memes are not.

Categories are told by a part of their name (open_generation/correctness_task); reasoning is math
where the id begins with math, else coding. A pair is right where the better output scores strictly
higher. `micro` is over all pairs, what the authors' script prints as all; `macro` is the mean of
the seven categories. Published tables have the one or the other. Of a judge's output that cannot be
read the script tosses a coin; here it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from palate.data.containers import Record
from palate.data.readers.base import RowError
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import images_of
from palate.evaluate.reward.benchmark import Official
from palate.evaluate.reward.categories import MACRO, MICRO, category_columns, value_of
from palate.evaluate.reward.images import ImageBenchmark, SourceImages
from palate.evaluate.reward.items import BenchmarkItem, Scores, compare

CATEGORIES = {
    "correctness": 623,
    "preference": 654,
    "knowledge": 630,
    "math": 514,
    "coding": 584,
    "safety": 508,
    "vqa": 1198,
}
"""Category -> its public pairs."""
HATEFUL_MEMES = 500
_OUTPUTS = ("Output1", "Output2")


class MultimodalRewardBench(ImageBenchmark):
    """Multimodal RewardBench."""

    title = "Multimodal RewardBench"
    definition = (
        "micro, the share of all pairs whose better response scores strictly higher; macro is the "
        "mean of the seven categories"
    )
    shape = "Multimodal RewardBench (ID, Text, Image, Output1, Output2, Better, Category)"
    version = 1

    def parse(self, record: Record, images: SourceImages) -> BenchmarkItem:
        """See `ImageBenchmark.parse`."""
        return _parse(record, images)

    def official(
        self, items: Sequence[BenchmarkItem], scores: Scores, confidence: float
    ) -> Official:
        """Categories and both means."""
        columns, notes = category_columns(compare(items, scores), CATEGORIES, confidence)
        notes.append(f"the {HATEFUL_MEMES} pairs of Hateful Memes are not public")
        micro, macro = value_of(columns, MICRO), value_of(columns, MACRO)
        detail = {MICRO: micro, MACRO: macro}
        return Official(value=micro, columns=tuple(columns), detail=detail, notes=tuple(notes))


def category_of(stated: str, row_id: str) -> str | None:
    """The category of a row; None of an unknown one."""
    stated = stated.lower()
    if "reasoning" in stated:
        return "math" if row_id.lower().startswith("math") else "coding"
    return next((name for name in CATEGORIES if name in stated), None)


def _parse(record: Record, images: SourceImages) -> BenchmarkItem:
    row_id = text(required(record, "ID"), "ID")
    category = category_of(text(required(record, "Category"), "Category"), row_id)
    if category is None:
        raise RowError("Category", f"not one of {', '.join(CATEGORIES)} or reasoning")
    better = text(required(record, "Better"), "Better")
    if better not in _OUTPUTS:
        raise RowError("Better", "neither Output1 nor Output2")
    outputs = [text(required(record, name), name, blank=True) for name in _OUTPUTS]
    refs, field = images_of(record, "Image", needed=True)
    return BenchmarkItem(
        id=row_id,
        source=category,
        prompt=images.asked(text(required(record, "Text"), "Text"), refs, field),
        responses=tuple(outputs if better == _OUTPUTS[0] else reversed(outputs)),
        unit=row_id,
    )
