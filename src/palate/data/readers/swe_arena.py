"""SWE Arena, now BigCodeArena: people have code written and run by two models, and vote.

Hub: bigcode/swe-arena-preference-5k, now bigcode/bigcodearena-preference-5k (4,730 votes), and
bigcode/bigcodereward (the same votes, with results of running the code); licence
bigcode-openrail-m.
Shape: chat_session_id, instruction, states {model_A, model_B}, each with messages (a list of
[who, text]), roles, model_name and logs of the sandbox; and
  preference-5k: type, feedback {vote_type, correctness, efficiency ...}, models {model_A, model_B}.
  bigcodereward: human_vote, model_A, model_B, category_name, screenshots.

Quirks: the vote is vote_left or vote_model_A, vote_right or vote_model_B, vote_tie, vote_both_bad;
"both bad" is a tie as well, and the row keeps the vote. Only the last answers are compared, where
all before them is the same on both sides; others are counted. What the code did when run, which the
voter saw, is not in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import Verdict, assistant, compared, last_answers, named
from palate.data.readers.fields import check_entry, required, turns
from palate.data.schema import Message, Preference, Response

_SIDES = ("model_A", "model_B")
_VERDICTS: dict[str, Verdict] = {
    "vote_left": "first",
    "vote_model_A": "first",
    "vote_right": "second",
    "vote_model_B": "second",
    "vote_tie": "tie",
    "vote_both_bad": "tie",
}
_ROLES = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}


def _read(record: Record, context: Context) -> Preference:
    vote = _vote(record)
    states = required(record, "states")
    check_entry(states, "states")
    fields = [f"states.{side}.messages" for side in _SIDES]
    chats = [_chat(states.get(side), field) for side, field in zip(_SIDES, fields, strict=True)]
    prompt, *answers = last_answers(chats[0], chats[1], (fields[0], fields[1]))
    first, second = (
        Response(content=assistant(str(answer)), generator=_writer(record, side))
        for answer, side in zip(answers, _SIDES, strict=True)
    )
    return compared(
        record,
        context,
        prompt=prompt,
        sides=(first, second),
        verdict=_VERDICTS[vote],
        field=fields[1],
        extra={"vote": vote},
    )


def _vote(record: Record) -> str:
    name, vote = "human_vote", record.value.get("human_vote")
    if "human_vote" not in record.value:
        name, feedback = "feedback.vote_type", required(record, "feedback")
        check_entry(feedback, "feedback")
        vote = feedback.get("vote_type")
    if not isinstance(vote, str) or vote not in _VERDICTS:
        raise RowError(name, "no vote that is known")
    return vote


def _chat(state: Any, field: str) -> list[Message]:
    messages = state.get("messages") if isinstance(state, dict) else None
    if not isinstance(messages, list):
        raise RowError(field, f"{shape_of(messages)}, not a list")
    names = state.get("roles")
    known = dict(_ROLES)
    if isinstance(names, list) and len(names) == 2 and all(isinstance(n, str) for n in names):
        known |= {names[0].lower(): "user", names[1].lower(): "assistant"}
    chat = []
    for i, entry in enumerate(messages):
        if not isinstance(entry, list) or len(entry) != 2:
            raise RowError(f"{field}.{i}", "not a pair of a name and a text")
        who, turn_text = entry
        role = known.get(who.lower()) if isinstance(who, str) else None
        if role is None:
            raise RowError(f"{field}.{i}.0", "nobody who is known")
        chat.append({"role": role, "content": turn_text})
    return turns(chat, field)


def _writer(record: Record, side: str) -> str | None:
    models = record.value.get("models")
    model = models.get(side) if isinstance(models, dict) else None
    return named(record.value.get(side)) or named(model)


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if "states" not in columns or not columns & {"feedback", "human_vote"}:
        return None
    states = [row.get("states") for row in sample]
    if any(isinstance(item, dict) and set(_SIDES) <= item.keys() for item in states):
        vote = "human_vote" if "human_vote" in columns else "feedback"
        return f"columns states, of model_A and model_B, and {vote}"
    return None


READER = Reader(
    name="swe_arena",
    shape="states {model_A, model_B} with messages, feedback {vote_type} | human_vote",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("instruction",),
    specificity=2,
    hub=(
        "bigcode/swe-arena-preference-5k",
        "bigcode/bigcodearena-preference-5k",
        "bigcode/bigcodereward",
    ),
    licence="bigcode-openrail-m",
)
