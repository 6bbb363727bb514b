"""`tune` and `sft`: from a recipe to a finished run folder."""

from __future__ import annotations

from typing import Any

from palate.data.build import Dataset, build
from palate.data.encode import Encoder
from palate.data.layouts import Layout
from palate.errors import RecipeError
from palate.memory import kept_memory
from palate.models.cache import CachedReference
from palate.models.limits import padding_id
from palate.models.model import Model
from palate.models.reference import Reference, build_reference
from palate.models.stop_tokens import add_stop_tokens
from palate.recipes.losses import Loss
from palate.recipes.schema import ReferenceRecipe, SftRecipe, TuneRecipe
from palate.store.folder import RunFolder
from palate.store.records import Data, Evaluation
from palate.train.distributed import is_sharded
from palate.train.fit import fit, save_final_model
from palate.train.loop import Job, Loop
from palate.train.objectives import Objective, PreferenceObjective, objective_of
from palate.train.preflight import (
    check_extra_metrics,
    check_fits,
    check_start,
    choose_layout,
    save_memory,
)
from palate.train.summary import held_out
from palate.train.training_run import RunResult, Start, TrainingRun


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
        memory_mb = self.recipe.train.head_memory_mb
        policy, tokenizer, digest = self.starting_policy(memory_mb=memory_mb)
        objective = self._objective()
        encoder = Encoder(
            tokenizer, self.recipe.model.chat_template, self.recipe.data.length, policy.pictures
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


def _name_sources(objective: Objective, data: Dataset) -> None:
    """Logs accuracies by source where there are several sources."""
    sources: set[Any] = {item.source for item in (*data.train, *data.eval)}
    if isinstance(objective, PreferenceObjective):
        objective.by_source = len(sources) > 1
