"""Where text comes from: what an engine is asked, and what it answers.

    completions = engine.generate(prompts, Sampling(samples_per_prompt=8, max_new_tokens=64))

Evaluations, judges, best-of-n and rollouts draw from the same engines: transformers in this
process (`local`), or a server (`server`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from palate.data.items import Prompt as Prompt
from palate.data.items import TokenIds

if TYPE_CHECKING:
    from palate.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn. Neither top-k nor the model's own settings are used.

    Attributes:
        min_new_tokens: no stop token is drawn before so many tokens.
        top_p: keep the smallest set of tokens whose probability reaches this.
        top_k: keep so many of the likeliest tokens; 0 keeps all.
        seed: a sample's draws depend on it, the prompt, the sample's number and the position alone.
        first_sample: number of the first sample of each prompt: later calls draw further ones.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    samples_per_prompt: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    first_sample: int = 0


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One response that a policy wrote.

    Attributes:
        prompt: index of the prompt in the call. index: which sample of that prompt, from
            `Sampling.first_sample` on.
        response_ids: token ids as sampled; a stop token is the last one where one was drawn.
        logps: log-probability of each, of the distribution that it was drawn from (temperature,
            top-p and tokens that are never drawn included), as the engine knows it.
        finished: a stop token was drawn; otherwise `max_new_tokens` cut it.
        text: decoded without special tokens.
        version: of the policy that wrote it: how often the engine had been synchronised; of each
            token where an engine changed its weights on the way.
    """

    prompt: int
    index: int
    prompt_ids: TokenIds
    response_ids: TokenIds
    logps: tuple[float, ...]
    finished: bool
    text: str
    version: int | tuple[int, ...] = 0


OnBatch = Callable[[list[Completion]], None]


class Engine(Protocol):
    """What writes responses.

    Attributes:
        exact: the same weights and seed give the same responses, whenever they are asked.
        version: how often it was synchronised.
    """

    exact: bool
    version: int

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_batch: OnBatch | None = None,
        skip: Collection[tuple[int, int]] = (),
    ) -> list[Completion]:
        """Draws responses.

        Args:
            on_batch: called with completions as they are finished, each once, in any order.
            skip: prompt and index of responses that are there already.

        Returns:
            By prompt, then by index.

        Raises:
            ModelError, RunError: prompts that cannot be sampled, a server that does not answer.
        """
        ...

    def sync(self, model: Model) -> None:
        """From now on the weights of `model` write."""
        ...

    def take_counts(self) -> dict[str, int]:
        """What happened since this was last asked, by name: responses that were dropped ..."""
        ...

    def close(self) -> None: ...
