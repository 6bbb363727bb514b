"""UltraFeedback as published: four models' completions of an instruction, each rated by GPT-4.

Hub: openbmb/UltraFeedback (63,967 instructions, MIT), argilla/ultrafeedback-curated.
Shape: source, instruction, models, completions, correct_answers, incorrect_answers; a completion
has model, principle, custom_system_prompt, response, critique, overall_score (1 to 10),
fine-grained_score, and annotations: instruction_following, honesty, truthfulness and helpfulness,
each with a Rating (1 to 5, written as text, or "N/A") and a Rationale.

Quirks:
  - overall_score has a known error: 2,628 completions had a 10, many of which should have been a
    1. The authors' correction of December 2023 sets a 10 to 1 where the mean of the aspects is 2
    or less. Here such a score is left out, and counted, instead: the aspects stay. Tens beside a
    mean between 2 and 4 were rated anew by the authors; in copies from before they cannot be told.
  - A Rating of "N/A" (one in twenty for honesty) is no rating: the aspect is left out and counted.
  - Each completion was written under a system prompt of its own. As in all binarisations, it is
    not part of the prompt. fine-grained_score is the mean of the aspects and is not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, named, notes, user
from palate.data.readers.fields import check_entry, numeral, required, text
from palate.data.schema import Preference, Response

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_HIGHEST = 10.0
_LOW = 2.0
_NOT_APPLICABLE = ("n/a", "na", "none")


def _read(record: Record, context: Context) -> Preference:
    asked = text(required(record, "instruction"), "instruction")
    responses = context.usable(
        required(record, "completions"),
        "completions",
        partial(_response, context=context),
        "rated",
    )
    return context.row(
        record,
        "rated",
        prompt=user(asked),
        responses=responses,
        extra=notes(record, "source"),
    )


def _response(entry: Any, field: str, context: Context) -> Response:
    check_entry(entry, field, "response")
    answer = text(entry["response"], f"{field}.response")
    aspects = _aspects(entry.get("annotations"), f"{field}.annotations", context)
    rating = numeral(entry.get("overall_score"), f"{field}.overall_score")
    if rating is not None and rating >= _HIGHEST and aspects and _mean(aspects) <= _LOW:
        reason = "10 beside aspects that average 2 or less: a known error of the data"
        context.leave_out(f"{field}.overall_score", reason)
        rating = None
    if rating is None and not aspects:
        raise RowError(field, "neither annotations nor an overall_score")
    return Response(
        content=assistant(answer),
        rating=rating,
        aspects=aspects or None,
        generator=named(entry.get("model")),
    )


def _aspects(value: Any, field: str, context: Context) -> dict[str, float]:
    if value is None:
        return {}
    check_entry(value, field)
    aspects: dict[str, float] = {}
    for name in ASPECTS:
        if value.get(name) is None:
            continue
        at = f"{field}.{name}"
        try:
            rating = _rating(value[name], at)
        except RowError as error:
            context.leave_out(error.field or at, error.reason)
        else:
            aspects[name] = rating
    return aspects


def _rating(value: Any, field: str) -> float:
    check_entry(value, field)
    rating = value.get("Rating")
    if isinstance(rating, str) and rating.strip().lower() in _NOT_APPLICABLE:
        raise RowError(f"{field}.Rating", "not applicable")
    numeric = numeral(rating, f"{field}.Rating")
    if numeric is None:
        raise RowError(f"{field}.Rating", "missing")
    return numeric


def _mean(aspects: dict[str, float]) -> float:
    return math.fsum(aspects.values()) / len(aspects)


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"instruction", "completions"} <= columns:
        return None
    for row in sample:
        listed = row.get("completions")
        first = listed[0] if isinstance(listed, list) and listed else None
        notes_of = first.get("annotations") if isinstance(first, dict) else None
        if isinstance(notes_of, dict) and notes_of.keys() & set(ASPECTS):
            return "columns instruction and completions, with annotations by aspect"
    return None


READER = Reader(
    name="ultrafeedback",
    shape="instruction, completions as a list of {response, annotations, overall_score}",
    kind="rated",
    recognise=_recognise,
    read=_read,
    reads=("instruction",),
    specificity=3,
    hub=("openbmb/UltraFeedback", "argilla/ultrafeedback-curated"),
    licence="MIT",
)
