"""What each token is answerable for: advantages and returns, from rewards, values and the KL.

    ppo            token rewards (the score at the last token, less the KL of each), GAE, whitened
    grpo, rloo     one number a response, against the others to its prompt
    reinforce++    token rewards summed to the end, whitened over the whole rollout

A rollout is whole on every process here, so that no statistic depends on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from palate.losses.advantages import (
    correction_weights,
    discounted_returns,
    gae,
    group_advantages,
    group_means,
    leave_one_out,
    outliers,
    whiten,
)
from palate.losses.policy_gradient import kl_estimate
from palate.recipes.rl import KlRecipe, RlRecipe
from palate.recipes.rl_algorithms import Grpo, PolicyGradient, Ppo, ReinforcePlusPlus, Rloo
from palate.train.rollouts.responses import Floats, Response, joined


@dataclass
class Flat:
    """Trained responses one after another.

    Attributes:
        segment: [N] response of each token. last: [S] place of the last token of each.
        rewards: [S] float64. group: [S] prompt of each, from 0 in order of appearance.
    """

    responses: Sequence[Response]
    segment: Tensor
    last: Tensor
    rewards: Tensor
    group: Tensor

    @classmethod
    def of(cls, responses: Sequence[Response]) -> Flat:
        lengths = torch.tensor([len(r) for r in responses])
        numbers: dict[int, int] = {}
        group = [numbers.setdefault(r.prompt, len(numbers)) for r in responses]
        return cls(
            responses=responses,
            segment=torch.arange(len(responses)).repeat_interleave(lengths),
            last=lengths.cumsum(0) - 1,
            rewards=torch.tensor([r.reward for r in responses], dtype=torch.float64),
            group=torch.tensor(group),
        )

    def tokens(self, name: str) -> Tensor:
        """[N] float64, measured numbers of every token."""
        return torch.from_numpy(joined(self.responses, name)).double()

    def totals(self, values: Tensor) -> Tensor:
        """[S] sums over the tokens of each response."""
        return values.new_zeros(len(self.responses)).index_add(0, self.segment, values)

    def store(self, name: str, values: Tensor) -> None:
        """Hands each response its part of [N] numbers."""
        numbers: Floats = values.float().numpy()
        for response, end in zip(self.responses, self.last.tolist(), strict=True):
            response.tokens[name] = numbers[end + 1 - len(response) : end + 1].copy()


def assign_credit(
    responses: Sequence[Response], recipe: RlRecipe, *, kl_coefficient: float
) -> dict[str, float]:
    """Gives the trained responses of a rollout `advantages`, with values `returns`, and with an
    engine's correction `weights`.

    Returns:
        `advantages/mean` and `advantages/std` over tokens, before whitening and the filter.
    """
    algorithm, kl = recipe.algorithm, recipe.effective_kl
    assert isinstance(algorithm, PolicyGradient)
    flat = Flat.of(responses)
    charge = _kl_charge(flat, kl, kl_coefficient)
    if isinstance(algorithm, Ppo):
        advantages = _ppo(flat, algorithm, recipe, charge)
    elif isinstance(algorithm, ReinforcePlusPlus):
        advantages = _reinforce(flat, algorithm, recipe, charge)
    else:
        scores = flat.rewards if charge is None else flat.rewards - flat.totals(charge)
        advantages = _of_group(scores, flat, algorithm)[flat.segment]
    figures = {
        "advantages/mean": float(advantages.mean()),
        "advantages/std": float(advantages.std(correction=0)),
    }
    if _whitens(algorithm):
        advantages = _whitened(advantages, flat, algorithm)
    if algorithm.advantage_filter is not None:
        advantages = torch.where(outliers(advantages, algorithm.advantage_filter), 0.0, advantages)
    flat.store("advantages", advantages)
    correction = recipe.rollout.engine.correction
    if correction is not None:
        weights = correction_weights(
            flat.tokens("old_logps"),
            flat.tokens("sampled_logps"),
            flat.segment,
            level=correction.level,
            mode=correction.mode,
            cap=correction.cap,
        )
        flat.store("weights", weights)
    return figures


def _whitens(algorithm: PolicyGradient) -> bool:
    return isinstance(algorithm, ReinforcePlusPlus) or (
        isinstance(algorithm, Ppo | Rloo) and algorithm.whiten_advantages
    )


def _whitened(advantages: Tensor, flat: Flat, algorithm: PolicyGradient) -> Tensor:
    """[N] over all tokens of the rollout; of rloo, which has one a response, over responses."""
    if isinstance(algorithm, Rloo):
        return whiten(advantages[flat.last])[flat.segment]
    return whiten(advantages)


def _kl_charge(flat: Flat, kl: KlRecipe | None, coefficient: float) -> Tensor | None:
    """[N] what each token pays for its log-ratio, where the KL stands in the reward."""
    if kl is None or kl.place != "reward":
        return None
    assert kl.form != "exact"
    estimate = kl_estimate(
        flat.tokens("old_logps"), flat.tokens("ref_logps"), kl.form, clamp=kl.clamp
    )
    return coefficient * estimate


def _token_rewards(flat: Flat, recipe: RlRecipe, charge: Tensor | None, scores: Tensor) -> Tensor:
    """[N] the score at the last token of each response, or its spans' values where it has any,
    with its penalties at the last token; less the KL."""
    rewards = torch.zeros(len(flat.segment), dtype=torch.float64)
    rewards[flat.last] = scores
    if recipe.reward.placement == "spans":
        for response, last in zip(flat.responses, flat.last.tolist(), strict=True):
            if not response.spans:
                continue
            assert response.score is not None
            rewards[last] = response.reward - response.score
            start = last + 1 - len(response)
            for span in response.spans:
                # Spans are in tokens by now.
                rewards[start + max(span.stop - 1, 0)] += span.value
    return rewards if charge is None else rewards - charge


def _ppo(flat: Flat, algorithm: Ppo, recipe: RlRecipe, charge: Tensor | None) -> Tensor:
    rewards = _token_rewards(flat, recipe, charge, flat.rewards)
    bootstrap = None
    if algorithm.truncated == "bootstrap":
        ends = [0.0 if r.finished else r.end_value for r in flat.responses]
        bootstrap = torch.tensor(ends, dtype=torch.float64)
    advantages, returns = gae(
        rewards,
        flat.tokens("values"),
        flat.segment,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
        bootstrap=bootstrap,
    )
    flat.store("returns", returns)
    return advantages


def _reinforce(
    flat: Flat, algorithm: ReinforcePlusPlus, recipe: RlRecipe, charge: Tensor | None
) -> Tensor:
    scores = flat.rewards
    if algorithm.baseline == "group":
        scores = scores - group_means(scores, flat.group)[flat.group]
    rewards = _token_rewards(flat, recipe, charge, scores)
    return discounted_returns(rewards, flat.segment, algorithm.gamma)


def _of_group(scores: Tensor, flat: Flat, algorithm: PolicyGradient) -> Tensor:
    """[S] advantages among the responses to one prompt."""
    if isinstance(algorithm, Grpo):
        return group_advantages(scores, flat.group, scale=algorithm.scale_rewards)
    return leave_one_out(scores, flat.group)


def explained_variance(responses: Sequence[Response]) -> float:
    """1 - var(returns - values) / var(returns) over tokens; nan where returns do not vary."""
    returns = joined(responses, "returns").astype(np.float64)
    values = joined(responses, "values").astype(np.float64)
    spread = float(returns.var())
    return float("nan") if spread == 0 else 1.0 - float((returns - values).var()) / spread
