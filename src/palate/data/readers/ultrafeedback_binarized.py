"""UltraFeedback binarised by its overall score: a pair of chats, each with its score.

Hub: HuggingFaceH4/ultrafeedback_binarized (MIT).
Shape: prompt (the first question), prompt_id, chosen and rejected (whole chats), messages,
score_chosen, score_rejected. Splits: train_prefs and test_prefs (pairs), *_sft (the same pairs,
for demonstrations), *_gen (prompts alone: such rows have no answers and are refused).

Quirks: chosen has the best overall_score of four, rejected is any other, also one with the same
score: such a pair is a tie. Uploads from before December 2023 carry the error of overall_score
that the reader `ultrafeedback` describes, and it cannot be told here: the aspects are not in the
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.chat_pairs import chat_pair
from palate.data.readers.compared import notes
from palate.data.readers.fields import required, text
from palate.data.readers.meaning import chat_of
from palate.data.schema import Preference

COLUMNS = ("prompt", "prompt_id", "chosen", "rejected", "score_chosen", "score_rejected")


def scored_chats(
    record: Record,
    context: Context,
    *,
    scores: tuple[str, str],
    models: tuple[Sequence[str], Sequence[str]] = ((), ()),
    extra: dict[str, Any] | None = None,
) -> Preference:
    """As `chat_pair`, of records that also have the question as `prompt`."""
    question = text(required(record, "prompt"), "prompt")
    row = chat_pair(record, context, scores=scores, models=models, extra=extra)
    turns = chat_of(row.prompt, "user")
    if not any(turn["content"] == question for turn in turns if turn["role"] == "user"):
        raise RowError("prompt", "not a turn that chosen and rejected share")
    return row


def _read(record: Record, context: Context) -> Preference:
    scores = ("score_chosen", "score_rejected")
    return scored_chats(record, context, scores=scores, extra=notes(record, "prompt_id"))


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not set(COLUMNS) <= columns:
        return None
    if not any(isinstance(row.get("chosen"), list) for row in sample):
        return None
    return "columns prompt_id, score_chosen and score_rejected beside chosen and rejected chats"


READER = Reader(
    name="ultrafeedback_binarized",
    shape="prompt, prompt_id, chosen, rejected, score_chosen, score_rejected",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("prompt", "messages"),
    specificity=3,
    hub=("HuggingFaceH4/ultrafeedback_binarized",),
    licence="MIT",
)
