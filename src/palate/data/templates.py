"""Chats as the text a model sees, by its own template, a Jinja file, or the plain one.

The response is what the full chat adds to the rendered prompt, so the prompt must be a prefix of
the full chat. A template that breaks this for the simplest chat is refused; where it does so for a
row, or leaves out one of its turns, the row is dropped.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from palate.data.schema import Message, text_in
from palate.errors import ModelError, in_one_line

PLAIN = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '\\n\\nHuman: ' + message.content }}
{%- elif message.role == 'assistant' -%}{{ '\\n\\nAssistant: ' + message.content }}
{%- elif message.role in ('system', 'developer') -%}{{ '\\n\\nSystem: ' + message.content }}
{%- else -%}{{ raise_exception('the plain template has no ' + message.role + ' turns') }}
{%- endif -%}
{%- if loop.last and message.role == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n\\nAssistant:' }}{%- endif -%}
"""
"""For models without a template: hh-rlhf's own format, so that its files come out as they are."""

CLOCK_DATE = datetime.date(2024, 7, 26)
"""The day that templates are told where they ask: the one that Llama 3's name without a clock.

With today's date prompts would change every day: a run could not be resumed tomorrow, and neither
scores nor evaluations of two days could be compared.
"""

NOT_A_PREFIX = "the chat template renders a prompt that its chat does not begin with"
LEFT_OUT = "the chat template leaves out a turn of {role}"
LEFT_OUT_PART = "the chat template leaves out a turn of {role}, or its end, for what it says"

PROBE: tuple[Message, ...] = ({"role": "user", "content": "Which colour has the sky?"},)
PROBE_ANSWER: tuple[Message, ...] = ({"role": "assistant", "content": "Blue."},)
_SHOWN_CHARACTERS = 24
_RENDERED_AGAIN = 20
_BEGINS = re.compile(r"\{\{[-+]?\s*bos_token\s*[-+]?\}\}")
_CLOCK = "strftime_now"
_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdDeFGgHhIjmMprRSTuUVwWxXyYZz")


def without_clock(template: str) -> str:
    """The template with `strftime_now` told `CLOCK_DATE`, at midnight; as it is without that.

    The date is part of the text, so that whoever renders with it renders the same on every day.
    """
    if _CLOCK not in template or template.startswith(_FROZEN):
        return template
    return _FROZEN + template


def freeze_clock(tokenizer: Any) -> None:
    """Stops the clock of a tokenizer's own templates, and so of what is saved of it."""
    saved = tokenizer.chat_template
    if isinstance(saved, dict):
        tokenizer.chat_template = {name: without_clock(text) for name, text in saved.items()}
    elif saved:
        tokenizer.chat_template = without_clock(saved)


def _frozen() -> str:
    told = "format"
    for directive in _DIRECTIVES:
        shown = CLOCK_DATE.strftime(f"%{directive}")
        told += f" | replace('%{directive}', '{shown}')"
    # The sign keeps Jinja from taking a line break at the template's beginning away.
    body = f"{{{{- {told} | replace('%%', '%') -}}}}"
    return f"{{%- macro {_CLOCK}(format) -%}}{body}{{%- endmacro +%}}"


_FROZEN = _frozen()


