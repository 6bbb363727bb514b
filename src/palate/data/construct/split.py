"""Which pairs are held out, and which the mixture takes: on arrays alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.construct.state import MIXTURE, State
from palate.data.mixture import select
from palate.data.split import split_by_prompt
from palate.recipes.mixture import MixtureRecipe

NOT_TAKEN = "not taken by the mixture"


def hold_out(state: State, fraction: float | None) -> npt.NDArray[np.bool_]:
    """[pairs], True = held out: of `fraction` of the prompts that are left; see `split_by_prompt`.

    Raises:
        RecipeError: too few prompts to hold any out.
    """
    held = np.zeros(len(state), dtype=np.bool_)
    if fraction is not None:
        kept = state.kept
        held[kept] = split_by_prompt(state.prompts[kept], fraction, where="output.eval_fraction")
    return held


def mix(
    state: State, held: npt.NDArray[np.bool_], recipe: MixtureRecipe | None, counted_in: str
) -> dict[str, Any] | None:
    """Marks what the mixture does not take of the pairs to train on; its account for data.json.

    Args:
        counted_in: what the pairs' sizes are.

    Raises:
        RecipeError: shares that do not fit the sources.
    """
    if recipe is None:
        return None
    places = np.flatnonzero(state.kept & ~held)
    sizes = state.sizes[places] if len(state.sizes) else np.ones(len(places), dtype=np.int64)
    found = select(
        source=state.source[places],
        key=state.keys[places],
        size=sizes,
        names=state.names,
        recipe=recipe,
        counted_in=counted_in,
        where="mixture",
    )
    state.status[places[~found.mask]] = state.code(MIXTURE, NOT_TAKEN)
    return found.account


def repeats(state: State) -> npt.NDArray[np.uint32]:
    """[pairs], of those left: how many earlier ones have the same id."""
    places = np.flatnonzero(state.kept)
    keys = state.keys[places]
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    new = np.ones(len(ranked), dtype=np.bool_)
    new[1:] = ranked[1:] != ranked[:-1]
    starts = np.flatnonzero(new)
    before = np.arange(len(ranked)) - np.repeat(starts, np.diff(np.append(starts, len(ranked))))
    found = np.zeros(len(state), dtype=np.uint32)
    found[places[order]] = before
    return found
