"""How wide the scores of an ensemble's members are, and which of them rules a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How wide one member's scores are.

    Attributes:
        mean, deviation: over all responses it scored.
        within: deviation within a prompt, which is what decides between its responses; None where
            no prompt has two.
        share: of the ensemble's variance within a prompt that comes from this member in a plain
            mean of the scores as they enter it, over the members asked; the shares add up to 1.
            None where nothing varies.
        n: responses scored. unscored: those it was asked about and could not score.
    """

    name: str
    mean: float | None
    deviation: float | None
    within: float | None
    share: float | None
    n: int
    unscored: int


class SpreadSums:
    """Spreads of responses that come in parts, all responses to a prompt in one part.

    Args:
        names: of the members.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        members = len(self.names)
        self._n = np.zeros(members, dtype=int)
        self._unscored = np.zeros(members, dtype=int)
        self._mean, self._square = np.zeros(members), np.zeros(members)
        self._inside, self._freedom = np.zeros(members), np.zeros(members, dtype=int)
        # cov(s_m, sum of all) and var(sum of all), each times the number of responses.
        self._with_total, self._total = np.zeros(members), 0.0

    def add(
        self,
        scores: Array,
        groups: Sequence[int],
        *,
        asked: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Takes the scores of a part.

        Args:
            scores: [M, N] as they enter the rule; NaN where unscored.
            groups: [N] the prompt of each response.
            asked: [M, N] where prompts are routed, whether a member was asked; alike within a
                prompt. Default: everywhere.
        """
        group = np.asarray(groups)
        wanted = np.ones(scores.shape, dtype=bool) if asked is None else asked
        whole = ~np.any(wanted & np.isnan(scores), axis=0) & wanted.any(axis=0)
        parts = np.where(wanted, scores, 0.0)[:, whole] / wanted[:, whole].sum(axis=0)
        inner = _centred(parts, group[whole])
        total = inner.sum(axis=0)
        self._with_total += inner @ total
        self._total += float(total @ total)
        for m in range(len(self.names)):
            scored = wanted[m] & ~np.isnan(scores[m])
            self._unscored[m] += int((wanted[m] & ~scored).sum())
            if scored.any():
                self._take(m, scores[m, scored], group[scored])

    def _take(self, m: int, values: Array, group: npt.NDArray[Any]) -> None:
        before, more = self._n[m], len(values)
        mean = float(values.mean())
        off = mean - self._mean[m]
        self._n[m] += more
        self._square[m] += float(((values - mean) ** 2).sum()) + off**2 * before * more / self._n[m]
        self._mean[m] += off * more / self._n[m]
        inside = _centred(values[None, :], group)[0]
        self._inside[m] += float(inside @ inside)
        self._freedom[m] += len(inside) - len(np.unique(group[_several(group)]))

    def spreads(self) -> list[Spread]:
        """Of all that was taken."""
        return [
            Spread(
                name=name,
                mean=float(self._mean[m]) if n else None,
                deviation=float(np.sqrt(self._square[m] / n)) if n else None,
                within=_root(self._inside[m], self._freedom[m]),
                # The shares add up to 1 over members.
                share=float(self._with_total[m] / self._total) if self._total > 0 else None,
                n=int(n),
                unscored=int(self._unscored[m]),
            )
            for m, (name, n) in enumerate(zip(self.names, self._n, strict=True))
        ]


RAW = "z-scores weigh members alike"
STANDARDISED = "z-scores divide by deviations that are not those within these prompts"


def dominance(spreads: Sequence[Spread], *, standardised: bool = False) -> str | None:
    """A warning where one member makes most of a mean's spread; None where none does.

    Most: more than half way from an equal share, 1 / M, to all of it.

    Args:
        standardised: the scores are z-scores already.
    """
    limit = (1 + 1 / len(spreads)) / 2
    for spread in spreads:
        if spread.share is not None and spread.share > limit:
            others = ", ".join(
                f"{s.name} {s.within:.3g}"
                for s in spreads
                if s is not spread and s.within is not None
            )
            return (
                f"{spread.name} makes {spread.share:.0%} of the ensemble's spread: its scores vary "
                f"by {spread.within or 0:.3g} within a prompt ({others}), so their mean is mostly "
                f"its own; {STANDARDISED if standardised else RAW}"
            )
    return None


def _root(square: float, freedom: int) -> float | None:
    return float(np.sqrt(square / freedom)) if freedom > 0 else None


def _several(group: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """[N] True where the group has two or more."""
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    several: npt.NDArray[np.bool_] = counts[inverse] > 1
    return several


def _centred(scores: Array, group: npt.NDArray[Any]) -> Array:
    """[M, n] scores less their prompt's mean, of prompts with two responses or more."""
    keep = _several(group)
    values, groups = scores[:, keep], group[keep]
    if not values.shape[1]:
        return values
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(values), len(counts)))
    for m, row in enumerate(values):
        sums[m] = np.bincount(inverse, weights=row, minlength=len(counts))
    centred: Array = values - (sums / counts)[:, inverse]
    return centred
