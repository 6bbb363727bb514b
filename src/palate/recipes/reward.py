"""The recipe of a reward model: backbone, head, pooling, loss, regularisers, data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import NotNegative, Positive, Probability, Strict
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import (
    Count,
    DataRecipe,
    LengthRecipe,
    ModelRecipe,
    OfflineRecipe,
    RunRecipe,
)

Activation = Literal["silu", "tanh", "relu", "gelu", "none"]


class HeadRecipe(Strict):
    """From a pooled hidden state to the reward, in float32."""

    layers: Annotated[int, Field(ge=1, le=16)] = 1
    """1 is linear. BaseReward (arXiv:2509.16127): 2, with SiLU."""
    activation: Activation = "silu"
    """Between layers; none: layers without one."""
    width: Count | None = None
    """Of the hidden layers; default: the backbone's hidden size."""
    bias: bool | None = None
    """Default: none in a linear head (others load only those), one in deeper heads."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Before every layer, in training."""
    init_deviation: Positive | None = None
    """Of the weights' normal start; default: 1 / sqrt(d + 1), d being a layer's own inputs. Biases
    start at 0."""

    @property
    def has_bias(self) -> bool:
        return self.layers > 1 if self.bias is None else self.bias

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.layers == 1 and self.width is not None:
            yield "width", "a linear head has no hidden layer"
        if self.layers == 1 and self.activation not in ("silu", "none"):
            yield "activation", "a linear head has no layers to stand between: delete the key"


class HeadsRecipe(Strict):
    """Several heads on one backbone and one pooling, trained together: an ensemble whose members
    cost a head each. The model's reward is their mean; how far they differ says how sure it is."""

    heads: Annotated[int, Field(ge=2, le=64)] = 5
    """Each starts from a draw of its own; the loss is the mean of theirs."""
    bootstrap: bool = False
    """Each head weighs each training item by a Poisson(1) number of its own, drawn from the seed,
    the item's id and the head (Oza and Russell 2001): on average every item counts once."""


Pooling = Literal["token", "mean", "attention"]


class RewardLossBase(Strict):
    margin: bool = False
    """Ask for the data's own margin between the rewards, where a pair has one; an error where none
    has. data.json counts them."""


class BradleyTerry(RewardLossBase):
    """-log sigmoid(r_w - r_l), Bradley and Terry 1952; ties, where kept, count half each way."""

    type: Literal["bradley_terry"] = "bradley_terry"
    label_smoothing: Probability = 0.0
    """Assumed probability that a label is flipped."""
    soft_labels: bool = False
    """Where the source counts votes, their share is the label instead of 1; an error where none
    does. data.json counts them."""


class RaoKupper(RewardLossBase):
    """Bradley-Terry with ties, Rao and Kupper 1967: small differences go unseen."""

    type: Literal["rao_kupper"] = "rao_kupper"
    threshold: Positive = 0.5
    """Difference of rewards below which ties prevail; at 0 a tie has probability tanh(half of
    it)."""


class Davidson(RewardLossBase):
    """Bradley-Terry with ties, Davidson 1970."""

    type: Literal["davidson"] = "davidson"
    tie_strength: Positive = 1.0
    """nu: at equal rewards a tie has probability nu / (2 + nu)."""


class PlackettLuce(Strict):
    """Ranked lists, Plackett 1975 and Luce 1959 (ListMLE): each is drawn best first."""

    type: Literal["plackett_luce"] = "plackett_luce"
    ties: Literal["unordered", "breslow"] = "unordered"
    """Equal ranks: compared only with what is below them, or also pulled together (Breslow 1974).
    """


RewardLoss = Annotated[
    BradleyTerry | RaoKupper | Davidson | PlackettLuce, Field(discriminator="type")
]


class LikelihoodRecipe(Strict):
    """Text-generation regularisation of the hidden states, arXiv:2406.10216 (GRM, SFT form).

    Adds weight * -log sigmoid(beta log policy(chosen)), of a tie nothing. Its memory: the
    vocabulary head, frozen (hidden size x vocabulary numbers in the model's dtype, none where it is
    tied to the embeddings), and `memory_mb` to work in; its time: the head over every chosen token.
    """

    weight: Positive = 0.01
    beta: Positive = 0.1
    memory_mb: Count = 256
    """Budget of the vocabulary head's working memory."""


