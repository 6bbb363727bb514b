"""The recipe of a judge or a critic: what it is asked, where its words come from, its stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.critiques import CritiqueColumns
from palate.recipes.losses import Dpo, Loss, NotNegative, Positive, Strict
from palate.recipes.pairing import PairingRecipe
from palate.recipes.reward import (
    BradleyTerry,
    Davidson,
    HeadRecipe,
    Pooling,
    RaoKupper,
    RegulariseRecipe,
    RewardTrainRecipe,
)
from palate.recipes.schema import (
    Count,
    DataRecipe,
    DataSource,
    ModelRecipe,
    OfflineRecipe,
    ReferenceRecipe,
    RunRecipe,
    SftTrainRecipe,
    TrainRecipe,
    TuneRecipe,
)
from palate.recipes.scorers import Chat

Words = Annotated[str, Field(min_length=1)]


class PairwiseKind(Strict):
    """Says which of two responses is better; used as the scorer `pairwise`."""

    type: Literal["pairwise"] = "pairwise"
    reasoning: bool = False
    """It thinks before its verdict, and learns from `texts`."""
    ties: bool = False
    """Allow the verdict that both are as good; else ties of the data are dropped."""
    orders: Literal["balanced", "both"] = "balanced"
    """Which response stands first. balanced: the better one in one half of the rows, drawn with the
    seed; both: every row is asked in both orders."""
    instructions: Words | None = None
    """What good means, in words; replaces the default criteria, in training and in use."""


class PointwiseKind(Strict):
    """Rates one response, 1 to `best`; used as the scorer `pointwise`. Learns from ratings."""

    type: Literal["pointwise"] = "pointwise"
    reasoning: bool = False
    """It thinks before its verdict, and learns from `texts`."""
    best: Annotated[int, Field(ge=2, le=9)] = 9
    scale: Literal["linear", "quantile"] = "linear"
    """From the data's ratings to 1 .. best. linear: by equal steps between `lowest` and `highest`,
    rounded half up; quantile: by equal shares of the training ratings."""
    lowest: float | None = None
    """Rating that becomes 1 (scale: linear); default: the lowest of the training rows."""
    highest: float | None = None
    """Rating that becomes `best` (scale: linear); default: the highest of the training rows."""
    instructions: Words | None = None
    """What good means, in words; replaces the default criteria, in training and in use."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("lowest", "highest"):
            if self.scale == "quantile" and getattr(self, key) is not None:
                yield key, "only with `scale: linear`"
        if self.lowest is not None and self.highest is not None and self.lowest >= self.highest:
            yield "highest", "not above `lowest`"


class CriticKind(Strict):
    """Writes a critique of one response, which a reward model reads with it: scorer `critic`."""

    type: Literal["critic"] = "critic"


class ColumnTexts(CritiqueColumns):
    """Texts of the data: reasoning (one a row) or critiques (one a response)."""

    type: Literal["column"] = "column"
    column: str | None = None
    """Reasoning: the column of the text. Critiques: a column that lists one for each response of
    the row, by a dot that of a key of its items: completions.critique."""


class ChatTexts(Strict):
    """Texts that a model writes. Of reasoning only that is kept whose verdict is right."""

    type: Literal["chat"] = "chat"
    chat: Chat | None = None
    """The model that writes; default: the one that is trained, as it is."""
    attempts: Count = 1
    """Replies a question until one has the right verdict; R1-Reward (arXiv:2505.02835) has 3."""
    temperature: NotNegative = 0.0
    """0 takes the likeliest token."""
    max_new_tokens: Count = 1024
    told_label: bool = False
    """Tell the writer the right verdict, or which response people preferred. The question that is
    trained on never says so."""
    expands: CritiqueColumns | None = None
    """Columns of short critiques, which the writer is told and writes out in full, as MM-RLHF
    (arXiv:2502.10391) does with what annotators wrote; rows without one are dropped."""


Texts = Annotated[ColumnTexts | ChatTexts, Field(discriminator="type")]
JudgeKind = Annotated[PairwiseKind | PointwiseKind | CriticKind, Field(discriminator="type")]


class JudgeLengthRecipe(Strict):
    """Limits in tokens; longer rows are dropped and counted."""

    max_question_tokens: Count = 2048
    """The question whole: criteria, conversation and responses."""
    max_answer_tokens: Count = 512
    """Reasoning with its verdict, or the critique; also the limit of what the judge writes."""


