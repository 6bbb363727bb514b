"""MM-RLHF: pairs of answers about images and videos, ranked by people who say why.

Hub: yifanzhang114/MM-RLHF (dpo_pairs.jsonl, 120,000 pairs of 16,000 questions; its licence is on
the hub), and in the same form yifanzhang114/MM-RLHF-RewardBench, a benchmark not to be trained on.
Shape: id, prompt, chosen, rejected, chosen_reason, rejected_reason, and image or video (a path from
the folder that long.zip, short.zip, mcq.zip, safety.zip and video.zip are unpacked in); in some
copies is_tie.

Quirks: ids repeat, several pairs a question; repeated ones are numbered. The reasons are short in
the public file (their authors train on GPT-4o's longer ones) and are not read. A video is a folder
of frames and stands before the question.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import assistant, user
from palate.data.readers.fields import flag, required, text
from palate.data.readers.image_pairs import image_pair, images_of
from palate.data.readers.videos import place_videos, videos_of
from palate.data.schema import Preference, Response

COLUMNS = ("prompt", "chosen", "rejected", "chosen_reason", "rejected_reason")


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record)
    question = text(required(record, "prompt"), "prompt")
    chosen, rejected = (text(required(record, name), name) for name in ("chosen", "rejected"))
    tie = record.value.get("is_tie") is not None and flag(record, "is_tie")
    videos, videos_field = videos_of(record)
    return image_pair(
        record,
        context,
        prompt=place_videos(user(question), videos, videos_field),
        sides=(Response(content=assistant(chosen)), Response(content=assistant(rejected))),
        images=images,
        fields=("prompt", field, "rejected"),
        verdict="tie" if tie else "first",
    )


READER = Reader(
    name="mm_rlhf",
    shape="prompt, chosen, rejected, chosen_reason, rejected_reason, image | video[, is_tie]",
    kind="pair",
    recognise=having(
        COLUMNS, "columns prompt, chosen and rejected, with chosen_reason and rejected_reason"
    ),
    read=_read,
    reads=("prompt", "image", "images", "video", "videos"),
    specificity=2,
    hub=("yifanzhang114/MM-RLHF", "yifanzhang114/MM-RLHF-RewardBench"),
    licence="see source",
)
