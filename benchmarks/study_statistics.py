"""Whether the statistics of studies hold what they promise, on simulated studies of known effects.

    python benchmarks/study_statistics.py [--simulations 2000] [--only TABLE ...] [--seed 0]

coverage      95% intervals of a difference, "these items / new items", for 3, 5 and 8 seeds and 60
              and 500 items, over ratios of components of variance (RATIOS)
two-seeds     the same of 2 seeds
levels        95 and 99.5% intervals for new items, the lowest and highest share over all ratios of
              components, beside those that Satterthwaite's degrees of freedom would give
one-seed      the bootstrap over items of two trained models
percentile    why seeds are not resampled: percentile bootstrap intervals of few seeds
families      ten variants against one baseline: family-wise error of Holm, false discoveries of
              Benjamini-Hochberg, and what their intervals hold
power         predicted by the noncentral t from true components against simulated
shares        95% intervals of shares of variance
ratings       95% intervals of Davidson ratings
correlation   95% intervals of correlations of few runs
length        95% intervals of the win rate at equal length

A share outside of 92 to 98% has a `!` behind it. The error of 2,000 simulations is 0.5 points.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from palate.evaluate.length_control import length_controlled_win_rate
from palate.study.corrections import adjust
from palate.study.correlation import rank_correlation_interval
from palate.study.crossed import ESTIMANDS, MeanSquares, Spread, estimate, from_mean_squares
from palate.study.power import planned_power
from palate.study.ratings import fit, rate
from palate.study.resampled import bootstrap_items
from palate.study.variance import variance_shares

SEEDS, ITEMS = (3, 5, 8), (60, 500)
CHUNK, FAMILIES = 250, 50
LEVEL = 0.05


@dataclass(frozen=True)
class Components:
    """Standard deviations, on the scale of outcomes or, of binary ones, of what decides them.

    Attributes:
        seeds: of a training seed, in each variant.
        items: of a variant's own part of an item.
        residual: of one seed on one item. Binary outcomes vary by 1 more, their own draw.
        common: of an item's difficulty, and of a paired seed, which variants share.
    """

    seeds: float
    items: float
    residual: float
    common: float = 1.0


RATIOS = {
    "items": Components(0.02, 1.0, 0.5),
    "seeds": Components(0.5, 0.05, 0.2),
    "residual": Components(0.0, 0.0, 1.0),
    "even": Components(0.1, 0.7, 0.7),
    "seeds tenfold": Components(0.3, 0.7, 0.3),
    "some seeds": Components(0.05, 0.3, 1.0),
}


@dataclass(frozen=True)
class Simulated:
    """[R, S, N] outcomes of two variants and their true difference on these and on new items."""

    a: np.ndarray
    b: np.ndarray
    these: np.ndarray
    new: float


def simulate(
    rng: np.random.Generator,
    part: Components,
    *,
    runs: int,
    seeds: int,
    items: int,
    paired: bool = True,
    binary: bool = False,
    effect: float = 0.2,
) -> Simulated:
    def drawn(size: float, *shape: int) -> np.ndarray:
        return size * rng.standard_normal((runs, *shape))

    item = drawn(part.common, 1, items)
    shared = drawn(part.common if not binary else 0.3, seeds, 1) if paired else np.zeros(1)
    noise = 1 + part.seeds**2 + part.residual**2 + (0.3**2 if paired else 0.0)
    variants, levels = [], []
    for half in (effect / 2, -effect / 2):
        level = half + item + drawn(part.items, 1, items)
        x = level + shared + drawn(part.seeds, seeds, 1) + drawn(part.residual, seeds, items)
        if binary:
            x = (x + drawn(1.0, seeds, items) > 0).astype(float)
            level = stats.norm.cdf(level / np.sqrt(noise))
        variants.append(x)
        levels.append(level.mean((1, 2)))
    new = effect
    if binary:
        total = np.sqrt(noise + part.items**2 + part.common**2)
        new = float(2 * stats.norm.cdf(effect / 2 / total) - 1)
    return Simulated(variants[0], variants[1], levels[0] - levels[1], new)


def chunks(simulations: int) -> Iterator[int]:
    for start in range(0, simulations, CHUNK):
        yield min(CHUNK, simulations - start)


def coverage(
    rng: np.random.Generator,
    part: Components,
    simulations: int,
    *,
    seeds: int,
    items: int,
    paired: bool,
    binary: bool,
) -> tuple[float, float]:
    """Share of 95% intervals that hold the difference on these items, and on new ones."""
    held = np.zeros(2)
    for runs in chunks(simulations):
        study = simulate(
            rng, part, runs=runs, seeds=seeds, items=items, paired=paired, binary=binary
        )
        for k, (estimand, truth) in enumerate(
            zip(ESTIMANDS, (study.these, study.new), strict=True)
        ):
            result = estimate(study.a, study.b, paired=paired, estimand=estimand)
            held[k] += (np.abs(result.difference - truth) <= result.half_width(0.95)).sum()
    return float(held[0] / simulations), float(held[1] / simulations)


def percent(share: float) -> str:
    return f"{100 * share:.1f}{' ' if 0.92 <= share <= 0.98 else '!'}"


def coverage_tables(rng: np.random.Generator, simulations: int, seeds: tuple[int, ...]) -> None:
    columns = [(n, s) for n in ITEMS for s in seeds]
    print(" " * 40 + " ".join(f"{f'{s} seeds, {n}':>14}" for n, s in columns))
    for binary in (False, True):
        for paired in (True, False):
            for name, part in RATIOS.items():
                cells = []
                for items, count in columns:
                    pair = coverage(
                        rng, part, simulations, seeds=count, items=items, paired=paired,
                        binary=binary,
                    )  # fmt: skip
                    cells.append(" / ".join(percent(share) for share in pair))
                kind = "binary" if binary else "normal"
                how = "paired" if paired else "unpaired"
                print(f"{kind} {how:<9} {name:<22} " + " ".join(f"{c:>14}" for c in cells))


def level_range(
    rng: np.random.Generator, simulations: int, *, seeds: int, items: int, level: float,
    variants: tuple[float, ...],
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Lowest and highest share over ratios of components that intervals for new items hold, and
    that t with Satterthwaite's degrees of freedom does. By mean squares of normal outcomes.

    Args:
        variants: how much seeds vary in each variant, relative; one where seeds are paired.
    """
    f, fi, many = seeds - 1.0, items - 1.0, len(variants)
    shares: list[list[float]] = [[], []]
    for ratio in (0.0, *np.geomspace(0.01, 1000, 11)):
        for residual in (0.0, 0.3, 2.0, 20.0):
            rest = np.full(many, residual / many)
            between, across = ratio * np.array(variants) / many + rest, 1 + residual
            squares = MeanSquares(
                seeds=between * rng.chisquare(f, (simulations, many)) / f,
                residual=rest * rng.chisquare(f * fi, (simulations, many)) / (f * fi),
                items=across * rng.chisquare(fi, simulations) / fi,
                counts=np.full(many, seeds),
                n_items=items,
            )
            result = from_mean_squares(np.zeros(simulations), squares, "new items")
            variance = result.standard_error**2
            counted = result.items > 0
            terms = (squares.seeds**2 / f).sum(1) + counted * (
                squares.items**2 / fi + (squares.residual**2 / (f * fi)).sum(1)
            )
            t = stats.t.isf((1 - level) / 2, variance**2 / terms) * result.standard_error
            sd = np.sqrt(between.sum() + across - residual)
            for held, half in zip(shares, (result.half_width(level), t), strict=True):
                held.append(float(1 - 2 * stats.norm.sf(half / sd).mean()))
    return [min(shares[0]), max(shares[0])], [min(shares[1]), max(shares[1])]


