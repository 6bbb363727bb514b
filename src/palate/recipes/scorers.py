"""What scores responses, as recipes: reward models, classifiers, rules, servers, judges, critics,
ensembles and mixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from palate.recipes.chats import Chat, LocalChat, ServerBase, ServerChat
from palate.recipes.code_scorers import FunctionScorer, VerifierScorer
from palate.recipes.judge_scorers import (
    Criterion,
    CriticScorer,
    JudgeBase,
    JudgeVerdictScorer,
    PairwiseJudge,
    PointwiseJudge,
    RubricScorer,
)
from palate.recipes.losses import NotNegative, Positive, Strict
from palate.recipes.plain_scorers import (
    ClassifierScorer,
    HeadsScorer,
    LengthScorer,
    LexiconScorer,
    ModelScorer,
    RuleScorer,
    ScorerBase,
)
from palate.recipes.schema import Count, DataSource

__all__ = [
    "Chat",
    "ClassifierScorer",
    "Criterion",
    "CriticScorer",
    "EnsembleScorer",
    "FunctionScorer",
    "HeadsScorer",
    "HybridScorer",
    "JudgeBase",
    "JudgeVerdictScorer",
    "LengthScorer",
    "LexiconScorer",
    "LocalChat",
    "Member",
    "MemberRecipe",
    "MixtureScorer",
    "ModelScorer",
    "PairwiseJudge",
    "PointwiseJudge",
    "RemoteScorer",
    "RubricScorer",
    "RuleScorer",
    "Scorer",
    "ScorerBase",
    "ServerBase",
    "ServerChat",
    "TermRecipe",
    "VerifierScorer",
    "compares",
    "parts_of",
]


class RemoteScorer(ScorerBase, ServerBase):
    """A scorer behind a server: one of `palate serve`, or one that OpenRLHF's clients ask."""

    type: Literal["remote"] = "remote"
    url: str
    """Without the route: http://127.0.0.1:8000."""
    route: Literal["score", "get_reward"] = "score"
    """score: prompts and responses as they are; get_reward: conversations as one text each, as
    OpenRLHF's remote reward client sends them."""
    tokenizer: str | None = None
    """Hub name or folder whose chat template makes a conversation one text; default: turns one
    after another under their roles. Only with `route: get_reward`."""
    relative: bool = False
    """Its scores mean something only beside those of the same prompt, as a judge's that compares:
    all responses to a prompt are sent together."""
    request_responses: Count = 64
    """Most responses of one request, but for those that must go together."""
    images: bool = False
    """Prompts with images are sent, each image once a request: to a `palate serve` whose scorer
    sees. Only with `route: score`."""
    columns: tuple[str, ...] = ()
    """Columns of the data, or of the policy's prompts, that are sent along: to a `palate serve`
    whose scorer reads them. Only with `route: score`."""

    @property
    def column_names(self) -> tuple[str, ...]:
        return self.columns

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.images and self.route != "score":
            yield "images", "only with `route: score`: the other sends texts"
        if self.columns and self.route != "score":
            yield "columns", "only with `route: score`: the other sends texts"
        if self.tokenizer is not None and self.route != "get_reward":
            yield "tokenizer", "only with `route: get_reward`"


_Single = (
    ModelScorer
    | ClassifierScorer
    | LexiconScorer
    | LengthScorer
    | RuleScorer
    | FunctionScorer
    | VerifierScorer
    | RemoteScorer
    | PointwiseJudge
    | PairwiseJudge
    | RubricScorer
    | CriticScorer
    | JudgeVerdictScorer
)
"""What is made of no other scorers."""
Member = Annotated[_Single, Field(discriminator="type")]


