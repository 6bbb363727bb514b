"""Stack Exchange in pairs: a question with two answers, the first with more votes.

Hub: lvwerra/stack-exchange-paired (31 million pairs; texts of Stack Exchange, CC-BY-SA-4.0).
Folders data/finetune, data/reward, data/rl and data/evaluation: `subset: data/reward` of a copy.
Shape: qid, question, date, metadata, response_j (better), response_k.

Quirks: made from `stack_exchange_preferences`, HTML turned into Markdown, at most ten pairs a
question, shuffled over all: pairs of one question do not stand together, and the scores are gone.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import assistant, compared, user
from palate.data.readers.fields import required, text
from palate.data.schema import Preference, Response

COLUMNS = ("question", "response_j", "response_k")


def _read(record: Record, context: Context) -> Preference:
    question = text(required(record, "question"), "question")
    better = text(required(record, "response_j"), "response_j")
    worse = text(required(record, "response_k"), "response_k")
    return compared(
        record,
        context,
        prompt=user(question),
        sides=(Response(content=assistant(better)), Response(content=assistant(worse))),
        verdict="first",
        field="response_k",
    )


READER = Reader(
    name="stack_exchange_paired",
    shape="question, response_j, response_k",
    kind="pair",
    recognise=having(COLUMNS, "columns question, response_j and response_k"),
    read=_read,
    reads=("question",),
    specificity=2,
    hub=("lvwerra/stack-exchange-paired",),
    licence="CC-BY-SA-4.0",
)