class RegulariseRecipe(Strict):
    """Terms beside the loss, each averaged over pairs; all off by default, as in BaseReward."""

    centring: NotNegative = 0.0
    """Weight of (r_w + r_l)^2: arXiv:2312.09244, TRL's center_rewards_coefficient, BaseReward's
    zero-coefficient. 0.01 is usual."""
    magnitude: NotNegative = 0.0
    """Weight of (r_w^2 + r_l^2) / 2."""
    length_scaled: bool = False
    """Each reward divided by log(tokens + 1) inside the loss (BaseReward, Algorithm 1)."""
    length_penalty: NotNegative = 0.0
    """Strength of a fixed expert that explains preferences by log length, inside the loss, so that
    the reward need not (after arXiv:2310.05199)."""
    likelihood: LikelihoodRecipe | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.length_scaled and self.length_penalty:
            yield "length_penalty", "only without length_scaled: two accounts of one thing"


class ShortcutRecipe(Strict):
    """Pairs that a text-only reward model gets wrong count more, after shortcut-aware learning
    (arXiv:2503.03122): weight sigmoid(-margin / temperature), divided by the mean of all. Their
    form there needs both losses in every step; this one needs scores alone."""

    scores: Path
    """scores.jsonl of `palate score`: the training pairs, scored by a model that read their text
    without their images. Sources and ids must be those of the training data."""
    temperature: Positive = 1.0
    """In units of the scores."""


class RewardLengthRecipe(LengthRecipe):
    """Limits in tokens; a row with a longer response is dropped and counted: a cut one would have
    no end to read the reward at."""

    max_response_tokens: Count = 1024
    prompt: Literal["drop", "keep_start", "keep_end"] = "drop"
    response: Literal["drop"] = "drop"
    """Never cut."""


class RewardDataRecipe(DataRecipe):
    length: RewardLengthRecipe = RewardLengthRecipe()


class RewardTrainRecipe(OfflineRecipe):
    learning_rate: Positive = 1e-5
    layout: Literal["auto", "plain", "shared"] = "auto"
    """auto: shared prefix, several pairs a row, where the start-of-run check passes, else plain."""


class RewardRecipe(RunRecipe):
    """A scalar reward model, trained on pairs or ranked lists."""

    model: ModelRecipe
    """Backbone. With `lora` adapters are trained, else all weights."""
    backbone: Literal["trained", "frozen"] = "trained"
    """frozen: its states are computed once and kept in a cache; only the head is trained."""
    features_dir: Path | None = None
    """Folder of that cache (backbone: frozen); default: <output_dir>/../features."""
    head: HeadRecipe = HeadRecipe()
    ensemble: HeadsRecipe | None = None
    """Several such heads; default: one."""
    pooling: Pooling = "token"
    """What the head sees of a response: the state at its end token (which is named in the saved
    model), the mean over its tokens, or a mean with trained attention weights."""
    loss: RewardLoss = BradleyTerry()
    regularise: RegulariseRecipe = RegulariseRecipe()
    shortcut: ShortcutRecipe | None = None
    """Weights of the training pairs; default: all count alike."""
    data: RewardDataRecipe
    normalise_on_items: Count = 1000
    """Training items whose rewards give the mean and deviation that are saved with the model."""
    train: RewardTrainRecipe = RewardTrainRecipe()

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.train.eval_every_steps is not None and not self.data.holds_out:
            yield "train.eval_every_steps", "needs `data.eval` or `data.eval_fraction`"
        frozen = self.backbone == "frozen"
        if not frozen and self.features_dir is not None:
            yield "features_dir", "only with `backbone: frozen`"
        if frozen:
            yield from self._frozen_problems()
        pairing = self.data.pairing or PairingRecipe()
        if self.shortcut is not None and pairing.ties == "keep":
            yield (
                "data.pairing.ties",
                "kept ties are put in an order drawn by chance, which is not that of "
                "`shortcut.scores`: use `drop` or `as_ties`",
            )
        if isinstance(self.loss, PlackettLuce):
            if self.shortcut is not None:
                yield "shortcut", "is of pairs, and plackett_luce takes lists"
            for key in ("centring", "magnitude", "likelihood"):
                if getattr(self.regularise, key):
                    yield f"regularise.{key}", "is of pairs, and plackett_luce takes lists"
            if unread := sorted(set(pairing.of_ratings) - {"score", "aspects"}):
                names = ", ".join(unread)
                yield "data.pairing", f"lists are ranked by `score` and `aspects`: delete {names}"

    def _frozen_problems(self) -> Iterator[tuple[str, str]]:
        if self.model.lora is not None:
            yield "backbone", "frozen, and model.lora would train it: choose one"
        if self.pooling == "attention":
            yield (
                "pooling",
                "attention needs every state, and a frozen backbone keeps one a response",
            )
        if self.regularise.likelihood is not None:
            yield (
                "regularise.likelihood",
                "holds up hidden states, and those of `backbone` are frozen",
            )
        if self.train.gradient_checkpointing:
            yield "train.gradient_checkpointing", "nothing is recomputed in a frozen backbone"
        if self.train.layout != "auto":
            yield "train.layout", "a frozen backbone runs once, before training: delete the key"
