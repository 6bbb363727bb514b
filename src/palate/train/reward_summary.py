"""What the held-out comparisons of a trained reward model come to, for its evaluation.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from palate.evaluate.preference import PairScore, summarise_pairs

CONFIDENCE = 0.95
Scored = Sequence[dict[str, Any]]
"""Of each item `id`, `index`, `source`, `prompt` (its tokens), `rewards` and `heads`, and of each
comparison within it `margins`, `longer` (by how many tokens the better response is) and
`head_margins`."""


def held_out(scored: Scored) -> dict[str, Any]:
    """As `palate.evaluate.preference.summarise_pairs`; empty where nothing is compared."""
    rows = [
        (item["prompt"], _score(item, margin, longer))
        for item in scored
        for margin, longer in zip(item["margins"], item["longer"], strict=True)
    ]
    if not rows:
        return {}
    prompts, scores = zip(*rows, strict=True)
    return summarise_pairs(scores, prompts=prompts, confidence=CONFIDENCE)


def of_heads(scored: Scored) -> list[dict[str, float]]:
    """Held-out accuracy of each head (equal rewards half), and how far it is from their mean."""
    entries = []
    for k in range(len(scored[0]["heads"][0])):
        margins = [m for item in scored for m in item["head_margins"][k]]
        off = [
            head[k] - reward
            for item in scored
            for head, reward in zip(item["heads"], item["rewards"], strict=True)
        ]
        entries.append(
            {
                "accuracy": statistics.fmean((m > 0) + 0.5 * (m == 0) for m in margins),
                "margin": statistics.fmean(margins),
                "off_mean": statistics.fmean(map(abs, off)),
            }
        )
    return entries


def _score(item: dict[str, Any], margin: float, longer: float) -> PairScore:
    return PairScore(
        id=item["id"],
        source=item["source"],
        margin=margin,
        log_ratio_margin=None,
        longer=int(longer),
    )
