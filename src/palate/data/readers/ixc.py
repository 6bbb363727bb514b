"""InternLM-XComposer-2.5-Reward's training format: two conversations, the chosen one first.

Hub: none; ChrisDing1105/MMIF-23k is published for it. Licence: that of the source.
Shape: id, conversations_a (chosen), conversations_b (rejected), turns of {from, value} (human or
user, bot or gpt, system), and image (a path or a list of them); model_a, model_b, turn, language
where they are known.

Quirks: the place of an image is `<ImageHere>`, and one image needs none: it goes before the first
question. `image` may name a video: such rows are refused and counted.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import named, notes
from palate.data.readers.fields import required
from palate.data.readers.image_pairs import answered, by_from, image_pair, images_of
from palate.data.schema import Preference, Response

COLUMNS = ("conversations_a", "conversations_b")
PLACE = "<ImageHere>"


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record)
    chats = [by_from(required(record, name), name) for name in COLUMNS]
    prompt, chosen, rejected = answered(chats[0], chats[1], (COLUMNS[0], COLUMNS[1]))
    makers = [named(record.value.get(name)) for name in ("model_a", "model_b")]
    return image_pair(
        record,
        context,
        prompt=prompt,
        sides=(
            Response(content=chosen, generator=makers[0]),
            Response(content=rejected, generator=makers[1]),
        ),
        images=images,
        fields=("conversations_a", field, "conversations_b"),
        place=PLACE,
        extra=notes(record, "language"),
    )


READER = Reader(
    name="ixc",
    shape="conversations_a, conversations_b as turns of {from, value}, image",
    kind="pair",
    recognise=having(COLUMNS, "columns conversations_a and conversations_b"),
    read=_read,
    reads=("image", "images"),
    specificity=2,
    hub=("ChrisDing1105/MMIF-23k",),
    licence="see source",
)
