"""What scores responses, and what it is asked and answers: one call for everything that scores.

A lexicon, a rule, a reward model, a critic, a judge, an ensemble and a mixture are scorers alike.
The types stand here, below all of them, so that a step of curation can be handed one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from palate.data.schema import Content, images_in

Modality = Literal["text", "image"]
Unit = Literal["characters", "tokens"]
TEXT: frozenset[Modality] = frozenset(("text",))
TEXT_AND_IMAGES: frozenset[Modality] = frozenset(("text", "image"))

NOT_FINITE = "the score is no finite number"
HAS_IMAGES = "has images, which no scorer here reads"


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a caller must know of a scorer.

    Attributes:
        relative: a score means something only beside those of the same group, as a judge's that
            compares.
        independent: every bit of a score is the same whatever else is in the call. Of a model on
            this machine it is not: passes of other shapes round differently.
        modalities: what prompts may hold. A scorer that looks at no prompt at all takes images.
        reads_prompt: whether a score depends on the prompt at all.
        blind: why a prompt with images gets no score, where `modalities` leaves images out.
    """

    relative: bool = False
    independent: bool = False
    modalities: frozenset[Modality] = TEXT
    reads_prompt: bool = True
    blind: str = HAS_IMAGES


@dataclass(frozen=True)
class Group:
    """Responses to one prompt, scored together or compared with one another.

    Attributes:
        prompt: text, or chat turns that end with the user's.
        responses: texts, or the assistant's turns that follow the prompt.
        source: the data set that paths of images belong to.
        columns: the other columns of the prompt's row (a right answer, a rubric ...), for scorers
            that read them.
        response_ids: of each response its token ids by the policy's tokenizer, where the caller
            has them.
    """

    prompt: Content
    responses: tuple[Content, ...]
    source: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    response_ids: tuple[Sequence[int], ...] | None = None

    def part(self, places: Sequence[int]) -> Group:
        """The prompt with some of the responses."""
        ids = self.response_ids
        return replace(
            self,
            responses=tuple(map(self.responses.__getitem__, places)),
            response_ids=None if ids is None else tuple(map(ids.__getitem__, places)),
        )


@dataclass(frozen=True)
class Span:
    """A value of one token, step or passage of a response.

    Attributes:
        start, stop: of the response, in `unit`; stop is the first place after it.
        value: higher is better.
    """

    start: int
    stop: int
    value: float
    unit: Unit = "characters"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a span from {self.start} to {self.stop}")
        if not math.isfinite(self.value):
            raise ValueError(f"a span of value {self.value}: {NOT_FINITE}")


@dataclass(frozen=True)
class Score:
    """What a scorer makes of one response.

    Attributes:
        value: higher is better; finite. None where the response could not be scored.
        reason: why there is no value; None where there is one.
        text: what the scorer wrote: a critique, a judge's words. None of one that writes nothing.
        parts: what the members of an ensemble or a mixture gave, by name; of those that were asked.
        spans: values of tokens, steps or passages, where the scorer gives them.

    Raises:
        ValueError: neither a value nor a reason, both, or a value that is not finite.
    """

    value: float | None
    reason: str | None = None
    text: str | None = None
    parts: Mapping[str, Score] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if (self.value is None) is (self.reason is None):
            raise ValueError(f"a score has a value or a reason, not {self.value}, {self.reason}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score of {self.value}: {NOT_FINITE}")

    @classmethod
    def of(
        cls, value: float, *, text: str | None = None, parts: Mapping[str, Score] | None = None
    ) -> Score:
        """The score of a computed number; without a value where the number is not finite."""
        finite = math.isfinite(value)
        return cls(value if finite else None, None if finite else NOT_FINITE, text, parts or {})


@runtime_checkable
class Scorer(Protocol):
    """Anything that scores responses to prompts.

    Attributes:
        name: short, for reports.
    """

    name: str

    @property
    def traits(self) -> Traits: ...

    @property
    def counts(self) -> Counter[str]:
        """Events since the scorer was made, by name: questions asked, verdicts that could not be
        read ... Empty of a scorer that counts nothing; why a response has no value is in its
        score."""
        ...

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """One score a response, in the order given.

        A response that cannot be scored (too long, an unreadable verdict) has a reason and no
        value. Callers go through `ask`, which holds back prompts that the scorer cannot read.

        Raises:
            PalateError: what such a scorer can never read; a judge's server that does not answer.
        """
        ...


def ask(scorer: Scorer, groups: Sequence[Group]) -> list[list[Score]]:
    """Scores of groups by a scorer; prompts with images get no value from one that reads text."""
    readable = [
        # A scorer may have to be loaded to say what it reads.
        not (has_images(group.prompt) or any(map(has_images, group.responses)))
        or "image" in scorer.traits.modalities
        for group in groups
    ]
    asked = [group for group, reads in zip(groups, readable, strict=True) if reads]
    scored = iter(scorer.score(asked) if asked else [])
    return [
        next(scored) if reads else [Score(None, scorer.traits.blind)] * len(group.responses)
        for group, reads in zip(groups, readable, strict=True)
    ]


def regrouped(scores: Iterable[Score], groups: Sequence[Group]) -> list[list[Score]]:
    """Scores of all responses, one after another, as one list a group."""
    left = iter(scores)
    grouped = [[next(left) for _ in group.responses] for group in groups]
    assert next(left, None) is None
    return grouped


def part_values(score: Score) -> dict[str, float | None]:
    """Name -> value of each part."""
    return {name: part.value for name, part in score.parts.items()}


def values_by_part(scores: Sequence[Score]) -> dict[str, list[float | None]]:
    """Name -> the value of that part in each score; None where a score has no such part."""
    names = dict.fromkeys(name for score in scores for name in score.parts)
    values = [part_values(score) for score in scores]
    return {name: [parts.get(name) for parts in values] for name in names}


def has_images(content: Content) -> bool:
    """Whether an image part is among its turns."""
    return bool(images_in(content))
