"""`palate rl`: from a recipe to a finished run folder."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from palate.data.encode import Encoder
from palate.data.items import Item
from palate.data.layouts import Layout
from palate.data.prompts import PolicyPrompts, prompt_draws, prompts_digest, read_prompts
from palate.data.scorer import Scorer
from palate.errors import RecipeError
from palate.models.generation.engine import Engine
from palate.models.generation.local import LocalEngine
from palate.models.limits import padding_id
from palate.models.model import Model
from palate.models.reference import LiveReference, build_live_reference
from palate.models.reward_config import Scale
from palate.models.reward_files import load_reward_model
from palate.models.stop_tokens import add_stop_tokens
from palate.models.value import add_value, check_begins_value, value_parameters
from palate.recipes.rl import KlRecipe, RlRecipe, ValueRecipe
from palate.recipes.rl_algorithms import OnlineDpo, Ppo
from palate.recipes.rl_engines import ServerEngine
from palate.recipes.schema import ReferenceRecipe
from palate.recipes.scorers import ModelScorer
from palate.rewards.build import make_scorer
from palate.rewards.identity import files_of, identities, weights_identity
from palate.store.folder import RunFolder
from palate.store.records import Data
from palate.store.rollouts import FOLDER
from palate.train.alarms import AlarmWatch
from palate.train.distributed import is_sharding_asked
from palate.train.fit import fit, save_final_model
from palate.train.loop import Job
from palate.train.objectives import Objective, PreferenceObjective
from palate.train.objectives.policy import Control, PolicyObjective
from palate.train.preflight import check_fits, check_start, choose_layout, save_memory
from palate.train.rollouts.collect import Collector
from palate.train.rollouts.held_out import HeldOutPrompts
from palate.train.sources.offline import BatchPlan
from palate.train.sources.rollout import RolloutSource
from palate.train.training_run import Frame, RunResult


def rl(recipe: RlRecipe, *, quiet: bool = False, scorer: Scorer | None = None) -> RunResult:
    """Learns a policy from rewards of its own responses and fills `recipe.output_dir`.

    Under `accelerate launch` every process calls it; the main one writes.

    Args:
        scorer: in place of the one that `recipe.reward.scorer` describes: any object of the
            protocol, or a scorer of a Python function (`palate.rewards.function`).

    Raises:
        RecipeError: an option that the chosen path does not use.
        RunError: a folder in use, a resume that does not fit, a write that failed.
        DataError, ModelError: unreadable input.
    """
    return RlRun(recipe, quiet=quiet, scorer=scorer).execute()


class RlRun(Frame):
    """A policy on its own responses."""

    recipe: RlRecipe
    verb = "rl"

    def __init__(self, recipe: RlRecipe, *, quiet: bool, scorer: Scorer | None = None) -> None:
        super().__init__(recipe, quiet=quiet)
        self._scorer = scorer
        self.engine: Engine | None = None
        if is_sharding_asked():
            raise RecipeError(
                "online learning: sharded weights (FSDP) are whole in no process, which would have "
                "to write responses, or to hand them to a server: launch without (DDP)"
            )

    def fill(self, folder: RunFolder) -> None:
        try:
            job, encoder = self.start(folder)
            watch = AlarmWatch(folder, self.recipe.alarms, self.console)
            loop = fit(job, self.recipe, self.console, watching=[watch])
        finally:
            # Servers are left without the run's adapters, and the disk without what they read.
            if self.engine is not None:
                self.engine.close()
        tokenizer = encoder.tokens.tokenizer
        tokenizer.chat_template = encoder.saved_template
        save_final_model(loop, tokenizer)

    def start(self, folder: RunFolder) -> tuple[Job, Encoder]:
        """Everything up to the first step."""
        recipe = self.recipe
        policy, tokenizer, digest = self.starting_policy(memory_mb=recipe.train.head_memory_mb)
        length = recipe.length.of_encoder()
        encoder = Encoder(tokenizer, recipe.model.chat_template, length, policy.pictures)
        with self.state.main_process_first():
            prompts = read_prompts(
                recipe.prompts, encoder, seed=recipe.seed, make_scorer=make_scorer
            )
        folder.write(Data.of(prompts.report))
        folder.write_quarantine(prompts.quarantine)
        examples = self._examples(prompts)
        check_fits(policy, recipe.model.path, examples, encoder, key="rollout.max_new_tokens")
        chats = any(not isinstance(prompt.content, str) for prompt in prompts.train)
        add_stop_tokens(policy.base, encoder.stop_ids(chats=chats))
        policy.base_digest = digest.result()
        layout, note = choose_layout(
            recipe.train.layout, policy, items=examples, beside=recipe.output_dir
        )
        reference = self._reference(policy)
        scorer = self._scorer or make_scorer(recipe.reward.scorer, seed=recipe.seed)
        begins = self._value_begins(policy)
        if begins is not None and layout == "shared":
            layout, note = choose_layout(layout, begins, items=examples, beside=recipe.output_dir)
        self._add_value(policy, begins)
        self.share_blank(policy)
        if recipe.train.gradient_checkpointing:
            save_memory(policy)
        job = self._job(folder, encoder, policy, prompts, scorer, reference, layout, note)
        if reference is not None and reference.identity.get("path") is None:
            check_start(policy, reference, examples[0], job.collate)
        return job, encoder

    def _examples(self, prompts: PolicyPrompts) -> list[Item]:
        """The longest prompts with the longest responses that there may be, made of one token."""
        longest = max((*prompts.train, *prompts.eval), key=lambda prompt: len(prompt.tokens))
        token = longest.tokens.ids[-1]
        response = (token,) * self.recipe.rollout.max_new_tokens
        return [Item.of(longest.tokens, response, response[: len(response) // 2 + 1])]

    def _reference(self, policy: Model) -> LiveReference | None:
        recipe = self.recipe
        if not recipe.needs_reference:
            return None
        return build_live_reference(
            recipe.reference or ReferenceRecipe(), recipe.model, policy, digest=policy.base_digest
        )

    @property
    def _value_path(self) -> str | None:
        """The reward model that the value model begins from."""
        recipe = self.recipe
        value = recipe.value or ValueRecipe()
        if not isinstance(recipe.algorithm, Ppo) or value.kind == "shared":
            return None
        scorer = recipe.reward.scorer
        from_scorer = scorer.path if isinstance(scorer, ModelScorer) else None
        return value.path or from_scorer

    def _value_begins(self, policy: Model) -> Model | None:
        path = self._value_path
        if path is None:
            return None
        scorer = self.recipe.reward.scorer
        if isinstance(scorer, ModelScorer) and scorer.path == path:
            reward_model = load_reward_model(
                path, revision=scorer.revision, trust_remote_code=scorer.trust_remote_code
            )
        else:
            reward_model = load_reward_model(path)
        check_begins_value(reward_model, policy, path)
        reward_model.pictures = policy.pictures
        return reward_model.to(self.state.device)

    def _value_scale(self, reward_model: Model | None) -> Scale | None:
        """How rewards are made of the scores of the reward model that the value begins from."""
        reward = self.recipe.reward
        scorer = reward.scorer
        if reward_model is None or not isinstance(scorer, ModelScorer):
            return None
        if scorer.path != self._value_path:
            return None
        saved = reward_model.spec.scale if scorer.normalised else None
        mean, deviation = (0.0, 1.0) if saved is None else (saved.mean, saved.deviation)
        return Scale(
            mean=mean + deviation * (reward.mean or 0.0),
            deviation=deviation * (reward.deviation or 1.0),
            n=0 if saved is None else saved.n,
        )

    def _add_value(self, policy: Model, reward_model: Model | None) -> None:
        recipe = self.recipe
        if not isinstance(recipe.algorithm, Ppo):
            return
        add_value(
            policy,
            recipe.value or ValueRecipe(),
            recipe.model,
            reward_model=reward_model,
            scale=self._value_scale(reward_model),
        )
        policy.to(self.state.device)

    def _rates(self, policy: Model) -> dict[nn.Parameter, float]:
        value = self.recipe.value
        if value is None or value.learning_rate is None:
            return {}
        return dict.fromkeys(value_parameters(policy), value.learning_rate)

    def _reward_identity(self) -> dict[str, str | None]:
        """What changes with the weights and files that rewards and the first values come from."""
        scorer = self.recipe.reward.scorer
        files: dict[str, str | None] = {}
        if self._scorer is None:
            files = {**identities(scorer), **files_of(scorer)}
        path = self._value_path
        return files if path is None else {**files, path: weights_identity(path)}

    def _engine(self, policy: Model, encoder: Encoder, folder: RunFolder) -> Engine:
        engine = self.recipe.rollout.engine
        tokenizer = encoder.tokens.tokenizer
        if isinstance(engine, ServerEngine):
            from palate.models.generation.server import ServerEngine as Server

            return Server(engine, tokenizer, policy, folder=folder.path)
        return LocalEngine(policy, tokenizer, batch_size=engine.batch_size)

    def _objective(self, control: Control) -> Objective:
        algorithm = self.recipe.algorithm
        if isinstance(algorithm, OnlineDpo):
            return PreferenceObjective(
                algorithm.loss,
                extra=self.recipe.train.extra_metrics,
                soft_labels=algorithm.labels == "soft",
                temperature=self.recipe.rollout.temperature,
            )
        return PolicyObjective(self.recipe, control)

    def _job(
        self,
        folder: RunFolder,
        encoder: Encoder,
        policy: Model,
        prompts: PolicyPrompts,
        scorer: Scorer,
        reference: LiveReference | None,
        layout: Layout,
        note: dict[str, Any],
    ) -> Job:
        recipe = self.recipe
        pad_id = padding_id(encoder.tokens.tokenizer, policy.base)
        bootstrap = isinstance(recipe.algorithm, Ppo) and recipe.algorithm.truncated == "bootstrap"
        collate = policy.collator(layout, pad_id=pad_id, keep_last=bootstrap)
        kl = recipe.effective_kl
        control = Control(kl_coefficient=0.0 if kl is None else kl.coefficient)
        objective = self._objective(control)
        engine = self.engine = self._engine(policy, encoder, folder)
        collector = Collector(
            recipe=recipe,
            prompts=prompts.train,
            stream=prompt_draws(recipe.prompts, len(prompts.train), recipe.seed),
            engine=engine,
            scorer=scorer,
            journal=None if engine.exact else folder.path / FOLDER / "journal",
            rank=self.rank,
            world_size=self.world,
        )
        source = RolloutSource(
            recipe,
            collector,
            policy,
            reference=reference if _measures_reference(kl) else None,
            collate=collate,
            control=control,
            folder=folder.path,
            total=total_steps(recipe, len(prompts.train)),
            tokenizer=encoder.tokens.tokenizer,
        )
        entry = None if reference is None else reference.identity
        digest = policy.base_digest
        assert digest is not None
        self.write_lineage(
            folder,
            encoder,
            digest=digest,
            sources=prompts.report["sources"],
            reference=entry,
            note=note,
        )
        return Job(
            model=policy,
            model_recipe=recipe.model,
            objective=objective,
            reference=reference,
            source=source,
            eval=(),
            collate=collate,
            layout=layout,
            pad_id=pad_id,
            eval_plan=BatchPlan(batch_size=1, micro_batch_size=1),
            folder=folder,
            identity={
                "base weights": digest,
                "reference": entry,
                "training prompts": prompts_digest(prompts.train),
                "held-out prompts": prompts_digest(prompts.eval),
                "reward": self._reward_identity(),
                "layout": layout,
            },
            measure=None
            if not prompts.eval
            else HeldOutPrompts(
                collector,
                prompts.eval,
                policy,
                samples=recipe.rollout.eval_generations,
                reference=reference,
                collate=collate,
            ),
            rates=self._rates(policy),
        )


def _measures_reference(kl: KlRecipe | None) -> bool:
    """Whether the reference is run beside the policy where a rollout is measured; an exact KL runs
    it in every update."""
    return kl is not None and (kl.form != "exact" or kl.target is not None)


def total_steps(recipe: RlRecipe, n: int) -> int:
    """Optimizer steps of a run over n prompts."""
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    per_epoch = math.ceil(n / recipe.rollout.batch_size_prompts)
    return max(1, math.ceil(recipe.train.epochs * per_epoch)) * recipe.updates_per_rollout