def levels_table(rng: np.random.Generator, simulations: int) -> None:
    for level in (0.95, 0.995):
        for how, variants in (
            ("paired", (1.0,)),
            ("unpaired, equal", (1.0, 1.0)),
            ("unpaired, one to five", (1.0, 5.0)),
        ):
            for seeds in (2, *SEEDS):
                cells = []
                for items in ITEMS:
                    ends = level_range(
                        rng, 10 * simulations, seeds=seeds, items=items, level=level,
                        variants=variants,
                    )  # fmt: skip
                    words = [f"{100 * low:.2f} to {100 * high:.2f}" for low, high in ends]
                    cells.append(f"{words[0]} (Satterthwaite {words[1]})")
                print(f"{level:.1%} {how:<22} {seeds} seeds: " + "; ".join(cells), flush=True)


def one_seed_coverage(
    rng: np.random.Generator, simulations: int, *, items: int, binary: bool
) -> float:
    """Of the BCa interval over items. Seeds do not vary, so that any two trained models differ by
    the effect: that of these two is what the interval is about."""
    part = replace(RATIOS["even"], seeds=0.0)
    held = 0
    for number in range(simulations):
        study = simulate(rng, part, runs=1, seeds=1, items=items, paired=False, binary=binary)
        low, high = bootstrap_items((study.a - study.b)[0, 0], seed=number)[0]
        held += low <= study.new <= high
    return held / simulations


