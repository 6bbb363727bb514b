"""What the launcher and the recipe ask of a run together: batch plans, and what is refused."""

from __future__ import annotations

import math
import os

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import parse_flag_from_env

from palate.errors import RecipeError
from palate.recipes.reward import RewardRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import OfflineRecipe, SftRecipe, TuneRecipe
from palate.train.distributed import is_sharding_asked
from palate.train.sources.offline import BatchPlan


def batch_plan(recipe: OfflineRecipe, *, rank: int, world_size: int) -> BatchPlan:
    """How a step is cut over processes and micro-batches.

    Raises:
        RecipeError: the batch cannot be cut evenly.
    """
    total, micro = recipe.batch_size_pairs, recipe.micro_batch_size_pairs
    if total % world_size:
        raise RecipeError(
            f"train.batch_size_pairs: {total} pairs a step cannot be divided over {world_size} "
            "processes"
        )
    share = total // world_size
    if recipe.micro_batch_tokens is not None:
        micro = share
    if share > micro and share % micro:
        raise RecipeError(
            f"train.micro_batch_size_pairs: each of {world_size} processes has {share} pairs a "
            f"step, no multiple of {micro}"
        )
    return BatchPlan(
        batch_size=total,
        micro_batch_size=min(micro, share),
        micro_batch_tokens=recipe.micro_batch_tokens,
        rank=rank,
        world_size=world_size,
    )


def eval_plan(recipe: OfflineRecipe, *, rank: int, world_size: int) -> BatchPlan:
    """How evaluation items are cut: one micro-batch of each process at a time."""
    size = recipe.eval_batch_size_pairs
    return BatchPlan(
        batch_size=size * world_size, micro_batch_size=size, rank=rank, world_size=world_size
    )


def total_steps(recipe: OfflineRecipe, plan: BatchPlan, n: int) -> int:
    """Optimizer steps of the run over n training items."""
    return recipe.max_steps or max(1, math.ceil(recipe.epochs * plan.steps(n)))


def check_launch(recipe: TuneRecipe | SftRecipe | RewardRecipe | RlRecipe) -> None:
    """Refuses a launch that would be left out, or would lose updates or checkpoints.

    Raises:
        RecipeError: DeepSpeed, mixed precision, parallelism within a sequence or a layer, or
            options of FSDP that are not followed.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            "DeepSpeed clips, steps and saves inside its own engine, in pickled files that are "
            "neither written nor read here: launch with FSDP 2, which shards the same, or without"
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") or "no"
    if precision != "no":
        raise RecipeError(
            f"the launcher's mixed precision ({precision}) is not used: weights and activations "
            "are of `model.dtype`; launch with `--mixed_precision no`"
        )
    for name, what in _WITHIN.items():
        size = os.environ.get(f"PARALLELISM_CONFIG_{name}", "") or "1"
        if size != "1":
            raise RecipeError(
                f"--parallelism_config_{name.lower()} {size}: {what} knows no branches of shared "
                "prompts, and is not used: launch with 1, and where a pair does not fit one "
                "device, lower `data.length.max_tokens` or set `train.gradient_checkpointing`"
            )
    if not is_sharding_asked():
        return
    for name, value, words in _FSDP_REFUSED:
        if os.environ.get(name, "").lower() == value:
            raise RecipeError(words)
    if os.environ.get("FSDP_VERSION") != "2":
        raise RecipeError("FSDP 1 is not supported: launch with `--fsdp_version 2`")


_WITHIN = {
    "CP_SIZE": "context parallelism, which cuts a sequence over devices,",
    "SP_SIZE": "sequence parallelism, which cuts a sequence over devices,",
    "TP_SIZE": "tensor parallelism, which cuts a layer over devices,",
}
"""Sizes of accelerate's ParallelismConfig, as the launcher hands them on, and what they are."""

_FSDP_REFUSED = (
    ("FSDP_OFFLOAD_PARAMS", "true", "FSDP: weights are not offloaded: leave out offload_params"),
    (
        "FSDP_AUTO_WRAP_POLICY",
        "size_based_wrap",
        "FSDP: weights are sharded by layer: use TRANSFORMER_BASED_WRAP",
    ),
    (
        "FSDP_AUTO_WRAP_POLICY",
        "no_wrap",
        "FSDP: weights are sharded by layer: use TRANSFORMER_BASED_WRAP",
    ),
    (
        "FSDP_ACTIVATION_CHECKPOINTING",
        "true",
        "FSDP: use `train.gradient_checkpointing` in place of the launcher's",
    ),
)
"""Variable of the launcher, value, and why a run with it is refused."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuses trackers before anything is written.

    Raises:
        RecipeError: one of `train.report_to` is unknown or not installed.
    """
    installed = {str(tracker.value) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise RecipeError(f"train.report_to: no tracker {name}; there are {known}")
        if name not in installed:
            raise RecipeError(f"train.report_to: {name} cannot be used: it is not installed")
