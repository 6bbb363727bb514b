"""The training loop of every verb: steps in, weights out, blind to what is optimised.

    for each step of the source:
        prepare what its micro-batches share, and count what each sum is divided by
        for each micro-batch: reference, one forward pass, loss, backward
        clip, optimizer step, schedule
        log, evaluate, save, each at its own interval

A step's loss has one global denominator a term, so that neither accumulation nor the number of
processes changes it. Everything that a run needs to go on bit-equal is in its checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import set_seed

from palate.data.items import Item
from palate.data.layouts import Layout
from palate.errors import RunError
from palate.losses import LossOutput
from palate.models.model import Model, Outputs
from palate.models.reference import LiveReference, Reference
from palate.models.vision_parts import learning_rates
from palate.recipes.schema import LoopRecipe, ModelRecipe
from palate.store.folder import RunFolder
from palate.train import checkpoint, distributed
from palate.train.callbacks import Callback, Split
from palate.train.memory import DeviceMemory
from palate.train.meter import Meter, Sum
from palate.train.objectives.base import Counts, Objective
from palate.train.optimizer import build_optimizer, parameter_groups, schedule, warmup_steps
from palate.train.sources.base import MicroBatch, StepSource
from palate.train.sources.offline import BatchPlan, Collate, eval_batches


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained on what.

    Attributes:
        model_recipe: of the model, for loading its checkpoints.
        source: of the steps.
        eval: held-out items; `collate` lays them out in `layout`, padded with `pad_id`.
        folder: where the run is written.
        measure: held-out figures of something else than items, responses to prompts for one.
        identity: what must be equal for a checkpoint to be continued.
        rates: of weights that have learning rates of their own.
    """

    model: Model
    model_recipe: ModelRecipe
    objective: Objective
    reference: Reference | None
    source: StepSource
    eval: Sequence[Item]
    collate: Collate
    layout: Layout
    pad_id: int
    eval_plan: BatchPlan
    folder: RunFolder
    identity: dict[str, Any]
    measure: Callable[[], dict[str, float]] | None = None
    rates: Mapping[nn.Parameter, float] = field(default_factory=dict)