class Refused(Exception):
    """A row that the template does not take; `reason` is for the count."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_MARK = "\u2e28palate\u2e29"
"""A text that stands in no data."""
_TURN_MARK = "palateturn{}end"
"""Letters and a number, which no escaping changes."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One prompt and its responses as text.

    Attributes:
        tail: end of the prompt that must survive truncation: what closes the last turn and opens
            the assistant's. Empty for plain text.
    """

    prompt: str
    responses: tuple[str, ...]
    tail: str = ""


class ChatTemplate:
    """A tokenizer with one chat template.

    Args:
        tokenizer: a transformers tokenizer.
        setting: `model`, `plain`, or the path of a Jinja file.

    Raises:
        ModelError: the file cannot be read.
    """

    def __init__(self, tokenizer: Any, setting: str | Path) -> None:
        self._tokenizer = tokenizer
        self._checked = False
        self._tails: dict[str, str] = {}
        self._left_out: dict[tuple[tuple[str, ...], bool], list[int]] = {}
        self.setting = setting
        text: str | None
        if setting == "model":
            saved = tokenizer.chat_template
            text = saved.get("default") if isinstance(saved, dict) else saved
        elif setting == "plain":
            text = PLAIN
        else:
            try:
                text = Path(setting).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise ModelError(f"model.chat_template: {setting}: {reason}") from None
        self.text = None if text is None else without_clock(text)

    @property
    def sha256(self) -> str | None:
        """Hex digest of the template; None where there is none."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def date(self) -> str | None:
        """The day that the template is told, in ISO's form; None where it asks for none."""
        frozen = self.text is not None and self.text.startswith(_FROZEN)
        return CLOCK_DATE.isoformat() if frozen else None

    def render(self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]) -> Rendered:
        """The prompt up to where the assistant begins, and what each response adds to it.

        Raises:
            Refused: the template does not take these turns, leaves one out, or renders a prompt
                that is no prefix of the chat.
            ModelError: no template, or one that fails for the simplest chat.
        """
        self.check()
        asked = self.whole(prompt, open_turn=True)
        added = [self._added(asked, prompt, response) for response in responses]
        return Rendered(
            prompt=asked, responses=tuple(added), tail=self._tail(asked, prompt) if prompt else ""
        )

    def whole(self, turns: Sequence[Message], *, open_turn: bool = False) -> str:
        """A chat as one text.

        Args:
            open_turn: ends with the opening of the assistant's turn.

        Raises:
            Refused: the template does not take these turns, or leaves one out.
            ModelError: the template is broken.
        """
        text = self._apply(turns, open_turn=open_turn)
        for place in self._places_left_out(tuple(turn["role"] for turn in turns), open_turn):
            if text_in(turns[place]["content"]).strip():
                raise Refused(LEFT_OUT.format(role=turns[place]["role"]))
        unseen = [i for i, turn in enumerate(turns) if text_in(turn["content"]).strip() not in text]
        if unseen:
            self._check_ends(turns, unseen, open_turn)
        return text

    def _check_ends(self, turns: Sequence[Message], places: Sequence[int], open_turn: bool) -> None:
        """Raises Refused where the end of one of these turns is not rendered.

        Their texts are not there as they stand: changed (escaped, without thinking), or left out
        for what they say or how long they are.
        """
        marked = list(turns)
        for i in places:
            told = text_in(turns[i]["content"]).strip() + _TURN_MARK.format(i)
            marked[i] = Message(role=turns[i]["role"], content=told)
        try:
            text = self._apply(marked, open_turn=open_turn).lower()
        except Refused:
            return  # It looks into the texts, as for JSON in a tool's turn.
        for i in places:
            if _TURN_MARK.format(i) not in text:
                raise Refused(LEFT_OUT_PART.format(role=turns[i]["role"]))

    def _places_left_out(self, roles: tuple[str, ...], open_turn: bool) -> list[int]:
        """Places of turns that the template does not render in a chat of these roles.

        Asked with texts of our own: a template that takes thinking out of a turn renders the rest.
        """
        if (roles, open_turn) not in self._left_out:
            marks = [_TURN_MARK.format(i) for i in range(len(roles))]
            turns = [Message(role=r, content=m) for r, m in zip(roles, marks, strict=True)]
            try:
                text = self._apply(turns, open_turn=open_turn).lower()
            except Refused:
                # It looks into the texts, as for JSON in a tool's turn.
                places = []
            else:
                places = [i for i, mark in enumerate(marks) if mark not in text]
            self._left_out[roles, open_turn] = places
        return self._left_out[roles, open_turn]

    def _tail(self, asked: str, prompt: Sequence[Message]) -> str:
        """What the template puts behind the last turn's text, told by a text that is nowhere else.

        The turn's own text may be anywhere: `i` is in `assistant`.
        """
        last = prompt[-1]
        tail = self._tails.get(last["role"])
        if tail is None or not asked.endswith(tail):
            marked: Message = {"role": last["role"], "content": _MARK}
            try:
                shown = self._apply([*prompt[:-1], marked], open_turn=True)
            except Refused:  # it looks into the text
                return asked.rpartition(text_in(last["content"]))[2]
            tail = shown.rpartition(_MARK)[2] if _MARK in shown else ""
            self._tails[last["role"]] = tail
        return tail if asked.endswith(tail) else ""

    def begins_with(self, text: str) -> bool:
        """Whether the template's source shows that every chat begins with a text.

        False says nothing: a chat may still begin with it.

        Args:
            text: of the BOS token.
        """
        source = (self.text or "").removeprefix(_FROZEN)
        return source.startswith(text) or _BEGINS.match(source) is not None

    @property
    def closes_turns(self) -> bool:
        """Whether it ends the assistant's turn with a special token, blanks after it aside.

        Raises:
            Refused, ModelError: as `render`.
        """
        added = self._added(self._apply(PROBE, open_turn=True), PROBE, PROBE_ANSWER).rstrip()
        tokens = self._tokenizer.added_tokens_decoder.values()
        special = [str(token) for token in tokens if getattr(token, "special", False)]
        return any(added.endswith(text) for text in (*special, self._tokenizer.eos_token))

    def _added(self, asked: str, prompt: Sequence[Message], response: Sequence[Message]) -> str:
        full = self.whole([*prompt, *response])
        if not full.startswith(asked):
            raise Refused(NOT_A_PREFIX)
        return full[len(asked) :]

    def _apply(self, turns: Sequence[Message], *, open_turn: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(turns),
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=open_turn,
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"{self._name}: line {error.lineno}: {in_one_line(error, 200)}"
            ) from error
        except Exception as error:
            # Templates are programs: for some turns they raise what they like.
            raise Refused(f"the chat template refuses it: {in_one_line(error, 200)}") from error
        assert isinstance(text, str)
        return text

    def check(self) -> None:
        """Once: a template that fails for the simplest chat fails for all.

        Raises:
            ModelError: there is none, or it cannot be used.
        """
        if self._checked:
            return
        if self.text is None:
            raise ModelError(
                "the data is conversational and the tokenizer has no chat template: set "
                "`model.chat_template: plain`, or the path of a Jinja file"
            )
        try:
            asked = self.whole(PROBE, open_turn=True)
            full = self.whole([*PROBE, *PROBE_ANSWER])
            again = {self._apply(PROBE, open_turn=True) for _ in range(_RENDERED_AGAIN)}
        except Refused as error:
            raise ModelError(f"{self._name}: {error.reason}") from error
        if again != {asked}:
            raise ModelError(f"{self._name}: renders one chat differently each time, by chance")
        if not full.startswith(asked):
            raise ModelError(_not_a_prefix(asked, full, self._name))
        self._checked = True

    @property
    def _name(self) -> str:
        return "the model's chat template" if self.setting == "model" else f"{self.setting}"


def _not_a_prefix(asked: str, full: str, name: str) -> str:
    short = min(len(asked), len(full))
    at = next((i for i in range(short) if asked[i] != full[i]), short)
    in_prompt = asked[at : at + _SHOWN_CHARACTERS]
    in_chat = full[at : at + _SHOWN_CHARACTERS]
    return (
        f"{name}: its prompt is no prefix of the full chat: at character {at} the prompt has "
        f"{in_prompt!r}, the chat {in_chat!r}; set `model.chat_template: plain` or a Jinja file"
    )
