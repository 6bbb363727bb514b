"""Chats as the text a model sees, by its own template, a Jinja file, or the plain one.

The response is what the full chat adds to the rendered prompt, so the prompt must be a prefix of
the full chat; a template for which it is not is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from palate.data.schema import Message
from palate.errors import ModelError

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

_PROBE: tuple[Message, ...] = ({"role": "user", "content": "Which colour has the sky?"},)
_PROBE_ANSWER: tuple[Message, ...] = ({"role": "assistant", "content": "Blue."},)
_SHOWN_CHARACTERS = 24
_BEGINS = re.compile(r"\{\{[-+]?\s*bos_token\s*[-+]?\}\}")


class Refused(Exception):
    """A row that the template does not take; `reason` is for the count."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_MARK = "\u2e28palate\u2e29"
"""Said by nobody."""


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
        self.setting = setting
        self.text: str | None
        if setting == "model":
            own = tokenizer.chat_template
            self.text = own.get("default") if isinstance(own, dict) else own
        elif setting == "plain":
            self.text = PLAIN
        else:
            try:
                self.text = Path(setting).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise ModelError(f"model.chat_template: {setting}: {reason}") from None

    @property
    def sha256(self) -> str | None:
        """Hex digest of the template; None where there is none."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]) -> Rendered:
        """The prompt up to where the assistant begins, and what each response adds to it.

        Raises:
            Refused: the template does not take these turns.
            ModelError: no template, a broken one, or one whose prompt is no prefix of the chat.
        """
        self._check()
        asked = self._apply(prompt, open_turn=True)
        added = [self._added(asked, prompt, response) for response in responses]
        return Rendered(
            prompt=asked, responses=tuple(added), tail=self._tail(asked, prompt) if prompt else ""
        )

    def _tail(self, asked: str, prompt: Sequence[Message]) -> str:
        """What the template puts behind the last turn's text, told by a text that is nowhere else.

        The turn's own text may be anywhere: `i` is in `assistant`.
        """
        last = prompt[-1]
        found = self._tails.get(last["role"])
        if found is None or not asked.endswith(found):
            marked: Message = {"role": last["role"], "content": _MARK}
            shown = self._apply([*prompt[:-1], marked], open_turn=True)
            found = shown.rpartition(_MARK)[2] if _MARK in shown else ""
            self._tails[last["role"]] = found
        return found if asked.endswith(found) else ""

    def begins_with(self, text: str) -> bool:
        """Whether every chat surely does, told by the source: others may in some chats alone.

        Args:
            text: of the BOS token.
        """
        source = self.text or ""
        return source.startswith(text) or _BEGINS.match(source) is not None

    @property
    def closes_turns(self) -> bool:
        """Whether it ends the assistant's turn with a special token, blanks after it aside.

        Raises:
            Refused, ModelError: as `render`.
        """
        added = self._added(self._apply(_PROBE, open_turn=True), _PROBE, _PROBE_ANSWER).rstrip()
        tokens = self._tokenizer.added_tokens_decoder.values()
        special = [str(token) for token in tokens if getattr(token, "special", False)]
        return any(added.endswith(text) for text in (*special, self._tokenizer.eos_token))

    def _added(self, asked: str, prompt: Sequence[Message], response: Sequence[Message]) -> str:
        full = self._apply([*prompt, *response], open_turn=False)
        if not full.startswith(asked):
            raise ModelError(_not_a_prefix(asked, full, self._name))
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
            raise ModelError(f"{self._name}: line {error.lineno}: {_one_line(error)}") from error
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            # raise_exception in the template, or an operation that these turns do not allow.
            raise Refused(f"the chat template refuses it: {_one_line(error)}") from error
        assert isinstance(text, str)
        return text

    def _check(self) -> None:
        """Once: a template that fails for the simplest chat fails for all."""
        if self._checked:
            return
        if self.text is None:
            raise ModelError(
                "the data is conversational and the tokenizer has no chat template: set "
                "`model.chat_template: plain`, or the path of a Jinja file"
            )
        try:
            self._added(self._apply(_PROBE, open_turn=True), _PROBE, _PROBE_ANSWER)
        except Refused as error:
            raise ModelError(f"{self._name}: {error.reason}") from error
        self._checked = True

    @property
    def _name(self) -> str:
        return "the model's chat template" if self.setting == "model" else f"{self.setting}"


def _not_a_prefix(asked: str, full: str, name: str) -> str:
    short = min(len(asked), len(full))
    at = next((i for i in range(short) if asked[i] != full[i]), short)
    ours = asked[at : at + _SHOWN_CHARACTERS]
    theirs = full[at : at + _SHOWN_CHARACTERS]
    return (
        f"{name}: its prompt is no prefix of the full chat: at character {at} the prompt has "
        f"{ours!r}, the chat {theirs!r}; set `model.chat_template: plain` or a Jinja file"
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
