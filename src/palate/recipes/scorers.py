"""What scores responses, as recipes: reward models, classifiers, judges, critics, ensembles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Positive, Strict
from palate.recipes.schema import Count, DataSource, Dtype

NotNegative = Annotated[float, Field(ge=0.0)]


class ScorerBase(Strict):
    name: str | None = None
    """In reports; default: made from what it is."""


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
    trust_remote_code: bool = False
    """Run code that comes with the model; only where you have read it."""


class LexiconScorer(ScorerBase):
    """VADER compound score of the response, in -1..1 (extra `demo`)."""

    type: Literal["lexicon"] = "lexicon"


class LengthScorer(ScorerBase):
    """The response's length in characters: what every reward model should beat."""

    type: Literal["length"] = "length"
    prefer: Literal["longer", "shorter"] = "longer"


class LocalChat(Strict):
    """A causal language model on this machine."""

    type: Literal["local"] = "local"
    path: str
    """Hub name or local folder."""
    revision: str | None = None
    """Hub revision."""
    dtype: Dtype = "bfloat16"
    chat_template: Path | Literal["model", "plain"] = "model"
    """The tokenizer's own template, a Jinja file, or `plain`, for a model without one."""
    batch_size: Count = 8
    """Conversations of one forward pass."""


class ServerChat(Strict):
    """A model behind an OpenAI-compatible server."""

    type: Literal["server"] = "server"
    url: str
    """Up to the version: http://127.0.0.1:8000/v1."""
    model: str
    """Its name there."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself is written nowhere."""
    timeout_seconds: Positive = 60.0
    """Of one request; a question takes at most this times `retries` + 1 in all."""
    retries: Annotated[int, Field(ge=0)] = 3
    """After a refused connection, a timeout or an answer of 429 or 5xx."""
    concurrency: Count = 8
    """Requests under way at once."""


Chat = Annotated[LocalChat | ServerChat, Field(discriminator="type")]


class JudgeBase(ScorerBase):
    chat: Chat
    """The model that judges."""
    reasoning: bool = False
    """Let it think before its verdict."""
    method: Literal["logits", "sampled"] = "logits"
    """logits: the probabilities of the verdicts at the one place where they can stand (of a server:
    one that goes on with a begun answer and gives log-probabilities, as vLLM and SGLang do);
    sampled: the verdicts that it writes."""
    votes: Count = 1
    """Verdicts drawn a question (sampled); more than one needs a temperature."""
    temperature: NotNegative = 0.0
    """Of verdicts and reasoning; 0 takes the likeliest token."""
    max_new_tokens: Count = 1024
    """Of a verdict with its reasoning."""
    seed: Annotated[int, Field(ge=0)] = 0
    instructions: str | None = None
    """What good means, in words; replaces the default criteria."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.method == "logits" and self.reasoning:
            yield "method", "reasoning is written: use `method: sampled`"
        if self.method == "logits" and self.votes > 1:
            yield "votes", "logits give the probability itself: use `method: sampled` to vote"
        if self.method == "logits" and self.temperature:
            yield "temperature", "only with `method: sampled`"
        if self.votes > 1 and not self.temperature:
            yield "votes", "all alike at temperature 0: set `temperature`"


class PointwiseJudge(JudgeBase):
    """A language model that rates one response at a time."""

    type: Literal["pointwise"] = "pointwise"
    best: Annotated[int, Field(ge=2, le=9)] = 9
    """Ratings go from 1 to this; one digit, so that each is one token."""


class PairwiseJudge(JudgeBase):
    """A language model that says which of two responses is better. A response's score is the mean
    probability that it beats the other responses to its prompt."""

    type: Literal["pairwise"] = "pairwise"
    swap: bool = True
    """Ask in both orders and average: what the place alone decides cancels."""
    ties: bool = False
    """Allow the verdict that both are as good."""


class CriticScorer(ScorerBase):
    """Critic-based: a language model writes a critique of the response, and a reward model scores
    what is read with it (MM-RLHF, arXiv:2502.10391)."""

    type: Literal["critic"] = "critic"
    chat: Chat
    """The model that writes critiques."""
    scorer: ModelScorer
    """The reward model; it reads the question of the critic as prompt, the critique as response."""
    max_new_tokens: Count = 1024
    """Of a critique; one that is cut is scored as it is, and counted."""


Member = Annotated[
    ModelScorer
    | ClassifierScorer
    | LexiconScorer
    | LengthScorer
    | PointwiseJudge
    | PairwiseJudge
    | CriticScorer,
    Field(discriminator="type"),
]


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


Scorer = Annotated[
    ModelScorer
    | ClassifierScorer
    | LexiconScorer
    | LengthScorer
    | PointwiseJudge
    | PairwiseJudge
    | CriticScorer
    | EnsembleScorer
    | HeadsScorer,
    Field(discriminator="type"),
]
