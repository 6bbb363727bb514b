"""A rollout cut into updates: what each optimizer step learns from, and in which micro-batches."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from palate.data.items import Item, Tokens
from palate.data.items import Rollout as Label
from palate.data.prompts import PolicyPrompt
from palate.models.limits import NO_LIMIT
from palate.recipes.rl import RlRecipe
from palate.recipes.rl_algorithms import OnlineDpo
from palate.train.rollouts.pairs import pair_items
from palate.train.rollouts.responses import Group, Response, Rollout
from palate.train.sources.offline import BatchPlan, Slot


@dataclass(frozen=True)
class Update:
    """What one optimizer step learns from.

    Attributes:
        items: of the step, on every process. slots: this process's micro-batches.
    """

    items: list[Item]
    slots: list[Slot]


@dataclass(frozen=True)
class Cutter:
    """Cuts rollouts, always in the same way: a run goes on in the middle of one.

    Attributes:
        prompts: of training. rank, world_size: of this process.
    """

    recipe: RlRecipe
    prompts: Sequence[PolicyPrompt]
    rank: int
    world_size: int

    @property
    def _most_tokens(self) -> int:
        return self.recipe.train.micro_batch_tokens or NO_LIMIT

    def updates(self, rollout: Rollout) -> list[Update]:
        """The updates on a rollout, pass after pass, in their order."""
        recipe = self.recipe
        groups = [group for group in rollout.groups if group.trained]
        updates = []
        for iteration in range(recipe.train.num_iterations):
            order = list(groups)
            if recipe.fidelity != "paper":
                random.Random(f"{recipe.seed}/{rollout.number}/{iteration}").shuffle(order)
            for part in _parts(order, self._n_parts(rollout)):
                items = [item for group in part for item in self.items(group, rollout)]
                if items:
                    slots = slots_by_tokens(
                        items, self._most_tokens, rank=self.rank, world_size=self.world_size
                    )
                    updates.append(Update(items, slots))
        return updates

    def _n_parts(self, rollout: Rollout) -> int:
        """Updates of one pass; of online DPO as many as batches of prompts were drawn."""
        recipe = self.recipe
        if not isinstance(recipe.algorithm, OnlineDpo):
            return recipe.train.num_mini_batches
        size = recipe.rollout.batch_size_prompts * recipe.rollout.num_generations
        # By responses: a prompt that was drawn twice is one group of twice as many.
        return math.ceil(sum(len(group.responses) for group in rollout.groups) / size)

    def items(self, group: Group, rollout: Rollout) -> list[Item]:
        """A group as pairs, or as items of as many tokens as a micro-batch may have."""
        if isinstance(self.recipe.algorithm, OnlineDpo):
            return self.pairs(group, rollout, {})
        prompt = self.prompts[group.prompt]
        parts: list[list[Response]] = []
        used = 0
        for response in group.trained:
            if not parts or used + len(response) > self._most_tokens:
                parts.append([])
                used = len(prompt.tokens)
            parts[-1].append(response)
            used += len(response)
        return [
            Item(
                prompts=(prompt.tokens,) * len(part),
                responses=tuple(Tokens(r.response_ids) for r in part),
                label=Label({name: tuple(r.tokens[name] for r in part) for name in part[0].tokens}),
                id=f"{group.prompt}:{','.join(str(r.sample) for r in part)}",
                source=prompt.source,
            )
            for part in parts
        ]

    def renewed(self, update: Update, rollout: Rollout) -> list[Item]:
        """The items of an update with what is known of their responses now."""
        by_prompt = {group.prompt: group for group in rollout.groups}
        numbers = dict.fromkeys(prompt for item in update.items for prompt, _ in keys_of(item))
        return [item for number in numbers for item in self.items(by_prompt[number], rollout)]

    def pairs(self, group: Group, rollout: Rollout, counts: dict[str, int]) -> list[Item]:
        """The pairs of a group; what is no pair is counted in `counts`."""
        algorithm = self.recipe.algorithm
        assert isinstance(algorithm, OnlineDpo)
        prompt = self.prompts[group.prompt]
        return pair_items(
            group,
            prompt.tokens,
            algorithm,
            seed=f"{self.recipe.seed}/{rollout.number}",
            counts=counts,
            id=prompt.id,
            source=prompt.source,
        )


def slots_by_tokens(
    items: Sequence[Item], most_tokens: int, *, rank: int = 0, world_size: int = 1
) -> list[Slot]:
    """The micro-batches of one process, of `most_tokens` each at most."""
    plan = BatchPlan(
        batch_size=len(items),
        micro_batch_size=len(items),
        micro_batch_tokens=most_tokens,
        rank=rank,
        world_size=world_size,
    )
    return plan.micro_batches(range(len(items)), [item.n_tokens for item in items])


def keys_of(item: Item) -> list[tuple[int, int]]:
    """(prompt, sample) of each response of an item, which its id tells."""
    prompt, _, samples = item.id.partition(":")
    return [(int(prompt), int(sample)) for sample in samples.split(",")]


def _parts(groups: Sequence[Group], n: int) -> list[Sequence[Group]]:
    """n parts of as equal a size as may be."""
    size, more = divmod(len(groups), n)
    starts = [k * size + min(k, more) for k in range(n + 1)]
    return [groups[start:stop] for start, stop in itertools.pairwise(starts)]
