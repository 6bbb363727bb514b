"""Fields of a record as typed values; everything else is a RowError that names the field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import RowError
from palate.data.schema import Content, Message, text_in

ROLES = ("system", "developer", "user", "assistant", "tool")
_FIRST_ONLY = ("system", "developer")
_YES = ("true", "1", "1.0")
_NO = ("false", "0", "0.0")
TRUE: tuple[Any, ...] = (1, *_YES)
FALSE: tuple[Any, ...] = (0, *_NO)
REASONING = (
    *("reasoning", "reasoning_content", "thinking", "thought", "thoughts"),
    *("chain_of_thought", "cot"),
)
WEIGHTS = ("weight", "weights", "sample_weight", "sample_weights", "loss_weight")
_TURN_NOTES = frozenset(
    (
        *("id", "uuid", "turn", "turn_id", "turn_identifier", "index", "message_id", "parent_id"),
        *("timestamp", "created_at", "create_time", "time", "date", "hash", "hashed_ip", "header"),
        *("language", "lang", "country", "state", "redacted", "toxic", "moderation", "num_tokens"),
        *("token_count", "tokens", "model", "model_name", "generator", "source", "dataset"),
        *("category", "topic", "rating", "score", "rank", "markdown", "text", "url", "status"),
    )
)
_TRAINED = frozenset((*WEIGHTS, "loss", "train", "training", "trainable", "train_on_turn"))


def required(record: Record, name: str) -> Any:
    """The value of a field that must be there."""
    if name not in record.value:
        raise RowError(name, "missing")
    if record.value[name] is None:
        raise RowError(name, "null")
    return record.value[name]


def text(value: Any, field: str, *, blank: bool = False) -> str:
    """Text, unaltered. Empty or all blank is refused unless `blank`."""
    if not isinstance(value, str):
        raise RowError(field, f"{shape_of(value)}, not text")
    if not blank and not value.strip():
        raise RowError(field, "empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError(field, "half of a surrogate pair: no Unicode text") from None
    return value


def turns(value: Any, field: str) -> list[Message]:
    """Chat turns: at least one, of known roles, with text."""
    if not isinstance(value, list):
        raise RowError(field, f"{shape_of(value)}, not a list of turns")
    if not value:
        raise RowError(field, "empty")
    chat: list[Message] = []
    for i, turn in enumerate(value):
        at = f"{field}.{i}"
        if not isinstance(turn, dict):
            raise RowError(at, f"{shape_of(turn)}, not a turn with role and content")
        for name in ("role", "content"):
            if turn.get(name) is None:
                raise RowError(f"{at}.{name}", "null" if name in turn else "missing")
        role = turn["role"]
        answer = role == "assistant" and i == len(value) - 1
        if len(turn) > 2:
            check_turn(turn, at, ("role", "content"), answer=answer)
        if role not in ROLES:
            raise RowError(f"{at}.role", f"not one of {', '.join(ROLES)}")
        if role in _FIRST_ONLY and i:
            raise RowError(f"{at}.role", f"a {role} turn that is not the first")
        chat.append({"role": role, "content": _turn_text(turn["content"], f"{at}.content")})
    return chat


def check_turn(turn: dict[str, Any], field: str, read: Sequence[str], *, answer: bool) -> None:
    """Raises RowError for a field of a turn that says more of it than is read.

    Tool calls, reasoning, names of speakers, media and whatever is not known to be a mere note are
    such. A weight of 1 is what every answer has; with 0 a turn may be context, no answer.

    Args:
        read: the fields of role and text. answer: whether it is the answer that ends a chat.
    """
    for name in sorted(turn.keys() - _TURN_NOTES, key=str):
        value = turn[name]
        if name in read or not holds(value):
            continue
        if name in ("tool_calls", "function_call", "function_calls"):
            raise RowError(f"{field}.{name}", "tool calls are not read")
        if name in REASONING:
            raise RowError(f"{field}.{name}", "reasoning apart from the answer is not read")
        if name not in _TRAINED:
            raise RowError(f"{field}.{name}", "a field of a turn that is not read")
        if value in FALSE and answer:
            raise RowError(f"{field}.{name}", "an answer that is not to be trained on")
        if value not in FALSE and value not in TRUE:
            raise RowError(f"{field}.{name}", "a weight other than 0 and 1")


def is_context(turn: dict[str, Any]) -> bool:
    """Whether a turn says of itself that it is not to be trained on."""
    return any(turn.get(name) in FALSE for name in _TRAINED)


def check_entry(value: Any, field: str, *names: str) -> dict[str, Any]:
    """`value`, which must be an object with these fields."""
    if not isinstance(value, dict):
        raise RowError(field, f"{shape_of(value)}, not an object")
    for name in names:
        if value.get(name) is None:
            raise RowError(f"{field}.{name}", "null" if name in value else "missing")
    return value


def content(record: Record, name: str) -> Content:
    """A required field that is text or chat turns."""
    value = required(record, name)
    return turns(value, name) if isinstance(value, list) else text(value, name)


def prompt_or_instruction(record: Record) -> Content:
    """What the row asks: `instruction` is something said to a model; `prompt` is text that it goes
    on from, or chat turns."""
    if "prompt" not in record.value and "instruction" in record.value:
        asked = text(required(record, "instruction"), "instruction")
        return [{"role": "user", "content": asked}]
    prompt = required(record, "prompt")
    if not isinstance(prompt, list):
        return text(prompt, "prompt")
    chat = turns(prompt, "prompt")
    check_prompt(chat, "prompt")
    return chat


def number(record: Record, name: str) -> float | None:
    """A finite number, None where the field is absent or null."""
    value = record.value.get(name)
    if record.textual or not isinstance(value, str):
        return numeral(value, name)
    return finite(value, name)


def numeral(value: Any, field: str) -> float | None:
    """A finite number, also one written out as text; None of null and of blank text."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            # Python's own float() also reads 1_0 and the digits of every script.
            value = float(value if value.isascii() and "_" not in value else "")
        except ValueError:
            raise RowError(field, "text, not a number") from None
    return None if value is None else finite(value, field)


