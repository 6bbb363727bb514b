"""VL-RewardBench, arXiv:2411.17451: 1,250 pairs about images in three groups.

Data: MMInstruction/VL-RewardBench, Parquet: id, query, response[2], human_ranking[2] ([0, 1]: the
first response is better), image; or rows of id, prompt, chosen, rejected and image, as R1-Reward's
evaluator reads them. 25 ids stand twice, each time with other responses: a row is never told by its
id alone.

The group follows from how an id begins: mathverse and mmmu are reasoning; RLAIF, RLHF and
hallucination (POVID) are hallucination; all others general. A pair is right where the better
response scores strictly higher. `micro` is over all pairs, what papers call overall; `macro` is the
mean of the three. The script of R1-Reward knows no group for ids of RLAIF-V and RLHF-V, so that its
groups have 484, 448 and 318 pairs: `legacy` has the same scores in these, for results published
that way. Only `micro` can be compared with all of them. Of a judge that votes the authors' script
leaves unread and tied votes out of the count; here they are wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import RowError
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import images_of
from palate.evaluate.reward.benchmark import Official
from palate.evaluate.reward.categories import MACRO, MICRO, category_columns, value_of
from palate.evaluate.reward.images import ImageBenchmark, SourceImages
from palate.evaluate.reward.items import BenchmarkItem, Comparisons, Scores, compare

GROUPS = {"reasoning": 318, "hallucination": 749, "general": 183}
"""Group -> its pairs."""
IDS = 1225
LEGACY_GROUPS = {"general": 484, "hallucination": 448, "reasoning": 318}
"""Those of R1-Reward's script."""
_BEGINNINGS = {
    "reasoning": ("mathverse", "mmmu"),
    "hallucination": ("rlaif", "rlhf", "hallucination"),
}


class VlRewardBench(ImageBenchmark):
    """VL-RewardBench."""

    title = "VL-RewardBench"
    definition = (
        "micro, the share of all pairs whose better response scores strictly higher; macro is the "
        "mean of the three groups"
    )
    shape = "VL-RewardBench (id, query, response[2], human_ranking[2], image)"
    version = 1

    def parse(self, record: Record, images: SourceImages) -> BenchmarkItem:
        """See `ImageBenchmark.parse`."""
        return _parse(record, images)

    def official(
        self, items: Sequence[BenchmarkItem], scores: Scores, confidence: float
    ) -> Official:
        """Groups, both means, and the groups of R1-Reward's script."""
        pairs = compare(items, scores)
        columns, notes = category_columns(pairs, GROUPS, confidence)
        ids = len({item.unit for item in items})
        if ids != IDS:
            notes.append(f"{ids:,} distinct ids, not {IDS:,}")
        micro, macro = value_of(columns, MICRO), value_of(columns, MACRO)
        legacy = _legacy(items, pairs, confidence)
        detail = {MICRO: micro, MACRO: macro, "legacy": legacy, "legacy_macro": legacy[MACRO]}
        return Official(value=micro, columns=tuple(columns), detail=detail, notes=tuple(notes))


def group_of(row_id: str) -> str:
    """The official group of an id."""
    begins = row_id.lower().startswith
    return next((group for group, words in _BEGINNINGS.items() if begins(words)), "general")


def legacy_group_of(row_id: str) -> str:
    """The group that R1-Reward's script puts an id in."""
    if group_of(row_id) == "reasoning":
        return "reasoning"
    return "hallucination" if row_id.startswith("hallucination") else "general"


def _legacy(
    items: Sequence[BenchmarkItem], pairs: Comparisons, confidence: float
) -> dict[str, Any]:
    names = [legacy_group_of(item.unit or item.id) for item in items]
    source = np.asarray([names[number] for number in pairs.item.tolist()], dtype=object)
    binned = dataclasses.replace(pairs, source=source)
    columns, notes = category_columns(binned, LEGACY_GROUPS, confidence)
    groups = {
        column.name: {"value": column.value, "n": column.n, "ci": column.ci}
        for column in columns
        if column.name in LEGACY_GROUPS
    }
    return {"groups": groups, MACRO: value_of(columns, MACRO), "notes": notes}


def _parse(record: Record, images: SourceImages) -> BenchmarkItem:
    row_id = text(required(record, "id"), "id")
    if "query" in record.value:
        field, (better, worse) = "query", _ranked(record)
    else:
        field = "prompt"
        better, worse = (
            text(required(record, side), side, blank=True) for side in ("chosen", "rejected")
        )
    question = text(required(record, field), field)
    refs, image_field = images_of(record, needed=True)
    return BenchmarkItem(
        id=row_id,
        source=group_of(row_id),
        prompt=images.asked(question, refs, image_field),
        responses=(better, worse),
        unit=row_id,
    )


def _ranked(record: Record) -> tuple[str, str]:
    """The better and the worse response."""
    responses, ranking = required(record, "response"), required(record, "human_ranking")
    for field, value in (("response", responses), ("human_ranking", ranking)):
        if not isinstance(value, list):
            raise RowError(field, f"{shape_of(value)}, not a list of two")
        if len(value) != 2:
            raise RowError(field, f"{len(value)}, not two")
    if sorted(map(str, ranking)) != ["0", "1"]:
        raise RowError("human_ranking", "neither [0, 1] nor [1, 0]")
    texts = [text(item, f"response.{i}", blank=True) for i, item in enumerate(responses)]
    return (texts[0], texts[1]) if str(ranking[0]) == "0" else (texts[1], texts[0])
