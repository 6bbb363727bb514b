"""Stack Exchange with scores: a question and all its answers, each with a score made of its votes.

Hub: HuggingFaceH4/stack-exchange-preferences (10.7 million questions, CC-BY-SA-4.0).
Shape: qid, question, answers (answer_id, author, author_id, author_profile, pm_score, selected,
text), date, metadata (addresses of the question and its site).

Quirks: pm_score is log2(1 + votes), rounded, plus 1 for the accepted answer, and -1 for a negative
count: many answers are equal. It is a number or a number written as text. Question and answers are
HTML and stay it. The licence asks that authors be named: their names are in the source, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, has, user
from palate.data.readers.fields import check_entry, numeral, required, text
from palate.data.schema import Preference, Response


def _read(record: Record, context: Context) -> Preference:
    question = text(required(record, "question"), "question")
    responses = context.usable(required(record, "answers"), "answers", _response, "scored")
    return context.row(record, "rated", prompt=user(question), responses=responses)


def _response(entry: Any, field: str) -> Response:
    check_entry(entry, field, "text")
    answer = text(entry["text"], f"{field}.text")
    score = numeral(entry.get("pm_score"), f"{field}.pm_score")
    if score is None:
        raise RowError(f"{field}.pm_score", "missing")
    return Response(content=assistant(answer), rating=score)


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if {"question", "answers"} <= columns and has(sample, "answers", "text", "pm_score"):
        return "columns question and answers, whose entries have a text and a pm_score"
    return None


READER = Reader(
    name="stack_exchange_preferences",
    shape="question, answers as a list of {text, pm_score}",
    kind="rated",
    recognise=_recognise,
    read=_read,
    reads=("question",),
    specificity=2,
    hub=("HuggingFaceH4/stack-exchange-preferences",),
    licence="CC-BY-SA-4.0",
)
