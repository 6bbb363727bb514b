"""One call from a recipe to the reference of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from palate.data.items import Item
from palate.data.layouts import Layout
from palate.models.cache import CachedReference, cached_reference, needed_format
from palate.models.model import Model
from palate.models.reference import LiveReference, build_live_reference
from palate.recipes.schema import ModelRecipe, ReferenceRecipe


def build_reference(
    recipe: ReferenceRecipe,
    model: ModelRecipe,
    policy: Model,
    *,
    kl: bool,
    items: Sequence[Item],
    layout: Layout,
    pad_id: int,
    cache_root: Path,
    batch_size: int = 8,
    digest: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> LiveReference | CachedReference:
    """The reference of a run, before its first step and before any weights are resumed.

    Args:
        kl: whether token-level KL will be asked of it.
        items: everything the run will ask about; only the cache uses it.
        cache_root: folder of caches where the recipe names none.
        digest: of the policy's starting weights, where known.
        rank, world_size: of this process; with a cache and several processes, the caller waits
            for all of them and then calls `index()`.
    """
    live = build_live_reference(recipe, model, policy, digest=digest)
    if recipe.kind != "cache":
        return live
    return cached_reference(
        live,
        items,
        folder=recipe.cache_dir or cache_root,
        format=needed_format(policy, kl=kl)
        if recipe.path is None
        else ("hidden" if kl else "logps"),
        layout=layout,
        pad_id=pad_id,
        batch_size=batch_size,
        progress=progress,
        rank=rank,
        world_size=world_size,
    )
