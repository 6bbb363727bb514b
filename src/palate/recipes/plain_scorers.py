"""Scorers that ask no language model, as recipes: reward models, classifiers, words, rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import NotNegative, Strict
from palate.recipes.schema import Count, DataSource, Dtype, LengthUnit, Limits


class ScorerBase(Strict):
    name: str | None = None
    """In reports; default: made from what it is."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Columns of the data that it reads besides prompts and responses."""
        return ()


class ModelScorer(ScorerBase):
    """A scalar reward model: one that palate trained, or any decoder with one linear score."""

    type: Literal["model"] = "model"
    path: str
    """Folder of the model (`model/` of a run), or hub name."""
    revision: str | None = None
    """Hub revision."""
    dtype: Dtype | None = None
    """Of the backbone; default: as trained, or as saved."""
    head: Annotated[int, Field(ge=0)] | None = None
    """Of a model with several heads the one that scores, from 0; default: the mean of all."""
    normalised: bool = False
    """Scores less the mean of the training distribution, over its deviation, as saved with it."""
    batch_tokens: Count = 8192
    """Most tokens of one forward pass, padding included; one response always fits."""
    trust_remote_code: bool = False
    """Run code that comes with the model; only where you have read it."""


Combine = Literal["mean", "zscore", "median", "min", "uncertainty"]


class HeadsScorer(ScorerBase):
    """The heads of one reward model as an ensemble: the backbone is run once for all of them."""

    type: Literal["heads"] = "heads"
    path: str
    """Folder of a model that was trained with `ensemble`."""
    dtype: Dtype | None = None
    """Of the backbone; default: as trained."""
    combine: Combine = "mean"
    """As in an `ensemble`; z-scores are by the means and deviations saved with the model."""
    penalty: NotNegative = 1.0
    """Deviations between heads that uncertainty subtracts; only with `combine: uncertainty`."""
    standardise: bool = False
    """z-scores before median, min or uncertainty."""
    batch_tokens: Count = 8192
    """Most tokens of one forward pass, padding included; one response always fits."""
    trust_remote_code: bool = False
    """Run code that comes with the model; only where you have read it."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.combine != "uncertainty" and self.penalty != 1.0:
            yield "penalty", "only with `combine: uncertainty`"
        if self.standardise and self.combine in ("mean", "zscore"):
            yield "standardise", "a mean of z-scores is `combine: zscore`"


class ClassifierScorer(ScorerBase):
    """Any sequence-classification model: a label's probability, or the single logit of a reward
    model that others trained (encoders, and decoders that `type: model` does not know)."""

    type: Literal["classifier"] = "classifier"
    path: str
    """Hub name or local folder."""
    revision: str | None = None
    """Hub revision."""
    dtype: Dtype = "float32"
    """Of the weights: bfloat16 makes scores equal that are not."""
    label: str | None = None
    """Label whose probability is the score; default: the single logit."""
    input: Literal["auto", "chat", "pair", "joined"] = "auto"
    """How it reads prompt and response: chat: through its chat template; pair: as two texts, the
    way cross-encoders are trained; joined: as one. auto: joined for a label; for a single logit
    chat where there is a template, and pair otherwise."""
    truncate: bool = False
    """Of texts that are too long score the beginning, which is logged; otherwise they have no
    score."""
    trust_remote_code: bool = False
    """Run code that comes with the model; only where you have read it."""


class LexiconScorer(ScorerBase):
    """VADER compound score of the response, in -1..1 (extra `demo`)."""

    type: Literal["lexicon"] = "lexicon"


class LengthScorer(ScorerBase):
    """The response's length in characters: what every reward model should beat."""

    type: Literal["length"] = "length"
    prefer: Literal["longer", "shorter"] = "longer"


class ResponseLength(Limits):
    unit: LengthUnit = "characters"
    """Words are separated by white space."""


class RuleScorer(ScorerBase):
    """Rules that a response keeps or breaks: one number where it keeps all that are given, another
    where it breaks one."""

    type: Literal["rule"] = "rule"
    pattern: str | None = None
    """A regular expression (Python's) that must match somewhere in the response."""
    length: ResponseLength | None = None
    """How long the response must be."""
    answers: tuple[DataSource, ...] = ()
    """Prompts with their right answers, as demonstrations; another answer breaks the rule, white
    space at its ends apart, and a prompt that is not among them has no score."""
    answer_column: str | None = None
    """Column of the data that is scored, or of the policy's prompts, with the right answer; instead
    of `answers`."""
    extract: str | None = None
    """A regular expression whose last match (its first group, where it has one) is the answer in a
    response; default: the whole response. Only with `answers` or `answer_column`."""
    kept: float = 1.0
    """Score where all rules are kept."""
    broken: float = 0.0
    """Score where one is broken."""

    @property
    def described(self) -> str:
        """The rules in a few words."""
        rules = [] if self.pattern is None else [f"matches {self.pattern}"]
        if self.length is not None:
            limits = ("" if n is None else str(n) for n in (self.length.min, self.length.max))
            rules.append(f"{'..'.join(limits)} {self.length.unit}")
        return " and ".join([*rules, *(["right answer"] if self.knows_answers else [])])

    @property
    def knows_answers(self) -> bool:
        return bool(self.answers) or self.answer_column is not None

    @property
    def column_names(self) -> tuple[str, ...]:
        return () if self.answer_column is None else (self.answer_column,)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.pattern is None and self.length is None and not self.knows_answers:
            yield "pattern", "no rule: give `pattern`, `length`, `answers` or `answer_column`"
        if self.answers and self.answer_column is not None:
            yield "answer_column", "instead of `answers`: give one of them"
        for key in ("pattern", "extract"):
            try:
                re.compile(getattr(self, key) or "")
            except re.error as error:
                yield key, f"no regular expression: {error}"
        if self.extract is not None and not self.knows_answers:
            yield "extract", "only with `answers` or `answer_column`"
        if self.kept == self.broken:
            yield "broken", "the same as `kept`: nothing would be told apart"
