"""How many tokens and positions a backbone has embeddings for."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

_POSITIONS = frozenset({"wpe", "embed_positions", "position_embeddings"})
"""Modules that hold a state a position, as transformers' decoders name them."""

NO_LIMIT = 1 << 30
"""Tokens, of a model that names no longest sequence."""


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


def context_of(config: Any) -> int:
    """Most tokens of a sequence by a model's configuration; `NO_LIMIT` where it names no number."""
    longest = getattr(config, "max_position_embeddings", None)
    # Families without a limit say so by None or -1.
    return int(longest) if longest and longest > 0 else NO_LIMIT


def padding_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """The tokenizer's padding token, or the first that serves where the model has none for it.

    Padding is masked everywhere, so any token that the model knows serves. Some tokenizers have one
    more than their model, for padding.
    """
    wanted = int(tokenizer.pad_token_id)
    return masked_id(model, wanted if wanted < embeddings_of(model) else 0)


def masked_id(model: PreTrainedModel, wanted: int) -> int:
    """`wanted`, or a neighbour where its embedding is zero.

    States that are zero everywhere have no direction, and in some families (Gemma 3n) no finite
    gradient, not even of a loss that does not see them.
    """
    embeddings: Any = model.get_input_embeddings()
    if getattr(embeddings, "padding_idx", None) != wanted:
        return wanted
    return wanted - 1 if wanted else 1
