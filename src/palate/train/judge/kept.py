"""A language model whose answers are kept on disk, so that none is asked for twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from palate.data.content import content_key
from palate.data.schema import Message
from palate.rewards.chat import Chat, Reply
from palate.store.digests import sha256_json
from palate.store.json_cache import JsonCache

CHUNK = 64
"""Questions asked between two writes. Their batches are fixed, and with them the last bits of a
local model's numbers: what is asked again after a kill is asked as it was."""


class KeptChat:
    """A `Chat` that is opened when it is first needed.

    Args:
        open: gives the model.
        path: file of the lines, one a chunk of questions.
        progress: told (done, questions) while a call is under way.
    """

    def __init__(
        self,
        open: Callable[[], Chat],
        path: Path,
        *,
        name: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._open = open
        self._chat: Chat | None = None
        self.name = name
        self.progress = progress
        self._kept = JsonCache(path)

    @property
    def blind(self) -> str | None:
        """See `Chat.blind`; the model is opened for it."""
        return self._opened().blind

    def reply(
        self,
        questions: Sequence[list[Message]],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> list[list[Reply]]:
        """See `Chat.reply`."""
        options = {
            "samples": samples,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }

        def ask(chat: Chat, part: Sequence[list[Message]]) -> Any:
            replies = chat.reply(part, **options)  # type: ignore[arg-type]
            return [[dataclasses.asdict(reply) for reply in samples] for samples in replies]

        answers = self._all(questions, options, ask)
        return [[Reply(**reply) for reply in samples] for samples in answers]

    def choose(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        """See `Chat.choose`."""
        return self._all(
            questions, {"options": list(options)}, lambda chat, part: chat.choose(part, options)
        )

    def release(self) -> None:
        """Lets go of the model; it is opened again when it is needed again."""
        self._chat = None

    def _opened(self) -> Chat:
        if self._chat is None:
            self._chat = self._open()
        return self._chat

    def _all(
        self,
        questions: Sequence[list[Message]],
        options: dict[str, Any],
        ask: Callable[[Chat, Sequence[list[Message]]], Any],
    ) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(questions), CHUNK):
            part = questions[start : start + CHUNK]
            key = sha256_json([options, [content_key(question).hex() for question in part]])
            if key not in self._kept:
                self._kept.add({key: ask(self._opened(), part)})
            answers += self._kept[key]
            if self.progress is not None:
                self.progress(len(answers), len(questions))
        return answers
