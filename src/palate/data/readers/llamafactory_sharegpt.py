"""LLaMA-Factory's ranking layout of chats: ShareGPT turns, and the two answers as a turn each.

Shape: conversations (turns of {from, value}; human, gpt, observation, system), chosen and rejected
(one turn of gpt each), and where there are any system (text) and images. In its OpenAI variant
turns are {role, content}. Where dataset_info.json lies beside the data, the names of columns, keys
and roles are those that it gives. Licence: that of the source.

Quirks: `<image>` in a text is the place of the next image. A system turn at the head of the turns
goes before the column `system`. Turns of function_call, and rows with tools, videos or audios, are
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.dataset_info import (
    Layout,
    declared_as,
    images_named,
    layout_of,
    whole_row,
)
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    check_turn,
    number,
    required,
    text,
    turns,
)
from palate.data.readers.meaning import MEANING, refuse
from palate.data.readers.pictures import place_images
from palate.data.schema import Message, Preference, Response

FORMATS = ("sharegpt", "openai")
_DEFAULT = Layout("", "sharegpt", None, {})
_SHAREGPT = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}


def _read(record: Record, context: Context) -> Preference:
    layout = sharegpt_layout(record)
    messages = layout.column("messages", "conversations")
    prompt, tags = sharegpt_chat(record, layout, context)
    check_prompt(prompt, messages)
    sides = []
    for what in ("chosen", "rejected"):
        name = layout.column(what, what)
        turn = turns(_turns([required(record, name)], name, tags), name)
        check_response(turn, name)
        sides.append(turn)
    if sides[0] == sides[1]:
        raise RowError(layout.column("rejected", "rejected"), "identical to chosen")
    row = context.row(
        record,
        "pair",
        prompt=place_images(prompt, *images_named(record, layout)),
        responses=(Response(content=sides[0]), Response(content=sides[1])),
        margin=number(record, "margin"),
    )
    return whole_row(record, row, layout, context)


def sharegpt_layout(record: Record) -> Layout:
    """What dataset_info.json says of the record's file; the usual columns where it says nothing."""
    layout = layout_of(record.file)
    return _DEFAULT if layout is None or layout.formatting not in FORMATS else layout


def sharegpt_chat(
    record: Record, layout: Layout, context: Context
) -> tuple[list[Message], dict[str, str]]:
    """The turns of the messages, the system prompt at their head, and the tags of turns."""
    refuse(record, *(layout.optional(what) for what in ("tools", "videos", "audios")))
    messages = layout.column("messages", "conversations")
    conversation = required(record, messages)
    if not isinstance(conversation, list):
        raise RowError(messages, f"{shape_of(conversation)}, not a list of turns")
    tags = _tags(layout, conversation)
    chat = turns(_turns(conversation, messages, tags), messages)
    return _system(record, layout, chat, context), tags


def _tags(layout: Layout, conversation: list[Any]) -> dict[str, str]:
    # Without tags, turns say themselves in which of the two ways they are written.
    first = conversation[0] if conversation else None
    openai = layout.formatting == "openai" or (
        not layout.tags and isinstance(first, dict) and "role" in first
    )
    return (_OPENAI if openai else _SHAREGPT) | dict(layout.tags)


def _turns(conversation: list[Any], field: str, tags: dict[str, str]) -> list[Any]:
    roles = {tags[tag]: role for tag, role in _ROLES.items()}
    chat = []
    for i, turn in enumerate(conversation):
        if not isinstance(turn, dict):
            raise RowError(f"{field}.{i}", f"{shape_of(turn)}, not a turn")
        who = turn.get(tags["role_tag"])
        if who == tags["function_tag"]:
            raise RowError(f"{field}.{i}.{tags['role_tag']}", "tool calls are not read")
        if not isinstance(who, str) or who not in roles:
            raise RowError(f"{field}.{i}.{tags['role_tag']}", "nobody who is known")
        answer = i == len(conversation) - 1 and roles[who] == "assistant"
        check_turn(turn, f"{field}.{i}", (tags["role_tag"], tags["content_tag"]), answer=answer)
        chat.append({"role": roles[who], "content": turn.get(tags["content_tag"])})
    return chat


def _system(record: Record, layout: Layout, chat: list[Message], context: Context) -> list[Message]:
    name = layout.optional("system", "system")
    value = None if name is None else record.value.get(name)
    if name is None or value is None:
        return chat
    instructions = text(value, name, blank=True)
    if not instructions.strip():
        return chat
    if chat[0]["role"] != "system":
        return [{"role": "system", "content": instructions}, *chat]
    if chat[0]["content"] != instructions:
        # LLaMA-Factory takes that of the turns.
        context.leave_out(name, "beside another system prompt")
    return chat


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"conversations", "chosen", "rejected"} <= columns:
        return None
    if any(isinstance(row.get("chosen"), dict) for row in sample):
        return "columns conversations, chosen and rejected, each of these one turn"
    return None


def _declared(file: Path, columns: set[str]) -> str | None:
    needed = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    return declared_as(file, columns, FORMATS, needed, ranking=True)


READER = Reader(
    name="llamafactory_sharegpt",
    shape="conversations, chosen, rejected as turns of {from, value}[, system][, images]",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=tuple(MEANING),
    specificity=2,
    licence="see source",
    declared=_declared,
)
