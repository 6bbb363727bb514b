"""Tiny random models of the true architectures, made in code."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from palate.data.items import Item, PairLabel
from palate.data.layouts import SequenceBatch
from palate.kernels import TokenStats
from palate.models.model import Ask, Model

VOCABULARY = 211

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON, tie_word_embeddings=False),
    "mistral": lambda: MistralConfig(**COMMON, sliding_window=9, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**COMMON, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(
        **COMMON,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
    ),
    "gemma2": lambda: Gemma2Config(
        **COMMON,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=20.0,
    ),
}
FAMILIES = tuple(CONFIGS)


def tiny_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, spread: float = 5.0
) -> PreTrainedModel:
    """A random model whose next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    attention = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def tiny_pairs(n: int = 5, *, seed: int = 0, longest: int = 14) -> list[Item]:
    """Pairs of random tokens, of uneven lengths, one-token responses included."""
    g = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        count = int(torch.randint(low, high + 1, (1,), generator=g))
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=g).tolist())

    pairs = []
    for i in range(n):
        chosen = ids(1, longest) if i else ids(1, 1)
        pairs.append(
            Item.of(
                (1, *ids(1, longest)),
                (*chosen, 2),
                ids(1, longest) if i % 3 else (*ids(1, longest), 2),
                label=PairLabel(),
                id=f"pair-{i}",
                source="even" if i % 2 == 0 else "odd",
                index=i,
            )
        )
    return pairs


def token_stats_of(policy: Model, batch: SequenceBatch, reference=None, **ask: bool) -> TokenStats:
    return policy(batch, Ask(**ask), reference=reference).token_stats


def rewards_of(model: Model, batch: SequenceBatch) -> torch.Tensor:
    return model(batch, Ask(heads=("reward",))).sequence_rewards
