"""What carries meaning in a record, whatever its format: read, or the row is refused by name.

Columns that change what a model is asked, sees or is told of an answer are listed here. A reader
names those it reads; any other that holds something refuses the row, unless it repeats what the row
has anyway. A system prompt in a column of its own goes before the turns of every format.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import FALSE, REASONING, TRUE, WEIGHTS, holds, text
from palate.data.readers.pictures import PLACE
from palate.data.schema import Content, Message, Preference, Response, text_in

SYSTEM = (
    *("system", "system_prompt", "system_message", "system_instruction", "system_instructions"),
    *("system_msg", "system_text", "systemprompt", "sys", "sys_prompt"),
)
"""Names of the column of a system prompt."""
QUESTIONS = ("question", "query", "instruction", "input", "problem")
"""Names of the column of what is said to a model, where it is not `prompt`."""
ASKED = (
    *("prompt", *QUESTIONS, "questions", "instructions", "query_text", "question_text"),
    *("user_prompt", "user_input", "user_message", "user_query", "user_question"),
    *("messages", "conversation", "conversations", "dialogue", "dialog", "history"),
    *("chat_history", "conversation_history", "context", "contexts", "passage", "passages"),
    *("article", "document", "documents", "paragraph", "excerpt", "background", "scenario"),
    *("premise", "story", "post", "persona", "character", "knowledge", "evidence", "facts"),
    *("retrieved", "retrieved_documents", "retrieved_passages", "search_results", "preamble"),
    *("few_shot", "few_shots", "few_shot_examples", "demonstrations", "choices", "options"),
)
_MEDIA = (
    *("image", "images", "video", "videos", "audio", "audios", "speech", "objects"),
    *("attachment", "attachments"),
)
_TOOLS = (
    *("tool", "tools", "functions", "function_call", "function_calls", "tool_calls"),
    *("tool_choice", "tool_definitions", "available_tools", "chat_template_kwargs"),
)
LABELS = ("label", "labels", "kto_tag")
MEANING = frozenset((*SYSTEM, "developer", *ASKED, *_MEDIA, *_TOOLS, *REASONING, *LABELS, *WEIGHTS))
_ANSWER = frozenset(("reasoning_content", "thinking", *_MEDIA, *_TOOLS, *WEIGHTS))
"""What carries meaning in an answer that is an object."""
_VERDICTS = frozenset(
    (
        *("desirable", "is_desirable", "good", "is_good", "chosen", "is_chosen", "preferred"),
        *("is_preferred", "thumbs_up", "liked", "accepted", "correct", "is_correct", "helpful"),
    )
)
"""What says of a lone answer whether it is a good one."""


_IMAGE = frozenset(("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"))
_OF_ANSWER = frozenset(
    (
        *("chosen", "rejected", "preferred", "winner", "loser", "win", "lose", "a", "b"),
        *("response", "responses", "answer", "answers", "output", "outputs"),
        *("completion", "completions", "candidate", "candidates"),
    )
)
_HELD = frozenset(
    ("path", "paths", "file", "files", "filename", "bytes", "base64", "b64", "url", "urls", "uri")
)
_SEEN_OR_HEARD = _IMAGE | {"video", "videos", "audio", "audios"}
_SIDE = re.compile(r"(?:chosen|rejected)_(\w+)|(\w+)_(?:chosen|rejected)")
_OF_A_SIDE = frozenset(
    (*SYSTEM, "prompt", "question", "instruction", *_TOOLS, *REASONING, *WEIGHTS)
)
_JOINTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\s.-]+")


_TEXTS = frozenset(
    (
        *("prompt", "chosen", "rejected", "rejected_response", "completion", "response", "output"),
        *QUESTIONS,
    )
)
"""Columns whose text would be trained on as it is."""
_OPENS_TURN = re.compile(r"\s*\[?\s*\{\s*['\"](role|from|content|value)['\"]\s*:")
_ROLE = re.compile(
    r"['\"](?:role|from)['\"]\s*:\s*['\"](?:system|developer|user|human|assistant|gpt|tool)['\"]"
)
_SAYS = re.compile(r"['\"](?:content|value)['\"]\s*:")


@lru_cache(maxsize=4096)
def meaning_of(column: str) -> str | None:
    """The name in `MEANING` that a column goes by; None of a note.

    However it is written (systemPrompt, SYSTEM-PROMPT), and also where it is of one answer
    (rejected_reasoning) or says how its images are held (image_path). What one answer alone was
    asked counts as `prompt`: it must be in the row already.
    """
    name = _name_of(column)
    if name in MEANING:
        return name
    side = _SIDE.fullmatch(name)
    base = (side[1] or side[2]) if side else ""
    if base in _OF_A_SIDE:
        return "prompt" if base in SYSTEM or base in ASKED else base
    words = set(re.findall(r"[a-z]+|[0-9]+", name))
    media = words & _SEEN_OR_HEARD
    return "images" if media and words <= media | _HELD else None


def with_meaning(record: Record, reads: Collection[str]) -> list[str]:
    """The columns of a record that carry meaning, without those in `reads`."""
    return [name for name in record.value if name not in reads and meaning_of(name)]


def read_row(reader: Reader, record: Record, context: Context) -> Preference:
    """The row of a record, with all that carries meaning in it.

    Raises:
        RowError: the record is no row of the format, or holds what the format does not read.
    """
    unread = with_meaning(record, reader.reads)
    refuse(record, *sorted(filter(holds_answer_images, record.value.keys() - reader.reads)))
    row = reader.read(record, context)
    # A text that is learnt as a whole; elsewhere `text` is a note, often of the chat rendered.
    texts = _TEXTS | {"text"} if row.prompt == "" else _TEXTS
    for name, value in record.value.items():
        if name in texts and isinstance(value, str) and _is_chat(value):
            raise RowError(name, "chat turns written out as text: keep them as a list")
    if row.kind == "demonstration" and row.prompt != "":
        _refuse_bad(record)
    return checked(record, row, unread) if unread else row


def _is_chat(value: str) -> bool:
    """Whether a text is the JSON, or Python's way of writing, of a turn or of a list of turns."""
    if value.lstrip()[:1] not in ("[", "{"):
        return False
    turn = _OPENS_TURN.match(value) and _ROLE.search(value) and _SAYS.search(value)
    return turn is not None


