"""The heads of a model: vocabulary, rewards of sequences, values of tokens; and their pooling."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from palate.data.layouts import SequenceBatch
from palate.kernels import Head
from palate.models.backbone import Backbone
from palate.models.reward_config import RewardSpec
from palate.recipes.reward import HeadRecipe, Pooling

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "none": nn.Identity,
}


class RewardHead(nn.Module):
    """[S, d] pooled states to [S] rewards, in float32 whatever the backbone's dtype is.

    Unless the recipe says otherwise, weights start at N(0, 1 / (d + 1)), d being a layer's own
    inputs, and biases at 0: the first rewards have a deviation near 1 on states of unit scale
    (Stiennon et al., arXiv:2009.01325).

    Args:
        hidden_size: d.
    """

    def __init__(self, hidden_size: int, recipe: HeadRecipe) -> None:
        super().__init__()
        width = recipe.width or hidden_size
        sizes = [hidden_size, *([width] * (recipe.layers - 1)), 1]
        self.recipe = recipe
        self.layers = nn.ModuleList(
            nn.Linear(n, m, bias=recipe.has_bias, dtype=torch.float32)
            for n, m in itertools.pairwise(sizes)
        )
        self.activation = ACTIVATIONS[recipe.activation]()
        self.dropout = nn.Dropout(recipe.dropout)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            deviation = recipe.init_deviation or 1.0 / math.sqrt(layer.in_features + 1)
            nn.init.normal_(layer.weight, std=deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    @property
    def is_linear(self) -> bool:
        """One layer without bias: what `AutoModelForSequenceClassification` has."""
        return len(self.layers) == 1 and not self.recipe.has_bias

    def forward(self, pooled: Tensor) -> Tensor:
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        x = pooled.to(first.weight.dtype)
        with _as_typed(x):
            for i, layer in enumerate(self.layers):
                x = layer(self.dropout(x if i == 0 else self.activation(x)))
        return x.squeeze(-1)


class Heads(nn.Module):
    """[S, d] pooled states to [S, K] rewards: K heads, each drawn by itself."""

    is_linear = False
    """No classifier of others has several."""

    def __init__(self, hidden_size: int, recipe: HeadRecipe, count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(RewardHead(hidden_size, recipe) for _ in range(count))

    def forward(self, pooled: Tensor) -> Tensor:
        return torch.stack([member(pooled) for member in self.members], dim=-1)


class EndToken(nn.Module):
    """The state at the last token of each response: the end of its turn, which the data ensures."""

    def forward(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        if batch.ends is None:
            raise ValueError("the last response tokens are not run: collate with keep_last")
        return states[batch.ends]


class Mean(nn.Module):
    """The mean over the response's tokens, its end included, in float32."""

    def forward(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        responses = _response_states(states, batch)
        total = responses.new_zeros(batch.n_sequences, responses.shape[-1])
        return total.index_add(0, batch.segment, responses) / batch.lengths[:, None]


class Attention(nn.Module):
    """A mean over the response's tokens with weights softmax(q . h / sqrt(d)), in float32.

    q is trained and starts at 0, which is the plain mean.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        responses = _response_states(states, batch)
        with _as_typed(responses):
            score = responses @ self.query.to(responses.dtype) / math.sqrt(responses.shape[-1])
        n = batch.n_sequences
        top = score.detach().new_full((n,), -torch.inf)
        top = top.scatter_reduce(0, batch.segment, score.detach(), "amax")
        weight = torch.exp(score - top[batch.segment])
        total = weight.new_zeros(n).index_add(0, batch.segment, weight)
        weight = weight / total[batch.segment]
        pooled = responses.new_zeros(n, responses.shape[-1])
        return pooled.index_add(0, batch.segment, responses * weight[:, None])


def build_pooling(kind: Pooling, hidden_size: int) -> nn.Module:
    """The pooling of a recipe: [R * T, d] states and their batch to [S, d]."""
    if kind == "attention":
        return Attention(hidden_size)
    return Mean() if kind == "mean" else EndToken()


def _as_typed(x: Tensor) -> torch.autocast:
    """Products in the dtype of their factors, also under a launcher's mixed precision."""
    return torch.autocast(x.device.type, enabled=False)


def _response_states(states: Tensor, batch: SequenceBatch) -> Tensor:
    """[N, d] states of the response tokens, float32 or wider."""
    if batch.target_positions is None:
        raise ValueError("the last response tokens are not run: collate with keep_last")
    responses = states[batch.target_positions]
    return responses if responses.dtype == torch.float64 else responses.float()


class VocabularyHead(nn.Module):
    """The vocabulary head; its weights are those of the trunk.

    Args:
        trunk: name of the trunk that it reads.
        frozen: weights to use in place of the trunk's own: of a trunk without a head, for the
            likelihood term of reward models.
        tied: whether those are the trunk's input embeddings, which are trained.
    """

    def __init__(self, trunk: str, frozen: Head | None = None, *, tied: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self._frozen = frozen
        self._tied = tied

    def weights(self, backbone: Backbone) -> Head:
        """Weights with the family's scaling and soft-capping; the input embeddings themselves where
        the model ties the two.

        Raises:
            ModelError: the trunk has no such head.
        """
        if self._frozen is None:
            return backbone.vocabulary_head()
        if self._tied:
            embeddings: Any = backbone.base.get_input_embeddings().weight
            return dataclasses.replace(self._frozen, weight=embeddings)
        if self._frozen.weight.device != backbone.device:
            # Moved once, not for every batch.
            bias = self._frozen.bias
            self._frozen = dataclasses.replace(
                self._frozen,
                weight=self._frozen.weight.to(backbone.device),
                bias=None if bias is None else bias.to(backbone.device),
            )
        return self._frozen


class ScalarHead(nn.Module):
    """Rewards of sequences: a pooling of a trunk's states, and a reward head or several.

    Attributes:
        trunk: name of the trunk that it reads.
        spec: what a saved model says of itself.
    """

    def __init__(self, trunk: str, hidden_size: int, spec: RewardSpec) -> None:
        super().__init__()
        self.trunk = trunk
        self.spec = spec
        several = spec.heads > 1
        self.head = (
            Heads(hidden_size, spec.head, spec.heads)
            if several
            else RewardHead(hidden_size, spec.head)
        )
        self.pooling = build_pooling(spec.pooling, hidden_size)

    def pooled(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        """[S, d] of [R * T, d]."""
        pooled: Tensor = self.pooling(states, batch)
        return pooled

    def rewards(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S] rewards; of several heads their mean, and [S, K] those of each."""
        scores: Tensor = self.head(pooled)
        return (scores, None) if scores.dim() == 1 else (scores.mean(-1), scores)


class ValueHead(nn.Module):
    """Values of states: one number for the state before each response token, in float32.

    Attributes:
        trunk: name of the trunk that it reads.
        mean, deviation: values are (what the layers give - mean) / deviation.
    """

    mean, deviation = 0.0, 1.0

    def __init__(self, trunk: str, hidden_size: int, recipe: HeadRecipe | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = RewardHead(hidden_size, recipe or HeadRecipe())

    def forward(self, states: Tensor) -> Tensor:
        """[N] of [N, d]."""
        values: Tensor = self.head(states)
        return (values - self.mean) / self.deviation