class Loop:
    """Trains the model of a job; `run` does it all.

    Args:
        seed: of dropout.

    Attributes:
        step: optimizer steps made. total: of the whole run.
        should_stop: a callback sets it to end the run after a checkpoint.
    """

    def __init__(
        self, job: Job, recipe: LoopRecipe, *, seed: int, callbacks: Sequence[Callback] = ()
    ) -> None:
        set_seed(seed)
        self.job = job
        self.recipe = recipe
        self.callbacks = list(callbacks)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no",
            log_with=list(recipe.report_to) or None,
            project_dir=str(job.folder.path),
        )
        self.model: nn.Module = distributed.wrap(job.model, self.accelerator)
        self.optimizer = build_optimizer(
            parameter_groups(
                job.model,
                weight_decay=recipe.weight_decay,
                rates={**job.rates, **learning_rates(job.model.base, job.model_recipe)},
            ),
            name=recipe.optimizer,
            learning_rate=recipe.learning_rate,
            precision=recipe.optimizer_precision,
        )
        self._clipped = _clipped_together(job.model)
        self.total = job.source.total
        factor = schedule(
            recipe.scheduler, warmup=warmup_steps(recipe, self.total), total=self.total
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        reference = job.reference
        # A reference of other weights has a tower of its own; a sharded one runs inside the model.
        self._shares_images = (
            isinstance(reference, LiveReference)
            and reference.identity["path"] is None
            and not distributed.is_sharded(job.model)
        )
        self.step = 0
        self.should_stop = False
        self.meter = Meter()
        self._host_group = distributed.host_group(self.world_size)
        self.memory = DeviceMemory(
            job.objective.kind,
            by_tokens=recipe.micro_batch_tokens is not None,
            checkpointing=recipe.gradient_checkpointing,
        )
        self.items_seen = 0
        self._clock = time.monotonic()

    @property
    def epoch(self) -> float:
        return self.job.source.epoch

    @property
    def world_size(self) -> int:
        return int(self.accelerator.num_processes)

    # The run ------------------------------------------------------------------------------------

    def run(self, last: Path | None = None) -> None:
        """Trains to the end.

        Args:
            last: checkpoint to go on from.

        Raises:
            RunError: a checkpoint that cannot be read or written, a loss that is not finite, or a
                micro-batch that the device's memory does not hold.
        """
        if last is not None:
            checkpoint.load(self, last)
        trackers = bool(self.recipe.report_to)
        if trackers:
            self.accelerator.init_trackers(self.job.folder.path.name)
        self._tell("on_start")
        self._clock = time.monotonic()
        try:
            for micro_batches in self.job.source:
                self.train_step(micro_batches)
                self._tell("on_step")
                self._after_step()
                if self.should_stop:
                    break
        finally:
            self._tell("on_end")
            if trackers:
                self.accelerator.end_training()

    def _after_step(self) -> None:
        recipe, is_last = self.recipe, self.step == self.total
        if self.step % recipe.log_every_steps == 0:
            self._log()
        is_due = is_last or self.step % (recipe.eval_every_steps or self.total) == 0
        if (self.job.eval or self.job.measure is not None) and is_due:
            self.evaluate()
        is_due = recipe.save_every_steps is not None and self.step % recipe.save_every_steps == 0
        if is_due or is_last or self.should_stop:
            checkpoint.save(self)
            self._tell("on_save")

    # A step -------------------------------------------------------------------------------------

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> None:
        """One optimizer step, on this process's share of it."""
        self.model.train()
        # Counted on the host: from here on nothing waits for the device but a line of the log.
        counts_of = [self.job.objective.counts(micro.batch) for micro in micro_batches]
        micro_batches = [micro.to(self.accelerator.device) for micro in micro_batches]
        with self.memory.holds(max(micro_batches, key=_longest), "train", self.step + 1):
            state = self.job.objective.prepare(
                micro_batches, self.model, self.job.reference, self.reduce
            )
        counts = self._counts(micro_batches, counts_of)
        for i, micro in enumerate(micro_batches):
            # Gradients are averaged over processes once a step.
            is_last = i == len(micro_batches) - 1
            sync = nullcontext() if is_last else distributed.no_sync(self.model)
            with sync, self.memory.holds(micro, "train", self.step + 1):
                output = self._forward(micro, state, self.meter)
                loss = output.value(counts)
                if micro.counted:
                    self.meter.add({"loss": (loss.detach(), 0.0)})
                    if len(output.terms) > 1:
                        self.meter.add(_terms(output, counts_of[i]))
                # They are averaged, and losses are to be added up.
                self.accelerator.backward(loss * (self.world_size if micro.counted else 0))
            self.memory.fitted(micro, "train")
        for parameter in self.job.source.held():
            # Without a gradient no optimizer moves it: of zeros one would still decay weights.
            parameter.grad = None
        norms: dict[str, Tensor | float] = {
            name: distributed.clip_gradients(parameters, self.recipe.max_grad_norm)
            for name, parameters in self._clipped.items()
        }
        # One process's share of a step counts once, however it is cut.
        self.meter.merge([{"loss": Sum(0.0, 1.0 / self.world_size)}])
        rate = float(self.scheduler.get_last_lr()[0])
        self.meter.last = {"learning_rate": rate, **norms}
        with self.memory.holds_optimizer(self.step + 1):
            self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.meter.add(self.job.source.after_step())

    def _forward(self, micro: MicroBatch, state: Any, meter: Meter) -> LossOutput:
        """Loss of a micro-batch; its statistics go to the meter."""
        objective, batch = self.job.objective, micro.batch
        ask = objective.ask()
        given = None
        if objective.needs_reference:
            assert self.job.reference is not None
            if self._shares_images:
                batch = self.job.model.with_features(batch)
            given = self.job.reference.inputs(batch, kl=ask.needs_kl)
        outputs: Outputs = self.model(batch, ask, reference=given)
        output = objective.loss(outputs, batch, state)
        if micro.counted:
            with torch.no_grad():
                meter.add(objective.statistics(outputs, output, batch))
            meter.merge([{"items": Sum(micro.items, 0.0), "tokens": Sum(micro.tokens, 0.0)}])
        return output

    def _counts(self, micro_batches: Iterable[MicroBatch], counts_of: Iterable[Counts]) -> Counts:
        """Denominators of a step, over all micro-batches and processes.

        Args:
            counts_of: each micro-batch.
        """
        counts: Counts = {}
        for micro, each in zip(micro_batches, counts_of, strict=True):
            for per, n in each.items():
                counts[per] = counts.get(per, 0.0) + (n if micro.counted else 0)
        total = self.reduce(torch.tensor(list(counts.values()), dtype=torch.float64))
        return dict(zip(counts, total.tolist(), strict=True))

    def reduce(self, values: Tensor) -> Tensor:
        """Sum over processes, on the CPU."""
        if self.world_size == 1:
            return values
        return distributed.host_sum(values, self._host_group)

    # Log and evaluation -------------------------------------------------------------------------

    def _log(self) -> None:
        """One line of the log: exact means since the last one, over all processes."""
        meter, self.meter = self.gathered(self.meter), Meter()
        rates = self._rates(meter)
        self._write("train", {"loss": 0.0} | meter.last | rates | meter.means())

    def evaluate(self) -> dict[str, float]:
        """Means over all held-out items, whatever the batches; no gradients, no random numbers."""
        started = time.monotonic()
        measure = self.job.measure
        means = self.evaluation() if measure is None else measure()
        # Time spent here is not training time.
        self._clock += time.monotonic() - started
        self._write("eval", means)
        return means

    @torch.no_grad()
    def evaluation(self) -> dict[str, float]:
        """As `evaluate`, without a line in the log."""
        meter = Meter()
        self.model.eval()
        state = self.job.objective.prepare(
            (micro for micro, _ in self._held_out()), self.model, self.job.reference, self.reduce
        )
        for micro, counts in self._held_out():
            with self.memory.holds(micro, "eval", self.step):
                output = self._forward(micro, state, meter)
            self.memory.fitted(micro, "eval")
            if micro.counted:
                meter.add(_terms(output, counts))
        distributed.reshard(self.model)
        means = self.gathered(meter).means()
        terms = [name for name in means if name.startswith("loss/")]
        means["loss"] = sum(means[name] for name in terms)
        if len(terms) == 1:
            means.pop(terms[0])
        return means

    def _held_out(self) -> Iterator[tuple[MicroBatch, Counts]]:
        """On the device, with their counts."""
        job = self.job
        for micro in eval_batches(job.eval, job.eval_plan, job.collate):
            yield micro.to(self.accelerator.device), job.objective.counts(micro.batch)

    def _write(self, split: Split, values: Mapping[str, float]) -> None:
        self.refuse_unbounded(values, "" if split == "train" else "eval_")
        for callback in self.callbacks:
            callback.on_log(self, split, values)
        if self.recipe.report_to:
            self.accelerator.log({f"{split}/{k}": v for k, v in values.items()}, step=self.step)

    def refuse_unbounded(self, values: Mapping[str, float], prefix: str = "") -> None:
        """Ends the run at infinity or NaN: what follows would be of no use, nor JSON."""
        for name, value in values.items():
            if not math.isfinite(value):
                what = "the loss" if prefix + name == "loss" else prefix + name
                raise RunError(
                    f"step {self.step}: {what} is not finite; lower train.learning_rate, or look "
                    "at the last lines of metrics.jsonl"
                )

    def _rates(self, meter: Meter) -> dict[str, float]:
        # Read first: then all steps are done, on accelerators too.
        items, tokens = (meter.sums.pop(k, Sum(0.0, 0.0)).total for k in ("items", "tokens"))
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        self.items_seen += int(items)
        rollouts = self.job.objective.kind == "rollout"
        seen, speed = ("responses", "responses") if rollouts else ("examples", "pairs")
        return {
            seen: self.items_seen,
            f"{speed}_per_second": items / max(seconds, 1e-9),
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }

    def gathered(self, meter: Meter) -> Meter:
        """The meter over all processes."""
        if self.world_size == 1:
            return meter
        total = Meter()
        total.last = meter.last
        total.merge(
            {name: Sum(*values) for name, values in state.items()}
            for state in gather_object([meter.state()])
        )
        return total

    def _tell(self, hook: str) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self)


def _clipped_together(model: Model) -> dict[str, list[nn.Parameter]]:
    """The trained weights of each trunk with those of its heads, by the name of their norm: what
    one model learns does not shorten another's steps."""
    main = next(iter(model.trunks))
    trunks = {f"trunks.{name}.": name for name in model.trunks}
    trunks |= {f"heads.{name}.": str(head.trunk) for name, head in model.heads.items()}
    groups: dict[str, list[nn.Parameter]] = {"grad_norm": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trunk = trunks[".".join(name.split(".")[:2]) + "."]
            norm = "grad_norm" if trunk == main else f"grad_norm/{trunk}"
            groups.setdefault(norm, []).append(parameter)
    return groups


def _terms(output: LossOutput, counts: Counts) -> dict[str, tuple[Tensor, float]]:
    """Each term's sum over a micro-batch, and its own count there."""
    terms = output.terms
    return {f"loss/{t.name}": (t.losses.detach().double().sum(), counts[t.per]) for t in terms}


def _longest(micro: MicroBatch) -> int:
    return micro.longest
