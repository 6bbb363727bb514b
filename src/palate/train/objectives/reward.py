"""What a step of a reward model optimises: from a batch to an unreduced loss and statistics."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from palate.data.items import Item, ItemKind, PairLabel, Ranks
from palate.data.layouts import SequenceBatch
from palate.errors import DataError, RecipeError
from palate.losses import (
    PAIR_LOSSES,
    LossOutput,
    LossTerm,
    PairLabels,
    apply_weight,
    centring,
    length_expert,
    length_scaled,
    likelihood,
    magnitude,
    plackett_luce,
)
from palate.models.model import Ask, Outputs
from palate.models.reference import Reference
from palate.recipes.reward import (
    BradleyTerry,
    HeadsRecipe,
    PlackettLuce,
    RegulariseRecipe,
    RewardLoss,
)
from palate.train.meter import Statistics
from palate.train.objectives.base import Counts, Reduce
from palate.train.sources.base import MicroBatch
from palate.train.statistics import of_source, sum_and_count


class RewardObjective:
    """Every loss of rewards, with its regularisers; each a term of its own in the log.

    Of several heads the loss is the mean of theirs.

    Args:
        ensemble: the heads, where there are several. seed: of their weights of items.
        by_source: also log the accuracy of each data source.
    """

    needs_reference = False

    def __init__(
        self,
        loss: RewardLoss,
        regularise: RegulariseRecipe,
        *,
        ensemble: HeadsRecipe | None = None,
        seed: int = 0,
        by_source: bool = False,
    ) -> None:
        self.kind: ItemKind = "rated" if isinstance(loss, PlackettLuce) else "pair"
        self.reward_loss = loss
        self.regularise = regularise
        self.ensemble = ensemble
        self.seed = seed
        self.by_source = by_source

    def ask(self) -> Ask:
        heads = ("reward",) if self.regularise.likelihood is None else ("reward", "lm")
        return Ask(heads=heads, tokens="chosen")

    def prepare(
        self,
        step: Iterable[MicroBatch],
        model: nn.Module,
        reference: Reference | None,
        reduce: Reduce,
    ) -> bool:
        """Whether each head's draw of items applies: held-out ones count once for all."""
        return model.training

    def counts(self, batch: SequenceBatch) -> Counts:
        return {"pair": batch.n_items}

    def loss(self, outputs: Outputs, batch: SequenceBatch, state: bool) -> LossOutput:
        rewards = outputs.sequence_rewards
        if outputs.by_head is None:
            terms = self._terms(rewards, batch)
        else:
            terms = self._terms_of_heads(outputs.by_head, batch, bootstrap=state)
        if (likely := self.regularise.likelihood) is not None:
            logps = outputs.token_stats.logp
            assert batch.chosen_tokens is not None
            total = logps.new_zeros(batch.n_sequences)
            total = total.index_add(0, batch.segment[batch.chosen_tokens], logps)
            written = likelihood(total[batch.of_pairs().chosen], beta=likely.beta)
            # Of a tie nobody chose either side, and which one stands first means nothing.
            written = written.masked_fill(batch.of_pairs().tie, 0.0)
            terms.append(LossTerm(name="likelihood", losses=likely.weight * written))
        chosen, rejected = self._sides(rewards.detach(), batch)
        output = LossOutput(terms=tuple(terms), chosen_rewards=chosen, rejected_rewards=rejected)
        return apply_weight(output, batch.weight)

    def statistics(self, outputs: Outputs, loss: LossOutput, batch: SequenceBatch) -> Statistics:
        rewards = outputs.sequence_rewards
        statistics = reward_statistics(rewards, batch, by_source=self.by_source)
        if outputs.by_head is None:
            return statistics
        spread = outputs.by_head.detach().double().std(-1, correction=0)
        return {**statistics, "spread": sum_and_count(spread)}

    def _terms_of_heads(
        self, heads: Tensor, batch: SequenceBatch, *, bootstrap: bool
    ) -> list[LossTerm]:
        """The mean over heads of what each would lose alone."""
        assert self.ensemble is not None
        count = heads.shape[-1]
        by_head = [self._terms(heads[:, k], batch) for k in range(count)]
        weight = torch.ones(len(batch.ids), count, dtype=heads.dtype)
        if bootstrap and self.ensemble.bootstrap:
            weight = bootstrap_weights(batch.ids, count, self.seed).to(heads.dtype)
        weight = weight.to(heads.device, non_blocking=True) / count
        return [
            LossTerm(
                name=same[0].name,
                losses=(torch.stack([term.losses for term in same], dim=-1) * weight).sum(-1),
            )
            for same in zip(*by_head, strict=True)
        ]

    def _shaped(self, rewards: Tensor, batch: SequenceBatch) -> Tensor:
        """What the loss sees of the rewards."""
        if self.regularise.length_scaled:
            return length_scaled(rewards, batch.lengths)
        if self.regularise.length_penalty:
            strength = self.regularise.length_penalty
            return length_expert(rewards, batch.lengths, strength=strength)
        return rewards

    def _terms(self, rewards: Tensor, batch: SequenceBatch) -> list[LossTerm]:
        """Of one head."""
        if isinstance(self.reward_loss, PlackettLuce):
            values, rank, listed = as_lists(self._shaped(rewards, batch), batch)
            losses = plackett_luce(values, rank, listed, ties=self.reward_loss.ties)
            return [LossTerm(name=self.reward_loss.type, losses=losses)]
        sides, regularise = batch.of_pairs(), self.regularise
        shaped = self._shaped(rewards, batch)
        options = self.reward_loss.model_dump(exclude={"type", "margin", "soft_labels"})
        votes = isinstance(self.reward_loss, BradleyTerry) and self.reward_loss.soft_labels
        labels = PairLabels(
            margin=sides.margin if self.reward_loss.margin else None,
            probability=sides.probability if votes else None,
            tie=sides.tie,
        )
        losses = PAIR_LOSSES[self.reward_loss.type](
            shaped[sides.chosen], shaped[sides.rejected], labels, **options
        )
        terms = [LossTerm(name=self.reward_loss.type, losses=losses)]
        for name, weight, function in (
            ("centring", regularise.centring, centring),
            ("magnitude", regularise.magnitude, magnitude),
        ):
            if weight:
                losses = weight * function(rewards[sides.chosen], rewards[sides.rejected])
                terms.append(LossTerm(name=name, losses=losses))
        return terms

    def _sides(self, rewards: Tensor, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Rewards of the better and of the other responses."""
        values = rewards if batch.pairs is not None else self._shaped(rewards, batch)
        chosen, rejected = batch.sides["chosen"], batch.sides.get("rejected")
        return values[chosen], values[:0] if rejected is None else values[rejected]


def label_counts(items: Sequence[Item]) -> dict[str, int]:
    """How many pairs are ties, have a margin, and have votes; how many lists order nothing."""
    pairs = [item.label for item in items if isinstance(item.label, PairLabel)]
    if not pairs:
        lists = [item.label for item in items if isinstance(item.label, Ranks)]
        return {"undecided": sum(len(set(label.ranks)) < 2 for label in lists)}
    return {
        "ties": sum(label.tie for label in pairs),
        "margins": sum(label.margin is not None for label in pairs),
        "votes": sum(label.probability is not None for label in pairs),
    }


def check_labels(loss: RewardLoss, items: Sequence[Item]) -> None:
    """Refuses a loss that asks for what no training item has.

    Raises:
        RecipeError: margins or votes. DataError: lists that order nothing.
    """
    labels = label_counts(items)
    if isinstance(loss, PlackettLuce):
        if loss.ties == "unordered" and labels["undecided"] == len(items):
            raise DataError(
                "every list of the training data has equal ranks alone: there is nothing to learn"
            )
        return
    if loss.margin and not labels["margins"]:
        raise RecipeError("`loss.margin`: no pair of the training data has a margin: delete it")
    if isinstance(loss, BradleyTerry) and loss.soft_labels and not labels["votes"]:
        raise RecipeError("`loss.soft_labels`: no pair of the training data has votes: delete it")


def bootstrap_weights(ids: Sequence[str], heads: int, seed: int) -> Tensor:
    """[B, heads] draws of Poisson(1), each of the seed, an item's id and a head alone.

    So neither the batch, nor the process, nor an interruption changes them (Oza and Russell 2001,
    online bagging).
    """
    weights = torch.empty(len(ids), heads, dtype=torch.float64)
    for i, name in enumerate(ids):
        for k in range(heads):
            digest = hashlib.sha256(f"{seed}|{k}|{name}".encode()).digest()
            u = int.from_bytes(digest[:8], "big") / 2**64
            weights[i, k] = _poisson(u)
    return weights


def _poisson(u: float) -> int:
    """Where the distribution function of Poisson(1) passes u."""
    count, term = 0, math.exp(-1)
    total = term
    while u >= total and term > 0:
        count += 1
        term /= count
        total += term
    return count


def as_lists(rewards: Tensor, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
    """[S] rewards of ranked lists as [B, K]: rewards, ranks, and True where there is one."""
    if batch.rank is None or batch.lists is None:
        raise ValueError("a batch without ranked lists")
    listed, places = batch.lists >= 0, batch.lists.clamp(min=0)
    padded, rank = (x[places].masked_fill(~listed, 0) for x in (rewards, batch.rank))
    return padded, rank, listed


@torch.no_grad()
def reward_statistics(
    rewards: Tensor, batch: SequenceBatch, *, by_source: bool = False
) -> Statistics:
    """Sums for the log, under TRL's names; a tie of the rewards is half right.

    `accuracy` and `margin` are over the comparisons that the data makes: a pair is one unless it
    is a tie, a list has one for every two of unequal rank.
    """
    values = rewards.double()
    margins, item = comparisons(values, batch)
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    statistics: dict[str, tuple[Tensor, Tensor | float]] = {
        "accuracy": sum_and_count(right),
        "margin": sum_and_count(margins),
        "mean_reward": sum_and_count(values),
        "min_reward": (values.min(), 1.0),
        "max_reward": (values.max(), 1.0),
    }
    if by_source:
        for source in sorted(set(batch.sources)):
            part = of_source(batch, source)[item]
            statistics[f"accuracy/{source}"] = ((right * part).sum(), part.sum())
    return statistics


def comparisons(rewards: Tensor, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    """[M] reward differences, better minus worse, and the item that each is of."""
    compared = batch.comparisons
    return rewards[compared["better"]] - rewards[compared["worse"]], compared["item"]
