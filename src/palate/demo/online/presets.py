"""Sizes of the demonstration of online learning, and the recipes of its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palate.demo import presets as offline_presets
from palate.recipes.evaluation import EvalRecipe, SamplingRecipe
from palate.recipes.losses import Dpo
from palate.recipes.pairing import PairingRecipe
from palate.recipes.prompts import PromptSource, PromptsRecipe
from palate.recipes.rl import (
    KlRecipe,
    RewardSignalRecipe,
    RlRecipe,
    RlTrainRecipe,
    RolloutRecipe,
    ValueRecipe,
)
from palate.recipes.rl_algorithms import Algorithm, Grpo, OnlineDpo, Ppo, Rloo
from palate.recipes.schema import DataSource, LengthRecipe, LoraRecipe, ModelRecipe, TuneRecipe
from palate.recipes.scorers import LexiconScorer


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Attributes:
        train_openings, heldout_openings: prompts to learn from, and to measure on.
        samples: continuations of each training opening, that offline methods learn from.
        best_of: continuations of each held-out opening by the base model.
        new_tokens: length of every continuation.
        rollouts: of each algorithm. prompts, group: of a rollout, and responses to each.
        learning_rate: of all but the run without a KL. checkpoints: points of each one's frontier.
        collapse_rollouts: of the run without a KL, each of half the prompts.
        offline: methods of the offline demonstration that are drawn beside.
        eval_samples: of each checkpoint, to each held-out opening.
    """

    train_openings: int
    heldout_openings: int
    samples: int
    best_of: int
    new_tokens: int
    rollouts: int
    prompts: int
    group: int
    learning_rate: float
    checkpoints: int
    collapse_rollouts: int
    offline: tuple[str, ...]
    eval_samples: int

    @property
    def pairs(self) -> offline_presets.Preset:
        """Sizes of the offline methods' data and runs."""
        return offline_presets.Preset(
            train_openings=self.train_openings,
            heldout_openings=self.heldout_openings,
            samples=self.samples,
            new_tokens=self.new_tokens,
            epochs=1,
            checkpoints=2,
            eval_prompts=self.heldout_openings,
            eval_samples=self.eval_samples,
        )


FULL = Preset(
    train_openings=160,
    heldout_openings=72,
    samples=4,
    best_of=16,
    new_tokens=16,
    rollouts=16,
    prompts=8,
    group=8,
    learning_rate=4e-4,
    checkpoints=4,
    collapse_rollouts=16,
    offline=("dpo", "tdpo1", "tdpo2"),
    eval_samples=1,
)
QUICK = Preset(
    train_openings=48,
    heldout_openings=32,
    samples=4,
    best_of=16,
    new_tokens=12,
    rollouts=8,
    prompts=6,
    group=6,
    learning_rate=1e-3,
    checkpoints=4,
    collapse_rollouts=14,
    offline=("dpo",),
    eval_samples=1,
)

COEFFICIENT = 0.05
"""Of the KL, times nats: the reward of every algorithm less this is what it climbs."""
COLLAPSE = "no-kl"
COLLAPSE_RATE = 4e-3
"""Of the run that shall collapse."""

ALGORITHMS: dict[str, tuple[str, Algorithm, KlRecipe | None]] = {
    "ppo": ("PPO", Ppo(), KlRecipe(coefficient=COEFFICIENT)),
    "grpo": ("GRPO", Grpo(), KlRecipe(coefficient=COEFFICIENT, form="k3", place="loss")),
    "rloo": ("RLOO", Rloo(), KlRecipe(coefficient=COEFFICIENT)),
    # With soft labels of this scale the loss is at its least where the others' reward less KL is
    # greatest: beta times scale is their coefficient.
    "online-dpo": (
        "online DPO",
        OnlineDpo(loss=Dpo(beta=2 * COEFFICIENT), scale=0.5),
        None,
    ),
}
"""Run folder -> name, algorithm and what holds it near the base model."""
PASSES = {"ppo": 2}
"""Passes over a rollout, where they are not one: a clipped ratio is for more than one."""


def rl_recipe(
    root: Path, run: str, *, model: str, preset: Preset, seed: int, resume: bool
) -> RlRecipe:
    """The recipe of an algorithm, or of the run that shall collapse (`COLLAPSE`), which is GRPO
    without a KL at a higher learning rate."""
    collapses = run == COLLAPSE
    _, algorithm, kl = ALGORITHMS["grpo" if collapses else run]
    passes = PASSES.get(run, 1)
    rollouts = preset.collapse_rollouts if collapses else preset.rollouts
    return RlRecipe(
        output_dir=root / run,
        seed=seed,
        resume=resume,
        model=ModelRecipe(path=model, lora=LoraRecipe()),
        # Of the file that offline methods learn from the prompts alone.
        prompts=PromptsRecipe(
            train=(PromptSource(path=str(root / "data/train.jsonl"), name="openings"),)
        ),
        reward=RewardSignalRecipe(scorer=LexiconScorer()),
        algorithm=algorithm,
        kl=None if collapses else kl,
        rollout=RolloutRecipe(
            batch_size_prompts=max(1, preset.prompts // 2) if collapses else preset.prompts,
            num_generations=preset.group,
            max_new_tokens=preset.new_tokens,
        ),
        value=ValueRecipe(kind="shared") if isinstance(algorithm, Ppo) else None,
        train=RlTrainRecipe(
            max_steps=rollouts * passes,
            num_iterations=passes,
            learning_rate=COLLAPSE_RATE if collapses else preset.learning_rate,
            scheduler="constant",
            warmup_steps=0 if collapses else 2,
            save_every_steps=None if collapses else max(1, rollouts // preset.checkpoints) * passes,
            # How far the run without a KL goes is measured all the same.
            extra_metrics=("reverse_kl",) if collapses else (),
        ),
    )


def tune_recipe(
    root: Path, method: str, *, model: str, preset: Preset, seed: int, resume: bool
) -> TuneRecipe:
    """The offline demonstration's recipe of a method, at this one's sizes and learning rate."""
    return offline_presets.tune_recipe(
        root,
        method,
        model=model,
        preset=preset.pairs,
        seed=seed,
        resume=resume,
        learning_rate=preset.learning_rate,
    )


def eval_recipe(root: Path, *, preset: Preset, seed: int, resume: bool) -> EvalRecipe:
    """Every checkpoint of every algorithm and offline method on the held-out openings."""
    return EvalRecipe(
        output_dir=root / "evaluation",
        seed=seed,
        resume=resume,
        runs=tuple(root / run for run in (*ALGORITHMS, *preset.offline)),
        checkpoints="all",
        data=(DataSource(path=str(root / "data/heldout.jsonl"), name="held-out openings"),),
        pairing=PairingRecipe(min_gap=0.0),
        length=LengthRecipe(max_prompt_tokens=128, max_response_tokens=preset.new_tokens),
        preference=False,
        sampling=SamplingRecipe(
            prompts=preset.heldout_openings,
            samples_per_prompt=preset.eval_samples,
            max_new_tokens=preset.new_tokens,
            batch_size=offline_presets.SAMPLES_PER_BATCH,
        ),
        reward=LexiconScorer(),
    )
