"""Samples of a policy, by the engine that also writes rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.items import TokenIds, Tokens
from palate.models.generation.engine import Completion, OnBatch, Sampling
from palate.models.generation.local import LocalEngine
from palate.models.model import Model


def sample(
    policy: Model,
    tokenizer: Any,
    prompts: Sequence[Tokens | TokenIds],
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    on_batch: OnBatch | None = None,
) -> list[Completion]:
    """Draws responses; see `palate.models.generation.local.LocalEngine`.

    Args:
        prompts: as the encoder makes them; of a model that sees with their images.
        top_p: keep the smallest set of tokens whose probability reaches this.
        on_batch: called with samples as they are finished.

    Returns:
        Samples by prompt, then by index.
    """
    engine = LocalEngine(policy, tokenizer, batch_size=batch_size)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        samples_per_prompt=samples_per_prompt,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    asked = [p if isinstance(p, Tokens) else Tokens(p) for p in prompts]
    return engine.write(asked, sampling, on_batch=on_batch)
