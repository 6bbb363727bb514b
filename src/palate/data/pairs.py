"""Token-level examples: what encoding returns, what layouts and the reference cache take."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt with two responses, as token ids.

    `prompt_ids` holds BOS where the model has one; `chosen_ids` and `rejected_ids` end with the
    end-of-response token unless truncated. None of them is empty.

    Attributes:
        weight: multiplies the pair's loss.
        margin: chosen score minus rejected score, where known.
        tie: neither was preferred; the order means nothing.
        probability: share of the votes for the chosen response, where somebody counted.
        rejected_prompt_ids: the prompt of the rejected response, where it has one of its own.
        index: position in the encoded data set (for the cache and for sample tables).
    """

    id: str
    source: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    weight: float = 1.0
    margin: float | None = None
    tie: bool = False
    probability: float | None = None
    rejected_prompt_ids: tuple[int, ...] | None = None
    index: int = -1

    @property
    def sequences(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Prompt and response of the chosen and of the rejected side."""
        other = self.rejected_prompt_ids
        rejected = self.prompt_ids if other is None else other
        return (self.prompt_ids, self.chosen_ids), (rejected, self.rejected_ids)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """A prompt with two or more ranked responses, as token ids.

    Attributes:
        responses: none empty, each ending with the end-of-response token.
        ranks: of each response, 1 is best, equal ranks are ties.
    """

    id: str
    source: str
    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    weight: float = 1.0
    index: int = -1


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt with one response: a demonstration (`label` None) or unpaired feedback.

    `mismatched_ids` is another row's response, for KTO's estimate of the KL.
    """

    id: str
    source: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    label: bool | None = None
    mismatched_ids: tuple[int, ...] | None = None
    weight: float = 1.0
    index: int = -1


def sequence_key(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> str:
    """Content key of one prompt and response: hex SHA-256 of lengths and token ids."""
    digest = hashlib.sha256()
    digest.update(np.asarray([len(prompt_ids), len(response_ids)], dtype="<i8").tobytes())
    digest.update(np.asarray(prompt_ids, dtype="<i8").tobytes())
    digest.update(np.asarray(response_ids, dtype="<i8").tobytes())
    return digest.hexdigest()
