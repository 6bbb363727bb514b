"""One model for policies, reward models and value models: named trunks, and named heads on them.

    policy = Model.policy(hf)                        # trunk "policy", head "lm"
    outputs = policy(batch, Ask(kl=True), reference=reference.inputs(batch, kl=True))
    outputs.tokens.kl                                # [N]

    reward = Model.reward(hf, spec)                  # trunk "reward", head "reward"
    reward(batch, Ask(heads=("reward",))).rewards    # [S]

A value head reads the policy's trunk, or one of its own:

    Model({"policy": trunk}, {"lm": VocabularyHead("policy"), "value": ValueHead("policy", ...)})
    Model({"policy": trunk, "value": other}, {..., "value": ValueHead("value", ...)})

All that is asked comes from one forward pass, so that DDP and FSDP, which wrap the model, see one
call; each trunk is run once, and the vocabulary head at response tokens alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palate.data.layouts import Collator, Layout, SequenceBatch
from palate.kernels import Head, RefInputs, TokenStats, at_temperature, token_stats
from palate.models.adapters import save_adapters
from palate.models.backbone import Backbone
from palate.models.heads import ScalarHead, ValueHead, VocabularyHead
from palate.models.limits import embeddings_of
from palate.models.reward_config import RewardSpec
from palate.models.stop_tokens import save_stop_tokens
from palate.models.structure import backbone_of
from palate.models.vision import image_features

if TYPE_CHECKING:
    from palate.models.pictures import Pictures


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is wanted of one forward pass.

    Attributes:
        heads: names of the heads to run: `lm` gives `tokens`, `reward` rewards, `value` values.
        kl, reverse_kl, entropy: statistics of the vocabulary head besides log-probs; see
            `palate.kernels.token_stats`.
        tokens: whose the vocabulary head is run for: all responses', or the chosen ones' of pairs.
        temperature: that all logits are divided by, the reference's too: of the distribution that
            responses were sampled from.
    """

    heads: tuple[str, ...] = ("lm",)
    kl: bool = False
    reverse_kl: bool = False
    entropy: bool = False
    tokens: Literal["all", "chosen"] = "all"
    temperature: float = 1.0

    @property
    def needs_kl(self) -> bool:
        """Whether a reference must give more than log-probs."""
        return self.kl or self.reverse_kl


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The results of one forward pass; None for what was not asked for.

    Attributes:
        tokens: [N] statistics of response tokens, or of those at `batch.chosen_tokens`.
        rewards: [S] float32, raw; of several heads their mean.
        by_head: [S, K] rewards of each of several heads; None where there is one.
        values: [N] float32, of the state that each response token is written in.
        end_values: [S] float32, of the state behind the last token, where it is run.
    """

    tokens: TokenStats | None = None
    rewards: Tensor | None = None
    by_head: Tensor | None = None
    values: Tensor | None = None
    end_values: Tensor | None = None

    @property
    def token_stats(self) -> TokenStats:
        """`tokens`, which were asked for."""
        assert self.tokens is not None, "head `lm` was not asked for"
        return self.tokens

    @property
    def sequence_rewards(self) -> Tensor:
        """`rewards`, which were asked for."""
        assert self.rewards is not None, "head `reward` was not asked for"
        return self.rewards


ModelHead = VocabularyHead | ScalarHead | ValueHead


class Model(nn.Module):
    """Trunks and heads by name; every head reads one trunk.

    Args:
        trunks: at least one; the first is the main one, which properties of the model are of.
        memory_mb: working memory of the vocabulary head.

    Attributes:
        base_digest: of the main trunk's weights before training, where known; saved with adapters,
            which fit no other weights.
        pictures: the images that it is shown; None where there are none.

    Raises:
        ValueError: a head on a trunk that there is not.
    """

    base_digest: str | None = None
    pictures: Pictures | None = None

    def __init__(
        self,
        trunks: Mapping[str, Backbone],
        heads: Mapping[str, ModelHead],
        *,
        memory_mb: int = 256,
    ) -> None:
        super().__init__()
        for name, head in heads.items():
            if head.trunk not in trunks:
                raise ValueError(f"head {name} reads trunk {head.trunk}, which is not there")
        self.trunks = nn.ModuleDict(trunks)
        self.heads = nn.ModuleDict(heads)
        self.memory_mb = memory_mb

    @classmethod
    def policy(cls, hf: nn.Module, *, memory_mb: int = 256) -> Model:
        """A language model: trunk `policy`, head `lm`."""
        return cls({"policy": Backbone(hf)}, {"lm": VocabularyHead("policy")}, memory_mb=memory_mb)

    @classmethod
    def reward(
        cls,
        hf: nn.Module,
        spec: RewardSpec,
        *,
        language: Head | None = None,
        memory_mb: int = 256,
    ) -> Model:
        """A reward model: trunk and head `reward`.

        Args:
            language: the vocabulary head, frozen, for the likelihood term alone.
        """
        trunk = Backbone(hf)
        heads: dict[str, ModelHead] = {"reward": ScalarHead("reward", trunk.hidden_size, spec)}
        if language is not None:
            embeddings: Any = trunk.base.get_input_embeddings().weight
            # A configuration may call tied what its files hold apart.
            tied = language.weight.data_ptr() == embeddings.data_ptr()
            heads["lm"] = VocabularyHead("reward", language, tied=tied)
        return cls({"reward": trunk}, heads, memory_mb=memory_mb)

    def forward(
        self, batch: SequenceBatch, ask: Ask, *, reference: RefInputs | None = None
    ) -> Outputs:
        """All that is asked, in one pass.

        Args:
            batch: for rewards laid out with `keep_last`, or holding `features` of a frozen trunk.
            reference: of the response tokens, for KL and reference log-probs.
        """
        states: dict[str, Tensor] = {}
        outputs: dict[str, Any] = {}
        for name in ask.heads:
            head = self.heads[name]
            if isinstance(head, ScalarHead) and "features" in batch.inputs:
                rewards, by_head = head.rewards(batch.inputs["features"])
                outputs |= {"rewards": rewards, "by_head": by_head}
                continue
            assert isinstance(head, (VocabularyHead, ScalarHead, ValueHead))
            if head.trunk not in states:
                states[head.trunk] = self.trunks[head.trunk](self._seen_by(head.trunk, batch))
            seen = states[head.trunk]
            if isinstance(head, ScalarHead):
                rewards, by_head = head.rewards(head.pooled(seen, batch))
                outputs |= {"rewards": rewards, "by_head": by_head}
            elif isinstance(head, ValueHead):
                outputs["values"] = head(seen[batch.predict])
                if batch.ends is not None:
                    outputs["end_values"] = head(seen[batch.ends])
            else:
                outputs["tokens"] = self._tokens(seen, head, batch, ask, reference)
        return Outputs(**outputs)

    def _seen_by(self, trunk: str, batch: SequenceBatch) -> SequenceBatch:
        """The batch as a trunk takes it: features of images are the main trunk's, whose tower and
        projector no other has."""
        images = batch.images
        if images is None or not images.pixels or trunk == next(iter(self.trunks)):
            return batch
        return dataclasses.replace(batch, images=dataclasses.replace(images, features=()))

    def _tokens(
        self,
        states: Tensor,
        head: VocabularyHead,
        batch: SequenceBatch,
        ask: Ask,
        reference: RefInputs | None,
    ) -> TokenStats:
        predict, targets = batch.predict, batch.targets
        if ask.tokens == "chosen":
            assert batch.chosen_tokens is not None, "a batch without pairs"
            predict, targets = predict[batch.chosen_tokens], targets[batch.chosen_tokens]
        return token_stats(
            hidden=states[predict],
            head=head.weights(self.trunk(head.trunk)).at_temperature(ask.temperature),
            targets=targets,
            reference=at_temperature(reference, ask.temperature),
            kl=ask.kl,
            reverse_kl=ask.reverse_kl,
            entropy=ask.entropy,
            memory_mb=self.memory_mb,
        )

    def hidden(self, batch: SequenceBatch) -> Tensor:
        """[N, d] last hidden states of the main trunk that predict the response tokens."""
        states: Tensor = self.backbone(batch)
        return states[batch.predict]

    def pooled(self, batch: SequenceBatch) -> Tensor:
        """[S, d] what the reward head reads."""
        head = self.reward_head
        return head.pooled(self.trunks[head.trunk](batch), batch)

    def collator(self, layout: Layout, *, pad_id: int = 0, keep_last: bool = False) -> Collator:
        """What lays items out for it, the pixels of their images included."""
        pictures = self.pictures
        return Collator(
            layout=layout,
            pad_id=pad_id,
            keep_last=keep_last,
            vision=self.backbone.vision,
            fill=None if pictures is None else pictures.filled,
        )

    def with_features(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch with what the main trunk's tower makes of its images, where the tower is
        frozen: policy and reference then take them from one pass."""
        images, tower = batch.images, self.backbone
        if images is None or images.features or tower.vision_trained:
            return batch
        features = image_features(backbone_of(tower.base), images.pixels, images.lengths)
        return dataclasses.replace(batch, images=dataclasses.replace(images, features=features))

    @property
    def shown(self) -> dict[str, str]:
        """What its numbers depend on besides weights and tokens: how its images are processed."""
        return {} if self.pictures is None else {"images": self.pictures.processor.digest}

    def trunk(self, name: str) -> Backbone:
        trunk = self.trunks[name]
        assert isinstance(trunk, Backbone)
        return trunk

    @property
    def backbone(self) -> Backbone:
        """The main trunk."""
        return self.trunk(next(iter(self.trunks)))

    def vocabulary_head(self) -> Head:
        """The weights of head `lm`, with the family's scaling and soft-capping.

        Raises:
            ModelError: it has none.
        """
        head = self.heads["lm"]
        assert isinstance(head, VocabularyHead)
        return head.weights(self.trunk(head.trunk))

    @property
    def reward_head(self) -> ScalarHead:
        head = self.heads["reward"]
        assert isinstance(head, ScalarHead)
        return head

    @property
    def is_reward_model(self) -> bool:
        return "reward" in self.heads

    @property
    def spec(self) -> RewardSpec:
        """What a saved reward model says of itself."""
        return self.reward_head.spec

    @spec.setter
    def spec(self, spec: RewardSpec) -> None:
        self.reward_head.spec = spec

    @property
    def hf(self) -> nn.Module:
        """The transformers or PEFT model of the main trunk."""
        return self.backbone.hf

    @property
    def base(self) -> PreTrainedModel:
        """The main trunk's transformers model, adapters (if any) injected in its layers."""
        return self.backbone.base

    @property
    def config(self) -> Any:
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the main trunk's weights (adapters and scalar heads are float32)."""
        return self.backbone.dtype

    @property
    def has_adapters(self) -> bool:
        return self.backbone.has_adapters

    @property
    def vocabulary(self) -> int:
        """Tokens that the main trunk knows: rows of its vocabulary head, or of its embeddings."""
        if self.is_reward_model:
            return embeddings_of(self.base)
        return len(self.vocabulary_head().weight)

    @property
    def n_trainable(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes the main trunk as safetensors + JSON that transformers (or PEFT) loads.

        Args:
            weights: by their names in `hf`, where it holds only shards of them.
        """
        hf: Any = self.hf
        if not self.has_adapters:
            hf.save_pretrained(folder, state_dict=weights)
            return
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(hf, state_dict=weights, save_embedding_layers=False)
        save_adapters(
            folder,
            hf.peft_config["default"],
            tensors,
            base_digest=self.base_digest,
            base_dtype=self.dtype,
        )
        save_stop_tokens(self.base, folder)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which a model, or its distributed wrapper, evaluates; then it is as before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
