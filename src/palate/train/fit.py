"""From a job to trained weights: the loop is built, resumed where it can be, and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from palate.errors import RunError
from palate.models.config_names import save_tokenizer
from palate.recipes.reward import RewardRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import SftRecipe, TuneRecipe
from palate.store.files import read_json
from palate.store.folder import RunFolder
from palate.store.folders import whole_folder
from palate.train import checkpoint, distributed
from palate.train.callbacks import Callback, Display, EarlyStop, RunLog
from palate.train.foresight import StepMeter, kept
from palate.train.loop import Job, Loop


def fit(
    job: Job,
    recipe: TuneRecipe | SftRecipe | RewardRecipe | RlRecipe,
    console: Console,
    *,
    watching: Sequence[Callback] = (),
) -> Loop:
    """Trains the job to its end, from its last checkpoint where there is one.

    Args:
        watching: further callbacks, called before the log is shown.

    Raises:
        RunError: the checkpoint does not fit, a write failed, or the loss is not finite.
    """
    last = _last_checkpoint(job.folder)
    if last is not None:
        check_identity(last, job.identity)
    run_log = RunLog(job.folder)
    callbacks: list[Callback] = [*watching, run_log, Display(run_log, console)]
    if not isinstance(recipe, RlRecipe):
        callbacks.append(StepMeter(kept(recipe)))
        if recipe.train.early_stop_patience is not None:
            callbacks = [EarlyStop(recipe.train.early_stop_patience), *callbacks]
    loop = Loop(job, recipe.train, seed=recipe.seed, callbacks=callbacks)
    job.folder.cut_metrics(0 if last is None else _step(last))
    console.print(_opening(job, recipe, last), highlight=False, soft_wrap=True)
    if last is not None and read_json(last / "run.json")["done"]:
        # Killed between the last checkpoint and the end of the run: nothing is left to train.
        checkpoint.load_weights(loop, last)
        loop.step = _step(last)
    else:
        loop.run(last)
    job.folder.step = loop.step
    return loop


def _last_checkpoint(folder: RunFolder) -> Path | None:
    """The checkpoint to go on from, which the main process looks for, and every process gets."""
    answer: list[Any] = [None, None]
    if folder.writes:
        try:
            answer[0] = checkpoint.newest_intact(folder.checkpoints)
        except RunError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    path: Path | None = answer[0]
    fault: str | None = answer[1]
    if fault is not None:
        raise RunError(fault)
    return path


def save_final_model(loop: Loop, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes `model/`, whole or not at all."""
    job = loop.job
    tensors = distributed.gathered_weights(job.model)
    if loop.accelerator.is_main_process:
        with whole_folder(job.folder.model) as folder:
            distributed.save_model(job.model, folder, tensors)
            save_tokenizer(tokenizer, folder)
            if job.model.pictures is not None:
                job.model.pictures.processor.save(folder, tokenizer)
    loop.accelerator.wait_for_everyone()


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


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _opening(
    job: Job, recipe: TuneRecipe | SftRecipe | RewardRecipe | RlRecipe, last: Path | None
) -> str:
    start = "" if last is None else f", from step {_step(last)}"
    if isinstance(recipe, RlRecipe):
        rollout = recipe.rollout
        return (
            f"learning from {job.source.n_items} prompts, {job.source.total} steps; a rollout is "
            f"{rollout.num_generations} responses to each of {rollout.batch_size_prompts}{start}; "
            f"{job.model.n_trainable:,} trained weights, {job.layout} layout"
        )
    batch_size = recipe.train.batch_size_pairs
    items = {"pair": "pairs", "rated": "lists"}.get(job.objective.kind, "examples")
    return (
        f"training on {job.source.n_items} {items} ({len(job.eval)} held out), "
        f"{job.source.total} steps of {batch_size}{start}; {job.model.n_trainable:,} trained "
        f"weights, {job.layout} layout"
    )
