"""What the log shows of a rollout; docs/metrics.md says what each name means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from palate.recipes.rl import KlRecipe
from palate.train.objectives.policy import Control
from palate.train.rollouts.credit import explained_variance
from palate.train.rollouts.responses import Response, Rollout, joined

Figures = dict[str, float]


def rollout_figures(rollout: Rollout, *, kl: KlRecipe | None, control: Control) -> Figures:
    """Of scores, lengths, ends, groups, and what was measured of tokens."""
    responses = list(rollout.responses)
    figures = score_figures(responses)
    spreads = [
        _spread([r.reward for r in g.responses if r.score is not None]) for g in rollout.groups
    ]
    known = [spread for spread in spreads if spread is not None]
    if known:
        figures["reward/group_std"] = float(np.mean(known))
    sampled = joined(responses, "sampled_logps").astype(np.float64)
    known_logps = sampled[~np.isnan(sampled)]
    if len(known_logps):
        figures["entropy/sampled"] = -float(known_logps.mean())
    if len(known_logps) < len(sampled):
        figures["events/tokens without a log-prob"] = float(len(sampled) - len(known_logps))
    commonest = Counter(r.response_ids for r in responses).most_common(1)
    figures["samples/commonest"] = commonest[0][1] / len(responses) if commonest else 0.0
    figures["groups/zero_variance"] = float(np.mean([g.is_equal for g in rollout.groups]))
    figures["tokens/generated"] = float(sum(map(len, responses)))
    for phase, seconds in rollout.seconds.items():
        figures[f"seconds/{phase}"] = seconds
    dropped = Counter(r.dropped for r in responses if r.dropped is not None)
    for reason, count in dropped.items():
        figures[f"dropped/{reason}"] = float(count)
    for event, count in rollout.counts.items():
        figures[f"events/{event}"] = float(count)
    if kl is not None:
        figures["kl/coefficient"] = control.kl_coefficient
    return figures


def score_figures(responses: list[Response]) -> Figures:
    """Of scores and their parts, lengths and ends; of rollouts and of held-out prompts alike."""
    scored = [r for r in responses if r.score is not None]
    figures: Figures = {"unscored": float(len(responses) - len(scored))}
    if scored:
        scores = np.array([r.score for r in scored], dtype=np.float64)
        figures |= {"reward": float(scores.mean()), "reward/std": float(scores.std())}
        for name in dict.fromkeys(name for r in scored for name in r.parts):
            values = [v for r in scored if (v := r.parts.get(name)) is not None]
            if values:
                figures[f"reward/{name}"] = float(np.mean(values))
    lengths = [len(r) for r in responses]
    ends = float(np.mean([r.finished for r in responses]))
    return figures | {
        "length/mean": float(np.mean(lengths)),
        "length/max": float(max(lengths)),
        "eos/rate": ends,
        "truncated/rate": 1.0 - ends,
    }


def token_figures(trained: Sequence[Response]) -> Figures:
    """Of what is known of each token, once credit is assigned."""
    figures: Figures = {}
    tokens = trained[0].tokens
    if "returns" in tokens:
        variance = explained_variance(trained)
        # Where returns do not vary there is nothing to explain, and no number for it.
        if np.isfinite(variance):
            figures["value/explained_variance"] = variance
    if "weights" in tokens:
        figures["mismatch/weight"] = float(joined(trained, "weights").mean())
    if "old_logps" in tokens:
        gap = joined(trained, "old_logps").astype(np.float64) - joined(trained, "sampled_logps")
        # An engine may have none of a token.
        gap = gap[~np.isnan(gap)]
        if len(gap):
            figures["mismatch/kl"] = float((np.exp(gap) - 1 - gap).mean())
            figures["mismatch/max"] = float(np.abs(gap).max())
    return figures


def _spread(rewards: list[float]) -> float | None:
    return float(np.std(rewards, ddof=1)) if len(rewards) > 1 else None