def finite(value: Any, field: str) -> float:
    """`value` as a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(field, f"{shape_of(value)}, not a number")
    try:
        converted = float(value)
    except OverflowError:
        converted = math.inf
    if not math.isfinite(converted):
        raise RowError(field, "not a finite number")
    return converted


def flag(record: Record, name: str) -> bool:
    """A required true or false; 1 and 0 are taken for them."""
    value = required(record, name)
    if record.textual and isinstance(value, str):
        word = value.strip().lower()
        if word in _YES or word in _NO:
            return word in _YES
        raise RowError(name, "neither true nor false")
    if is_flag(value) and not isinstance(value, str):
        return bool(value)
    raise RowError(name, f"{shape_of(value)}, not true or false")


def is_flag(value: Any) -> bool:
    """Whether a value is true or false, or what is taken for them."""
    if isinstance(value, str):
        return value.strip().lower() in (*_YES, *_NO)
    return isinstance(value, (bool, int, float)) and value in (0, 1)


def check_prompt(prompt: list[Message], field: str) -> None:
    """The assistant must be next to speak."""
    if not prompt:
        raise RowError(field, "no prompt turn")
    last = prompt[-1]
    if last["role"] not in ("user", "tool"):
        raise RowError(field, f"wrong role order: ends with the {last['role']}'s turn")
    if not text_in(last["content"]).strip():
        raise RowError(f"{field}.{len(prompt) - 1}.content", "empty")


def check_response(response: list[Message], field: str) -> None:
    """One turn of the assistant: the loss must see no tokens of anybody else."""
    if not response:
        raise RowError(field, "empty")
    if [turn["role"] for turn in response] != ["assistant"]:
        raise RowError(field, "wrong role order: a response is one assistant turn")
    if not text_in(response[0]["content"]).strip():
        raise RowError(field, "empty")


def holds(value: Any) -> bool:
    """Whether a column holds anything: neither null, nor empty, nor blank text."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {})


def _turn_text(value: Any, field: str) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        part = value[0]
        if part.get("type") == "text" and "text" in part:
            return text(part["text"], f"{field}.0.text", blank=True)
    return text(value, field, blank=True)
