"""From a job to trained weights: the trainer is built, resumed where it can be, and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerState

from palate.errors import RunError
from palate.io import read_json
from palate.models.config_names import save_tokenizer
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import SftRecipe, TuneRecipe
from palate.train import checkpoint, weights
from palate.train.arguments import total_steps, training_arguments, warmup_steps
from palate.train.callbacks import Display, EarlyStop, RunLog
from palate.train.trainer import Job, PalateTrainer


def fit(job: Job, recipe: TuneRecipe | SftRecipe | RewardRecipe, console: Console) -> PalateTrainer:
    """Trains the job to its end, from its last checkpoint where there is one.

    Raises:
        RunError: the checkpoint does not fit, a write failed, or the loss is not finite.
    """
    last = job.folder.last
    if last is not None:
        check_identity(last, job.identity)
    steps = total_steps(recipe.train, job.plan, len(job.train))
    run_log = RunLog(job.folder)
    display = Display(run_log, console)
    trainer = _trainer(job, recipe, steps, [run_log, display])
    job.folder.cut_metrics(0 if last is None else _step(last))
    console.print(_opening(job, steps, last), highlight=False, soft_wrap=True)
    if last is not None and read_json(last / "run.json")["done"]:
        # Killed between the last checkpoint and the end of the run: nothing is left to train.
        weights.load_weights(job.policy, last / "model", job.model)
        trainer.state = TrainerState.load_from_json(str(last / "trainer_state.json"))
    else:
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        finally:
            display.close()
    job.folder.step = trainer.state.global_step
    return trainer


def save_model(trainer: PalateTrainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes `model/`, whole or not at all."""
    job = trainer.job
    tensors = weights.gathered_weights(job.policy)
    if trainer.args.should_save:
        with checkpoint.whole_folder(job.folder.model) as folder:
            weights.save_policy(job.policy, folder, tensors)
            save_tokenizer(tokenizer, folder)
    trainer.accelerator.wait_for_everyone()


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Refuses a checkpoint of other weights, data or reference than this run's.

    Raises:
        RunError: naming what differs.
    """
    stored = read_json(folder / "run.json")["identity"]
    for name, value in identity.items():
        if stored.get(name) != value:
            raise RunError(
                f"{folder}: cannot go on from this checkpoint: the {name} changed since it was "
                "written"
            )


def _trainer(
    job: Job,
    recipe: TuneRecipe | SftRecipe | RewardRecipe,
    steps: int,
    callbacks: list[TrainerCallback],
) -> PalateTrainer:
    own = recipe.train
    arguments = training_arguments(
        own,
        job.plan,
        output_dir=job.folder.path,
        seed=recipe.seed,
        steps=steps,
        evaluates=bool(job.eval),
    )
    if own.early_stop_patience is not None:
        callbacks = [EarlyStop(early_stopping_patience=own.early_stop_patience), *callbacks]
    trainer = PalateTrainer(
        job,
        arguments,
        optimizer={
            "name": own.optimizer,
            "learning_rate": own.learning_rate,
            "precision": own.optimizer_precision,
        },
        scheduler={"kind": own.scheduler, "warmup": warmup_steps(own, steps)},
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _opening(job: Job, steps: int, last: Path | None) -> str:
    items = {"pair": "pairs", "ranking": "lists"}.get(job.objective.kind, "examples")
    start = "" if last is None else f", from step {_step(last)}"
    return (
        f"training on {len(job.train)} {items} ({len(job.eval)} held out), {steps} steps of "
        f"{job.plan.batch_size}{start}; {job.policy.n_trainable:,} trained weights, "
        f"{job.layout} layout"
    )
