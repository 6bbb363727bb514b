"""`tune` and `sft`: from a recipe to a finished run folder, and the frame of every such run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from palate.data.build import Dataset, build
from palate.data.encode import Encoder
from palate.data.items import Item, items_digest
from palate.data.layouts import Layout
from palate.errors import RecipeError
from palate.memory import kept_memory
from palate.models.cache import CachedReference
from palate.models.limits import padding_id
from palate.models.loading import load_policy, load_tokenizer, weights_digest
from palate.models.model import Model
from palate.models.pictures import IMAGES, Pictures, open_pictures
from palate.models.reference import Reference, build_reference
from palate.models.stop_tokens import add_stop_tokens
from palate.models.verdicts import kept_start_check
from palate.recipes.images import ImagesRecipe
from palate.recipes.losses import Loss
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import ReferenceRecipe, SftRecipe, TuneRecipe, VisionRecipe
from palate.store.folder import RunFolder
from palate.store.folders import lock_folder
from palate.store.lineage import lineage, model_entry, tokenizer_digest
from palate.store.records import Data, Evaluation
from palate.train.distributed import is_sharded
from palate.train.fit import fit, save_final_model
from palate.train.image_features import Passes, keep_image_features
from palate.train.launch import batch_plan, check_launch, check_trackers, eval_plan, total_steps
from palate.train.loop import Job, Loop
from palate.train.objectives import Objective, PreferenceObjective, objective_of
from palate.train.preflight import (
    check_extra_metrics,
    check_fits,
    check_start,
    choose_layout,
    save_memory,
)
from palate.train.sources.offline import Collate, OfflineSource
from palate.train.summary import closing_lines, held_out, last_metrics

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        path: run folder.
        metrics: last line of the training log; the last evaluation's with `eval_` before each
            name; `preference/accuracy` on all held-out pairs where measured.
    """

    path: Path
    metrics: dict[str, float]


def tune(recipe: TuneRecipe, *, quiet: bool = False) -> RunResult:
    """Trains a policy on preferences and fills `recipe.output_dir`.

    Under `accelerate launch` every process calls it; the main one writes.

    Args:
        quiet: no progress and no closing lines.

    Raises:
        RecipeError: an option that the chosen path does not use.
        RunError: a folder in use, a resume that does not fit, a write that failed.
        DataError, ModelError: unreadable input.
    """
    return PolicyRun(recipe, recipe.loss, quiet=quiet).execute()


def sft(recipe: SftRecipe, *, quiet: bool = False) -> RunResult:
    """Supervised fine-tuning on demonstrations or chosen responses; otherwise as `tune`."""
    return PolicyRun(recipe, None, quiet=quiet).execute()


def fill_reference_cache(recipe: TuneRecipe) -> int:
    """Completes the reference cache of a run, which then finds it; writes nothing else.

    Returns:
        How many sequences the run will ask about.

    Raises:
        RecipeError: the run has no cache. DataError, ModelError: as `tune`.
    """
    if recipe.reference is None or recipe.reference.kind != "cache":
        raise RecipeError("reference.kind: is not `cache`: there is none to fill")
    with kept_memory():
        run = PolicyRun(recipe, recipe.loss, quiet=True)
        start = run.start(RunFolder(recipe, writes=False))
    return sum(len(item.all_sequences) for item in (*start.data.train, *start.data.eval))


@dataclass(frozen=True)
class Start:
    """A run before its first step.

    Attributes:
        data: as it was read, whose training items the job's source hands out.
    """

    job: Job
    encoder: Encoder
    data: Dataset


