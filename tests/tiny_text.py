"""A byte-level tokenizer and tiny models with its vocabulary, made in code."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tiny import COMMON, CONFIGS

SPECIALS = ("<pad>", "<bos>", "<eos>")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, `<bos>` before every text, ids as in `tiny.COMMON`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def tiny_text_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, spread: float = 5.0
) -> PreTrainedModel:
    """A random model that writes `tiny_tokenizer`'s bytes."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    config.vocab_size = len(tiny_tokenizer())
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
    return model.to(dtype).eval()


def save_tiny(folder: Path, family: str = "llama", *, seed: int = 0) -> Path:
    """A folder that `load_model` and `load_tokenizer` read."""
    tiny_text_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_classifier(folder: Path, labels: list[str]) -> str:
    """A sequence classifier on a tiny decoder; its path."""
    torch.manual_seed(0)
    config = LlamaConfig(**COMMON | {"vocab_size": len(tiny_tokenizer())})
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
