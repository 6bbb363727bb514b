"""The models and shapes of gpu.py: their least work, and the memory that each side should need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from floor import work
from gpu_sides import DPO, PLAIN, TDPO2, TREE

MODELS: dict[str, dict[str, int]] = {
    "0.5B": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151_936,
    },
    "1.5B": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 997,
    },
}
"""Fields of a Qwen2Config; embeddings are the head."""
PAIRS = {"2048/256": 4, "8192/512": 1}
"""Of a step; 2 where a shape is not named."""
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "MI300X": 1307,
}
"""TFLOP/s of bfloat16 products without sparsity, by the makers' data sheets; the first name that
fits counts."""


@dataclass(frozen=True)
class Shape:
    """A model, and the pairs of a step."""

    model: str
    prompt: int
    response: int
    pairs: int

    def __str__(self) -> str:
        return f"{self.model}, {self.prompt}/{self.response}, {self.pairs} pairs"

    @property
    def tokens(self) -> int:
        return self.pairs * (self.prompt + 2 * self.response)

    def flops(self, loss: str) -> float:
        """The least work of a step."""
        config = config_of(self.model)
        return work(config, parameters(config)[0], loss, self.pairs, self.prompt, self.response)

    def memory(self, side: str) -> float:
        """Bytes that a side is thought to need."""
        config = config_of(self.model)
        layers, embeddings = parameters(config)
        rows = self.pairs * 2 * (self.prompt + self.response)
        run = self.tokens if side in (TREE, DPO, TDPO2) else rows
        kept = run * config.num_hidden_layers * layer_bytes(config)
        scored = self.pairs * 2 * self.response * config.vocab_size
        # Logits, log-probs and a gradient in bfloat16; others hold a tile at a time.
        head = 6 * scored if side == PLAIN else 0.5e9
        return 5 * 2 * (layers + embeddings) + kept + head


def layer_bytes(config: Any) -> int:
    """Kept of a token by a layer for its backward pass, in bfloat16, norms in float32 inside."""
    heads = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    norms = 2 * (4 + 2) * config.hidden_size
    return norms + 2 * (3 * heads + 2 * keys) + 8 * config.intermediate_size


def config_of(model: str) -> Any:
    from transformers import Qwen2Config

    fields = MODELS[model]
    return Qwen2Config(
        **fields,
        head_dim=fields["hidden_size"] // fields["num_attention_heads"],
        tie_word_embeddings=True,
        use_sliding_window=False,
        rope_theta=1e6,
        max_position_embeddings=32_768,
    )


def parameters(config: Any) -> tuple[int, int]:
    """Numbers in the layers, and in the embeddings, which are the head."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    every = sum(p.numel() for p in model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    return every - embeddings, embeddings


def peak_of(name: str, given: float | None) -> float | None:
    """FLOP/s of a device; None where nobody knows."""
    known = [value for part, value in PEAKS.items() if part in name]
    tera = given if given is not None else next(iter(known), None)
    return None if tera is None else tera * 1e12