class TrainingRun(ABC):
    """One run of a training verb, from an empty folder to a report; every process goes through it.

    What is trained, and how, is in `fill`.
    """

    recipe: TuneRecipe | SftRecipe | RewardRecipe
    verb: str

    def __init__(self, recipe: TuneRecipe | SftRecipe | RewardRecipe, *, quiet: bool) -> None:
        self.recipe = recipe
        self.state = PartialState(cpu=not torch.accelerator.is_available())
        self.rank, self.world = self.state.process_index, self.state.num_processes
        self.main = self.state.is_main_process
        self.console = Console(stderr=True, quiet=quiet or not self.main)
        self.plan = batch_plan(recipe.train, rank=self.rank, world_size=self.world)
        check_launch(recipe)
        check_trackers(recipe.train.report_to)

    def execute(self) -> RunResult:
        folder = RunFolder(self.recipe, writes=self.main)
        # The main process must not write before the others have looked.
        self.state.wait_for_everyone()
        if folder.finished:
            self.console.print(
                f"{folder.path}: this run is finished already", highlight=False, soft_wrap=True
            )
        else:
            # One process of a run holds the folder for all of them.
            alone = lock_folder(folder.path) if self.main else nullcontext()
            with alone, folder.running(), _without_bars(), kept_memory():
                self.fill(folder)
            self._report(folder)
        return RunResult(path=folder.path, metrics=last_metrics(folder.path))

    def pictures(self, model: Model, tokenizer: Any) -> Pictures | None:
        """What reads the images of its data; None for a model of text alone."""
        store = self.recipe.output_dir.parent / IMAGES
        return open_pictures(model, self.recipe.model, tokenizer, store, ImagesRecipe())

    def keep_image_features(self, model: Model, data: Dataset, layout: Layout) -> None:
        """Computes what a frozen tower makes of the run's images, where that pays."""
        recipe, n = self.recipe, len(data.train)
        steps = total_steps(recipe.train, self.plan, n)
        every = recipe.train.eval_every_steps
        reference = getattr(recipe, "reference", None)
        keep_image_features(
            model,
            recipe.model.vision or VisionRecipe(),
            items=self.prepared(model, data, layout),
            train=data.train,
            held_out=data.eval,
            passes=Passes(
                train=steps * recipe.train.batch_size_pairs / n,
                # Held-out items are measured once more when the run has ended.
                eval=1 + (steps // every if every else 0),
                other_tower=reference is not None and reference.path is not None,
            ),
            beside=recipe.output_dir.parent,
            state=self.state,
            progress=self._image_progress if self.main else None,
        )

    def _image_progress(self, done: int, total: int) -> None:
        if done == total or not done % 64:
            self.console.print(f"image features: {done}/{total}", highlight=False, soft_wrap=True)

    def share_blank(self, model: Model) -> None:
        """Lets processes whose rows have no image run a trained tower as often as the others."""
        pictures = model.pictures
        if pictures is not None and self.world > 1 and model.backbone.vision_trained:
            (image,) = pictures.example((), ()).images
            model.backbone.blank = pictures.pixels(image.digest)

    def source(self, items: Sequence[Item], collate: Collate) -> OfflineSource:
        """The steps of the run over its training items."""
        return OfflineSource(
            items,
            self.plan,
            collate,
            seed=self.recipe.seed,
            total=total_steps(self.recipe.train, self.plan, len(items)),
            workers=self.recipe.train.data_workers,
        )

    def job(
        self,
        folder: RunFolder,
        encoder: Encoder,
        model: Model,
        objective: Objective,
        data: Dataset,
        *,
        digest: str,
        layout: Layout,
        note: dict[str, Any],
        pad_id: int,
        collated: Collate,
        reference: Reference | None = None,
    ) -> Job:
        """What the loop is given; lineage.json is written of the same.

        Args:
            digest: of the base weights. note: why `layout` is used. collated: lays items out.
        """
        recipe = self.recipe
        entry = None if reference is None else reference.identity
        tokenizer = {
            "digest": tokenizer_digest(encoder.tokens.tokenizer),
            "template": encoder.template_sha256,
            "template_date": encoder.template.date,
        }
        folder.write(
            lineage(
                verb=self.verb,
                base_model=model_entry(recipe.model, digest),
                tokenizer=tokenizer,
                sources=data.report["sources"],
                reference=entry,
                seed=recipe.seed,
                device=str(self.state.device),
                processes=self.world,
                layout=note,
            ),
        )
        identity = {
            "base weights": digest,
            "reference": entry,
            "training data": items_digest(data.train),
            "evaluation data": items_digest(data.eval),
            "layout": layout,
        }
        return Job(
            model=model,
            model_recipe=recipe.model,
            objective=objective,
            reference=reference,
            source=self.source(data.train, collated),
            eval=data.eval,
            collate=collated,
            layout=layout,
            pad_id=pad_id,
            eval_plan=eval_plan(recipe.train, rank=self.rank, world_size=self.world),
            folder=folder,
            identity=identity,
        )

    def prepared(self, model: Model, data: Dataset, layout: Layout) -> list[Item]:
        """The items that a reference or features may be computed of before the first step.

        Args:
            layout: of the run's batches.
        """
        return [*data.train, *data.eval]

    @abstractmethod
    def start(self, folder: RunFolder) -> Start:
        """Everything up to the first step, with what the folder then holds."""

    @abstractmethod
    def fill(self, folder: RunFolder) -> None:
        """Trains and fills the folder, all but the report."""

    def _report(self, folder: RunFolder) -> None:
        if self.main:
            from palate.report import write_report

            write_report([folder.path])
            for line in closing_lines(folder.path):
                self.console.print(line, highlight=False, soft_wrap=True)
        self.state.wait_for_everyone()


class PolicyRun(TrainingRun):
    """A policy on preferences or demonstrations.

    Args:
        loss: None for supervised fine-tuning.
    """

    recipe: TuneRecipe | SftRecipe

    def __init__(self, recipe: TuneRecipe | SftRecipe, loss: Loss | None, *, quiet: bool) -> None:
        super().__init__(recipe, quiet=quiet)
        self.loss = loss
        self.verb = "sft" if loss is None else "tune"
        if isinstance(recipe, TuneRecipe):
            check_extra_metrics(recipe)

    def fill(self, folder: RunFolder) -> None:
        start = self.start(folder)
        loop = fit(start.job, self.recipe, self.console)
        tokenizer = start.encoder.tokens.tokenizer
        tokenizer.chat_template = start.encoder.saved_template
        save_final_model(loop, tokenizer)
        self._measure(loop, start)

    def start(self, folder: RunFolder) -> Start:
        set_seed(self.recipe.seed)
        policy = load_policy(self.recipe.model, memory_mb=self.recipe.train.head_memory_mb)
        policy.to(self.state.device)
        digest = in_background(partial(weights_digest, policy.hf))
        tokenizer = load_tokenizer(self.recipe.model)
        pictures = self.pictures(policy, tokenizer)
        kept_start_check(policy, beside=self.recipe.output_dir)
        objective = self._objective()
        encoder = Encoder(
            tokenizer, self.recipe.model.chat_template, self.recipe.data.length, pictures
        )
        # One process reads first, so that a shared cache of converted files is written once.
        with self.state.main_process_first():
            data = build(self.recipe.data, encoder, kind=objective.kind, seed=self.recipe.seed)
        folder.write(Data.of(data.report))
        folder.write_quarantine(data.quarantine)
        check_fits(policy, self.recipe.model.path, [*data.train, *data.eval], encoder)
        _name_sources(objective, data)
        # What training teaches to end with, sampling and servers must stop at.
        chats = any(row.conversational for row in data.train_rows)
        add_stop_tokens(policy.base, encoder.stop_ids(chats=chats))
        policy.base_digest = digest.result()
        job = self._job(folder, encoder, policy, objective, data)
        if self.recipe.train.gradient_checkpointing:
            save_memory(policy)
        return Start(job, encoder, data)

    def _objective(self) -> Objective:
        recipe = self.recipe
        weights = recipe.token_weights if isinstance(recipe, TuneRecipe) else None
        return objective_of(self.loss, token_weights=weights, extra=recipe.train.extra_metrics)

    def _job(
        self,
        folder: RunFolder,
        encoder: Encoder,
        policy: Model,
        objective: Objective,
        data: Dataset,
    ) -> Job:
        recipe = self.recipe
        layout, note = choose_layout(
            recipe.train.layout,
            policy,
            items=[*data.train, *data.eval],
            beside=recipe.output_dir,
        )
        pad_id = padding_id(encoder.tokens.tokenizer, policy.base)
        self.keep_image_features(policy, data, layout)
        self.share_blank(policy)
        collated = policy.collator(layout, pad_id=pad_id)
        digest = policy.base_digest
        assert digest is not None
        reference = self._reference(objective, policy, data, layout, pad_id, digest)
        if reference is not None and reference.identity.get("path") is None:
            check_start(policy, reference, self.prepared(policy, data, layout)[0], collated)
        return self.job(
            folder,
            encoder,
            policy,
            objective,
            data,
            digest=digest,
            layout=layout,
            note=note,
            pad_id=pad_id,
            collated=collated,
            reference=reference,
        )

    def _reference(
        self,
        objective: Objective,
        policy: Model,
        data: Dataset,
        layout: Layout,
        pad_id: int,
        digest: str,
    ) -> Reference | None:
        if not objective.needs_reference:
            return None
        assert isinstance(self.recipe, TuneRecipe)
        recipe = self.recipe.reference or ReferenceRecipe()
        reference = build_reference(
            recipe,
            self.recipe.model,
            policy,
            kl=objective.ask().needs_kl,
            items=self.prepared(policy, data, layout),
            layout=layout,
            pad_id=pad_id,
            cache_root=self.recipe.output_dir.parent / "reference_cache",
            batch_size=self.recipe.train.eval_batch_size_pairs,
            digest=digest,
            progress=self._cache_progress if self.main else None,
            rank=self.rank,
            world_size=self.world,
        )
        if isinstance(reference, CachedReference):
            self.state.wait_for_everyone()
            reference.index()
        return reference

    def _cache_progress(self, done: int, total: int) -> None:
        if done == total or not done % 64:
            self.console.print(f"reference cache: {done}/{total}", highlight=False, soft_wrap=True)

    def _measure(self, loop: Loop, start: Start) -> None:
        job = loop.job
        if self.loss is None or job.objective.kind != "pair" or not job.eval:
            return
        document = held_out(
            job,
            loss=self.loss,
            token_weights=getattr(self.recipe, "token_weights", None),
            step=loop.step,
            batch_size=self.recipe.train.eval_batch_size_pairs,
            sharded=is_sharded(job.model),
            rows=start.data.eval_rows,
            encoder=start.encoder,
            seed=self.recipe.seed,
        )
        if document is not None:
            job.folder.write(Evaluation.of(document))


def in_background(task: Callable[[], T]) -> Future[T]:
    """Does something that waits for nothing, and that nothing waits for yet, in a thread."""
    return ThreadPoolExecutor(max_workers=1).submit(task)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hides transformers' progress bars, which would break up the line of progress."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _name_sources(objective: Objective, data: Dataset) -> None:
    """Logs accuracies by source where there are several sources."""
    sources: set[Any] = {item.source for item in (*data.train, *data.eval)}
    if isinstance(objective, PreferenceObjective):
        objective.by_source = len(sources) > 1
