"""The training loop: transformers' `Trainer` with our batches, losses, means and checkpoints.

What the base class keeps doing: the order of forward, backward, clipping and optimizer step, device
placement, DDP and FSDP, callbacks and logging integrations. What is ours, below: which items make a
step, the loss and its one global denominator, exact means in the log, evaluation, and checkpoints
without pickle that can be interrupted at any moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from palate.data.items import Item
from palate.data.layouts import Layout
from palate.errors import RunError
from palate.io import read_json, write_json
from palate.losses import LossOutput
from palate.models.model import Model
from palate.models.reference import Reference
from palate.recipes.schema import ModelRecipe
from palate.train import checkpoint, weights
from palate.train.batches import BatchPlan, Collate, Micro, eval_batches, train_loader
from palate.train.folder import RunFolder
from palate.train.meter import Meter, Sum
from palate.train.objective import Counts, Objective, counts, mismatched_log_ratios
from palate.train.optimizer import build_optimizer, schedule


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a micro-batch must know of its whole optimizer step.

    Attributes:
        counts: denominators, over all micro-batches and processes.
        baseline: mean log-ratio of the step's mismatched sequences (KTO), else None.
    """

    counts: Counts
    baseline: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained on what.

    Attributes:
        model: recipe of the policy.
        collate: lays out items in `layout`, padded with `pad_id`.
        identity: what must be equal for a checkpoint to be continued.
    """

    policy: Model
    model: ModelRecipe
    objective: Objective
    reference: Reference | None
    train: Sequence[Item]
    eval: Sequence[Item]
    collate: Collate
    layout: Layout
    pad_id: int
    plan: BatchPlan
    eval_plan: BatchPlan
    folder: RunFolder
    identity: dict[str, Any]


class PalateTrainer(Trainer):
    """Trains the policy of a job; `run` does it all.

    Args:
        job: what to train.
        args: transformers' arguments, made by `palate.train.arguments`.
        optimizer: name and precision. scheduler: kind and warm-up steps.
    """

    # The loss is divided by the counts of the whole step already.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        job: Job,
        args: TrainingArguments,
        *,
        optimizer: dict[str, Any],
        scheduler: dict[str, Any],
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.job = job
        self.meter = Meter()
        self.items_seen = 0
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._clock = time.monotonic()
        super().__init__(
            model=job.policy,
            args=args,
            train_dataset=job.train,  # only its length is used
            eval_dataset=job.eval or None,
            callbacks=list(callbacks),
        )
        self.model_accepts_loss_kwargs = True

    # Steps ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return train_loader(
            self.job.train, self.job.plan, self.job.collate, seed=int(self.args.seed)
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            own = model or self.job.policy
            named = [(n, p) for n, p in own.named_parameters() if p.requires_grad]
            decays = set(self.get_decay_parameter_names(own))
            groups = [
                {"params": [p for n, p in named if n in decays], "weight_decay": w}
                if inside
                else {"params": [p for n, p in named if n not in decays], "weight_decay": w}
                for inside, w in ((True, float(self.args.weight_decay)), (False, 0.0))
            ]
            self.optimizer = build_optimizer([g for g in groups if g["params"]], **self._optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            factor = schedule(**self._scheduler, total=num_training_steps)
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(  # type: ignore[override] # the context goes where the count goes
        self, epoch_iterator: Iterator[Micro], num_batches: int, device: torch.device
    ) -> tuple[list[Micro], StepContext]:
        """The micro-batches of one optimizer step, and what they share."""
        micros, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # One process's share of a step counts once, however it is cut.
        self.meter.merge([{"loss": Sum(0.0, 1.0 / self.args.world_size)}])
        return micros, self._context(micros)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def _context(self, micros: Sequence[Micro]) -> StepContext:
        baseline = None
        if self.job.objective.needs_baseline:
            baseline = self._baseline(micros)
        return StepContext(counts=self._counts(micros), baseline=baseline)

    def _counts(self, micros: Sequence[Micro]) -> Counts:
        found: Counts = {"pair": 0.0, "sequence": 0.0, "chosen_token": 0.0}
        for micro in micros:
            if micro.counted:
                for per, n in counts(micro.batch).items():
                    found[per] += n
        total = self._total(torch.tensor(list(found.values()), dtype=torch.float64))
        return dict(zip(found, total.tolist(), strict=True))

    def _baseline(self, micros: Iterable[Micro]) -> Tensor:
        """Mean log-ratio of the mismatched sequences of a step, of the weights before it."""
        assert self.job.reference is not None
        assert self.model is not None
        total, n = 0.0, 0
        with _evaluating(self.model):
            for micro in micros:
                batch = micro.batch.to(self.args.device)
                ratio, rows = mismatched_log_ratios(self.model, batch, self.job.reference)
                if micro.counted:
                    total, n = total + ratio, n + rows
        both = self._total(torch.tensor([total, n], dtype=torch.float64))
        return (both[0] / both[1].clamp(min=1)).float().to(self.args.device)

    def _total(self, values: Tensor) -> Tensor:
        """Sum over processes, on the CPU."""
        if self.args.world_size == 1:
            return values
        rows = gather_object([values.tolist()])
        return torch.tensor(rows, dtype=torch.float64).sum(0)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's part of the step's loss.

        It is multiplied by the number of processes because gradients are then averaged over them.
        """
        micro, context = inputs, num_items_in_batch
        output = self._forward(model, micro, context.baseline, self.meter)
        loss = output.value(context.counts)
        if micro.counted:
            self.meter.merge([{"loss": Sum(float(loss.detach()), 0.0)}])
            if len(output.terms) > 1:
                self.meter.add(_terms(output, micro))
        loss = loss * (self.args.world_size if micro.counted else 0)
        return (loss, output) if return_outputs else loss

    def _forward(
        self, model: nn.Module, micro: Micro, baseline: Tensor | None, meter: Meter
    ) -> LossOutput:
        output, statistics = self.job.objective.step(
            model, micro.batch, self.job.reference, baseline=baseline
        )
        if micro.counted:
            meter.add(statistics)
            meter.merge([{"items": Sum(micro.items, 0.0), "tokens": Sum(micro.tokens, 0.0)}])
        return output

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # only counts models that take `input_ids` themselves

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        weights.gather_on_use(self.job.policy)
        return prepared

    # Log --------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line of the log: exact means since the last one, over all processes."""
        if "loss" in logs:
            meter, self.meter = self._gathered(self.meter), Meter()
            logs = {k: logs[k] for k in ("learning_rate", "grad_norm") if k in logs}
            logs = {"loss": 0.0} | logs | self._rates(meter) | meter.means()
        elif not any(key.startswith("eval_") for key in logs):
            return
        self._refuse_unbounded(logs)
        super().log(logs, start_time)
        self.state.log_history.clear()

    def _refuse_unbounded(self, numbers: Mapping[str, float]) -> None:
        """Ends the run at a number that is none: what follows would be of no use, nor readable."""
        for name, value in numbers.items():
            if not math.isfinite(value):
                what = "the loss" if name == "loss" else name
                raise RunError(
                    f"step {self.state.global_step}: {what} is not finite; lower "
                    "train.learning_rate, or look at the last lines of metrics.jsonl"
                )

    def _rates(self, meter: Meter) -> dict[str, float]:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        items, tokens = (meter.sums.pop(k, Sum(0.0, 0.0)).total for k in ("items", "tokens"))
        self.items_seen += int(items)
        return {
            "examples": self.items_seen,
            "pairs_per_second": items / max(seconds, 1e-9),
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }

    def _gathered(self, meter: Meter) -> Meter:
        if self.args.world_size == 1:
            return meter
        total = Meter()
        total.merge(
            {name: Sum(*values) for name, values in state.items()}
            for state in gather_object([meter.state()])
        )
        return total

    # Evaluation -------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Means over all held-out items, whatever the batches; no gradients, no random numbers."""
        started = time.monotonic()
        logs = {f"eval_{k}": v for k, v in self._evaluation().items()}
        # Time spent here is not training time.
        self._clock += time.monotonic() - started
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    @torch.no_grad()
    def _evaluation(self) -> dict[str, float]:
        job, meter = self.job, Meter()
        assert self.model is not None
        baseline = None
        if job.objective.needs_baseline:
            baseline = self._baseline(eval_batches(job.eval, job.eval_plan, job.collate))
        with _evaluating(self.model):
            for micro in eval_batches(job.eval, job.eval_plan, job.collate):
                own = micro.to(self.args.device)
                output = self._forward(self.model, own, baseline, meter)
                if own.counted:
                    meter.add(_terms(output, own))
        means = self._gathered(meter).means()
        terms = [name for name in means if name.startswith("loss/")]
        means["loss"] = sum(means[name] for name in terms)
        if len(terms) == 1:
            means.pop(terms[0])
        return means

    # Checkpoints ------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a whole checkpoint, or nothing."""
        folder = self.job.folder
        final = checkpoint.checkpoint_path(folder.checkpoints, self.state.global_step)
        randoms = gather_object([checkpoint.random_state()])
        meter = self._gathered(self.meter)
        self._refuse_unbounded(meter.means())
        tensors = weights.gathered_weights(self.job.policy)
        optimizer = weights.gathered_optimizer(self, self.job.policy)
        if self.args.should_save:
            known: Any = self.state.stateful_callbacks
            for callback in (*self.callback_handler.callbacks, self.control):
                name = type(callback).__name__
                if name in known:
                    known[name] = callback.state()
            with checkpoint.whole_folder(final) as temporary:
                weights.save_policy(self.job.policy, temporary / "model", tensors, complete=False)
                trainer = temporary / checkpoint.TRAINER
                checkpoint.save_optimizer(optimizer, trainer)
                checkpoint.save_random(randoms, trainer)
                assert self.lr_scheduler is not None
                scheduler = self.lr_scheduler.state_dict()
                scheduler = {k: v for k, v in scheduler.items() if k != "lr_lambdas"}
                write_json(trainer / "scheduler.json", scheduler)
                self.state.save_to_json(str(temporary / "trainer_state.json"))
                run = {
                    "identity": self.job.identity,
                    "meter": meter.state(),
                    "items_seen": self.items_seen,
                    "done": self.control.should_training_stop
                    or self.state.global_step >= self.state.max_steps,
                }
                write_json(temporary / "run.json", run)
            checkpoint.rotate(folder.checkpoints, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint) / "model"
        weights.load_weights(self.job.policy, folder, self.job.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._load_training_state(Path(checkpoint))

    def _load_training_state(self, folder: Path) -> None:
        trainer = folder / checkpoint.TRAINER
        weights.load_optimizer(self, self.job.policy, checkpoint.load_optimizer(trainer))
        stored = read_json(trainer / "scheduler.json")
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(stored | {"lr_lambdas": [None]})
        run = read_json(folder / "run.json")
        self.items_seen = run["items_seen"]
        if self.args.process_index == 0:
            self.meter.load(run["meter"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._load_random(Path(checkpoint))

    def _load_random(self, folder: Path) -> None:
        rank = int(self.args.process_index)
        checkpoint.set_random_state(checkpoint.load_random(folder / checkpoint.TRAINER, rank))


def _terms(output: LossOutput, micro: Micro) -> dict[str, tuple[Tensor, float]]:
    """Each term's sum over the micro-batch, and its own count there."""
    own = counts(micro.batch)
    return {f"loss/{t.name}": (t.losses.detach().double().sum(), own[t.per]) for t in output.terms}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
