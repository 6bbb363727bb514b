"""Policy gradients on rollouts: PPO, GRPO and its relatives, RLOO, REINFORCE++.

    policy     the clipped (or CISPO's) surrogate of each token, by its advantage
    kl         coefficient times the KL to the reference, where it stands in the loss
    entropy    less its coefficient times the entropy
    value      PPO's value loss

They differ in advantages, which the rollout brings (`palate.train.rollouts.credit`), and in what
sums are divided by.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palate.data.items import ItemKind
from palate.data.layouts import SequenceBatch
from palate.kernels import TokenStats
from palate.losses import LossOutput, LossTerm
from palate.losses.policy_gradient import (
    TokenLoss,
    cispo,
    clipped_surrogate,
    clipped_value_loss,
    denominators,
    future_kl,
    kl_estimate,
)
from palate.models.model import Ask, Outputs
from palate.models.reference import Reference
from palate.models.value import VALUE
from palate.recipes.rl import KlRecipe, RlRecipe, ValueRecipe
from palate.recipes.rl_algorithms import PolicyGradient, Ppo
from palate.train.meter import Statistics
from palate.train.objectives.base import Counts, Reduce
from palate.train.sources.base import MicroBatch
from palate.train.statistics import sum_and_count


@dataclass
class Control:
    """What rollouts tell the updates on them, and the updates tell the rollouts.

    Attributes:
        kl_coefficient: now; 0 without a KL.
        value_alone: the policy stands still in this update.
        is_first: the update is the first on its rollout.
        moved, tokens: sums over the update's tokens, of this process: (ratio - 1) - log ratio,
            and their number.
    """

    kl_coefficient: float = 0.0
    value_alone: bool = False
    is_first: bool = True
    moved: Tensor | float = 0.0
    tokens: float = 0.0


class PolicyObjective:
    """Every policy gradient of a recipe.

    Args:
        control: shared with the source of the rollouts.
    """

    kind: ItemKind = "rollout"

    def __init__(self, recipe: RlRecipe, control: Control) -> None:
        algorithm = recipe.algorithm
        assert isinstance(algorithm, PolicyGradient)
        self.algorithm = algorithm
        self.control = control
        kl = recipe.effective_kl
        self.kl: KlRecipe | None = kl if kl is not None and kl.place == "loss" else None
        self.value: ValueRecipe | None = None
        if isinstance(algorithm, Ppo):
            self.value = recipe.value or ValueRecipe()
        self.max_new_tokens = recipe.rollout.max_new_tokens
        wants_exact = self.kl is not None and self.kl.form == "exact"
        extra = recipe.train.extra_metrics
        self._ask = Ask(
            heads=("lm", VALUE) if self.value is not None else ("lm",),
            reverse_kl=wants_exact or "reverse_kl" in extra,
            entropy=algorithm.entropy_coefficient > 0 or "entropy" in extra,
            temperature=scored_temperature(recipe),
        )
        # Log-probs of the reference come with the rollout, where they are measured at all.
        self.needs_reference = self._ask.reverse_kl or (
            self.kl is not None and not recipe.measures_rollouts
        )

    def ask(self) -> Ask:
        return self._ask

    def prepare(
        self,
        step: Iterable[MicroBatch],
        model: nn.Module,
        reference: Reference | None,
        reduce: Reduce,
    ) -> None:
        """Nothing of the batches: statistics of a rollout are taken before it is cut into updates.

        What the update moves is counted anew.
        """
        self.control.moved, self.control.tokens = 0.0, 0.0

    def counts(self, batch: SequenceBatch) -> Counts:
        return {"sequence": batch.n_sequences, "token": len(batch.targets)}

    def loss(self, outputs: Outputs, batch: SequenceBatch, state: None) -> LossOutput:
        tokens, rollout = outputs.token_stats, _rollout(batch)
        factor, per = denominators(
            self.algorithm.loss_type, batch.segment, batch.n_sequences, self.max_new_tokens
        )
        if self.control.value_alone:
            factor = factor * 0.0
        kl = self._kl(tokens, batch)
        policy = self._surrogate(tokens, batch)
        terms = [LossTerm(name="policy", losses=policy.losses * factor, per=per)]
        if kl is not None:
            losses = self.control.kl_coefficient * kl * factor
            terms.append(LossTerm(name="kl", losses=losses, per=per))
        if self.algorithm.entropy_coefficient:
            assert tokens.entropy is not None
            losses = -self.algorithm.entropy_coefficient * tokens.entropy * factor
            terms.append(LossTerm(name="entropy", losses=losses, per=per))
        if self.value is not None:
            assert outputs.values is not None
            losses, _ = clipped_value_loss(
                outputs.values, rollout["values"], rollout["returns"], self.value.epsilon
            )
            losses = self.value.coefficient * losses
            terms.append(LossTerm(name="value", losses=losses, per="token"))
        none = tokens.logp.new_zeros(0)
        return LossOutput(terms=tuple(terms), chosen_rewards=none, rejected_rewards=none)

    def _surrogate(self, tokens: TokenStats, batch: SequenceBatch) -> TokenLoss:
        algorithm, rollout = self.algorithm, _rollout(batch)
        advantages = rollout["advantages"]
        old = rollout.get("old_logps", tokens.logp.detach())
        weights = rollout.get("weights")
        high = algorithm.epsilon if algorithm.epsilon_high is None else algorithm.epsilon_high
        if algorithm.loss_type == "cispo":
            return cispo(
                tokens.logp,
                old,
                advantages,
                epsilon_high=high,
                log_ratio_clamp=algorithm.log_ratio_clamp,
                level=algorithm.importance_sampling_level,
                segment=batch.segment,
                n_sequences=batch.n_sequences,
                weights=weights,
            )
        return clipped_surrogate(
            tokens.logp,
            old,
            advantages,
            epsilon=algorithm.epsilon,
            epsilon_high=high,
            delta=algorithm.delta,
            log_ratio_clamp=algorithm.log_ratio_clamp,
            level=algorithm.importance_sampling_level,
            segment=batch.segment,
            n_sequences=batch.n_sequences,
            weights=weights,
        )

    def _kl(self, tokens: TokenStats, batch: SequenceBatch) -> Tensor | None:
        """[N] the KL of the loss."""
        if self.kl is None:
            return None
        rollout = _rollout(batch)
        old = rollout.get("old_logps")
        if self.kl.form == "exact":
            assert tokens.reverse_kl is not None
            kl = tokens.reverse_kl
        else:
            ref_logp = rollout["ref_logps"] if tokens.ref_logp is None else tokens.ref_logp
            sampled = tokens.logp.detach() if old is None else old
            kl = kl_estimate(
                tokens.logp,
                ref_logp,
                self.kl.form,
                old_logp=sampled if self.kl.bias_correction else None,
                clamp=self.kl.clamp,
            )
        if not self.kl.future:
            return kl
        return kl + future_kl(tokens.logp, kl, batch.segment, old_logp=old)

    def statistics(self, outputs: Outputs, loss: LossOutput, batch: SequenceBatch) -> Statistics:
        tokens, rollout = outputs.token_stats, _rollout(batch)
        policy = self._surrogate(tokens, batch)
        log_ratio = tokens.logp - rollout.get("old_logps", tokens.logp)
        moved = log_ratio.exp() - 1 - log_ratio
        self.control.moved = self.control.moved + moved.double().sum()
        self.control.tokens += moved.numel()
        gap = (policy.ratio.double() - 1).abs().max()
        first = gap if self.control.is_first else gap.new_zeros(())
        statistics: dict[str, tuple[Tensor, Tensor | float]] = {
            "ratio/mean": sum_and_count(policy.ratio),
            "ratio/max": (policy.ratio.double().max(), 1.0),
            "ratio/first": (first, 1.0),
            "clip/low": sum_and_count(policy.clipped_low),
            "clip/high": sum_and_count(policy.clipped_high),
            "approx_kl": sum_and_count(moved),
        }
        if tokens.entropy is not None:
            statistics["entropy"] = sum_and_count(tokens.entropy)
        if tokens.reverse_kl is not None:
            statistics["kl/exact"] = (tokens.reverse_kl.double().sum(), float(batch.n_sequences))
        ref_logp = tokens.ref_logp if tokens.ref_logp is not None else rollout.get("ref_logps")
        if ref_logp is not None:
            for form in ("k1", "k3"):
                estimate = kl_estimate(tokens.logp, ref_logp, form)
                statistics[f"kl/{form}"] = (estimate.double().sum(), float(batch.n_sequences))
        if "old_logps" not in rollout:
            # The update is the first look that the trainer takes at what was sampled.
            statistics |= mismatch(tokens.logp, rollout["sampled_logps"])
        if outputs.values is not None and self.value is not None:
            losses, clipped = clipped_value_loss(
                outputs.values, rollout["values"], rollout["returns"], self.value.epsilon
            )
            statistics["value/clip"] = sum_and_count(clipped)
            statistics["value/loss"] = sum_and_count(losses)
        return statistics


def scored_temperature(recipe: RlRecipe) -> float:
    """Of all log-probs: that of the samples, which the code of arXiv:2406.09279 leaves out."""
    return 1.0 if recipe.fidelity == "paper" else recipe.rollout.temperature


def mismatch(logps: Tensor, sampled: Tensor) -> dict[str, tuple[Tensor, Tensor | float]]:
    """How far the trainer's log-probs are from those that the engine recorded, [N] each."""
    # An engine may have none of a token.
    known = ~sampled.isnan()
    gap = torch.where(known, logps.detach() - sampled, 0.0)
    return {
        "mismatch/kl": ((gap.exp() - 1 - gap).double().sum(), known.double().sum()),
        "mismatch/max": (gap.abs().double().max(), 1.0),
    }


def _rollout(batch: SequenceBatch) -> dict[str, Tensor]:
    assert batch.rollout is not None, "a batch without rollouts"
    return batch.rollout


def total_moved(control: Control) -> Tensor:
    """[2] float64, on the host: the sums of an update, for adding up over processes."""
    moved = control.moved
    number = float(moved) if isinstance(moved, Tensor) else moved
    return torch.tensor([number, control.tokens], dtype=torch.float64)
