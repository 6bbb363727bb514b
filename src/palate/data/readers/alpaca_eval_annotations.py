"""AlpacaEval's annotations: a judge compares a model's answer with a reference answer.

Hub: tatsu-lab/alpaca_eval, and results/MODEL/*/annotations.json in AlpacaEval's repository (data
CC-BY-NC-4.0).
Shape: dataset, instruction, output_1, generator_1, output_2, generator_2, annotator, preference.

Quirks:
  - preference is 1 where the first answer is better and 2 where the second is. Weighted judges give
    a number between: 1 plus the probability that the second is better. The margin is the
    difference of the two probabilities, from 0 to 1. 1.5, or 0 in older files, is a draw; null is a
    judgement that could not be read, and is refused.
  - output_1 is the reference's in all of a file, and where a judge saw the answers in which order
    is not in it.
  - The instructions are those of a benchmark: to train on them is to train on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.alpaca_farm import BETWEEN, COLUMNS, answers, preference
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import Verdict, assistant, compared, named, notes, user
from palate.data.readers.instructions import instruction
from palate.data.schema import Preference, Response

_WRITERS = ("generator_1", "generator_2")
_DRAW = 1.5


def _read(record: Record, context: Context) -> Preference:
    prompt = user(instruction(record, between=BETWEEN))
    first, second = answers(record)
    value = preference(record) or _DRAW
    if not 1 <= value <= 2:
        raise RowError("preference", "not from 1 to 2")
    verdict: Verdict = "tie" if value == _DRAW else "first" if value < _DRAW else "second"
    writers = [named(record.value.get(name)) for name in _WRITERS]
    return compared(
        record,
        context,
        prompt=prompt,
        sides=(
            Response(content=assistant(first), generator=writers[0]),
            Response(content=assistant(second), generator=writers[1]),
        ),
        verdict=verdict,
        field="output_2",
        margin=2 * abs(value - _DRAW),
        extra=notes(record, "dataset", "annotator"),
    )


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if set(COLUMNS) <= columns and set(_WRITERS) <= columns:
        return "columns output_1, output_2, generator_1, generator_2 and preference"
    return None


READER = Reader(
    name="alpaca_eval_annotations",
    shape="instruction, output_1, generator_1, output_2, generator_2, preference (1 to 2)",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("instruction",),
    specificity=3,
    hub=("tatsu-lab/alpaca_eval",),
    licence="CC-BY-NC-4.0",
)
