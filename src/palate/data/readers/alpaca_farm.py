"""AlpacaFarm's preferences: two answers to an instruction, and which of them is better.

Hub: tatsu-lab/alpaca_farm (CC-BY-NC-4.0), where each set is a JSON file of its own:
alpaca_human_preference.json (9,691 pairs, by people), alpaca_gpt4_preference.json (19,472, by
GPT-4), alpaca_noisy_multi_preference.json (by several models, made as inconsistent as people).
Shape: instruction, input, output_1, output_2, preference (1 or 2), raw_preference.

Quirks: all answers are by one model. raw_preference is the annotator's own scale and is not read.
The simulated annotators of alpaca_noisy_multi_preference flip a quarter of their labels at random.
Instruction and input are one turn of the user, with a blank line between them.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError, having
from palate.data.readers.compared import Verdict, assistant, compared, user
from palate.data.readers.fields import numeral, required, text
from palate.data.readers.instructions import instruction
from palate.data.schema import Preference, Response

COLUMNS = ("instruction", "output_1", "output_2", "preference")
BETWEEN = "\n\n"
# 0 and 1.5 are what the authors' annotators write for a draw.
_VERDICTS: dict[float, Verdict] = {1.0: "first", 2.0: "second", 0.0: "tie", 1.5: "tie"}


def answers(record: Record) -> tuple[str, str]:
    """output_1 and output_2."""
    first = text(required(record, "output_1"), "output_1")
    return first, text(required(record, "output_2"), "output_2")


def preference(record: Record) -> float:
    """The field `preference` as a number."""
    value = numeral(record.value.get("preference"), "preference")
    if value is None:
        raise RowError("preference", "null" if "preference" in record.value else "missing")
    return value


def _read(record: Record, context: Context) -> Preference:
    prompt = user(instruction(record, between=BETWEEN))
    first, second = answers(record)
    verdict = _VERDICTS.get(preference(record))
    if verdict is None:
        raise RowError("preference", "neither 1 nor 2")
    return compared(
        record,
        context,
        prompt=prompt,
        sides=(Response(content=assistant(first)), Response(content=assistant(second))),
        verdict=verdict,
        field="output_2",
    )


READER = Reader(
    name="alpaca_farm",
    shape="instruction, input, output_1, output_2, preference (1 or 2)",
    kind="pair",
    recognise=having(COLUMNS, "columns instruction, output_1, output_2 and preference"),
    read=_read,
    reads=("instruction", "input"),
    specificity=2,
    hub=("tatsu-lab/alpaca_farm",),
    licence="CC-BY-NC-4.0",
)
