"""What carries meaning in a record, whatever its format: read, or the row is refused by name.

Columns that change what a model is asked, sees or is told of an answer are listed here. A reader
names those it reads; any other that holds something refuses the row, unless it repeats what the row
has anyway. A system prompt in a column of its own goes before the turns of every format.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import REASONING, TRUE, WEIGHTS, holds, text
from palate.data.schema import Content, Message, Preference, Response, text_in

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
"""Names of the column of a system prompt."""
QUESTIONS = ("question", "query", "instruction", "input", "problem")
"""Names of the column of what is said to a model, where it is not `prompt`."""
ASKED = (
    *("prompt", *QUESTIONS, "user_prompt", "messages", "conversation", "conversations"),
    *("dialogue", "dialog", "history", "chat_history", "context", "passage", "article"),
    *("document", "documents"),
)
_MEDIA = ("image", "images", "video", "videos", "audio", "audios", "speech", "objects")
_TOOLS = (
    *("tools", "functions", "function_call", "function_calls", "tool_calls", "tool_choice"),
    *("chat_template_kwargs",),
)
LABELS = ("label", "labels", "kto_tag")
MEANING = frozenset((*SYSTEM, "developer", *ASKED, *_MEDIA, *_TOOLS, *REASONING, *LABELS, *WEIGHTS))
ANSWER = frozenset(("reasoning_content", "thinking", *_MEDIA, *_TOOLS))
"""What carries meaning in an answer that is an object."""


_IMAGE = frozenset(("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"))
_OF_ANSWER = frozenset(
    (
        *("chosen", "rejected", "preferred", "winner", "loser", "win", "lose", "a", "b"),
        *("response", "responses", "answer", "answers", "output", "outputs"),
        *("completion", "completions", "candidate", "candidates"),
    )
)
_HELD = frozenset(("path", "paths", "file", "files", "bytes"))


def read_row(reader: Reader, record: Record, context: Context) -> Preference:
    """The row of a record, with all that carries meaning in it.

    Raises:
        RowError: the record is no row of the format, or holds what the format does not read.
    """
    unread = MEANING.intersection(record.value).difference(reader.reads)
    refuse(record, *sorted(filter(holds_answer_images, record.value.keys() - reader.reads)))
    row = reader.read(record, context)
    return checked(record, row, unread) if unread else row


@cache
def holds_answer_images(column: str) -> bool:
    """Whether a column is named as one of the images of one answer, or of numbered images.

    Without them its answers would be taken for answers to the same question.
    """
    words = set(re.findall(r"[a-z]+|[0-9]+", column.lower()))
    of_answer = words & _OF_ANSWER | {word for word in words if word.isdecimal()}
    return bool(words & _IMAGE and of_answer) and words <= _IMAGE | _HELD | of_answer


def checked(record: Record, row: Preference, unread: Collection[str]) -> Preference:
    """The row, with the system prompt of a column that is not read otherwise.

    Args:
        unread: the columns of `MEANING` that the row was made without.

    Raises:
        RowError: one of them holds something that is not in the row.
    """
    refuse(record, *sorted(set(unread).difference(ASKED, SYSTEM)))
    for name in sorted(set(unread).intersection(ASKED)):
        if holds(value := record.value[name]) and not _repeats(value, row):
            raise RowError(name, "not read by this format")
    present = [name for name in SYSTEM if name in unread]
    return _with_system(row, record, present) if present else row


def refuse(record: Record, *names: str | None) -> None:
    """Raises RowError for the first of these columns that holds something."""
    for name in names:
        value = None if name is None else record.value.get(name)
        if holds(value) and not (name in WEIGHTS and value in TRUE):
            raise RowError(name, "not read by this format")


def _with_system(row: Preference, record: Record, names: Sequence[str]) -> Preference:
    """The row as a chat that begins with the system prompt of these columns.

    Texts become a turn of the user and one of the assistant each, also where the column is blank,
    so that all rows of a file are rendered alike.

    Raises:
        RowError: no text, or beside another system prompt.
    """
    prompts = {n: text(v, n) for n in names if holds(v := record.value[n])}
    if len(set(prompts.values())) > 1:
        raise RowError(max(prompts), "beside another system prompt")
    if row.prompt == "" and prompts:
        raise RowError(min(prompts), "beside a text without a prompt")
    if row.prompt == "":
        return row
    name, system = next(iter(prompts.items()), (names[0], None))
    responses = tuple(
        replace(
            response,
            content=chat_of(response.content, "assistant"),
            prompt=None if response.prompt is None else _headed(response.prompt, system, name),
        )
        for response in row.responses
    )
    return replace(row, prompt=_headed(row.prompt, system, name), responses=responses)


def chat_of(content: Content, role: str) -> list[Message]:
    """Chat turns as they are; a text as one turn of `role`."""
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _headed(prompt: Content, system: str | None, name: str) -> list[Message]:
    chat = chat_of(prompt, "user")
    if system is None:
        return chat
    if chat[0]["role"] not in ("system", "developer"):
        return [{"role": "system", "content": system}, *chat]
    if chat[0]["content"] != system:
        raise RowError(name, "beside another system prompt")
    return chat


def _repeats(value: Any, row: Preference) -> bool:
    """Whether a text stands in the row's prompt already, or turns are those of the row."""
    prompts = [row.prompt, *(r.prompt for r in row.responses if r.prompt is not None)]
    if row.prompt == "":  # a text that is learnt as a whole
        prompts = [row.responses[0].content]
    if isinstance(value, str):
        chats_asked = [chat_of(prompt, "user") for prompt in prompts]
        return any(
            value.strip() in text_in(turn["content"]) for chat in chats_asked for turn in chat
        )
    if not isinstance(value, list):
        return False
    chats = [chat_of(row.prompt, "user"), *(_whole(row.prompt, r) for r in row.responses)]
    turns = [[turn.get("role"), turn.get("content")] for turn in value if isinstance(turn, dict)]
    return any(turns == [[t["role"], t["content"]] for t in chat] for chat in chats)


def _whole(prompt: Content, response: Response) -> list[Message]:
    return [*chat_of(prompt, "user"), *chat_of(response.content, "assistant")]
