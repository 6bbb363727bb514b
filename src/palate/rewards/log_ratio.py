"""The implicit reward of DPO: beta times the log-ratio of two language models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from palate.data.encode import Drop, Encoder
from palate.data.items import Item, Tokens, batches_to_score
from palate.data.layouts import Layout
from palate.data.schema import Content, Preference, Response
from palate.data.scorer import Group, Score, Traits, regrouped
from palate.errors import ModelError
from palate.models.aggregate import sequence_stats
from palate.models.limits import padding_id
from palate.models.loading import load_policy, load_tokenizer
from palate.models.model import Ask, Model
from palate.models.verdicts import exact_layout
from palate.recipes.curation import LogRatioScores
from palate.recipes.schema import LengthRecipe, ModelRecipe
from palate.rewards.names import short_name


class LogRatio:
    """beta (log policy(y|x) - log reference(y|x)) of a response (arXiv:2305.18290, Eq. 5 less the
    term of the prompt, which a difference does not have).

    Prompts and responses are rendered and tokenised as for training. What cannot be, or is too
    long, has no score.

    Args:
        recipe: the models. batch_size: responses of one forward pass.

    Raises:
        ModelError: a model that cannot be read, or two with different vocabularies.
    """

    traits = Traits()

    def __init__(self, recipe: LogRatioScores, *, batch_size: int = 16) -> None:
        self.recipe = recipe
        self.batch_size = batch_size
        self.counts: Counter[str] = Counter()
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
        layouts = [exact_layout(self._policy)]
        self._reference: Model | None = None
        self.name = f"log-probability of {short_name(recipe.policy)}"
        if recipe.reference is not None:
            of_reference = model.model_copy(update={"path": recipe.reference})
            self._reference = _ready(load_policy(of_reference))
            layouts.append(exact_layout(self._reference))
            policy, reference = map(short_name, (recipe.policy, recipe.reference))
            self.name = f"log-ratio of {policy} to {reference}"
            sizes = self._policy.vocabulary, self._reference.vocabulary
            if sizes[0] != sizes[1]:
                raise ModelError(
                    f"{recipe.reference}: has a vocabulary of {sizes[1]}, {recipe.policy} one of "
                    f"{sizes[0]}: a log-ratio needs the same"
                )

        self._layout: Layout = "plain" if "plain" in layouts else "shared"

    @torch.no_grad()
    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """In the order given; alike lengths are run together."""
        rows = [_row(group.prompt, r) for group in groups for r in group.responses]
        scores: dict[int, Score] = {}
        sequences: dict[int, tuple[Tokens, Tokens]] = {}
        for i, item in enumerate(encoded.item for encoded in self._encoder.encode(rows)):
            if isinstance(item, Drop):
                scores[i] = Score(None, item.reason)
            else:
                sequences[i] = item.sequences[0]
        numbers = list(sequences)
        for items, places in batches_to_score(list(sequences.values()), self.batch_size):
            values = map(Score.of, self._values(items))
            scores.update(zip((numbers[place] for place in places), values, strict=True))
        return regrouped((scores[i] for i in range(len(rows))), groups)

    def _values(self, items: list[Item]) -> list[float]:
        values = self._log_probs(self._policy, items)
        if self._reference is not None:
            values = values - self._log_probs(self._reference, items)
        if self.recipe.average:
            sizes = [len(response) for item in items for response in item.responses]
            values = values / torch.tensor(sizes, dtype=torch.float64)
        rewards: list[float] = (self.recipe.beta * values).tolist()
        return rewards

    def _log_probs(self, policy: Model, items: list[Item]) -> torch.Tensor:
        """[B] sums over each response's tokens, float64 on the processor."""
        batch = policy.collator(self._layout, pad_id=self._pad_id)(items).to(policy.device)
        return sequence_stats(policy(batch, Ask()).token_stats, batch).logp.double().cpu()


def _ready(policy: Model) -> Model:
    if torch.cuda.is_available():
        policy.to("cuda")
    return policy.eval()


def _row(prompt: Content, response: Content) -> Preference:
    only = (Response(content=response),)
    return Preference(id="", source="", kind="demonstration", prompt=prompt, responses=only)
