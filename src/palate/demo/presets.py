"""The demonstration's sizes, and the recipes that it hands to `tune` and `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palate.recipes.evaluation import EvalRecipe, SamplingRecipe
from palate.recipes.losses import Dpo, Loss, Tdpo1, Tdpo2
from palate.recipes.schema import (
    DataRecipe,
    DataSource,
    LengthRecipe,
    LoraRecipe,
    ModelRecipe,
    PairingRecipe,
    ReferenceRecipe,
    TrainRecipe,
    TuneRecipe,
)
from palate.recipes.scorers import LexiconScorer


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Attributes:
        train_openings, heldout_openings: prompts that the base model continues for pairs.
        samples: continuations of each. new_tokens: length of every continuation.
        epochs: passes over the pairs. checkpoints: points of each method's frontier.
        eval_prompts, eval_samples: held-out prompts of the frontier, and samples of each.
    """

    train_openings: int
    heldout_openings: int
    samples: int
    new_tokens: int
    epochs: int
    checkpoints: int
    eval_prompts: int
    eval_samples: int


FULL = Preset(
    train_openings=200,
    heldout_openings=72,
    samples=4,
    new_tokens=24,
    epochs=1,
    checkpoints=3,
    eval_prompts=72,
    eval_samples=1,
)
QUICK = Preset(
    train_openings=48,
    heldout_openings=24,
    samples=4,
    new_tokens=20,
    epochs=1,
    checkpoints=1,
    eval_prompts=24,
    eval_samples=1,
)

METHODS: dict[str, tuple[str, Loss]] = {
    "dpo": ("DPO", Dpo()),
    "tdpo1": ("TDPO1", Tdpo1()),
    "tdpo2": ("TDPO2", Tdpo2()),
}
"""Run folder -> name and loss, each with its paper's settings; the first is the baseline."""

PAIRS_PER_STEP = 8
MIN_GAP = 0.2
"""VADER points by which the chosen continuation must beat the rejected one."""
LEARNING_RATE = 2e-4
SAMPLES_PER_BATCH = 64


def tune_recipe(
    root: Path,
    method: str,
    *,
    model: str,
    preset: Preset,
    seed: int,
    resume: bool,
    learning_rate: float | None = None,
) -> TuneRecipe:
    """The recipe of one method; all differ in `loss` and `output_dir` alone.

    Args:
        learning_rate: default: LEARNING_RATE.
    """
    steps = max(1, preset.train_openings * preset.epochs // PAIRS_PER_STEP)
    return TuneRecipe(
        output_dir=root / method,
        seed=seed,
        resume=resume,
        model=ModelRecipe(path=model, lora=LoraRecipe()),
        data=DataRecipe(
            train=(DataSource(path=str(root / "data/train.jsonl"), name="openings"),),
            eval=(DataSource(path=str(root / "data/heldout.jsonl"), name="held-out openings"),),
            pairing=PairingRecipe(min_gap=MIN_GAP),
            # Continuations are cut by the sampler, so none may seem to end there by itself.
            length=LengthRecipe(max_prompt_tokens=128, max_response_tokens=preset.new_tokens),
        ),
        loss=METHODS[method][1],
        reference=ReferenceRecipe(kind="cache", cache_dir=root / "reference_cache"),
        train=TrainRecipe(
            batch_size_pairs=PAIRS_PER_STEP,
            micro_batch_size_pairs=PAIRS_PER_STEP,
            epochs=preset.epochs,
            learning_rate=learning_rate or LEARNING_RATE,
            scheduler="constant",
            warmup_steps=min(5, steps // 4),
            save_every_steps=max(1, steps // preset.checkpoints),
        ),
    )


def eval_recipe(root: Path, *, preset: Preset, seed: int, resume: bool) -> EvalRecipe:
    """Every checkpoint of every method on the held-out openings."""
    return EvalRecipe(
        output_dir=root / "evaluation",
        seed=seed,
        resume=resume,
        runs=tuple(root / method for method in METHODS),
        checkpoints="all",
        # `tune` has measured accuracy and margin on the held-out pairs.
        preference=False,
        sampling=SamplingRecipe(
            prompts=preset.eval_prompts,
            samples_per_prompt=preset.eval_samples,
            max_new_tokens=preset.new_tokens,
            batch_size=SAMPLES_PER_BATCH,
        ),
        reward=LexiconScorer(),
    )
