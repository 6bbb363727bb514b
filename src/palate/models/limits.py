"""What tokens and positions a backbone has rows for."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

_POSITIONS = frozenset({"wpe", "embed_positions", "position_embeddings"})
"""Modules that hold a state a position, as transformers' decoders name them."""


def embeddings_of(model: PreTrainedModel) -> int:
    """Tokens that the model has embeddings of."""
    weight: Any = model.get_input_embeddings().weight
    return len(weight)


def positions_of(model: PreTrainedModel) -> int | None:
    """Most tokens of a sequence, of a model with a table of them; None without one."""
    names = (name.rpartition(".")[2] for name, _ in model.named_modules())
    if _POSITIONS.isdisjoint(names):
        return None
    return int(model.config.get_text_config().max_position_embeddings)


def padding_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """The tokenizer's padding token, or 0 where the model has no row for it.

    Padding is masked everywhere, so any token that the model knows serves; some tokenizers have one
    more than their model, for padding.
    """
    found = int(tokenizer.pad_token_id)
    return found if found < embeddings_of(model) else 0
