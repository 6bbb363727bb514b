"""Held-out prompts: what the policy's responses to them are worth, and how far it has gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils import gather_object

from palate.data.items import Item, Tokens
from palate.data.prompts import PolicyPrompt
from palate.models.limits import NO_LIMIT
from palate.models.model import Model
from palate.models.reference import Reference
from palate.train.objectives.policy import scored_temperature
from palate.train.rollouts.collect import Collector
from palate.train.rollouts.figures import score_figures
from palate.train.rollouts.measure import measure
from palate.train.rollouts.responses import Response
from palate.train.rollouts.updates import slots_by_tokens
from palate.train.sources.offline import Collate, micro_batch


@dataclass
class HeldOutPrompts:
    """Samples and scores responses to held-out prompts, with the same draws each time: two
    checkpoints differ by what they learned, and less by luck.

    Attributes:
        collector: of the training prompts, whose engine and scorer are used.
        prompts: held out. samples: responses to each.
        reference: for the KL; None without one.
    """

    collector: Collector
    prompts: Sequence[PolicyPrompt]
    model: Model
    samples: int
    reference: Reference | None
    collate: Collate

    def __call__(self) -> dict[str, float]:
        """Means over all responses; every process calls it."""
        collector = self.collector
        collector.engine.sync(self.model)
        asking = replace(collector, prompts=self.prompts, journal=None)
        indices = list(range(len(self.prompts)))[collector.rank :: collector.world_size]
        responses = asking.held_out(indices, self.samples) if indices else []
        everything: list[Response] = gather_object(responses)
        figures = score_figures(everything)
        if self.reference is not None:
            totals = gather_object([self._kl(responses)] if responses else [])
            figures["kl/k1"] = float(np.concatenate(totals).mean())
        return figures

    @torch.no_grad()
    def _kl(self, responses: Sequence[Response]) -> np.ndarray:
        """[n] log-ratio of each response, policy to reference."""
        items = [Item.of(self.prompts[r.prompt].tokens, Tokens(r.response_ids)) for r in responses]
        limit = self.collector.recipe.train.micro_batch_tokens or NO_LIMIT
        slots = slots_by_tokens(items, limit)
        measured = measure(
            self.model,
            (micro_batch([items[i] for i in slot], self.collate) for slot in slots),
            reference=self.reference,
            temperature=scored_temperature(self.collector.recipe),
        )
        return np.array(
            [
                float((policy.astype(np.float64) - reference).sum())
                for values in measured
                for policy, reference in zip(values["old_logps"], values["ref_logps"], strict=True)
            ]
        )
