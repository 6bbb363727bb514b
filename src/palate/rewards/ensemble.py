"""Several scorers as one.

With s_m the score of member m, mean_m and deviation_m those of its scores on some validation data,
and z_m = (s_m - mean_m) / deviation_m:

    mean         sum s_m / M                 BaseReward, arXiv:2509.16127, Table 7: its best
    zscore       sum z_m / M
    median       median of s_m
    min          min of s_m                  "worst case", arXiv:2310.02743
    uncertainty  mean of s_m - k sd of s_m   arXiv:2310.02743; sd over members, divided by M
    weighted     sum w_m s_m / sum w_m       w by validation accuracy or mean margin (BaseReward)

The last four take z_m instead of s_m where `standardise` is set. In a raw mean the member with the
widest scores rules: `palate.rewards.spread` says how wide each is, and warns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from palate.data.schema import Content
from palate.data.scorer import Group, Score, Scorer, ask
from palate.errors import ModelError
from palate.rewards.combined import Combined, Member, Parts, score_of
from palate.rewards.members import Array, Numbers, Rule, as_arrays


def combine(
    scores: Array,
    rule: Rule,
    *,
    fits: npt.NDArray[np.bool_] | None = None,
    means: Array | None = None,
    deviations: Array | None = None,
    weights: Array | None = None,
    standardise: bool = False,
    penalty: float = 1.0,
) -> Array:
    """One score a response from those of the members.

    Args:
        scores: [M, N]; NaN or infinite where a member could not score.
        fits: [M, N] True where the member is asked; default: everywhere.
        means, deviations: [M], for z-scores. weights: [M], for `weighted`.

    Returns:
        [N]; NaN where any member that is asked has no score, or none is asked: an ensemble with a
        member less is another ensemble.
    """
    assert scores.ndim == 2
    asked = np.ones(scores.shape, dtype=bool) if fits is None else fits
    values = scores
    if standardise or rule == "zscore":
        assert means is not None and deviations is not None
        values = (scores - means[:, None]) / deviations[:, None]
    broken: npt.NDArray[np.bool_] = np.any(asked & ~np.isfinite(values), axis=0)
    broken |= ~np.any(asked, axis=0)
    # Columns that come out as NaN in the end are given numbers on the way, to keep numpy quiet.
    usable = asked | broken
    filled = np.where(broken[None, :], 0.0, values)
    n = usable.sum(axis=0)
    mean = np.where(usable, filled, 0.0).sum(axis=0) / n
    if rule in ("mean", "zscore"):
        combined = mean
    elif rule == "median":
        combined = np.ma.median(np.ma.masked_array(filled, ~usable), axis=0).filled(np.nan)
    elif rule == "min":
        combined = np.where(usable, filled, np.inf).min(axis=0)
    elif rule == "uncertainty":
        square = np.where(usable, (filled - mean) ** 2, 0.0).sum(axis=0) / n
        combined = mean - penalty * np.sqrt(square)
    else:
        assert weights is not None
        w = np.where(usable, weights[:, None], 0.0)
        total = w.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            combined = np.where(usable, w * filled, 0.0).sum(axis=0) / total
    out: Array = np.where(broken, np.nan, combined)
    return out


class Ensemble(Combined):
    """Scores by several members at once; no value where a member that is asked has none.

    Args:
        members: two or more, with what the rule needs of each.
        rule: how scores are combined; see the module's head.

    Raises:
        ValueError: no such rule, a member lacks what the rule needs, or an impossible number
            (`deviation` is above 0, `weight` and `penalty` 0 or more, all finite).
    """

    def __init__(
        self,
        members: Sequence[Member],
        rule: Rule = "mean",
        *,
        standardise: bool = False,
        penalty: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(members, name or f"{rule} of {len(members)}")
        self.rule: Rule = rule
        self.standardise = standardise
        self.penalty = penalty
        if rule not in get_args(Rule):
            raise ValueError(f"no rule {rule}; there are {', '.join(get_args(Rule))}")
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty {penalty}: not 0 or more")
        for member in members:
            if self.uses_zscores:
                check_scale(member)
            if rule == "weighted" and member.weight is None:
                raise ValueError(f"{member.scorer.name}: no weight")
            if rule == "weighted" and not 0 <= (member.weight or 0.0) < math.inf:
                raise ValueError(f"{member.scorer.name}: weight {member.weight}, not 0 or more")
        if rule == "weighted" and not sum(member.weight or 0.0 for member in members) > 0:
            raise ValueError("the weights add up to nothing")

    @property
    def uses_zscores(self) -> bool:
        return self.standardise or self.rule == "zscore"

    def merged(
        self, groups: Sequence[Group], parts: Sequence[Sequence[Parts]]
    ) -> list[list[Score]]:
        """See `combine`."""
        flat = [of_response for group in parts for of_response in group]
        values = [{name: part.value for name, part in of_response.items()} for of_response in flat]
        scores, asked = as_arrays(self.names, values)
        combined = combine(
            scores,
            self.rule,
            fits=asked,
            means=self._of_members("mean"),
            deviations=self._of_members("deviation"),
            weights=self._of_members("weight"),
            standardise=self.standardise,
            penalty=self.penalty,
        )
        scored = iter(map(score_of, combined.tolist(), flat))
        return [[next(scored) for _ in group] for group in parts]

    @property
    def numbers(self) -> Numbers:
        """What the rule knows of its members."""
        return self._numbers(self.rule, standardised=self.uses_zscores)

    def _of_members(self, field: str) -> Array | None:
        values = [getattr(member, field) for member in self.members]
        return None if None in values else np.asarray(values, dtype=np.float64)


def check_scale(member: Member) -> None:
    """That a member has what z-scores need.

    Raises:
        ValueError: it has not.
    """
    name, mean, deviation = member.scorer.name, member.mean, member.deviation
    if mean is None or not deviation:
        raise ValueError(f"{name}: no mean and deviation for z-scores")
    if not (math.isfinite(mean) and 0 < deviation < math.inf):
        raise ValueError(f"{name}: mean {mean}, deviation {deviation}")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A member on validation pairs.

    Attributes:
        mean, deviation: of its scores of both responses. accuracy: share of all pairs whose chosen
            response scores strictly higher; one without a score does not. margin: mean of chosen
            less rejected.
        n: pairs that it scored.
    """

    mean: float
    deviation: float
    accuracy: float
    margin: float
    n: int


def validate(scorer: Scorer, pairs: Sequence[tuple[Content, Content, Content]]) -> Validation:
    """Measures a member on (prompt, chosen, rejected).

    Raises:
        ModelError: no pair could be scored, or all scores are equal.
    """
    scored = ask(scorer, [Group(prompt, (chosen, rejected)) for prompt, chosen, rejected in pairs])
    values = [[score.value for score in pair] for pair in scored]
    usable = np.asarray([pair for pair in values if None not in pair], dtype=np.float64)
    if not len(usable):
        raise ModelError(f"{scorer.name}: scores no pair of the validation data")
    # The deviation of equal numbers may come out a little above zero.
    if usable.min() == usable.max():
        raise ModelError(f"{scorer.name}: all scores of the validation data are equal")
    margin = usable[:, 0] - usable[:, 1]
    return Validation(
        mean=float(usable.mean()),
        deviation=float(usable.std()),
        accuracy=float((margin > 0).sum() / len(pairs)),
        margin=float(margin.mean()),
        n=len(usable),
    )
