"""A scalar reward model: a backbone without vocabulary head, a pooling and a reward head.

    model = build_reward_model(recipe)                   # random head on the recipe's backbone
    rewards = model(collate(pairs, ..., keep_last=True)).rewards

`palate.models.reward_files` saves and loads it.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palate.data.layouts import SequenceBatch
from palate.errors import ModelError
from palate.kernels import Head, token_stats
from palate.models.heads import Heads, RewardHead, build_pooling
from palate.models.limits import embeddings_of
from palate.models.loading import add_lora
from palate.models.policy import Policy, run_backbone
from palate.models.reward_backbone import is_classifier, is_headless, load_whole
from palate.recipes.reward import HeadRecipe, Pooling, RewardRecipe
from palate.recipes.schema import LengthRecipe, ModelRecipe

log = logging.getLogger("palate")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Rewards on the training distribution: (r - mean) / deviation is the normalised score."""

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """What a saved reward model says of itself beside its weights.

    Attributes:
        model: recipe of the backbone it was trained from.
        forms: of the prompts in training; empty where not known.
        end_tokens: id -> text of the tokens that responses end with.
        template_sha256: of the chat template in training.
        length: limits that the training rows were within.
        scale: None until it is measured.
        heads: how many there are; the reward is their mean.
        scales: of each head, where there are several; empty until they are measured.
        whole_rendering: of a model that others trained: the score is read at whatever token the
            template (or the text) ends with, as transformers does.
    """

    model: ModelRecipe
    head: HeadRecipe = dataclasses.field(default_factory=HeadRecipe)
    pooling: Pooling = "token"
    forms: tuple[Literal["chat", "text"], ...] = ()
    end_tokens: dict[int, str] = dataclasses.field(default_factory=dict)
    template_sha256: str | None = None
    length: LengthRecipe | None = None
    scale: Scale | None = None
    heads: int = 1
    scales: tuple[Scale, ...] = ()
    whole_rendering: bool = False


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """Of one forward pass.

    Attributes:
        rewards: [S] float32, raw; of several heads their mean.
        heads: [S, K] of each of several heads; None where there is one.
        chosen_logp: [B] summed log-probs of the chosen responses; None unless they were asked for.
    """

    rewards: Tensor
    heads: Tensor | None = None
    chosen_logp: Tensor | None = None


