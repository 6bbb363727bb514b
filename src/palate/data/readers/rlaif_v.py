"""RLAIF-V: pairs of answers about an image, labelled by open models claim by claim.

Hub: openbmb/RLAIF-V-Dataset (83,000 pairs, CC-BY-NC-4.0).
Shape: ds_name, image (the file: bytes and path), question, chosen, rejected, origin_dataset,
origin_split (JSON in a text: the answering model, the labelling one and the kind of question), idx,
image_path.

Quirks: the question has no `<image>`; the image goes before it. image_path is a name of the
authors' and is not read. 233 pairs of VL-RewardBench are from here: decontaminate before training.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import assistant, notes, user
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import image_pair, images_of
from palate.data.schema import Preference, Response

COLUMNS = ("question", "chosen", "rejected", "image", "origin_dataset")


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record, "image", needed=True)
    question = text(required(record, "question"), "question")
    chosen, rejected = (text(required(record, name), name) for name in ("chosen", "rejected"))
    return image_pair(
        record,
        context,
        prompt=user(question),
        sides=(Response(content=assistant(chosen)), Response(content=assistant(rejected))),
        images=images,
        fields=("question", field, "rejected"),
        extra=notes(record, "origin_dataset", "ds_name"),
    )


READER = Reader(
    name="rlaif_v",
    shape="image, question, chosen, rejected, origin_dataset",
    kind="pair",
    recognise=having(COLUMNS, "columns question, chosen, rejected and image, with origin_dataset"),
    read=_read,
    reads=("question", "image", "images"),
    specificity=3,
    hub=("openbmb/RLAIF-V-Dataset",),
    licence="CC-BY-NC-4.0",
)
