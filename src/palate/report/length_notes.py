"""Whether length alone names the chosen response: yes, hardly, or too few pairs to tell."""

from __future__ import annotations

import math
from typing import Literal

from palate.data.audit.sketches import share_interval
from palate.report.words import percent
from palate.store.records import PreferenceRecord, Split
from palate.store.reward_records import Accuracy

EFFECT = 0.05
"""How far from one half the share of longer chosen responses must be before it is worth a word."""
LITTLE = 0.1
"""Length tells little where its whole interval is this close to one half."""

Verdict = Literal["predicts", "tells little", "too few"]


def length_verdict(share: float, n: int) -> tuple[Verdict, tuple[float, float]]:
    """What a share of longer chosen responses (ties half) supports, and its 95% Wilson interval.

    Args:
        n: pairs, taken as independent; at least 1.
    """
    interval = share_interval(share * n, n)
    assert interval is not None, "a share of no pairs"
    low, high = interval
    if abs(share - 0.5) > EFFECT and not low <= 0.5 <= high:
        verdict: Verdict = "predicts"
    elif low >= 0.5 - LITTLE and high <= 0.5 + LITTLE:
        verdict = "tells little"
    else:
        verdict = "too few"
    return verdict, (low, high)


def length_sentence(split: Split) -> tuple[Verdict, str] | None:
    """A sentence about a split without capital and full stop; None where nothing is known."""
    share, n = split.longer_is_chosen, split.rows
    if share is None or not n or not math.isfinite(share):
        return None
    verdict, interval = length_verdict(share, n)
    which, share, (low, high) = _side(share, interval)
    start = (
        f"the {which} answer is the chosen one in {percent(share, 0)} of {n:,} pairs "
        f"(95% interval {percent(low, 0)} to {percent(high, 0)})"
    )
    ends = {
        "predicts": "length alone predicts the label",
        "tells little": "length tells little about the label",
        "too few": "too few to tell whether length predicts the label",
    }
    return verdict, f"{start}: {ends[verdict]}"


def over_length(measured: PreferenceRecord | Accuracy) -> str | None:
    """How far an accuracy is from that of length alone, where the interval of the difference, pair
    by pair, does not stand above 0; None where it does, or where nothing is known."""
    value, ends = measured.over_length, measured.over_length_ci
    if value is None or ends is None or ends[0] is None or ends[1] is None or ends[0] > 0:
        return None
    low, high = 100 * ends[0], 100 * ends[1]
    return f"{100 * value:+.1f} points (interval {low:+.1f} to {high:+.1f})"


def length_note(split: Split) -> str | None:
    """The sentence where length alone tells chosen from rejected; None where it is not seen to."""
    about = length_sentence(split)
    return about[1] if about is not None and about[0] == "predicts" else None


def _side(share: float, interval: tuple[float, float]) -> tuple[str, float, tuple[float, float]]:
    """The side that is chosen more often, with its own share and interval."""
    if share >= 0.5:
        return "longer", share, interval
    low, high = interval
    return "shorter", 1 - share, (1 - high, 1 - low)
