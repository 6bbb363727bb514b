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
from palate.data.readers.compared import compared, named, notes
from palate.data.readers.fields import check_prompt, check_response, number, required, text, turns
from palate.data.readers.trl_preference import shared_turns
from palate.data.schema import Preference, Response

COLUMNS = ("prompt", "prompt_id", "chosen", "rejected", "score_chosen", "score_rejected")


def scored_chats(
    record: Record,
    context: Context,
    *,
    scores: tuple[str, str],
    models: tuple[str, str] | None = None,
    extra: dict[str, Any] | None = None,
) -> Preference:
    """The pair of the chats `chosen` and `rejected`; a tie where their scores are equal.

    Args:
        scores, models: the fields of chosen and rejected.
    """
    question = text(required(record, "prompt"), "prompt")
    chosen = turns(required(record, "chosen"), "chosen")
    rejected = turns(required(record, "rejected"), "rejected")
    if chosen == rejected:
        raise RowError("rejected", "identical to chosen")
    n = shared_turns(chosen, rejected)
    prompt = chosen[:n]
    check_prompt(prompt, "chosen")
    check_response(chosen[n:], "chosen")
    check_response(rejected[n:], "rejected")
    if all(turn["content"] != question for turn in prompt if turn["role"] == "user"):
        raise RowError("prompt", "not a turn that chosen and rejected share")
    first, second = (number(record, name) for name in scores)
    margin = None if first is None or second is None else first - second
    makers = (None, None) if models is None else [named(record.value.get(m)) for m in models]
    return compared(
        record,
        context,
        prompt=prompt,
        sides=(
            Response(content=chosen[n:], rating=first, generator=makers[0]),
            Response(content=rejected[n:], rating=second, generator=makers[1]),
        ),
        verdict="tie" if margin == 0 else "first",
        field="rejected",
        margin=margin,
        extra=extra,
    )


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
