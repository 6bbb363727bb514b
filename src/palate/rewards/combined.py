"""Scorers made of others: what ensembles and mixtures share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from palate.data.scorer import (
    NOT_FINITE,
    TEXT_AND_IMAGES,
    Group,
    Score,
    Scorer,
    Traits,
    ask,
    has_images,
)
from palate.rewards.members import MixtureRule, Numbers, Rule
from palate.store.names import unique_names

Parts = dict[str, Score]
"""Scores of the members that were asked about one response, by name."""
Ask = Callable[[Scorer, Sequence[Group]], list[list[Score]]]
NO_MEMBER = "no member of the ensemble scores such prompts"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One scorer of an ensemble or a mixture.

    Attributes:
        modality: of the prompts that it scores.
        mean, deviation: of its scores on validation data; for z-scores.
        weight: for weighted means and sums.
    """

    scorer: Scorer
    modality: Literal["any", "text", "image"] = "any"
    mean: float | None = None
    deviation: float | None = None
    weight: float | None = None

    def fits(self, image: bool) -> bool:
        """Whether it scores prompts with (or without) images."""
        return self.modality == "any" or (self.modality == "image") is image


class Combined(ABC):
    """A scorer made of others, each asked only about prompts of its modality.

    Args:
        members: two or more.

    Attributes:
        names: of the members, numbered where two would be alike.
        by_group: a score depends on what the members give to the others of its group.
    """

    by_group = False

    def __init__(self, members: Sequence[Member], name: str) -> None:
        if len(members) < 2:
            raise ValueError(f"{name}: made of two members or more")
        self.members = tuple(members)
        self.name = name
        self.names = tuple(unique_names(member.scorer.name for member in members))

    @property
    def traits(self) -> Traits:
        """Relative where a member is, independent where all are. What a member does not read is not
        put to it."""
        traits = [member.scorer.traits for member in self.members]
        return Traits(
            relative=self.by_group or any(trait.relative for trait in traits),
            independent=all(trait.independent for trait in traits),
            modalities=TEXT_AND_IMAGES,
        )

    @property
    def counts(self) -> Counter[str]:
        """What the members counted, each under its name."""
        total: Counter[str] = Counter()
        for name, member in zip(self.names, self.members, strict=True):
            for key, n in member.scorer.counts.items():
                total[f"{name}: {key}"] += n
        return total

    @property
    @abstractmethod
    def numbers(self) -> Numbers:
        """What is known of the members."""

    def _numbers(self, rule: Rule | MixtureRule, *, standardised: bool) -> Numbers:
        return Numbers(
            names=self.names,
            rule=rule,
            standardised=standardised,
            by_group=self.by_group,
            means=tuple(member.mean for member in self.members),
            deviations=tuple(member.deviation for member in self.members),
            weights=tuple(member.weight for member in self.members),
        )

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Scores with those of the members as parts, and what they wrote under their names."""
        return self.score_by(ask, groups)

    def score_by(self, ask_member: Ask, groups: Sequence[Group]) -> list[list[Score]]:
        """As `score`, the members asked in another way."""
        parts: list[list[Parts]] = [[{} for _ in group.responses] for group in groups]
        for number, (name, member) in enumerate(zip(self.names, self.members, strict=True)):
            asked: list[Group] = []
            places: list[tuple[int, list[int]]] = []
            for i, group in enumerate(groups):
                if not member.fits(has_images(group.prompt)):
                    continue
                js = [j for j, before in enumerate(parts[i]) if self.asks(number, before)]
                if js:
                    asked.append(group.part(js))
                    places.append((i, js))
            scored = ask_member(member.scorer, asked) if asked else []
            for (i, js), scores in zip(places, scored, strict=True):
                for j, score in zip(js, scores, strict=True):
                    parts[i][j][name] = score
        return self.merged(groups, parts)

    def asks(self, number: int, before: Parts) -> bool:
        """Whether a member is asked about a response, given what those before it made of it."""
        return True

    @abstractmethod
    def merged(
        self, groups: Sequence[Group], parts: Sequence[Sequence[Parts]]
    ) -> list[list[Score]]:
        """One score a response from those of the members, a list a group."""


def score_of(value: float, parts: Parts, otherwise: str = NOT_FINITE) -> Score:
    """The score of a combined value; where that is no finite number, none, for the reason of the
    first member without a value, or `otherwise`."""
    text = joined_text(parts)
    if math.isfinite(value):
        return Score(value, None, text, parts)
    reasons = [part.reason for part in parts.values() if part.reason is not None]
    reason = NO_MEMBER if not parts else next(iter(reasons), otherwise)
    return Score(None, reason, text, parts)


def joined_text(parts: Mapping[str, Score]) -> str | None:
    """What the members wrote, each under its name."""
    texts = [f"{name}:\n{part.text}" for name, part in parts.items() if part.text is not None]
    return "\n\n".join(texts) or None