def _refuse_bad(record: Record) -> None:
    """Raises RowError for an answer that is not to be imitated, and for its reasoning apart."""
    for name, value in record.value.items():
        told = value.strip().lower() if isinstance(value, str) else value
        if told in FALSE and _name_of(name) in _VERDICTS:
            raise RowError(name, "an answer that is not to be imitated")
    refuse(record, "rationale")


@lru_cache(maxsize=4096)
def _name_of(column: str) -> str:
    return _JOINTS.sub("_", column).lower()


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
    asked: list[str] = []
    system: list[str] = []
    unreadable: list[str] = []
    for name in sorted(unread):
        meaning = meaning_of(name)
        kind = asked if meaning in ASKED else system if meaning in SYSTEM else unreadable
        kind.append(name)
    if row.has_images:  # where they lie is said elsewhere, too
        unreadable = [n for n in unreadable if n in MEANING or meaning_of(n) != "images"]
    refuse(record, *unreadable)
    for name in asked:
        if holds(value := record.value[name]) and not _repeats(value, row):
            raise RowError(name, "not read by this format")
    return _with_system(row, record, system) if system else row


def refuse_in_answer(entry: dict[str, Any], field: str) -> None:
    """Raises RowError for what an answer that is an object holds besides its text."""
    for name in sorted(_ANSWER.intersection(entry)):
        if holds(entry[name]) and not _says_nothing(name, entry[name]):
            raise RowError(f"{field}.{name}", "not read by this format")


def refuse(record: Record, *names: str | None) -> None:
    """Raises RowError for the first of these columns that holds something."""
    for name in names:
        value = None if name is None else record.value.get(name)
        if name is not None and holds(value) and not _says_nothing(meaning_of(name), value):
            raise RowError(name, "not read by this format")


def _says_nothing(meaning: str | None, value: Any) -> bool:
    """Whether a value is what a row without the column has."""
    if meaning in WEIGHTS:
        return value in TRUE
    return meaning in _TOOLS and isinstance(value, str) and value.strip() in ("[]", "{}", "null")


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
    # The images of a row are read, wherever they stand in the record: here its words count.
    seen = row.has_images
    if isinstance(value, str):
        chats_asked = [chat_of(prompt, "user") for prompt in prompts]
        text = _words(value, seen=seen).strip()
        return any(text in text_in(turn["content"]) for chat in chats_asked for turn in chat)
    if not isinstance(value, list):
        return False
    chats = [chat_of(prompt, "user") for prompt in prompts]
    chats += [_whole(row.prompt, response) for response in row.responses]
    turns = [
        [turn.get("role"), _words(turn.get("content"), seen=seen)]
        for turn in value
        if isinstance(turn, dict)
    ]
    return any(
        turns == [[t["role"], _words(t["content"], seen=seen)] for t in chat] for chat in chats
    )


def _words(content: Any, *, seen: bool) -> Any:
    """The words of a content of a row with images, whose places are left out."""
    if not seen:
        return content
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        content = "".join(part for part in texts if isinstance(part, str))
    return content.replace(PLACE, "") if isinstance(content, str) else content


def _whole(prompt: Content, response: Response) -> list[Message]:
    return [*chat_of(prompt, "user"), *chat_of(response.content, "assistant")]