class JudgeDataRecipe(Strict):
    """Preference data of any format that palate reads."""

    train: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    eval: tuple[DataSource, ...] = ()
    """Held-out sources; never trained on."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Hold out this share of the prompts of `train`; only without `eval`."""
    max_eval_rows: Count = 500
    """Held-out rows that are asked about, drawn with the recipe's seed."""
    pairing: PairingRecipe | None = None
    """How ratings become pairs (pairwise, critic; required where a source holds ratings), or which
    number is the rating (pointwise: keys `score` and `aspects`)."""
    length: JudgeLengthRecipe = JudgeLengthRecipe()

    @property
    def holds_out(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(self.eval) or self.eval_fraction is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.eval and self.eval_fraction is not None:
            yield "eval_fraction", "only without `eval`: the held-out rows come from one of the two"
        if not self.holds_out and self.max_eval_rows != 500:
            yield "max_eval_rows", "nothing is held out: give `eval` or `eval_fraction`"


class VerdictPreferenceRecipe(Strict):
    """Preference on verdicts: the right one is chosen, a wrong one rejected."""

    rounds: Count = 1
    """Of a reasoning judge: times that the judge, as the last round left it, writes new replies to
    learn from."""
    questions: Count | None = None
    """Training questions of a round, drawn with the seed; default: all."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Replies of a reasoning judge to a question; one right and one wrong one are the pair."""
    temperature: Positive = 1.0
    """Of those replies."""
    loss: Loss = Dpo()
    reference: ReferenceRecipe | None = None
    """Default: kind auto: the judge as the round found it."""
    train: TrainRecipe = TrainRecipe()


CritiqueLoss = Annotated[BradleyTerry | RaoKupper | Davidson, Field(discriminator="type")]


class CritiqueRewardRecipe(Strict):
    """The reward model that reads question, response and critique."""

    critiques: Literal["gold", "self"] = "self"
    """gold: those of `texts`, as MM-RLHF trains (arXiv:2502.10391); self: those that the trained
    critic writes, as it will in use."""
    start: Literal["critic", "base"] = "critic"
    """Backbone that it starts from: the critic, or `model`."""
    head: HeadRecipe = HeadRecipe()
    pooling: Pooling = "token"
    loss: CritiqueLoss = BradleyTerry()
    regularise: RegulariseRecipe = RegulariseRecipe()
    train: RewardTrainRecipe = RewardTrainRecipe()


class JudgeRecipe(RunRecipe):
    """A judge or a critic, trained from preference data stage by stage."""

    resume: bool = False
    """Go on with an interrupted run of the same recipe, at the stage that was not finished."""
    model: ModelRecipe
    """The language model that becomes the judge."""
    judge: JudgeKind
    """What it is asked."""
    data: JudgeDataRecipe
    texts: Texts | None = None
    """Where reasoning or critiques come from."""
    sft: SftTrainRecipe | None = SftTrainRecipe()
    """Stage 1, supervised fine-tuning on right verdicts or critiques; null leaves it out."""
    preference: VerdictPreferenceRecipe | None = None
    """Stage 2 of judges; off by default."""
    reward: CritiqueRewardRecipe | None = None
    """Stage 2 of critics, which must have it."""
    evaluate_after: Literal["each", "last"] = "each"
    """Ask the held-out questions of the starting model and after each stage, or at the end alone.
    """

    ask_batch_size: Count = 8
    """Questions of one forward pass where this machine's model is asked."""

    @property
    def reasoning(self) -> bool:
        """Whether it is a judge that thinks before its verdict."""
        return not isinstance(self.judge, CriticKind) and self.judge.reasoning

    @property
    def text_columns(self) -> CritiqueColumns | None:
        """The columns of the data that texts are in, or are made of."""
        if isinstance(self.texts, ChatTexts):
            return self.texts.expands
        return self.texts

    @property
    def wants_texts(self) -> bool:
        """Whether a stage learns from texts that are not its own."""
        if isinstance(self.judge, CriticKind):
            gold = self.reward is not None and self.reward.critiques == "gold"
            return self.sft is not None or gold
        return self.reasoning and self.sft is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.model.trust_remote_code:
            yield "model.trust_remote_code", "judges run no code that is shipped with models"
        if isinstance(self.judge, CriticKind):
            if self.preference is not None:
                yield "preference", "a critic gives no verdict: its stages are `sft` and `reward`"
            if self.reward is None:
                yield "reward", "a critic needs it: give `reward: {}` or its keys"
        else:
            if self.reward is not None:
                yield "reward", f"is a critic's, and this is {self.judge.type}"
            if self.sft is None and self.preference is None:
                yield "sft", "nothing to train: give `sft` or `preference`"
        yield from self._text_problems()
        yield from self._data_problems()
        yield from self._stage_problems()

    def _text_problems(self) -> Iterator[tuple[str, str]]:
        critic, texts = isinstance(self.judge, CriticKind), self.texts
        if self.wants_texts and texts is None:
            what = "critiques" if critic else "reasoning"
            yield "texts", f"says where the {what} to learn from comes from: `type: column` or chat"
        if not self.wants_texts and texts is not None:
            yield "texts", "nothing learns from them: bare verdicts are made of the labels"
        if isinstance(texts, ColumnTexts) and texts.chosen is not None and not critic:
            yield "texts.chosen", "is for critiques; reasoning is in one `column`"
        if isinstance(texts, ChatTexts):
            if texts.expands is not None and not critic:
                yield "texts.expands", "is of critiques: a judge's reasoning is written anew"
            if critic and texts.attempts > 1:
                yield "texts.attempts", "a critique has no verdict that could be wrong: delete it"
            if texts.attempts > 1 and not texts.temperature:
                yield "texts.attempts", "all alike at temperature 0: set `temperature`"

    def _data_problems(self) -> Iterator[tuple[str, str]]:
        pairing = self.data.pairing
        if isinstance(self.judge, PointwiseKind):
            default = PairingRecipe()
            settings = pairing or default
            changed = {
                k
                for k in type(settings).model_fields
                if getattr(settings, k) != getattr(default, k)
            }
            if unread := sorted(changed - {"score", "aspects"}):
                yield (
                    "data.pairing",
                    f"ratings are taken by `score` and `aspects`: delete {unread[0]}",
                )
            if settings.score in ("votes", "rank"):
                yield "data.pairing.score", f"{settings.score} is no rating on a scale"
            return
        silent = isinstance(self.judge, PairwiseKind) and not self.judge.ties
        if silent and pairing is not None and pairing.ties == "as_ties":
            yield "data.pairing.ties", "as_ties needs `judge.ties`"
        blind = self.reward is not None and isinstance(self.reward.loss, BradleyTerry)
        if blind and pairing is not None and pairing.ties == "as_ties":
            yield "data.pairing.ties", "as_ties needs `reward.loss` rao_kupper or davidson"

    def _stage_problems(self) -> Iterator[tuple[str, str]]:
        holds_out = self.data.holds_out
        if not holds_out and self.evaluate_after != "each":
            yield "evaluate_after", "nothing is held out: give `data.eval` or `data.eval_fraction`"
        elif isinstance(self.judge, CriticKind) and self.evaluate_after != "each":
            yield "evaluate_after", "a critic scores at the end alone: delete the key"
        trains: dict[str, OfflineRecipe | None] = {"sft": self.sft}
        if self.reward is not None:
            trains["reward.train"] = self.reward.train
        for key, train in trains.items():
            if train is not None and train.eval_every_steps is not None and not holds_out:
                yield f"{key}.eval_every_steps", "needs `data.eval` or `data.eval_fraction`"
        preference = self.preference
        if preference is None:
            return
        if not self.reasoning:
            for key in ("rounds", "samples", "temperature"):
                if getattr(preference, key) != type(preference).model_fields[key].default:
                    yield f"preference.{key}", "bare verdicts are not sampled: delete the key"
        if preference.train.eval_every_steps is not None and (self.reasoning or not holds_out):
            yield (
                "preference.train.eval_every_steps",
                "there are no held-out pairs of replies: the judge itself is asked after each round"
                if self.reasoning
                else "needs `data.eval` or `data.eval_fraction`",
            )
        # What `palate tune` would say of the stage, before anything is written.
        stage = TuneRecipe.model_construct(
            output_dir=Path(),
            model=self.model,
            data=DataRecipe(train=self.data.train, eval=self.data.train),
            loss=preference.loss,
            token_weights=None,
            reference=preference.reference,
            train=preference.train,
        )
        for key, message in stage.problems():
            yield f"preference.{key}", message
