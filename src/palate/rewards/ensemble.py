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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from palate.data.schema import Content
from palate.errors import ModelError
from palate.rewards.base import (
    Judged,
    Scorer,
    by_equal_prompts,
    has_images,
    is_independent,
    is_relative,
    judge_groups,
    score_groups,
)
from palate.rewards.members import Numbers, Rule

Array = npt.NDArray[np.float64]
Modality = Literal["any", "text", "image"]
NO_MEMBER = "no member of the ensemble scores such prompts"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One scorer of an ensemble.

    Attributes:
        modality: of the prompts that it scores.
        mean, deviation: of its scores on validation data; for z-scores.
        weight: for weighted means.
    """

    scorer: Scorer
    modality: Modality = "any"
    mean: float | None = None
    deviation: float | None = None
    weight: float | None = None

    def fits(self, image: bool) -> bool:
        """Whether it scores prompts with (or without) images."""
        return self.modality == "any" or (self.modality == "image") is image


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
        found = mean
    elif rule == "median":
        found = np.ma.median(np.ma.masked_array(filled, ~usable), axis=0).filled(np.nan)
    elif rule == "min":
        found = np.where(usable, filled, np.inf).min(axis=0)
    elif rule == "uncertainty":
        square = np.where(usable, (filled - mean) ** 2, 0.0).sum(axis=0) / n
        found = mean - penalty * np.sqrt(square)
    else:
        assert weights is not None
        w = np.where(usable, weights[:, None], 0.0)
        total = w.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.where(usable, w * filled, 0.0).sum(axis=0) / total
    out: Array = np.where(broken, np.nan, found)
    return out


class Ensemble:
    """Scores by several members at once; each is asked only about prompts of its modality.

    Args:
        members: two or more, with what the rule needs of each.
        rule: how scores are combined; see the module's head.

    Raises:
        ValueError: no such rule, a member lacks what the rule needs, or a number that is none
            (`deviation` above 0, `weight` and `penalty` 0 or more, all finite).
    """

    reads_images = True
    """Each member by itself does, or does not."""

    def __init__(
        self,
        members: Sequence[Member],
        rule: Rule = "mean",
        *,
        standardise: bool = False,
        penalty: float = 1.0,
        name: str | None = None,
    ) -> None:
        if len(members) < 2:
            raise ValueError("an ensemble has two members or more")
        self.members = tuple(members)
        self.rule: Rule = rule
        self.standardise = standardise
        self.penalty = penalty
        self.name = name or f"{rule} of {len(members)}"
        if rule not in get_args(Rule):
            raise ValueError(f"no rule {rule}; there are {', '.join(get_args(Rule))}")
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty {penalty}: not 0 or more")
        for member in members:
            own = member.scorer.name
            if self.uses_zscores and (member.mean is None or not member.deviation):
                raise ValueError(f"{own}: no mean and deviation for z-scores")
            if self.uses_zscores and not (
                math.isfinite(member.mean or 0.0) and 0 < (member.deviation or 0.0) < math.inf
            ):
                raise ValueError(f"{own}: mean {member.mean}, deviation {member.deviation}")
            if rule == "weighted" and member.weight is None:
                raise ValueError(f"{own}: no weight")
            if rule == "weighted" and not 0 <= (member.weight or 0.0) < math.inf:
                raise ValueError(f"{own}: weight {member.weight}, not 0 or more")
        if rule == "weighted" and not sum(member.weight or 0.0 for member in members) > 0:
            raise ValueError("the weights add up to nothing")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the members, numbered where two would be alike."""
        found: list[str] = []
        for member in self.members:
            own, n = member.scorer.name, 1
            while own in found:
                n += 1
                own = f"{member.scorer.name} ({n})"
            found.append(own)
        return tuple(found)

    @property
    def relative(self) -> bool:
        """Whether a member compares responses."""
        return any(is_relative(member.scorer) for member in self.members)

    @property
    def independent(self) -> bool:
        """Whether no member's scores depend on what else is in a call."""
        return all(is_independent(member.scorer) for member in self.members)

    @property
    def uses_zscores(self) -> bool:
        return self.standardise or self.rule == "zscore"

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """One score a response; NaN where a member that is asked has none.

        A member that compares responses sees those of equal prompts in this call.
        """
        return by_equal_prompts(self.score_groups, prompts, responses)

    def score_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[float]]:
        """As `score`, of all responses to each prompt."""
        return [[one.score for one in own] for own in self.judge_groups(prompts, responses)]

    def judge_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[Judged]]:
        """As `score_groups`, with the members' scores and what they wrote, under their names."""
        sizes = [len(group) for group in responses]
        image = [has_images(prompt) for prompt in prompts]
        scores = np.full((len(self.members), sum(sizes)), np.nan)
        owner = np.repeat(np.arange(len(prompts)), sizes)
        texts: list[list[str]] = [[] for _ in owner]
        reasons = [NO_MEMBER] * len(owner)
        own_scores: list[list[tuple[str, float]]] = [[] for _ in owner]
        for m, (name, member) in enumerate(zip(self.names, self.members, strict=True)):
            asked = [i for i, has in enumerate(image) if member.fits(has)]
            found = judge_groups(
                member.scorer, [prompts[i] for i in asked], [responses[i] for i in asked]
            )
            judged = [one for group in found for one in group]
            for place, one in zip(np.flatnonzero(np.isin(owner, asked)), judged, strict=True):
                scores[m, place] = one.score
                own_scores[place].append((name, one.score))
                if math.isnan(one.score) or reasons[place] == NO_MEMBER:
                    reasons[place] = one.reason
                if one.text is not None:
                    texts[place].append(f"{name}:\n{one.text}")
        combined = self.combined(scores, np.asarray(image)[owner].tolist())
        flat = [
            Judged(float(score), "\n\n".join(own) or None, reason, tuple(parts))
            for score, own, reason, parts in zip(combined, texts, reasons, own_scores, strict=True)
        ]
        ends = np.cumsum([0, *sizes]).tolist()
        return [flat[a:b] for a, b in pairwise(ends)]

    def combined(self, scores: Array, image: Sequence[bool]) -> Array:
        """[N] scores from the members' own.

        Args:
            scores: [M, N]. image: [N] whether the prompt of each has images.
        """
        return combine(
            scores,
            self.rule,
            fits=self.asked(image),
            means=self._numbers("mean"),
            deviations=self._numbers("deviation"),
            weights=self._numbers("weight"),
            standardise=self.standardise,
            penalty=self.penalty,
        )

    def asked(self, image: Sequence[bool]) -> npt.NDArray[np.bool_]:
        """[M, N] whether each member scores a response to a prompt with (or without) images."""
        fits = [[member.fits(has) for has in image] for member in self.members]
        return np.asarray(fits, dtype=bool).reshape(len(self.members), len(image))

    @property
    def numbers(self) -> Numbers:
        """What the rule knows of its members."""
        return Numbers(
            names=self.names,
            rule=self.rule,
            standardised=self.uses_zscores,
            means=tuple(member.mean for member in self.members),
            deviations=tuple(member.deviation for member in self.members),
            weights=tuple(member.weight for member in self.members),
        )

    @property
    def counts(self) -> Counter[str]:
        """What the members counted (verdicts that could not be read ...), each under its name."""
        total: Counter[str] = Counter()
        for name, member in zip(self.names, self.members, strict=True):
            for key, n in getattr(member.scorer, "counts", {}).items():
                total[f"{name}: {key}"] += n
        return total

    def _numbers(self, field: str) -> Array | None:
        values = [getattr(member, field) for member in self.members]
        return None if None in values else np.asarray(values, dtype=np.float64)


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
    found = np.asarray(
        score_groups(scorer, [p for p, _, _ in pairs], [[c, r] for _, c, r in pairs]),
        dtype=np.float64,
    ).reshape(-1, 2)
    usable = found[np.isfinite(found).all(axis=1)]
    if not len(usable):
        raise ModelError(f"{scorer.name}: scores no pair of the validation data")
    # The deviation of equal numbers may come out a little above zero.
    if usable.min() == usable.max():
        raise ModelError(f"{scorer.name}: all scores of the validation data are equal")
    margin = usable[:, 0] - usable[:, 1]
    return Validation(
        mean=float(usable.mean()),
        deviation=float(usable.std()),
        accuracy=float((margin > 0).sum() / len(found)),
        margin=float(margin.mean()),
        n=len(usable),
    )
