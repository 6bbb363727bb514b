"""Checks at the start of a run: the layout, and that policy and reference begin as one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from palate.data.encode import Encoder
from palate.data.items import Item
from palate.data.layouts import Layout
from palate.errors import ModelError, RecipeError
from palate.models.check import MEAN_TOLERANCE
from palate.models.limits import embeddings_of, positions_of
from palate.models.model import Ask, Model, evaluating
from palate.models.reference import Reference
from palate.models.verdicts import kept_layout_check
from palate.recipes.schema import TuneRecipe
from palate.train.sources.offline import Collate

log = logging.getLogger("palate")


def check_fits(
    model: Model,
    path: str,
    items: Sequence[Item],
    encoder: Encoder,
    *,
    key: str = "data.length.max_tokens",
) -> None:
    """Refuses tokens and lengths that the model has no embeddings for.

    Args:
        path: what the user calls the model. key: of the recipe, that limits lengths.

    Raises:
        ModelError: a token beyond its embeddings. RecipeError: a sequence beyond its positions.
    """
    top = longest = 0
    for item in items:
        for prompt, response in item.all_sequences:
            top = max(top, max(prompt.ids, default=0), max(response.ids))
            longest = max(longest, len(prompt) + len(response))
    rows, positions = embeddings_of(model.base), positions_of(model.base)
    if top >= rows:
        text = encoder.tokens.special.get(top) or encoder.decode([top])
        raise ModelError(
            f"{path}: its tokenizer has {text!r} as token {top}, and the model's embeddings end at "
            f"{rows - 1}"
        )
    if positions is not None and longest > positions:
        raise RecipeError(
            f"`{key}`: a sequence has {longest} tokens, and {path} has places for {positions}: "
            "lower it"
        )


def choose_layout(
    wanted: str, model: Model, *, items: Sequence[Item], beside: Path
) -> tuple[Layout, dict[str, Any]]:
    """The layout of the run's batches, and what lineage.json says of it.

    `auto` and `shared` run in the shared layout where it gives the numbers of the plain one: what
    responses begin with once, and without padding. A model that fails runs plain, with a warning.

    Args:
        items: of the run, whose longest sequence is how far the check looks.
        beside: the run folder; verdicts on models are kept beside it.
    """
    if wanted == "plain":
        return "plain", {"used": "plain", "check": None, "reason": "asked for"}
    longest = max(len(p) + len(r) for item in items for p, r in item.sequences)
    verdict = kept_layout_check(model, longest=longest, beside=beside)
    # One answer for all processes, also where the difference is on the edge.
    (ok,) = broadcast_object_list([verdict.ok])
    finite = verdict.max_abs_difference != float("inf")
    check = {"max_abs_difference": verdict.max_abs_difference} if finite else None
    if ok:
        return "shared", {"used": "shared", "check": check, "reason": None}
    log.warning("the layout is plain: %s", verdict.words)
    return "plain", {"used": "plain", "check": check, "reason": verdict.reason}


@torch.no_grad()
def check_start(policy: Model, reference: Reference, item: Item, collate: Collate) -> None:
    """Asserts that the reference is the starting policy: same log-probs, so a loss of ln 2.

    Raises:
        ModelError: it is not.
    """
    batch = collate([item]).to(policy.device)
    with evaluating(policy):
        outputs = policy(batch, Ask(), reference=reference.inputs(batch, kl=False))
    tokens = outputs.token_stats
    assert tokens.ref_logp is not None
    gap = float((tokens.logp - tokens.ref_logp).abs().mean())
    if not gap <= MEAN_TOLERANCE[policy.dtype]:
        raise ModelError(
            f"the reference is not the starting policy: log-probs differ by {gap:.3g} nats a token"
        )


def check_extra_metrics(recipe: TuneRecipe) -> None:
    """Raises RecipeError for a statistic that the chosen reference cannot give."""
    cached = recipe.reference is not None and recipe.reference.kind == "cache"
    if cached and "reverse_kl" in recipe.train.extra_metrics:
        raise RecipeError(
            "train.extra_metrics: reverse_kl needs the reference's whole distribution, which a "
            "cache does not always keep: use another reference.kind"
        )


def save_memory(policy: Model) -> None:
    """Gradient checkpointing of all trunks: layers keep only their inputs and run again in the
    backward pass."""
    options = {"use_reentrant": False}
    for name in policy.trunks:
        model: Any = policy.trunk(name).base
        # transformers 5.23 renamed it; the old name warns there.
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
