"""The frame of every training run: from an empty run folder to a report, whatever is trained."""

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

from palate.data.build import Dataset
from palate.data.encode import Encoder
from palate.data.items import Item, items_digest
from palate.data.layouts import Layout
from palate.memory import kept_memory
from palate.models.loading import load_policy, load_tokenizer, weights_digest
from palate.models.model import Model
from palate.models.pictures import IMAGES, Pictures, open_pictures
from palate.models.reference import Reference
from palate.models.verdicts import kept_start_check
from palate.recipes.images import ImagesRecipe
from palate.recipes.reward import RewardRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import SftRecipe, TuneRecipe, VisionRecipe
from palate.store.folder import RunFolder
from palate.store.folders import lock_folder
from palate.store.lineage import lineage, model_entry, tokenizer_digest
from palate.train.image_features import Passes, keep_image_features
from palate.train.launch import batch_plan, check_launch, check_trackers, eval_plan, total_steps
from palate.train.loop import Job
from palate.train.objectives import Objective
from palate.train.sources.offline import Collate, OfflineSource
from palate.train.summary import closing_lines, last_metrics

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


@dataclass(frozen=True)
class Start:
    """A run before its first step.

    Attributes:
        data: as it was read, whose training items the job's source hands out.
    """

    job: Job
    encoder: Encoder
    data: Dataset


class Frame(ABC):
    """A run of a training verb, from an empty folder to a report; every process goes through it.

    What is trained, and how, is in `fill`.
    """

    recipe: TuneRecipe | SftRecipe | RewardRecipe | RlRecipe
    verb: str

    def __init__(
        self, recipe: TuneRecipe | SftRecipe | RewardRecipe | RlRecipe, *, quiet: bool
    ) -> None:
        self.recipe = recipe
        self.state = PartialState(cpu=not torch.accelerator.is_available())
        self.rank, self.world = self.state.process_index, self.state.num_processes
        self.main = self.state.is_main_process
        self.console = Console(stderr=True, quiet=quiet or not self.main)
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

    def starting_policy(self, *, memory_mb: int) -> tuple[Model, Any, Future[str]]:
        """The policy that a run begins with, checked, its tokenizer, and the digest of its weights,
        which is still being computed.

        Args:
            memory_mb: working memory of the vocabulary head.
        """
        recipe = self.recipe
        set_seed(recipe.seed)
        policy = load_policy(recipe.model, memory_mb=memory_mb)
        policy.to(self.state.device)
        digest = in_background(partial(weights_digest, policy.hf))
        tokenizer = load_tokenizer(recipe.model)
        self.pictures(policy, tokenizer)
        kept_start_check(policy, beside=recipe.output_dir)
        return policy, tokenizer, digest

    def pictures(self, model: Model, tokenizer: Any) -> Pictures | None:
        """What reads the images of its data; None for a model of text alone."""
        store = self.recipe.output_dir.parent / IMAGES
        return open_pictures(model, self.recipe.model, tokenizer, store, ImagesRecipe())

    def share_blank(self, model: Model) -> None:
        """Lets processes whose rows have no image run a trained tower as often as the others."""
        pictures = model.pictures
        if pictures is None or self.world == 1:
            return
        for trunk in map(model.trunk, model.trunks):
            if trunk.vision_trained:
                (image,) = pictures.example((), ()).images
                trunk.blank = pictures.pixels(image.digest)

    def write_lineage(
        self,
        folder: RunFolder,
        encoder: Encoder,
        *,
        digest: str,
        sources: Sequence[dict[str, Any]],
        reference: dict[str, Any] | None,
        note: dict[str, Any],
    ) -> None:
        """Writes lineage.json.

        Args:
            digest: of the base weights. note: why the layout is used.
        """
        recipe = self.recipe
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
                sources=sources,
                reference=reference,
                seed=recipe.seed,
                device=str(self.state.device),
                processes=self.world,
                layout=note,
            ),
        )

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


class TrainingRun(Frame):
    """A run on a fixed set of items."""

    recipe: TuneRecipe | SftRecipe | RewardRecipe

    def __init__(self, recipe: TuneRecipe | SftRecipe | RewardRecipe, *, quiet: bool) -> None:
        super().__init__(recipe, quiet=quiet)
        self.plan = batch_plan(recipe.train, rank=self.rank, world_size=self.world)

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
        self.write_lineage(
            folder,
            encoder,
            digest=digest,
            sources=data.report["sources"],
            reference=entry,
            note=note,
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
