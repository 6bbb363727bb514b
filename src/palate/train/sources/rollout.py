"""The steps of online learning: a rollout, then some updates on it, and again.

    collect a rollout, measure it, give credit
    for each pass over it, in another order: for each of its parts: one optimizer step

Every process holds the whole rollout, so that the groups of a step depend neither on how many
processes there are nor on the accumulation. A rollout is on the disk before the first step on it: a
run that is interrupted between two of them goes on with the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn

from palate.data.items import Floats
from palate.errors import RunError
from palate.models.model import Model
from palate.models.reference import Reference
from palate.models.value import value_parameters
from palate.recipes.rl import RlRecipe
from palate.recipes.rl_algorithms import OnlineDpo, PolicyGradient
from palate.store.rollouts import read_rollout, rollout_path, write_rollout
from palate.train.meter import Statistics, is_total
from palate.train.objectives.policy import Control, scored_temperature, total_moved
from palate.train.rollouts.collect import Collector
from palate.train.rollouts.credit import assign_credit
from palate.train.rollouts.figures import rollout_figures, token_figures
from palate.train.rollouts.measure import measure
from palate.train.rollouts.responses import Response, Rollout
from palate.train.rollouts.rows import rollout_of, rows_of
from palate.train.rollouts.spans import spans_in_tokens
from palate.train.rollouts.updates import Cutter, Update, keys_of
from palate.train.sources.base import MicroBatch
from palate.train.sources.offline import Collate, micro_batch

EMPTY_ROLLOUTS = 20
"""Rollouts in a row with nothing to learn from, after which the run ends."""


class RolloutSource:
    """See the module's head.

    Args:
        reference: asked where rollouts are measured; None where nothing wants it then.
        folder: of the run; every process reads its rollouts, the main one writes them.
        total: optimizer steps of the run.

    Attributes:
        rollout: that the steps are on now.
    """

    def __init__(
        self,
        recipe: RlRecipe,
        collector: Collector,
        model: Model,
        *,
        reference: Reference | None,
        collate: Collate,
        control: Control,
        folder: Path,
        total: int,
        tokenizer: Any,
    ) -> None:
        self.recipe = recipe
        self.collector = collector
        self.control = control
        self.total = total
        self.n_items = len(collector.prompts)
        self.step = 0
        self.rollout: Rollout | None = None
        self._number = 0
        self._update = 0
        self._ended = False
        self._prompts_done = 0
        self._started = 0.0
        self._model = model
        self._reference = reference
        self._collate = collate
        self._folder = folder
        self._tokenizer = tokenizer
        self._figures: dict[str, float] = {}
        self._cutter = Cutter(recipe, collector.prompts, collector.rank, collector.world_size)

    @property
    def epoch(self) -> float:
        return self._prompts_done / self.n_items

    @property
    def _between(self) -> int:
        """Of online DPO the steps of one pass that are left, each on prompts of its own."""
        algorithm = self.recipe.algorithm
        assert isinstance(algorithm, OnlineDpo)
        left = math.ceil((self.total - self.step) / self.recipe.train.num_iterations)
        return left if algorithm.sync_every == "inf" else min(algorithm.sync_every, left)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        while self.step < self.total:
            rollout = self._current()
            updates = self._cutter.updates(rollout)
            while not self._ended and self.step < self.total:
                update = updates[self._update]
                self._before(rollout, update)
                self._update += 1
                self.step += 1
                # Known before the step is made, so that a checkpoint after it knows too.
                self._ended = self._update >= len(updates)
                self._started = time.monotonic()
                yield self._micro_batches(update)
            self.rollout = None

    # A rollout --------------------------------------------------------------------------------

    def _current(self) -> Rollout:
        """The rollout that the next step is on."""
        if self.rollout is not None:
            return self.rollout
        if self._ended:
            self._number, self._update, self._ended = self._number + 1, 0, False
        if self._update:
            # Going on in the middle of one.
            self.rollout = rollout_of(
                read_rollout(rollout_path(self._folder, self._number)), self.collector.prompts
            )
            return self.rollout
        for _ in range(EMPTY_ROLLOUTS):
            rollout = self._made()
            if self._cutter.updates(rollout):
                self.rollout = rollout
                return rollout
            self._number += 1
        raise RunError(
            f"{EMPTY_ROLLOUTS} rollouts in a row have nothing to learn from: {_reasons(rollout)}"
        )

    def _made(self) -> Rollout:
        started = time.monotonic()
        self.collector.engine.sync(self._model)
        seconds = time.monotonic() - started
        wanted = self.recipe.rollout.batch_size_prompts
        if isinstance(self.recipe.algorithm, OnlineDpo):
            wanted *= self._between
        rollout = self.collector.collect(self._number, wanted)
        rollout.seconds["sync"] = seconds
        self._prompts_done += rollout.drawn
        if self.recipe.reward.placement == "spans":
            for response in rollout.trained:
                response.spans = spans_in_tokens(response, self._tokenizer)
        if isinstance(self.recipe.algorithm, OnlineDpo):
            for group in rollout.groups:
                self._cutter.pairs(group, rollout, rollout.counts)
        elif rollout.trained:
            self._prepare(rollout)
        if self.collector.rank == 0:
            write_rollout(self._folder, rows_of(rollout, self.collector.prompts))
        kl = self.recipe.effective_kl
        for name, value in rollout_figures(rollout, kl=kl, control=self.control).items():
            # There may have been a rollout with nothing to learn from before.
            self._figures[name] = value + (self._figures.get(name, 0.0) if is_total(name) else 0.0)
        return rollout

    def _prepare(self, rollout: Rollout) -> None:
        """Measures the rollout, and says what each token is answerable for."""
        started = time.monotonic()
        # As the paper's code has it, each update measures what it learns from by itself.
        if self.recipe.measures_rollouts and self.recipe.fidelity != "paper":
            self._measure(
                self._cutter.updates(rollout)[: self.recipe.train.num_mini_batches], rollout
            )
        if self.recipe.fidelity != "paper":
            self._assign_credit(rollout.trained)
        rollout.seconds["prepare"] = time.monotonic() - started

    def _assign_credit(self, responses: Sequence[Response]) -> None:
        coefficient = self.control.kl_coefficient
        self._figures |= assign_credit(responses, self.recipe, kl_coefficient=coefficient)
        self._figures |= token_figures(responses)

    def _measure(self, updates: Sequence[Update], rollout: Rollout) -> None:
        """Hands each response what the trainer's pass says of it."""
        numbers: dict[tuple[int, int], dict[str, Floats]] = {}
        for update in updates:
            slots = [slot for slot in update.slots if slot[0] >= 0]
            measured = measure(
                self._model,
                (micro_batch([update.items[i] for i in slot], self._collate) for slot in slots),
                reference=self._reference,
                temperature=scored_temperature(self.recipe),
            )
            for slot, values in zip(slots, measured, strict=True):
                keys = [key for i in slot for key in keys_of(update.items[i])]
                for place, key in enumerate(keys):
                    numbers[key] = {name: each[place] for name, each in values.items()}
        everywhere: dict[tuple[int, int], dict[str, Floats]] = {
            k: v for part in gather_object([numbers]) for k, v in part.items()
        }
        for response in rollout.trained:
            measured_here = everywhere.get((response.prompt, response.sample), {})
            for name, value in measured_here.items():
                if name == "end_value":
                    response.end_value = float(value[0])
                else:
                    response.tokens[name] = value

    def _before(self, rollout: Rollout, update: Update) -> None:
        """What happens right before an update."""
        value = self.recipe.value
        self.control.is_first = self._update == 0
        self.control.value_alone = value is not None and self.step < value.warmup_steps
        if self.recipe.fidelity != "paper":
            return
        started = time.monotonic()
        keys = {key for item in update.items for key in keys_of(item)}
        part = [r for r in rollout.trained if (r.prompt, r.sample) in keys]
        self._measure([update], rollout)
        self._assign_credit(part)
        self._add("seconds/prepare", time.monotonic() - started)

    # Updates ----------------------------------------------------------------------------------

    def _micro_batches(self, update: Update) -> list[MicroBatch]:
        # Items are made anew: what was measured for this update alone is on them then.
        items = update.items
        if self.recipe.fidelity == "paper":
            assert self.rollout is not None
            items = self._cutter.renewed(update, self.rollout)
        return [
            micro_batch(
                [items[i if i >= 0 else ~i] for i in slot], self._collate, counted=slot[0] >= 0
            )
            for slot in update.slots
        ]

    def _moved_too_far(self) -> bool:
        """Whether the last update has taken the policy as far as the passes may go."""
        algorithm = self.recipe.algorithm
        limit = algorithm.target_kl if isinstance(algorithm, PolicyGradient) else None
        if limit is None:
            return False
        parts = gather_object([total_moved(self.control).tolist()])
        total, tokens = (sum(part[i] for part in parts) for i in (0, 1))
        return bool(tokens and total / tokens > limit)

    def _adapt(self, rollout: Rollout) -> None:
        """The coefficient of the KL after a rollout, towards the target (arXiv:1909.08593, 2.2)."""
        kl = self.recipe.effective_kl
        if kl is None or kl.target is None:
            return
        trained = [r for r in rollout.trained if "ref_logps" in r.tokens]
        if not trained:
            return
        per_response = sum(
            float((r.tokens["old_logps"] - r.tokens["ref_logps"]).sum()) for r in trained
        ) / len(trained)
        error = min(max(per_response / kl.target - 1, -0.2), 0.2)
        horizon = kl.horizon or 10_000
        self.control.kl_coefficient *= 1 + error * len(trained) / horizon

    # The log and checkpoints ------------------------------------------------------------------

    def held(self) -> Iterable[nn.Parameter]:
        """While the value model learns alone all other weights."""
        if not self.control.value_alone:
            return ()
        moving = {id(parameter) for parameter in value_parameters(self._model)}
        return [p for p in self._model.parameters() if p.requires_grad and id(p) not in moving]

    def after_step(self) -> Statistics:
        self._add("seconds/update", time.monotonic() - self._started)
        if not self._ended and self._moved_too_far():
            self._ended = True
            self._add("events/target_kl reached", 1.0)
        if self._ended:
            assert self.rollout is not None
            self._adapt(self.rollout)
        figures, self._figures = self._figures, {}
        # Every process has the figures of the whole rollout.
        processes = self.collector.world_size
        return {
            name: (value / processes if is_total(name) else value, 1.0)
            for name, value in figures.items()
        }

    def _add(self, name: str, value: float) -> None:
        self._figures[name] = self._figures.get(name, 0.0) + value

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "rollout": self._number,
            "update": self._update,
            "ended": self._ended,
            "prompts": self._prompts_done,
            "stream": self.collector.stream.state_dict(),
            "kl_coefficient": self.control.kl_coefficient,
            "engine": self.collector.engine.version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self._number, self._update = state["step"], state["rollout"], state["update"]
        self._ended, self._prompts_done = state["ended"], state["prompts"]
        self.collector.stream.load_state_dict(state["stream"])
        self.control.kl_coefficient = state["kl_coefficient"]
        self.collector.engine.version = state["engine"]
        self.rollout = None


def _reasons(rollout: Rollout) -> str:
    """Why nothing of a rollout is trained on, the most frequent reason first."""
    counts: dict[str, int] = {}
    for response in rollout.responses:
        if response.dropped is not None:
            counts[response.dropped] = counts.get(response.dropped, 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return "; ".join(f"{reason} ({count})" for reason, count in ordered) or "no prompt"
