"""Best-of-n and over-optimisation: what the choice of a proxy is worth under a gold scorer.

Of N candidates of a prompt, n are drawn without replacement and the one that the proxy scores
highest is taken. With gold values g sorted by proxy score from below (rank i = 1 .. N),

    E[gold of best of n] = sum_i C(i - 1, n - 1) / C(N, n) g_i

is exact over all draws, and over independent candidates unbiased for every n <= N (the estimator of
Nakano et al., arXiv:2112.09332, App. I). Candidates with equal proxy scores are chosen among by
chance: each counts with the mean gold of its equals. The distance from the sampling policy is at
most log n - (n - 1) / n nats (Stiennon et al., arXiv:2009.01325; an upper bound: arXiv:2401.01879).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from palate.evaluate.reward.items import Array
from palate.evaluate.statistics import mean_interval
from palate.intervals import Interval

LARGEST = 64
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def weights(candidates: int, n: int) -> Array:
    """[N] probability that the candidate of rank i, from below, is the best of n drawn of N."""
    if not 1 <= n <= candidates:
        raise ValueError(f"best of {n} of {candidates}")
    chances = np.zeros(candidates)
    # From the top: C(N-1, n-1) / C(N, n) = n / N, and each next rank by a ratio: no large numbers.
    share = n / candidates
    for rank in range(candidates, n - 1, -1):
        chances[rank - 1] = share
        if rank > n:
            share *= (rank - n) / (rank - 1)
    return chances


def best_of_n(proxy: Sequence[float] | Array, gold: Sequence[float] | Array, n: int) -> float:
    """Expected gold score of the candidate that the proxy puts first among n, exactly."""
    p, g = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    assert p.shape == g.shape and p.ndim == 1
    order = np.argsort(p, kind="stable")
    _, inverse, counts = np.unique(p[order], return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=g[order]) / counts
    return float(weights(len(p), n) @ means[inverse])


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n nats."""
    return math.log(n) - (n - 1) / n


def curve(
    proxies: Sequence[Sequence[float]],
    golds: Sequence[Sequence[float]],
    *,
    largest: int = LARGEST,
    smallest: int = 2,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Best-of-n over n, averaged over lists of candidates, each to one prompt.

    Candidates without a proxy or gold score are left out and counted; so are lists that have fewer
    than `smallest` candidates left. All n use the same lists, so n goes to the fewest candidates of
    any.

    Args:
        proxies, golds: of each list, the scores of its candidates.
        smallest: fewest candidates of a list that counts, at least 2.
        groups: the prompt of each list: those of one prompt (from several policies) are not
            independent, and intervals are over prompts. Default: each its own.

    Returns:
        prompts (lists used), candidates, left_out (candidates), prompts_left_out (lists), smallest,
        fewest and most (candidates of a list), largest (n), points: n, kl, gold, gold_ci, proxy,
        ceiling (best by gold itself) each; peak (n of the highest gold); fall (mean paired
        difference of gold at the largest n and at the peak), fall_ci, over_optimised (whether that
        interval lies below 0), gain (gold at the largest n less at 1), gain_ci, share_of_ceiling
        (gain of the choice over the gain of choosing by gold). Intervals are None with a single
        prompt, which tells of no other; it over-optimises nothing.
    """
    kept: list[tuple[Array, Array]] = []
    prompts: list[Hashable] = []
    left_out = prompts_out = 0
    owners = range(len(proxies)) if groups is None else groups
    for proxy, gold, owner in zip(proxies, golds, owners, strict=True):
        p, g = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
        usable = ~(np.isnan(p) | np.isnan(g))
        left_out += int((~usable).sum())
        if usable.sum() < smallest:
            prompts_out += 1
        else:
            kept.append((p[usable], g[usable]))
            prompts.append(owner)
    result: dict[str, Any] = {
        "prompts": len(kept),
        "candidates": sum(len(p) for p, _ in kept),
        "left_out": left_out,
        "prompts_left_out": prompts_out,
        "smallest": smallest,
        "points": [],
    }
    if not kept:
        return result
    sizes = [len(p) for p, _ in kept]
    result |= {"fewest": min(sizes), "most": max(sizes)}
    most = min(largest, result["fewest"])
    steps = sorted({n for n in _STEPS if n < most} | {most})
    by_n: dict[int, Array] = {}
    for n in steps:
        best_golds = np.asarray([best_of_n(p, g, n) for p, g in kept])
        proxy_mean = float(np.mean([best_of_n(p, p, n) for p, _ in kept]))
        ceiling = float(np.mean([best_of_n(g, g, n) for _, g in kept]))
        by_n[n] = best_golds
        mean, ci = _mean(best_golds, prompts, confidence)
        result["points"].append(
            {
                "n": n,
                "kl": kl_bound(n),
                "gold": mean,
                "gold_ci": ci,
                "proxy": proxy_mean,
                "ceiling": ceiling,
            }
        )
    first, last = result["points"][0], result["points"][-1]
    peak = max(result["points"], key=lambda point: point["gold"])["n"]
    fall, fall_ci = _mean(by_n[most] - by_n[peak], prompts, confidence)
    gain, gain_ci = _mean(by_n[most] - by_n[1], prompts, confidence)
    possible = last["ceiling"] - first["gold"]
    return result | {
        "largest": most,
        "peak": peak,
        "fall": fall,
        "fall_ci": fall_ci,
        "over_optimised": bool(peak < most and fall_ci is not None and fall_ci[1] < 0),
        "gain": gain,
        "gain_ci": gain_ci,
        "share_of_ceiling": gain / possible if possible > 0 else None,
    }


def _mean(
    values: Array, prompts: Sequence[Hashable], confidence: float
) -> tuple[float, Interval | None]:
    """Mean over lists, and its interval over prompts; None where there is one prompt alone."""
    mean = float(values.mean())
    if len(set(prompts)) < 2:
        return mean, None
    by_prompt, (low, high) = mean_interval(values.tolist(), confidence, groups=prompts)
    # Prompts may have unequal numbers of lists: the interval keeps its width around the mean.
    return mean, (mean + low - by_prompt, mean + high - by_prompt)
