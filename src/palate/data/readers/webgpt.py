"""WebGPT comparisons: two answers to a question, written with the help of a search, and scores.

Hub: openai/webgpt_comparisons (19,578 comparisons).
Shape: question {dataset, id, full_text}, answer_0, score_0, tokens_0, quotes_0 {title, extract},
and answer_1, score_1 ...; score_1 is -score_0.

Quirks: equal scores are ties. The answers cite their quotes as [1], [2]; the quotes are not part of
the prompt. Many questions occur more than once.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError, having
from palate.data.readers.compared import Verdict, assistant, compared, named, user
from palate.data.readers.fields import check_entry, numeral, required, text
from palate.data.schema import Preference, Response

COLUMNS = ("question", "answer_0", "answer_1", "score_0", "score_1")


def _read(record: Record, context: Context) -> Preference:
    question = required(record, "question")
    check_entry(question, "question")
    if question.get("full_text") is None:
        raise RowError("question.full_text", "null" if "full_text" in question else "missing")
    asked = text(question["full_text"], "question.full_text")
    first, second = (_side(record, i) for i in (0, 1))
    gap = (first.rating or 0.0) - (second.rating or 0.0)
    verdict: Verdict = "tie" if gap == 0 else "first" if gap > 0 else "second"
    origin = named(question.get("dataset"))
    return compared(
        record,
        context,
        prompt=user(asked),
        sides=(first, second),
        verdict=verdict,
        field="answer_1",
        margin=abs(gap),
        extra=None if origin is None else {"dataset": origin},
    )


def _side(record: Record, number: int) -> Response:
    name, score = f"answer_{number}", f"score_{number}"
    answer = text(required(record, name), name)
    rating = numeral(required(record, score), score)
    if rating is None:
        raise RowError(score, "empty")
    return Response(content=assistant(answer), rating=rating)


READER = Reader(
    name="webgpt",
    shape="question {full_text}, answer_0, answer_1, score_0, score_1",
    kind="pair",
    recognise=having(COLUMNS, "columns question, answer_0, answer_1, score_0 and score_1"),
    read=_read,
    reads=("question",),
    specificity=2,
    hub=("openai/webgpt_comparisons",),
    licence="see source",
)
