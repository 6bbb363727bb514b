"""SHP and SHP-2: two comments on a post, and which of them people preferred by their votes.

Hub: stanfordnlp/SHP (385,563 pairs), stanfordnlp/SHP-2 (4.8 million). The licence is that of the
sites; the cards describe it. Each subreddit is a folder (`subset: askculinary` of a copy; reddit/
and stackexchange/ in SHP-2).
Shape: post_id, domain, upvote_ratio, history (the question), human_ref_A, human_ref_B, labels (1:
A is preferred, 0: B), score_A, score_B, seconds_difference, score_ratio and dates.

Quirks: the preferred comment was written later and still has more votes. score_A and score_B are
net votes and go there; their difference grows with how many people saw the post and is no margin
that a loss could use, so there is none. Each post makes many pairs. `domain` carries its split
(askculinary_train).
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import assistant, compared, notes, user
from palate.data.readers.fields import flag, number, required, text
from palate.data.schema import Preference, Response

COLUMNS = ("history", "human_ref_A", "human_ref_B", "labels")


def _read(record: Record, context: Context) -> Preference:
    question = text(required(record, "history"), "history")
    first = text(required(record, "human_ref_A"), "human_ref_A")
    second = text(required(record, "human_ref_B"), "human_ref_B")
    return compared(
        record,
        context,
        prompt=user(question),
        sides=(
            Response(content=assistant(first), votes=number(record, "score_A")),
            Response(content=assistant(second), votes=number(record, "score_B")),
        ),
        verdict="first" if flag(record, "labels") else "second",
        field="human_ref_B",
        extra=notes(record, "domain"),
    )


READER = Reader(
    name="shp",
    shape="history, human_ref_A, human_ref_B, labels[, score_A, score_B]",
    kind="pair",
    recognise=having(COLUMNS, "columns history, human_ref_A, human_ref_B and labels"),
    read=_read,
    reads=("history", "labels"),
    specificity=2,
    hub=("stanfordnlp/SHP", "stanfordnlp/SHP-2"),
    licence="see source",
)