class MemberRecipe(Strict):
    scorer: Member
    modality: Literal["any", "text", "image"] = "any"
    """Which prompts it scores: all, those without or those with images."""
    mean: float | None = None
    """Of its scores, for z-scores; default: measured on `validation`."""
    deviation: Positive | None = None
    weight: NotNegative | None = None
    """With `combine: weighted`; default: measured on `validation`."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.mean is None) is not (self.deviation is None):
            yield "deviation", "goes with `mean`: give both or neither"


class EnsembleScorer(ScorerBase):
    """Several scorers as one. Each prompt is scored by the members whose modality fits it."""

    type: Literal["ensemble"] = "ensemble"
    members: Annotated[tuple[MemberRecipe, ...], Field(min_length=2)]
    combine: Literal["mean", "zscore", "median", "min", "uncertainty", "weighted"] = "mean"
    """mean: of raw scores (BaseReward's best); zscore: of scores less their mean, over their
    deviation; median; min; uncertainty: the mean less `penalty` deviations between members
    (arXiv:2310.02743); weighted: by validation."""
    penalty: NotNegative = 1.0
    """Deviations between members that uncertainty subtracts; only with `combine: uncertainty`."""
    standardise: bool = False
    """z-scores before median, min, uncertainty or weighted: else the widest member rules."""
    weigh_by: Literal["accuracy", "margin"] = "accuracy"
    """What of `validation` gives the weights (combine: weighted): accuracy or mean margin."""
    validation: tuple[DataSource, ...] = ()
    """Pairs that means, deviations and weights are measured on, where members do not give them."""

    @property
    def uses_zscores(self) -> bool:
        """Whether members need a mean and a deviation."""
        return self.standardise or self.combine == "zscore"

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.combine != "uncertainty" and self.penalty != 1.0:
            yield "penalty", "only with `combine: uncertainty`"
        if self.combine != "weighted" and self.weigh_by != "accuracy":
            yield "weigh_by", "only with `combine: weighted`"
        if self.standardise and self.combine in ("mean", "zscore"):
            yield "standardise", "a mean of z-scores is `combine: zscore`"
        missing = [
            number
            for number, member in enumerate(self.members)
            if (self.uses_zscores and member.mean is None)
            or (self.combine == "weighted" and member.weight is None)
        ]
        if missing and not self.validation:
            what = "mean and deviation" if self.uses_zscores else "weight"
            yield f"members.{missing[0]}", f"give {what}, or `validation` to measure them on"
        if self.validation and not missing:
            yield "validation", "nothing is left to measure on it: delete the key"
        if self.combine == "weighted" and not any(m.weight != 0 for m in self.members):
            yield "members", "no weight is above 0"
        for number, member in enumerate(self.members):
            if member.weight is not None and self.combine != "weighted":
                yield f"members.{number}.weight", "only with `combine: weighted`"
            if member.mean is not None and not self.uses_zscores:
                yield f"members.{number}.mean", "only where z-scores are taken"


class TermRecipe(Strict):
    scorer: Scorer
    weight: float = 1.0
    """What its score, or z-score, is multiplied by; below 0 it counts against a response."""
    mean: float | None = None
    """Of its scores; with `zscores: given`."""
    deviation: Positive | None = None


class MixtureScorer(ScorerBase):
    """Several scorers, ensembles and mixtures among them, as one: a weighted sum, or one that
    decides whether the other is asked."""

    type: Literal["mixture"] = "mixture"
    members: Annotated[tuple[TermRecipe, ...], Field(min_length=2)]
    combine: Literal["weighted_sum", "gate"] = "weighted_sum"
    """weighted_sum: of weights times scores; gate: where the first member's score is below
    `threshold` it stands, and elsewhere the second's, which is asked about nothing else."""
    threshold: float | None = None
    """With `combine: gate`; default: 0.5, between a rule that is broken and one that is kept."""
    zscores: Path | Literal["none", "given", "group"] = "none"
    """none: scores as they are, so that the member with the widest ones rules; given: z-scores by
    each member's `mean` and `deviation`; a path: by those in the summary.json of a `palate score`
    by the same members; group: by those of the responses to a prompt that are scored together, so
    that a response alone has no score, and scores mean something within their prompt alone."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.combine == "gate" and len(self.members) != 2:
            yield "members", "a gate has two: what is asked first, and what is asked then"
        if self.combine == "gate" and self.zscores != "none":
            yield "zscores", "only with `combine: weighted_sum`"
        if self.combine != "gate" and self.threshold is not None:
            yield "threshold", "only with `combine: gate`"
        if self.combine != "gate" and not any(member.weight for member in self.members):
            yield "members", "no weight is other than 0"
        for number, member in enumerate(self.members):
            if self.combine == "gate" and member.weight != 1.0:
                yield f"members.{number}.weight", "only with `combine: weighted_sum`"
            if (member.mean is None) is not (member.deviation is None):
                yield f"members.{number}.deviation", "goes with `mean`: give both or neither"
            elif self.zscores == "given" and member.mean is None:
                yield f"members.{number}.mean", "`zscores: given` needs it, and `deviation`"
            elif self.zscores != "given" and member.mean is not None:
                yield f"members.{number}.mean", "only with `zscores: given`"


class HybridScorer(ScorerBase):
    """BaseReward's reward for policies (arXiv:2509.16127): 1 where a rule calls a response right,
    and elsewhere what a reward model makes of it, centred and capped, so that no wrong response is
    worth as much as a right one."""

    type: Literal["hybrid"] = "hybrid"
    rule: Scorer
    """Asked first: a rule, a verifier, a function."""
    model: Scorer
    """Asked about what is wrong."""
    form: Literal["corrected", "paper"] = "corrected"
    """corrected: `cap` times the sigmoid of the model's score less the mean of its scores of the
    frozen policy's responses to that prompt; paper: the sigmoid of the score as it is."""
    baseline_column: str | None = None
    """Column of the prompts with that mean."""
    baselines: Path | None = None
    """The baselines.jsonl of a `palate score` with `baselines: true` by the same model, of the
    frozen policy's responses to the same prompts; instead of `baseline_column`."""
    cap: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Most that a wrong response can have; default: 0.5. Only with `form: corrected`."""
    threshold: float = 0.5
    """Of the rule's score: from there on a response is right."""

    @property
    def column_names(self) -> tuple[str, ...]:
        return () if self.baseline_column is None else (self.baseline_column,)

    @property
    def most_for_wrong(self) -> float:
        return 1.0 if self.form == "paper" else 0.5 if self.cap is None else self.cap

    def problems(self) -> Iterator[tuple[str, str]]:
        given = [k for k in ("baseline_column", "baselines", "cap") if getattr(self, k) is not None]
        if self.form == "paper":
            yield from ((key, "only with `form: corrected`") for key in given)
        elif len(set(given) - {"cap"}) != 1:
            yield (
                "baselines",
                "give it, or `baseline_column`: the mean score of the frozen policy for each "
                "prompt; or `form: paper`, which has none",
            )
        for key in ("rule", "model"):
            if compares(getattr(self, key)):
                yield key, "compares responses: its scores mean nothing by themselves"


Scorer = Annotated[
    _Single | EnsembleScorer | HeadsScorer | MixtureScorer | HybridScorer,
    Field(discriminator="type"),
]

TermRecipe.model_rebuild()
MixtureScorer.model_rebuild()
HybridScorer.model_rebuild()


def parts_of(recipe: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of a recipe, of all recipes inside it and of their fields, outermost first.

    Data sources are given whole.
    """
    yield key, recipe
    if isinstance(recipe, Strict) and not isinstance(recipe, DataSource):
        for name in type(recipe).model_fields:
            yield from parts_of(getattr(recipe, name), name)
    elif isinstance(recipe, tuple):
        for item in recipe:
            yield from parts_of(item, key)


def compares(recipe: Scorer) -> bool:
    """Whether its scores mean something only beside those of other responses to the same prompt."""
    return any(
        isinstance(part, PairwiseJudge)
        or (isinstance(part, FunctionScorer | RemoteScorer) and part.relative)
        or (isinstance(part, MixtureScorer) and part.zscores == "group")
        for _, part in parts_of(recipe)
    )
