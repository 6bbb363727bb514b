"""HelpSteer3's preferences: a dialogue, two answers, and how much better people found which.

Hub: nvidia/HelpSteer3, configuration preference (40,476 pairs, CC-BY-4.0).
Shape: domain (general, code, stem, multilingual), language, context (chat turns), response1,
response2, overall_preference from -3 (response 1 is much better) to 3 (response 2 is),
individual_preference (up to three people's scores with their reasons).

Quirks: the margin is the preference's size, 1 to 3; 0 is a tie. The other configurations
(feedback, edit, edit_quality) hold no pairs of this kind and are not read.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import assistant, compared, listed, notes, strength
from palate.data.readers.fields import check_prompt, required, text, turns
from palate.data.schema import Preference, Response

COLUMNS = ("context", "response1", "response2", "overall_preference")


def _read(record: Record, context: Context) -> Preference:
    prompt = turns(listed(required(record, "context"), "context"), "context")
    check_prompt(prompt, "context")
    first = text(required(record, "response1"), "response1")
    second = text(required(record, "response2"), "response2")
    verdict, margin = strength(record, "overall_preference")
    return compared(
        record,
        context,
        prompt=prompt,
        sides=(Response(content=assistant(first)), Response(content=assistant(second))),
        verdict=verdict,
        field="response2",
        margin=margin,
        extra=notes(record, "domain", "language"),
    )


READER = Reader(
    name="helpsteer3",
    shape=", ".join(COLUMNS),
    kind="pair",
    recognise=having(COLUMNS, "columns context, response1, response2 and overall_preference"),
    read=_read,
    reads=("context",),
    specificity=2,
    hub=("nvidia/HelpSteer3",),
    licence="CC-BY-4.0",
)
