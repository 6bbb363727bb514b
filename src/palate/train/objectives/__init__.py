"""What a training step optimises: one file a method."""

from __future__ import annotations

from collections.abc import Sequence

from palate.recipes.losses import Kto, Loss, TokenWeights
from palate.train.objectives.base import Objective
from palate.train.objectives.kto import KtoObjective
from palate.train.objectives.preference import PreferenceObjective
from palate.train.objectives.sft import SftObjective

__all__ = ["KtoObjective", "Objective", "PreferenceObjective", "SftObjective", "objective_of"]


def objective_of(
    loss: Loss | None,
    *,
    token_weights: TokenWeights | None = None,
    extra: Sequence[str] = (),
    by_source: bool = False,
) -> Objective:
    """The objective of a recipe's loss; None is supervised fine-tuning."""
    if loss is None:
        return SftObjective(extra=extra)
    if isinstance(loss, Kto):
        return KtoObjective(loss, extra=extra)
    return PreferenceObjective(loss, token_weights=token_weights, extra=extra, by_source=by_source)
