"""Orca pairs: an answer by GPT-4 or GPT-3.5 against one by Llama 2 13B; also as rated by Argilla.

Hub: Intel/orca_dpo_pairs (12,859 pairs, Apache-2.0), argilla/distilabel-intel-orca-dpo-pairs
(the same pairs, Apache-2.0).
Shape: system, chosen, rejected, and
  Intel: question.
  Argilla: input, rating (of the two answers), status (unchanged, swapped or tie), chosen_score,
    original_chosen, original_rejected, order, generations, rationale, in_gsm8k_train.

Quirks:
  - In Intel's file the chosen answer is GPT's whatever it says. Argilla had the answers rated, and
    exchanged them where the other is better (`swapped`, 2,000 of them): chosen and rejected are in
    the new order.
  - `tie` is for equal ratings, and for 42 pairs without any.
  - `rating` is in the order in which the judge saw the answers, so the margin is the distance of
    the two.
  - Questions that are in GSM8K's training set have in_gsm8k_train true; the row keeps it.
  - `system` is empty in some rows: no system turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import Verdict, assistant, compared, user
from palate.data.readers.fields import finite, required, text
from palate.data.schema import Preference, Response

_QUESTIONS = ("question", "input")
_STATUSES = ("unchanged", "swapped", "tie")


def _read(record: Record, context: Context) -> Preference:
    name = next((n for n in _QUESTIONS if n in record.value), _QUESTIONS[0])
    asked = user(text(required(record, name), name))
    status = record.value.get("status")
    if status is not None and status not in _STATUSES:
        raise RowError("status", f"not one of {', '.join(_STATUSES)}")
    margin = _distance(record.value.get("rating"))
    tied = status == "tie" or margin == 0
    verdict: Verdict = "tie" if tied else "first"
    seen = record.value.get("in_gsm8k_train")
    return compared(
        record,
        context,
        prompt=asked,
        sides=(
            Response(content=assistant(text(required(record, "chosen"), "chosen"))),
            Response(content=assistant(text(required(record, "rejected"), "rejected"))),
        ),
        verdict=verdict,
        field="rejected",
        margin=0.0 if tied else margin,
        extra={"in_gsm8k_train": seen} if isinstance(seen, bool) else None,
    )


def _distance(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise RowError("rating", f"{shape_of(value)}, not a list")
    if len(value) != 2:
        raise RowError("rating", "not two numbers")
    first, second = (finite(item, f"rating.{i}") for i, item in enumerate(value))
    return abs(first - second)


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"system", "chosen", "rejected"} <= columns:
        return None
    if "question" in columns:
        return "columns system and question beside chosen and rejected"
    if {"input", "rating", "status"} <= columns:
        return "columns system, input, rating and status beside chosen and rejected"
    return None


READER = Reader(
    name="orca_pairs",
    shape="system, question | input, chosen, rejected[, rating][, status]",
    kind="pair",
    recognise=_recognise,
    read=_read,
    specificity=2,
    hub=("Intel/orca_dpo_pairs", "argilla/distilabel-intel-orca-dpo-pairs"),
    licence="Apache-2.0",
)
