"""Fields of a record as typed values; everything else is a RowError that names the field."""

from __future__ import annotations

import math
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import RowError
from palate.data.schema import Content, Message, text_in

ROLES = ("system", "developer", "user", "assistant", "tool")
_FIRST_ONLY = ("system", "developer")
_UNREAD = ("images", "image", "videos", "video", "tools", "chat_template_kwargs")
_TRUE = ("true", "1", "1.0")
_FALSE = ("false", "0", "0.0")


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
    found: list[Message] = []
    for i, turn in enumerate(value):
        at = f"{field}.{i}"
        if not isinstance(turn, dict):
            raise RowError(at, f"{shape_of(turn)}, not a turn with role and content")
        for name in ("role", "content"):
            if turn.get(name) is None:
                raise RowError(f"{at}.{name}", "null" if name in turn else "missing")
        if turn.get("tool_calls"):
            raise RowError(f"{at}.tool_calls", "tool calls are not read")
        role = turn["role"]
        if role not in ROLES:
            raise RowError(f"{at}.role", f"not one of {', '.join(ROLES)}")
        if role in _FIRST_ONLY and i:
            raise RowError(f"{at}.role", f"a {role} turn that is not the first")
        found.append({"role": role, "content": _turn_text(turn["content"], f"{at}.content")})
    return found


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
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise RowError(field, "not a finite number")
    return found


def flag(record: Record, name: str) -> bool:
    """A required true or false; 1 and 0 are taken for them."""
    value = required(record, name)
    if record.textual and isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise RowError(name, "neither true nor false")
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return value == 1
    raise RowError(name, f"{shape_of(value)}, not true or false")


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


def refuse_unread(record: Record) -> None:
    """Fields that change what the model sees must not be dropped in silence."""
    for name in _UNREAD:
        value = record.value.get(name)
        if value is not None and value != [] and value != {} and value != "":
            raise RowError(name, "not read by this format")


def _turn_text(value: Any, field: str) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        part = value[0]
        if part.get("type") == "text" and "text" in part:
            return text(part["text"], f"{field}.0.text", blank=True)
    return text(value, field, blank=True)
