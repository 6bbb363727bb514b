"""What is known of one response that the policy sampled, and of all of a rollout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from palate.data.scorer import Score, Span

Floats = NDArray[np.float32]


@dataclass(kw_only=True)
class Response:
    """One response.

    Attributes:
        prompt: index among the policy prompts. sample: which of that prompt.
        version: of the policy that wrote it.
        score: the scorer's; None where there is none, for `reason`. parts: of its members.
        spans: values of tokens or passages.
        reward: the score as it counts: normalised, clipped, with what a missing end costs.
        trained: whether it is trained on; `dropped` says why not.
        tokens: by name, a number a token: `sampled_logps`, and as far as they are measured
            `old_logps`, `ref_logps`, `values`, `advantages`, `returns`, `weights`.
        end_value: of the state behind its last token; nan where it is not asked for.
    """

    prompt: int
    sample: int
    response_ids: tuple[int, ...]
    finished: bool
    text: str
    version: int
    score: float | None = None
    reason: str | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    reward: float = float("nan")
    dropped: str | None = None
    tokens: dict[str, Floats] = field(default_factory=dict)
    end_value: float = float("nan")

    @property
    def trained(self) -> bool:
        return self.dropped is None

    def __len__(self) -> int:
        return len(self.response_ids)

    def take(self, score: Score) -> None:
        """Sets what a scorer said."""
        self.score, self.reason, self.spans = score.value, score.reason, score.spans
        self.parts = {name: part.value for name, part in score.parts.items()}
        if score.value is None:
            self.dropped = f"no score: {score.reason}"


@dataclass(kw_only=True)
class Group:
    """The responses to one prompt."""

    prompt: int
    responses: list[Response]

    @property
    def trained(self) -> list[Response]:
        return [response for response in self.responses if response.trained]

    @property
    def is_equal(self) -> bool:
        """Whether all rewards are one number, bit for bit; so is a group of fewer than two."""
        return len({response.reward for response in self.trained}) < 2

    def take(self, scores: Sequence[Score]) -> None:
        """Sets what a scorer said of each response."""
        for response, score in zip(self.responses, scores, strict=True):
            response.take(score)

    def drop(self, reason: str) -> None:
        """Leaves out those that are still trained on."""
        for response in self.trained:
            response.dropped = reason


@dataclass(kw_only=True)
class Rollout:
    """All that was sampled between two synchronisations.

    Attributes:
        number: from 0. drawn: prompts that were drawn for it, those given up included.
        seconds: by phase. counts: events, by name.
    """

    number: int
    groups: list[Group]
    drawn: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def responses(self) -> Iterator[Response]:
        for group in self.groups:
            yield from group.responses

    @property
    def trained(self) -> list[Response]:
        return [response for response in self.responses if response.trained]


def joined(responses: Iterable[Response], name: str) -> Floats:
    """A number a token of several responses, one after another."""
    return np.concatenate([response.tokens[name] for response in responses])
