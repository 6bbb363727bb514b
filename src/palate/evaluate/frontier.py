"""Exact sequence KL of a policy on its own samples, and one frontier point a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from palate.data.items import Tokens, batches_to_score
from palate.data.layouts import Layout
from palate.evaluate.statistics import mean_interval
from palate.models.generation.engine import Completion
from palate.models.model import Ask, Model, evaluating
from palate.models.reference import Reference


@dataclass(frozen=True, kw_only=True)
class SampleStats:
    """Of one sampled response, sums over its positions, the end-of-sequence step included.

    Attributes:
        kl: sum of KL(policy || reference), nats: along the policy's own samples at temperature 1
            an unbiased estimate of the sequence KL, of less variance than log-ratios. None without
            a reference.
        forward_kl: sum of KL(reference || policy) along the same samples, nats.
        entropy: mean entropy of the next-token distribution, nats.
        logp: log-probability of the response.
        tokens: its length.
    """

    kl: float | None
    forward_kl: float | None
    entropy: float
    logp: float
    tokens: int


@torch.no_grad()
def sample_stats(
    policy: Model,
    samples: Sequence[Completion],
    *,
    reference: Reference | None,
    prompts: Sequence[Tokens] | None = None,
    batch_size: int = 16,
    layout: Layout = "plain",
    pad_id: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[SampleStats]:
    """Statistics of samples, in the order given, from full next-token distributions.

    The distributions are the policy's and the reference's own: sampling at another temperature or
    top-p changes which responses are looked at, not what is computed on them.

    Args:
        prompts: that samples are numbered by, with their images; None where they are texts alone.
    """
    asked = [Tokens(s.prompt_ids) if prompts is None else prompts[s.prompt] for s in samples]
    sequences = [(prompt, Tokens(s.response_ids)) for prompt, s in zip(asked, samples, strict=True)]
    stats_by_sample: dict[int, SampleStats] = {}
    collate = policy.collator(layout, pad_id=pad_id)
    with evaluating(policy):
        for items, places in batches_to_score(sequences, batch_size):
            batch = collate(items).to(policy.device)
            known = reference is not None
            ref = None if reference is None else reference.inputs(batch, kl=True)
            ask = Ask(kl=known, reverse_kl=known, entropy=True)
            tokens = policy(batch, ask, reference=ref).token_stats

            def total(values: torch.Tensor | None, batch: Any = batch) -> list[float | None]:
                if values is None:
                    return [None] * batch.n_sequences
                sums = torch.zeros(batch.n_sequences, dtype=torch.float64, device=values.device)
                return sums.index_add(0, batch.segment, values.double()).tolist()

            reverse, forward = total(tokens.reverse_kl), total(tokens.kl)
            entropy, logp = total(tokens.entropy), total(tokens.logp)
            for j, i in enumerate(places):
                n = len(samples[i].response_ids)
                stats_by_sample[i] = SampleStats(
                    kl=reverse[j],
                    forward_kl=forward[j],
                    entropy=(entropy[j] or 0.0) / n,
                    logp=logp[j] or 0.0,
                    tokens=n,
                )
            if progress is not None:
                progress(len(stats_by_sample), len(samples))
    return [stats_by_sample[i] for i in range(len(samples))]


def frontier_point(
    samples: Sequence[Completion],
    stats: Sequence[SampleStats],
    rewards: Sequence[float | None] | None,
    *,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Means with intervals over prompts: the point of one checkpoint on the frontier.

    Returns:
        n, tokens, finished (share), and where known kl, forward_kl, reward, each with `_ci`; where
        samples have no reward, `unscored`, and the mean is that of the others.
    """
    groups = [s.prompt for s in samples]
    point: dict[str, Any] = {
        "n": len(samples),
        "prompts": len(set(groups)),
        "tokens": sum(s.tokens for s in stats) / len(stats),
        "finished": sum(s.finished for s in samples) / len(samples),
    }
    columns: dict[str, list[float | None]] = {}
    if all(s.kl is not None and s.forward_kl is not None for s in stats):
        columns["kl"] = [s.kl or 0.0 for s in stats]
        columns["forward_kl"] = [s.forward_kl or 0.0 for s in stats]
    if rewards is not None:
        columns["reward"] = list(rewards)
        if unscored := sum(reward is None for reward in rewards):
            point["unscored"] = unscored
    for name, column in columns.items():
        known = [(value, g) for value, g in zip(column, groups, strict=True) if value is not None]
        if known:
            point[name], point[f"{name}_ci"] = mean_interval(
                [value for value, _ in known], confidence, groups=[g for _, g in known]
            )
    return point
