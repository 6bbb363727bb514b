"""A random reward model that says of itself what a trained one would, as a scorer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, PreTrainedTokenizerFast

from palate.data.encode import Encoder
from palate.data.items import Item
from palate.data.schema import Content, Message, Preference, Response
from palate.models.model import Model
from palate.models.reward_config import RewardSpec
from palate.recipes.schema import LengthRecipe, ModelRecipe
from palate.rewards.combined import Member
from palate.rewards.ensemble import Ensemble
from palate.rewards.members import Rule
from palate.rewards.model import ModelScorer
from tiny import CONFIGS
from tiny_chat import spacing_tokenizer

ASKED, SAID = "say a word", "well said"


def spaced(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = spacing_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def scorer_of(tokenizer: Any, *, whole: bool = False, heads: int = 1, **length: Any) -> ModelScorer:
    """A random model that says of itself what one trained on such data would."""
    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.vocab_size = len(tokenizer)
    chat = tokenizer.chat_template is not None
    item = Encoder(tokenizer).encode_row(row(*conversation(chat)))
    assert isinstance(item, Item)
    end = item.responses[0].ids[-1]
    spec = RewardSpec(
        model=ModelRecipe(path="tiny"),
        forms=() if whole else ("chat",) if chat else ("text",),
        end_tokens={} if whole else {end: str(tokenizer.convert_ids_to_tokens(end))},
        whole_rendering=whole,
        heads=heads,
        length=LengthRecipe(**length) if length else None,
    )
    return ModelScorer(Model.reward(AutoModel.from_config(config), spec), tokenizer=tokenizer)


def heads_of(tokenizer: Any, heads: int = 3, *, rule: Rule = "mean") -> Ensemble:
    """The heads of one such model as an ensemble."""
    model = scorer_of(tokenizer, heads=heads).model
    own = [ModelScorer(model, tokenizer=tokenizer, head=k) for k in range(heads)]
    return Ensemble([Member(scorer=scorer) for scorer in own], rule)


def conversation(chat: bool) -> tuple[Content, Content]:
    if not chat:
        return ASKED + ": ", SAID
    return [Message(role="user", content=ASKED)], [Message(role="assistant", content=SAID)]


def row(prompt: Content, response: Content) -> Preference:
    return Preference(
        id="",
        source="",
        kind="demonstration",
        prompt=prompt,
        responses=(Response(content=response),),
    )