def one_seed(rng: np.random.Generator, simulations: int) -> None:
    for binary in (False, True):
        for items in ITEMS:
            share = one_seed_coverage(rng, max(50, simulations // 8), items=items, binary=binary)
            print(f"{'binary' if binary else 'normal'} {items:>4} items {percent(share)}")


def percentile_coverage(rng: np.random.Generator, simulations: int, seeds: int) -> float:
    """Of percentile bootstrap intervals of the mean of normal seeds."""
    rows = rng.integers(0, seeds, (1000, seeds))
    held = 0
    for runs in chunks(simulations):
        means = rng.standard_normal((runs, seeds))[:, rows].mean(-1)
        low, high = np.quantile(means, [0.025, 0.975], axis=1)
        held += int(((low <= 0) & (high >= 0)).sum())
    return held / simulations


@dataclass(frozen=True)
class FamilyRates:
    """Of many families: how often Holm told any false difference; the mean share of false ones
    among those that Benjamini-Hochberg told; how often all Bonferroni intervals held at once; the
    mean share of Benjamini-Yekutieli intervals of told differences that missed."""

    family_wise: float
    false_discoveries: float
    all_hold: float
    selected_miss: float


def families(
    rng: np.random.Generator,
    simulations: int,
    *,
    seeds: int,
    items: int,
    real: int,
    total: int = 10,
) -> FamilyRates:
    """`total` variants against one baseline, of which `real` differ from it."""
    part = RATIOS["even"]
    effects = np.zeros(total)
    effects[:real] = 0.35
    sums = np.zeros(4)
    adjust([0.5], "holm")
    # statsmodels' Holm collects garbage at every call: with the objects of now aside it is fast.
    gc.freeze()
    for start in range(0, simulations, FAMILIES):
        runs = min(FAMILIES, simulations - start)

        def drawn(size: float, *shape: int, runs: int = runs) -> np.ndarray:
            return size * rng.standard_normal((runs, *shape))

        # All variants and the baseline share items and paired seeds.
        x = (
            drawn(part.common, 1, 1, items)
            + drawn(part.common, 1, seeds, 1)
            + drawn(part.items, total + 1, 1, items)
            + drawn(part.seeds, total + 1, seeds, 1)
            + drawn(part.residual, total + 1, seeds, items)
        )
        x[:, :-1] += effects[:, None, None]
        base = np.broadcast_to(x[:, -1:], x[:, :-1].shape)
        result = estimate(x[:, :-1], base, paired=True, estimand="new items")
        p = result.p_value()
        holm, bh = (
            np.array([adjust(row, method) <= LEVEL for row in p]) for method in ("holm", "bh")
        )
        wrong = effects == 0
        error = np.abs(result.difference - effects)
        told = np.maximum(1, bh.sum(1))
        width = result.half_width(1 - LEVEL * told[:, None] / total)
        sums += (
            (holm & wrong).any(1).sum(),
            ((bh & wrong).sum(1) / told).sum(),
            (error <= result.half_width(1 - LEVEL / total)).all(1).sum(),
            ((bh & (error > width)).sum(1) / told).sum(),
        )
    gc.unfreeze()
    return FamilyRates(*(sums / simulations))


def family_table(rng: np.random.Generator, simulations: int) -> None:
    print("seeds items real of 10   Holm any false   BH false share   all intervals hold  BY miss")
    for seeds in SEEDS:
        for items in ITEMS:
            for real in (0, 5):
                rates = families(rng, simulations, seeds=seeds, items=items, real=real)
                print(
                    f"{seeds:>5} {items:>5} {real:>10} {rates.family_wise:>16.3f} "
                    f"{rates.false_discoveries:>16.3f} {rates.all_hold:>20.3f} "
                    f"{rates.selected_miss:>8.3f}"
                )


def power_pair(
    rng: np.random.Generator, part: Components, simulations: int, *, seeds: int, items: int,
    paired: bool, estimand: str, effect: float,
) -> tuple[float, float]:  # fmt: skip
    """Power as planned from true components, and as simulated."""
    spread = Spread(
        seeds=2 * part.seeds**2, items=2 * part.items**2, residual=2 * part.residual**2,
        paired=paired,
    )  # fmt: skip
    predicted = planned_power(spread, effect, seeds=seeds, items=items, estimand=estimand)
    told = 0
    for runs in chunks(simulations):
        study = simulate(
            rng, part, runs=runs, seeds=seeds, items=items, paired=paired, effect=effect
        )
        result = estimate(study.a, study.b, paired=paired, estimand=estimand)
        shift = study.these - effect if estimand == "these items" else 0.0
        # On these items the true difference is what they make it: the effect is put there.
        moved = replace(result, difference=result.difference - shift)
        told += int(((moved.p_value() <= LEVEL) & (moved.difference > 0)).sum())
    return predicted, told / simulations


def power_table(rng: np.random.Generator, simulations: int) -> None:
    largest = 0.0
    for estimand in ESTIMANDS:
        for name, part in RATIOS.items():
            for paired in (True, False):
                cells = []
                for seeds in SEEDS:
                    for items in ITEMS:
                        size = 2 * (part.seeds**2 + part.residual**2 / items) / seeds
                        if estimand == "new items":
                            size += 2 * part.items**2 / items
                        predicted, simulated = power_pair(
                            rng, part, simulations, seeds=seeds, items=items, paired=paired,
                            estimand=estimand, effect=3 * float(np.sqrt(size)),
                        )  # fmt: skip
                        largest = max(largest, abs(predicted - simulated))
                        cells.append(f"{100 * predicted:.0f} {100 * simulated:.0f}")
                how = "paired" if paired else "unpaired"
                print(f"{estimand} {name:<14} {how:<9} " + "  ".join(f"{c:>6}" for c in cells))
    print(f"largest gap {100 * largest:.1f} points (predicted, simulated; {SEEDS} seeds x {ITEMS})")


GRIDS = {
    "3 x 2": [(d, a) for d in range(3) for a in range(2)],
    "2 x 2 x 2": [(d, a, p) for d in range(2) for a in range(2) for p in range(2)],
    "one at a time, 4 + 3": [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 2)],
}
SIZES = {
    "nothing": (0.0, 0.0, 0.0), "one": (1.5, 0.0, 0.0), "most": (5.0, 2.0, 1.0),
    "some": (0.5, 0.5, 0.5),
}  # fmt: skip
"""How far apart the levels of each aspect are, in standard deviations of seeds."""


def shares_coverage(
    rng: np.random.Generator, simulations: int, grid: str, sizes: tuple[float, ...], *, seeds: int,
    missing: int = 0,
) -> dict[str, float]:  # fmt: skip
    """By term: share of 95% intervals that hold the true share. Effects are additive.

    Args:
        missing: runs left out at random.
    """
    cells = np.repeat(np.array(GRIDS[grid]), seeds, 0)
    held: dict[str, int] = {}
    for number in range(simulations):
        kept = np.sort(rng.permutation(len(cells))[missing:])
        levels = cells[kept]
        signal = sum(size * levels[:, k] for k, size in enumerate(sizes[: levels.shape[1]]))
        y = signal + rng.standard_normal(len(levels))
        names = [f"aspect {k}" for k in range(levels.shape[1])]
        table = {name: levels[:, k].tolist() for k, name in enumerate(names)}
        # True parts: type II sums of squares of the signal itself.
        truth = dict.fromkeys(names, 0.0)
        for k, name in enumerate(names):
            rest = np.column_stack(
                [np.ones(len(levels))]
                + [
                    levels[:, [j]] == np.unique(levels[:, j])[1:]
                    for j in range(len(names))
                    if j != k
                ]
            ).astype(float)
            part = sizes[k] * levels[:, k].astype(float)
            part = part - rest @ np.linalg.lstsq(rest, part, rcond=None)[0]
            truth[name] = float(part @ part) / len(levels)
        total = sum(truth.values()) + 1
        result = variance_shares(y, table, seed=number)
        for share in result.shares:
            true = 1 / total if share.term == "seeds" else truth.get(share.term, 0.0) / total
            low, high = share.interval
            held[share.term] = held.get(share.term, 0) + int(low - 1e-9 <= true <= high)
    return {term: count / simulations for term, count in held.items()}


def shares_table(rng: np.random.Generator, simulations: int) -> None:
    print("runs left out: none / 3, of each aspect, of all interactions (there are none), of seeds")
    for grid in GRIDS:
        for seeds in SEEDS:
            for name, sizes in SIZES.items():
                rows = []
                for missing in (0, 3):
                    held = shares_coverage(
                        rng, max(50, simulations // 8), grid, sizes, seeds=seeds, missing=missing
                    )
                    crossed = [share for term, share in held.items() if " x " in term]
                    cells = [percent(s) for term, s in held.items() if " x " not in term]
                    if crossed:
                        cells.insert(-1, percent(float(np.mean(crossed))))
                    rows.append(" ".join(cells))
                print(f"{grid}, {seeds} seeds, {name:<8} {'  /  '.join(rows)}", flush=True)


def ratings_coverage(
    rng: np.random.Generator, simulations: int, ratings: np.ndarray, *, items: int, tie: float
) -> tuple[float, float]:
    """Of 95% intervals of ratings by the inverse information, and of differences of two."""
    size = len(ratings)
    pairs = np.array([(i, j) for i in range(size) for j in range(i + 1, size)])
    p, q = np.exp(ratings[pairs[:, 0]]), np.exp(ratings[pairs[:, 1]])
    cells = np.stack([p, q, tie * np.sqrt(p * q)], 1)
    cells /= cells.sum(1, keepdims=True)
    counts = np.stack([rng.multinomial(items, cell, size=simulations) for cell in cells], 1)
    estimates, _, covariance = fit(counts.astype(float), pairs, size, ties=True)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    z = stats.norm.ppf(0.975)
    single = np.abs(estimates - ratings) <= z * np.sqrt(variance)
    error = estimates[:, 0] - estimates[:, 1] - ratings[0] + ratings[1]
    width = variance[:, 0] + variance[:, 1] - 2 * covariance[:, 0, 1]
    return float(single.mean()), float((np.abs(error) <= z * np.sqrt(width)).mean())


def clustered_ratings_coverage(
    rng: np.random.Generator, simulations: int, *, items: int
) -> tuple[float, float]:
    """By the information and by resampled items, where all comparisons of an item go together.

    Each policy has an answer of its own quality to an item, and all its comparisons share it.
    """
    names, strengths = np.array(["a", "b", "c", "d"]), np.array([0.6, 0.2, -0.2, -0.6])
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    first = np.repeat([names[i] for i, _ in pairs], items)
    second = np.repeat([names[j] for _, j in pairs], items)
    numbers = np.tile(np.arange(items), len(pairs)).tolist()

    def scores(count: int) -> np.ndarray:
        quality = strengths + 1.5 * rng.standard_normal((count, 4))
        gaps = np.concatenate([quality[:, i] - quality[:, j] for i, j in pairs])
        gaps = gaps + rng.logistic(size=len(gaps))
        return np.where(np.abs(gaps) < 0.4, 0.5, gaps > 0)

    many = 40_000
    repeated = [np.repeat([names[p[k]] for p in pairs], many) for k in (0, 1)]
    truth = dict(zip(*_named(rate(*repeated, scores(many))), strict=True))
    held = np.zeros(2)
    for number in range(simulations):
        y = scores(items)
        for k, of in enumerate((None, numbers)):
            result = rate(first.tolist(), second.tolist(), y, items=of, seed=number)
            for name, (low, high) in zip(result.names, result.intervals, strict=True):
                held[k] += low <= truth[name] <= high
    return tuple(held / simulations / 4)


def _named(ratings) -> tuple:
    return ratings.names, ratings.ratings


def ratings_table(rng: np.random.Generator, simulations: int) -> None:
    for ratings in ((0.5, -0.5), (1.0, 0.3, -0.3, -1.0), tuple(np.linspace(-1.5, 1.5, 8))):
        for items in ITEMS:
            for tie in (0.3, 1.5):
                single, pair = ratings_coverage(
                    rng, simulations, np.array(ratings), items=items, tie=tie
                )
                print(
                    f"{len(ratings)} policies, {items:>3} items a pair, nu {tie}: ratings "
                    f"{percent(single)} differences {percent(pair)}"
                )
    for items in ITEMS:
        by_information, by_items = clustered_ratings_coverage(
            rng, max(50, simulations // 10), items=items
        )
        print(
            f"4 policies, {items:>3} items, comparisons of an item dependent: information "
            f"{percent(by_information)} resampled items {percent(by_items)}"
        )


def correlation_coverage(
    rng: np.random.Generator, simulations: int, *, runs: int, rho: float
) -> tuple[float, float]:
    """Of 95% intervals of Pearson's and Spearman's correlation of normal measures."""
    truth = 6 / np.pi * np.arcsin(rho / 2)
    held = np.zeros(2)
    for _ in range(simulations):
        x, noise = rng.standard_normal((2, runs))
        y = rho * x + np.sqrt(1 - rho**2) * noise
        low, high = stats.pearsonr(x, y).confidence_interval()
        held[0] += low <= rho <= high
        rank = float(np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1])
        low, high = rank_correlation_interval(rank, runs)
        held[1] += low <= truth <= high
    return float(held[0] / simulations), float(held[1] / simulations)


def correlation_table(rng: np.random.Generator, simulations: int) -> None:
    for runs in (4, 5, 6, 8, 12, 20):
        cells = []
        for rho in (0.0, 0.5, 0.8, 0.95):
            linear, rank = correlation_coverage(rng, simulations, runs=runs, rho=rho)
            cells.append(f"{rho}: {percent(linear)}/ {percent(rank)}")
        print(f"{runs:>2} runs, Pearson / Spearman at a correlation of " + "  ".join(cells))


def length_coverage(rng: np.random.Generator, simulations: int, *, items: int) -> float:
    """Of 95% intervals of the win rate at equal length, where longer answers win."""
    held = 0
    for _ in range(simulations):
        gap = rng.normal(200, 300, items)
        x = np.tanh(gap / 300)
        p = 1 / (1 + np.exp(-(0.4 + 1.2 * x)))
        y = (rng.random(items) < p).astype(float)
        low, high = length_controlled_win_rate(
            y, 1000 + gap, np.full(items, 1000)
        ).controlled_interval
        held += low <= 1 / (1 + np.exp(-0.4)) <= high
    return held / simulations


def length_table(rng: np.random.Generator, simulations: int) -> None:
    for items in ITEMS:
        share = length_coverage(rng, max(100, simulations // 2), items=items)
        print(f"{items:>3} items {percent(share)}")


def percentile_table(rng: np.random.Generator, simulations: int) -> None:
    for seeds in (3, 5, 8, 10, 20):
        print(f"{seeds:>2} seeds {percent(percentile_coverage(rng, simulations, seeds))}")


TABLES: dict[str, Callable[[np.random.Generator, int], None]] = {
    "coverage": lambda rng, simulations: coverage_tables(rng, simulations, SEEDS),
    "two-seeds": lambda rng, simulations: coverage_tables(rng, simulations, (2,)),
    "levels": levels_table,
    "one-seed": one_seed,
    "percentile": percentile_table,
    "families": family_table,
    "power": power_table,
    "shares": shares_table,
    "ratings": ratings_table,
    "correlation": correlation_table,
    "length": length_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for number, (name, table) in enumerate(TABLES.items()):
        if name in args.only:
            start = time.perf_counter()
            print(f"\n{name}")
            # Each table draws from its own stream, so that one alone prints what all together do.
            table(np.random.default_rng([args.seed, number]), args.simulations)
            print(f"({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
