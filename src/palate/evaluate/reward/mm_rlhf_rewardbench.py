"""MM-RLHF-RewardBench, arXiv:2502.10391: 170 pairs to 46 questions about images and videos.

Data: yifanzhang114/MM-RLHF-RewardBench, mm_reward_bench.jsonl: id, prompt, chosen, rejected, and
image (145 rows) or video (25 rows, a folder of frames). Rows of one id are pairs of answers to one
question. The category is that of mcq, long, short, safety and video that the path of image or video
has in it.

Acc is the share of pairs whose chosen response scores strictly higher; Acc+ the share of ids all of
whose pairs are right. A video is 32 of its frames at equal steps, the first and the last among
them, given as that many images: frames are put in the order of their names, as the authors of
MM-RLHF do and the script of R1-Reward does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from palate.data.containers import Record
from palate.data.readers.base import RowError
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import images_of
from palate.data.readers.pictures import image_refs
from palate.data.schema import ImageRef
from palate.data.videos import FRAMES
from palate.evaluate.reward.benchmark import Column, Official
from palate.evaluate.reward.categories import accuracy_column, category_columns
from palate.evaluate.reward.images import (
    ImageBenchmark,
    SourceImages,
    spread,
    with_frame_places,
)
from palate.evaluate.reward.items import BenchmarkItem, Scores, compare
from palate.evaluate.statistics import share_interval

CATEGORIES = {"mcq": 42, "long": 37, "short": 34, "safety": 32, "video": 25}
"""Category -> its pairs."""
IDS = 46
ACC, ACC_PLUS = "Acc", "Acc+"


class MmRlhfRewardBench(ImageBenchmark):
    """MM-RLHF-RewardBench."""

    title = "MM-RLHF-RewardBench"
    definition = (
        "Acc, the share of pairs whose better response scores strictly higher; Acc+ is the share "
        "of questions all of whose pairs are right"
    )
    shape = "MM-RLHF-RewardBench (id, prompt, chosen, rejected, image or video)"
    version = 1

    def parse(self, record: Record, images: SourceImages) -> BenchmarkItem:
        """See `ImageBenchmark.parse`."""
        return _parse(record, images)

    def official(
        self, items: Sequence[BenchmarkItem], scores: Scores, confidence: float
    ) -> Official:
        """Categories, Acc and Acc+."""
        pairs = compare(items, scores)
        columns, notes = category_columns(pairs, CATEGORIES, confidence)
        columns = [column for column in columns if column.name in CATEGORIES]
        acc = accuracy_column(ACC, pairs, confidence)
        acc_plus = _acc_plus(items, scores, confidence)
        if acc_plus.n != IDS:
            notes.append(f"{acc_plus.n} ids, not {IDS}")
        videos = sum(item.source == "video" for item in items)
        if videos:
            notes.append(f"{videos} videos are given as up to {FRAMES} images each")
        complete = len(columns) == len(CATEGORIES)
        return Official(
            value=acc.value if complete else None,
            columns=(acc, acc_plus, *columns),
            detail={"acc": acc.value, "acc_plus": acc_plus.value},
            notes=tuple(notes),
        )


def category_of(path: str) -> str | None:
    """The category that a path of an image or video names; None where it names none."""
    # Names of files may have one of the words in them by chance: folders come first.
    folders = path.rpartition("/")[0]
    named = [name for text in (folders, path) for name in CATEGORIES if name in text]
    return named[0] if named else None


def _acc_plus(items: Sequence[BenchmarkItem], scores: Scores, confidence: float) -> Column:
    right: dict[str, bool] = {}
    for item, (chosen, rejected) in zip(items, scores, strict=True):
        name = item.unit or item.id
        right[name] = right.get(name, True) and chosen > rejected
    ci, _ = share_interval([float(all_right) for all_right in right.values()], None, confidence)
    share = sum(right.values()) / len(right)
    return Column(name=ACC_PLUS, value=share, n=len(right), ci=ci, of="ids")


def _parse(record: Record, images: SourceImages) -> BenchmarkItem:
    row_id = text(required(record, "id"), "id")
    question = text(required(record, "prompt"), "prompt")
    video = record.value.get("video")
    refs: Sequence[ImageRef]
    if video in (None, "", []):
        refs, field = images_of(record, needed=True)
        path = str(refs[0].path)
    else:
        field = "video"
        refs, path = _frames(video, images)
        question = with_frame_places(question, len(refs))
    category = category_of(path)
    if category is None:
        known = ", ".join(CATEGORIES)
        raise RowError(field, f"a path with none of the categories in it: {known}")
    return BenchmarkItem(
        id=row_id,
        source=category,
        prompt=images.asked(question, refs, field),
        responses=tuple(
            text(required(record, side), side, blank=True) for side in ("chosen", "rejected")
        ),
        unit=row_id,
    )


def _frames(video: object, images: SourceImages) -> tuple[Sequence[ImageRef], str]:
    """The frames of a folder or of a list, and the path that tells the category."""
    if isinstance(video, str):
        return images.frames(text(video, "video")), video
    refs = image_refs(video, "video")
    return spread(refs), str(refs[0].path)
