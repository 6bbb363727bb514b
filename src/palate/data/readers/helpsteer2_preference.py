"""HelpSteer2's preference subset: two answers, and how much better people found which.

Hub: nvidia/HelpSteer2, folder preference (7,118 pairs, CC-BY-4.0): `subset: preference` of a copy.
Shape: split, prompt, response_1, response_2, preference_strength from -3 (response 1 is much
better) to 3 (response 2 is), preference_statement, preference_elaboration,
three_most_similar_preferences, all_preferences_unprocessed.

Quirks: the margin is the strength, 1 to 3; 0 is a tie. The one file holds both splits, told by its
column `split`, which is kept for reports. Prompts may be dialogues, as in the reader `helpsteer`.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.compared import assistant, compared, notes, strength
from palate.data.readers.fields import required, text
from palate.data.readers.helpsteer import dialogue
from palate.data.schema import Preference, Response

COLUMNS = ("prompt", "response_1", "response_2", "preference_strength")


def _read(record: Record, context: Context) -> Preference:
    prompt = dialogue(text(required(record, "prompt"), "prompt"), "prompt")
    first = text(required(record, "response_1"), "response_1")
    second = text(required(record, "response_2"), "response_2")
    verdict, margin = strength(record, "preference_strength")
    return compared(
        record,
        context,
        prompt=prompt,
        sides=(Response(content=assistant(first)), Response(content=assistant(second))),
        verdict=verdict,
        field="response_2",
        margin=margin,
        extra=notes(record, "split"),
    )


READER = Reader(
    name="helpsteer2_preference",
    shape=", ".join(COLUMNS),
    kind="pair",
    recognise=having(COLUMNS, "columns response_1, response_2 and preference_strength"),
    read=_read,
    reads=("prompt",),
    specificity=2,
    hub=("nvidia/HelpSteer2",),
    licence="CC-BY-4.0",
)
