"""When a run of online learning is said to go wrong, and which of that ends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Positive, Strict
from palate.recipes.schema import Count

AlarmName = Literal[
    "entropy_collapse",
    "kl_explosion",
    "length_growth",
    "length_collapse",
    "eos_collapse",
    "immediate_eos",
    "value_divergence",
    "ratio_off",
    "no_variance",
    "mismatch",
    "component_conflict",
]

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Multiple = Annotated[float, Field(gt=1.0)]


class ThresholdsRecipe(Strict):
    """From where on a figure is an alarm. The defaults were fixed on made-up logs, before any real
    run was measured (docs/online-alarms.md).

    "Then" is the median of the run's first 5 lines of the log, "now" that of its last 3.
    """

    patience: Count = 3
    """Lines in a row that must say so before an alarm begins; ratio_off begins at once."""
    errors: Positive = 3.0
    """Standard errors of a median that lengths, ends and mismatch must have moved, and the reward
    risen for a fall of the entropy to be a collapse."""
    entropy: Share = 0.1
    """entropy_collapse: entropy now over then, at most ..."""
    entropy_of_same: Share = 0.5
    """... or this, where one answer is ..."""
    commonest: Share = 0.5
    """... this share of all responses of a rollout."""
    kl_growth: Multiple = 5.0
    """kl_explosion: KL now over KL at half of the steps so far (steady growth gives 2), ..."""
    kl_from: Positive = 10.0
    """... of a response whose KL is at least so many nats; ..."""
    kl_token: Positive = 1.0
    """... or KL a token, in nats, ..."""
    kl_far: Positive = 20.0
    """... of a response whose KL is at least so many nats."""
    length_growth: Multiple = 2.0
    """length_growth: mean length now over then."""
    length_collapse: Share = 0.33
    """length_collapse: mean length now over then."""
    length_change_tokens: Positive = 8.0
    """Of both: the change in tokens is at least this."""
    eos: Share = 0.5
    """eos_collapse: share of responses that end, now over then, ..."""
    eos_from: Share = 0.3
    """... where at least this share ended then."""
    immediate_tokens: Positive = 2.0
    """immediate_eos: mean length now, where it was four times as much then."""
    explained_variance: Annotated[float, Field(lt=0.0)] = -1.0
    """value_divergence: explained variance now, where it was above 0 before, or was never better
    than this in 32 lines; ..."""
    value_loss: Multiple = 10.0
    """... or the value loss over its lowest, at an explained variance below 0."""
    ratio: Positive = 0.01
    """ratio_off: `ratio/first`, the largest distance from 1 in the first update of a rollout."""
    zero_variance: Share = 0.95
    """no_variance: share of groups with equal rewards, mean over 8 lines."""
    mismatch_growth: Multiple = 5.0
    """mismatch: `mismatch/kl` now over then, ..."""
    mismatch_from: Positive = 0.01
    """... from so many nats a token on; ..."""
    mismatch_most: Positive = 0.1
    """... or so many whatever it was."""
    component: Positive = 6.0
    """component_conflict: standard errors by which one component of the reward rose and another
    fell, ..."""
    component_change: Share = 0.25
    """... and by this share of their size."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.mismatch_from > self.mismatch_most:
            yield "mismatch_from", f"above mismatch_most ({self.mismatch_most:g})"
        if self.entropy > self.entropy_of_same:
            yield "entropy", f"above entropy_of_same ({self.entropy_of_same:g})"


class AlarmsRecipe(Strict):
    """Alarms in words, printed and written to alarms.jsonl; see docs/online-alarms.md."""

    stop_on: tuple[AlarmName, ...] = ()
    """Alarms that end the run after a checkpoint."""
    thresholds: ThresholdsRecipe = ThresholdsRecipe()

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.stop_on)) < len(self.stop_on):
            yield "stop_on", "names an alarm twice"
