"""What a language model is asked and answers, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from palate.data.schema import Message


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model wrote.

    Attributes:
        text: the answer.
        finished: it came to its end; otherwise the limit of tokens cut it.
        thought: reasoning that a server gives apart from the answer; empty where it gives none, or
            writes it into the answer.
        refused: why there is no answer; `text` is empty then.
    """

    text: str
    finished: bool
    thought: str = ""
    refused: str | None = None

    @property
    def whole(self) -> str:
        """Thought and answer as one text, as most models write them."""
        return f"<think>\n{self.thought}\n</think>\n{self.text}" if self.thought else self.text


class Chat(Protocol):
    """A language model.

    Attributes:
        name: short, for reports.
    """

    name: str

    @property
    def blind(self) -> str | None:
        """Why it is not asked about images, and what to do about it; None where it is."""
        ...

    def reply(
        self,
        questions: Sequence[list[Message]],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> list[list[Reply]]:
        """Answers to each question, `samples` each.

        A question that cannot be asked, or that the model's server refuses though it answers
        others, has empty answers that say why.

        Args:
            temperature: 0 takes the likeliest token.
        """
        ...

    def choose(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        """Log-probability of each option as what comes next, nats.

        Args:
            questions: each ends with the assistant's turn, begun.
            options: short texts.

        Returns:
            option -> log-probability, options that the model does not say among those it could
            left out; None where it says none of them, or was not asked.

        Raises:
            ModelError: no probabilities of options are to be had from it.
        """
        ...
