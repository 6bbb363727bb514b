"""Chatbot Arena 2024: 55,000 votes as in the prediction contest, turns as JSON lists in texts.

Hub: lmarena-ai/arena-human-preference-55k, before lmsys/lmsys-arena-human-preference-55k (57,477
votes, a CSV file; Apache-2.0).
Shape: id, model_a, model_b, prompt, response_a, response_b, winner_model_a, winner_model_b,
winner_tie (of which one is 1). prompt and the responses are JSON lists with a text for each turn.

Quirks: some answers are null, some hold half of a surrogate pair: refused and counted. Of several
turns only the last answers are compared, where all answers before are the same on both sides; the
rest is counted. "Both bad" is not told from a tie.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError, having
from palate.data.readers.compared import (
    PARTED,
    Verdict,
    assistant,
    compared,
    listed,
    named,
    user,
)
from palate.data.readers.fields import flag, required, text
from palate.data.schema import Message, Preference, Response

_VERDICTS: dict[str, Verdict] = {
    "winner_model_a": "first",
    "winner_model_b": "second",
    "winner_tie": "tie",
}
COLUMNS = ("prompt", "response_a", "response_b", *_VERDICTS)


def _read(record: Record, context: Context) -> Preference:
    verdict = _verdict(record)
    asked = _texts(record, "prompt")
    first, second = _texts(record, "response_a"), _texts(record, "response_b")
    for name, answers in (("response_a", first), ("response_b", second)):
        if len(answers) != len(asked):
            raise RowError(name, "not one answer for each turn of the prompt")
    if first[:-1] != second[:-1]:
        raise RowError(None, PARTED)
    prompt: list[Message] = []
    for question, answer in zip(asked, first[:-1], strict=False):
        prompt += [*user(question), *assistant(answer)]
    prompt += user(asked[-1])
    return compared(
        record,
        context,
        prompt=prompt,
        sides=(
            Response(content=assistant(first[-1]), generator=named(record.value.get("model_a"))),
            Response(content=assistant(second[-1]), generator=named(record.value.get("model_b"))),
        ),
        verdict=verdict,
        field="response_b",
    )


def _texts(record: Record, name: str) -> list[str]:
    texts = []
    for i, item in enumerate(listed(required(record, name), name)):
        if item is None:
            raise RowError(f"{name}.{i}", "null")
        texts.append(text(item, f"{name}.{i}"))
    if not texts:
        raise RowError(name, "empty")
    return texts


def _verdict(record: Record) -> Verdict:
    won = [verdict for name, verdict in _VERDICTS.items() if flag(record, name)]
    if len(won) != 1:
        raise RowError("winner_model_a", "not one of the three verdicts")
    return won[0]


READER = Reader(
    name="arena_55k",
    shape="prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie",
    kind="pair",
    recognise=having(
        COLUMNS,
        "columns response_a and response_b, and winner_model_a, winner_model_b and winner_tie",
    ),
    read=_read,
    reads=("prompt",),
    specificity=2,
    hub=("lmarena-ai/arena-human-preference-55k", "lmsys/lmsys-arena-human-preference-55k"),
    licence="Apache-2.0",
)