class RewardModel(nn.Module):
    """Rewards of the sequences of a batch, whatever its layout.

    Args:
        language: the vocabulary head, frozen, for the likelihood term alone.
        memory_mb: its working memory.

    Attributes:
        hf: the backbone, with or without PEFT adapters.
        spec: what a saved model says of itself.
    """

    def __init__(
        self,
        hf: nn.Module,
        spec: RewardSpec,
        *,
        language: Head | None = None,
        memory_mb: int = 256,
    ) -> None:
        super().__init__()
        self.hf = hf
        self.spec = spec
        size = self.hidden_size
        several = spec.heads > 1
        self.head = Heads(size, spec.head, spec.heads) if several else RewardHead(size, spec.head)
        self.pooling = build_pooling(spec.pooling, self.hidden_size)
        self._language = language
        self.memory_mb = memory_mb

    @property
    def base(self) -> PreTrainedModel:
        """The backbone, adapters (if any) injected in its layers."""
        get = getattr(self.hf, "get_base_model", None)
        model = get() if get is not None else self.hf
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def hidden_size(self) -> int:
        """Of the states that the backbone returns: OPT may project its own to another size."""
        config = self.config.get_text_config()
        return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbone's weights (adapters, pooling and head are float32)."""
        return self.base.get_input_embeddings().weight.dtype  # type: ignore[return-value]

    @property
    def vocabulary(self) -> int:
        return embeddings_of(self.base)

    @property
    def has_adapters(self) -> bool:
        return hasattr(self.hf, "disable_adapter")

    @property
    def is_frozen(self) -> bool:
        """Whether only pooling and head are trained."""
        return not any(p.requires_grad for p in self.hf.parameters())

    @property
    def n_trainable(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def features(self, batch: SequenceBatch) -> Tensor:
        """[S, d] pooled states: what the head reads."""
        pooled: Tensor = self.pooling(run_backbone(self.base, batch, self.dtype), batch)
        return pooled

    def forward(self, batch: SequenceBatch, *, likelihood: bool = False) -> RewardOutput:
        """Rewards of all sequences, and of pairs the likelihood of the chosen ones where asked for.

        Args:
            batch: laid out with `keep_last`, or holding `features` of a frozen backbone.
        """
        if "features" in batch.inputs:
            return self._output(batch.inputs["features"])
        states = run_backbone(self.base, batch, self.dtype)
        found = self._output(self.pooling(states, batch))
        if not likelihood:
            return found
        return dataclasses.replace(found, chosen_logp=self._chosen_logp(states, batch))

    def _output(self, pooled: Tensor) -> RewardOutput:
        found: Tensor = self.head(pooled)
        if found.dim() == 1:
            return RewardOutput(rewards=found)
        return RewardOutput(rewards=found.mean(-1), heads=found)

    def _chosen_logp(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        chosen = batch.of_pairs().chosen
        pair_of = torch.full((batch.n_sequences,), -1, device=states.device)
        pair_of[chosen] = torch.arange(len(chosen), device=states.device)
        pair = pair_of[batch.segment]
        counted = pair >= 0
        tokens = token_stats(
            hidden=states[batch.predict[counted]],
            head=self.language_head(),
            targets=batch.targets[counted],
            memory_mb=self.memory_mb,
        )
        total = torch.zeros(len(chosen), dtype=tokens.logp.dtype, device=states.device)
        return total.index_add(0, pair[counted], tokens.logp)

    def language_head(self) -> Head:
        """The vocabulary head: the input embeddings themselves where the model ties the two.

        Raises:
            ValueError: the model was built without one.
        """
        if self._language is None:
            raise ValueError("this reward model has no vocabulary head")
        tied = self.config.get_text_config().tie_word_embeddings
        shared: Any = self.base.get_input_embeddings().weight
        if self._language.weight.device != self.device:
            # Moved once, not for every batch.
            bias = None if self._language.bias is None else self._language.bias.to(self.device)
            weight = shared.detach() if tied else self._language.weight.to(self.device)
            self._language = dataclasses.replace(self._language, weight=weight, bias=bias)
        return dataclasses.replace(self._language, weight=shared) if tied else self._language

    def merge_adapters(self) -> None:
        """Adds the adapters to the backbone's weights; rewards stay the same to rounding."""
        if self.has_adapters:
            self.hf = self.hf.merge_and_unload()  # type: ignore[operator]


def build_reward_model(recipe: RewardRecipe) -> RewardModel:
    """The starting model of a recipe: its backbone and a new head, drawn from torch's seed.

    Raises:
        ModelError: unreadable, no backbone that gives hidden states, or no vocabulary head for the
            likelihood term.
    """
    whole = load_whole(recipe.model)
    backbone = whole.base_model
    if not isinstance(backbone, PreTrainedModel):
        raise ModelError(f"{recipe.model.path}: {type(whole).__name__} has no backbone of its own")
    wanted = recipe.regularise.likelihood
    if is_headless(whole.config):
        kind = "classifier" if is_classifier(whole.config) else "backbone alone"
        if wanted is not None and not whole.config.get_text_config().tie_word_embeddings:
            raise ModelError(
                f"{recipe.model.path}: a {kind} has no vocabulary head: leave out "
                "`regularise.likelihood`"
            )
        log.warning(
            "%s: a %s: any head of its own is left out, a new one drawn", recipe.model.path, kind
        )
    language = None
    if wanted is not None:
        head = Policy(whole).head()
        bias = None if head.bias is None else head.bias.detach()
        language = dataclasses.replace(head, weight=head.weight.detach(), bias=bias)
    hf: nn.Module = backbone
    if recipe.backbone == "frozen":
        backbone.requires_grad_(False)
    elif recipe.model.lora is not None:
        hf = add_lora(backbone, recipe.model.lora, task="FEATURE_EXTRACTION")
    spec = RewardSpec(
        model=recipe.model,
        head=recipe.head,
        heads=1 if recipe.ensemble is None else recipe.ensemble.heads,
        pooling=recipe.pooling,
        length=recipe.data.length,
    )
    memory_mb = 256 if wanted is None else wanted.memory_mb
    return RewardModel(hf, spec, language=language, memory_mb=memory_mb)
