"""POVID: right answers about an image, and the same with hallucinations written in by GPT-4V.

Hub: YiyangAiLab/POVID_preference_data_for_VLLMs (17,184 pairs, CC-BY-4.0).
Shape: id, image (a path in COCO's train2014), conversations and rejected_conversations (LLaVA's
turns of {from, value}).

Quirks: all answers but the last must be the same on both sides; rows of several turns in which more
than the last was corrupted are counted. LLaVA's loader moves `<image>` to the beginning of its turn
and strips what is left; here it stays where it is. 448 pairs of VL-RewardBench are from here.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.fields import required
from palate.data.readers.image_pairs import answered, by_from, image_pair, images_of
from palate.data.schema import Preference, Response

COLUMNS = ("conversations", "rejected_conversations")


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record)
    chats = [by_from(required(record, name), name) for name in COLUMNS]
    prompt, chosen, rejected = answered(chats[0], chats[1], (COLUMNS[0], COLUMNS[1]))
    return image_pair(
        record,
        context,
        prompt=prompt,
        sides=(Response(content=chosen), Response(content=rejected)),
        images=images,
        fields=("conversations", field, "rejected_conversations"),
    )


READER = Reader(
    name="povid",
    shape="conversations, rejected_conversations as turns of {from, value}, image",
    kind="pair",
    recognise=having(COLUMNS, "columns conversations and rejected_conversations"),
    read=_read,
    reads=("conversations", "image", "images"),
    specificity=2,
    hub=("YiyangAiLab/POVID_preference_data_for_VLLMs",),
    licence="CC-BY-4.0",
)
