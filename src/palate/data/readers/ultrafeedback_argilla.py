"""UltraFeedback binarised by the mean of its aspects: the "fine-grained" set of Tulu 2.5.

Hub: argilla/ultrafeedback-binarized-preferences-cleaned (60,917 pairs, MIT).
Shape: source, prompt, chosen, chosen-rating, chosen-model, rejected, rejected-rating,
rejected-model; chosen and rejected are whole chats.

Quirks: chosen has the best mean of four aspects, rejected is any lower one, so the margin is above
0. TruthfulQA's questions are removed. `source` (evol_instruct, sharegpt ...) is kept for reports.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import notes
from palate.data.readers.ultrafeedback_binarized import scored_chats
from palate.data.schema import Preference

_SCORES = ("chosen-rating", "rejected-rating")
_MODELS = (("chosen-model",), ("rejected-model",))


def _read(record: Record, context: Context) -> Preference:
    extra = notes(record, "source")
    return scored_chats(record, context, scores=_SCORES, models=_MODELS, extra=extra)


READER = Reader(
    name="ultrafeedback_argilla",
    shape="prompt, chosen, chosen-rating, rejected, rejected-rating",
    kind="pair",
    recognise=having(
        {"prompt", "chosen", "rejected", *_SCORES},
        "columns chosen-rating and rejected-rating beside chosen and rejected chats",
    ),
    read=_read,
    reads=("prompt",),
    specificity=3,
    hub=(
        "argilla/ultrafeedback-binarized-preferences-cleaned",
        "csarron/argilla-ultrafeedback-binarized-preferences-cleaned",
    ),
    licence="MIT",
)
