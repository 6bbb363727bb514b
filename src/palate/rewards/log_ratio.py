"""The implicit reward of DPO: beta times the log-ratio of two language models."""

from __future__ import annotations

import math

import torch

from palate.data.encode import Drop, Encoder
from palate.data.items import Item
from palate.data.layouts import collate
from palate.data.schema import Preference
from palate.errors import ModelError
from palate.models.aggregate import sequence_stats
from palate.models.limits import padding_id
from palate.models.loading import load_policy, load_tokenizer
from palate.models.model import Ask, Model
from palate.recipes.curation import LogRatioScores
from palate.recipes.schema import LengthRecipe, ModelRecipe

_NONE = (math.nan, math.nan)


class LogRatio:
    """beta (log policy(y|x) - log reference(y|x)) of both responses (arXiv:2305.18290, Eq. 5 less
    the term of the prompt, which a difference does not have).

    Pairs are rendered and tokenised as for training. One that cannot be, or is too long, or holds
    images, has no score: NaN.

    Args:
        recipe: the models. batch_size: pairs of one forward pass.

    Raises:
        ModelError: a model that cannot be read, or two with different vocabularies.
    """

    def __init__(self, recipe: LogRatioScores, *, batch_size: int = 8) -> None:
        self.recipe = recipe
        self.batch_size = batch_size
        model = ModelRecipe(
            path=recipe.policy, dtype=recipe.dtype, chat_template=recipe.chat_template
        )
        tokenizer = load_tokenizer(model)
        limit = recipe.max_tokens
        length = LengthRecipe(
            max_prompt_tokens=limit, max_response_tokens=limit, max_tokens=limit, response="drop"
        )
        self._encoder = Encoder(tokenizer, recipe.chat_template, length)
        self._policy = _ready(load_policy(model))
        self._pad_id = padding_id(tokenizer, self._policy.base)
        self._reference: Model | None = None
        self.name = f"log-probability of {_short(recipe.policy)}"
        if recipe.reference is not None:
            of_reference = model.model_copy(update={"path": recipe.reference})
            self._reference = _ready(load_policy(of_reference))
            self.name = f"log-ratio of {_short(recipe.policy)} to {_short(recipe.reference)}"
            sizes = self._policy.vocabulary, self._reference.vocabulary
            if sizes[0] != sizes[1]:
                raise ModelError(
                    f"{recipe.reference}: has a vocabulary of {sizes[1]}, {recipe.policy} one of "
                    f"{sizes[0]}: a log-ratio needs the same"
                )

    @torch.no_grad()
    def score_pairs(self, rows: list[Preference]) -> list[tuple[float, float]]:
        """Scores of chosen and rejected, in the order given; NaN where there is none."""
        found = [_NONE] * len(rows)
        items = [encoded.item for encoded in self._encoder.encode(rows)]
        pairs = {k: item for k, item in enumerate(items) if not isinstance(item, Drop)}
        # Alike lengths together: less padding.
        order = sorted(pairs, key=lambda k: -_size(pairs[k]))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            scores = self._scores([pairs[k] for k in places])
            for k, sides in zip(places, scores, strict=True):
                found[k] = sides
        return found

    def _scores(self, pairs: list[Item]) -> list[tuple[float, float]]:
        """Of chosen and rejected response of each pair."""
        values = self._log_probs(self._policy, pairs)
        if self._reference is not None:
            values = values - self._log_probs(self._reference, pairs)
        if self.recipe.average:
            lengths = [[len(response) for response in pair.responses] for pair in pairs]
            values = values / torch.tensor(lengths, dtype=torch.float64)
        return [(chosen, rejected) for chosen, rejected in (self.recipe.beta * values).tolist()]

    def _log_probs(self, policy: Model, pairs: list[Item]) -> torch.Tensor:
        """[B, 2] sums over each response's tokens, float64 on the processor."""
        batch = collate(pairs, layout="plain", pad_id=self._pad_id).to(policy.device)
        tokens = policy(batch, Ask()).token_stats
        return sequence_stats(tokens, batch).logp.double().cpu().view(-1, 2)


def _ready(policy: Model) -> Model:
    if torch.cuda.is_available():
        policy.to("cuda")
    return policy.eval()


def _size(pair: Item) -> int:
    return max(len(prompt) + len(response) for prompt, response in pair.sequences)


def _short(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
