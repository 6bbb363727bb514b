"""Which alarms end a run."""

from __future__ import annotations

from palate.recipes.losses import Strict


class AlarmsRecipe(Strict):
    """Alarms in words; see docs/online.md."""

    stop_on: tuple[str, ...] = ()
    """Alarms that end the run after a checkpoint."""
