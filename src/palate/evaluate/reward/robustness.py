"""Whether a verdict survives changes that should not matter: space, case, an appended sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from palate.data.schema import Content, Message, text_in
from palate.evaluate.reward.items import BenchmarkItem, Comparisons, Scores, compare
from palate.evaluate.statistics import mean_interval, share_interval
from palate.intervals import Interval

APPENDED = "\n\nI hope this helps! Let me know if you have any other questions."

CHANGES: dict[str, tuple[str, Callable[[str], str]]] = {
    "trailing_space": ("one space at the end", lambda text: text + " "),
    "trailing_newlines": ("two newlines at the end", lambda text: text + "\n\n"),
    "leading_newline": ("a newline at the start", lambda text: "\n" + text),
    "double_spaces": (
        "every space between words doubled",
        lambda text: re.sub(r"(?<=\S) (?=\S)", "  ", text),
    ),
    "lower_case": ("all in lower case", str.lower),
    "upper_case": ("all in capitals", str.upper),
    "appended": ("a polite closing sentence appended", lambda text: text + APPENDED),
}
"""Name -> what it does in words, and the function; each applies to the last turn of a response."""


def changed(
    item: BenchmarkItem, change: Callable[[str], str], *, rejected_only: bool = False
) -> BenchmarkItem:
    """The item with its responses changed, or only those that are not correct."""
    first = item.correct if rejected_only else 0
    responses = [
        _changed(response, change) if number >= first else response
        for number, response in enumerate(item.responses)
    ]
    return replace(item, responses=tuple(responses))


def robustness(
    items: Sequence[BenchmarkItem],
    before: Scores,
    after: Scores,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """What a change did to verdicts and scores.

    Args:
        items: unchanged. before, after: their scores without and with the change.

    Returns:
        n (pairs scored both times), lost (pairs that have a score before the change alone), flips
        (share whose winner changed, a tie being none), flips_ci (of the effective number, as that
        of an accuracy), accuracy_before, accuracy_after, ties_before, ties_after, accuracy_change
        and its paired interval by prompt (None with one prompt), shift (mean change of a score in
        deviations of the scores within a prompt; None where they do not vary).
    """
    old, new = compare(items, before), compare(items, after)
    scored = ~(np.isnan(old.margin) | np.isnan(new.margin))
    a, b = old.where(scored), new.where(scored)
    n = len(a)
    lost = int((~np.isnan(old.margin) & np.isnan(new.margin)).sum())
    if not n:
        return {"n": 0, "lost": lost}
    flips = np.sign(a.margin) != np.sign(b.margin)
    change = (b.margin > 0).astype(float) - (a.margin > 0).astype(float)
    mean, ci = _paired(change, a, confidence)
    flips_ci, _ = share_interval(flips.astype(float), a.group, confidence)
    return {
        "n": n,
        "lost": lost,
        "flips": float(flips.mean()),
        "flips_ci": flips_ci,
        "accuracy_before": float((a.margin > 0).mean()),
        "accuracy_after": float((b.margin > 0).mean()),
        "ties_before": int((a.margin == 0).sum()),
        "ties_after": int((b.margin == 0).sum()),
        "accuracy_change": mean,
        "accuracy_change_ci": ci,
        "shift": _shift(before, after),
    }


def _paired(
    change: np.ndarray, pairs: Comparisons, confidence: float
) -> tuple[float, Interval | None]:
    mean = float(change.mean())
    if len(np.unique(pairs.group)) < 2:
        return mean, None
    by_prompt, (low, high) = mean_interval(change.tolist(), confidence, groups=pairs.group.tolist())
    # Prompts may have unequal numbers of pairs: the interval keeps its width around the mean.
    return mean, (mean + low - by_prompt, mean + high - by_prompt)


def _shift(before: Scores, after: Scores) -> float | None:
    moved, inside = [], []
    for a, b in zip(before, after, strict=True):
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        moved += (y - x)[~np.isnan(y - x)].tolist()
        known = x[~np.isnan(x)]
        if len(known) > 1:
            inside.append(float(known.var(ddof=1)))
    spread = float(np.sqrt(np.mean(inside))) if inside else 0.0
    return float(np.mean(moved)) / spread if moved and spread > 0 else None


def _changed(content: Content, change: Callable[[str], str]) -> Content:
    if isinstance(content, str):
        return change(content)
    *earlier, last = content
    return [*earlier, Message(role=last["role"], content=change(text_in(last["content"])))]
