"""Tokenizers, tiny models and rows of the golden cases: all made here, of numbers that never move.

Weights come from numpy, whose streams are the same on every machine, and not from torch's
initialisers. Vocabularies and responses are small, so that sums of float32 keep their last digits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

SPECIALS = ("<pad>", "<bos>", "<eos>", "<start>", "<end>")
LETTERS = "\n aeinrstu"
"""Enough for the names of roles, too."""

CHATML = """\
{%- for m in messages -%}{{ '<start>' + m.role + '\\n' + m.content + '<end>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start>assistant\\n' }}{%- endif -%}
"""

# Every word of the questions that judges and critics are asked, and some to answer with.
ASKED = """
A Assess Assistant Conversation End First Human Rate Reply Response Say Style The Then Two Write a
after alone and are as asked be because below best better between blame by compared complete
conversation critique does end from good how in is it length long matters means missing much needs
neither nothing number of or order padding praise question rating response responses right safe sea
sky stand step sun that the they think tie to true verdict vile was what where which whole with
without worst worth wrong
"""
MARKS = ("\n", " ", "!", ",", ".", ":", "?", "[", "]", "<", *"0123456789")
TAGS = ("<answer>", "</answer>", "<think>", "</think>")
PIECES = r"</?(?:answer|think)>| ?[A-Za-z]+|\d| ?[^\w\s<]|\s|<"

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, Any] = {
    "llama": lambda n: LlamaConfig(**SMALL, vocab_size=n, tie_word_embeddings=False),
    "mistral": lambda n: MistralConfig(
        **SMALL, vocab_size=n, sliding_window=5, tie_word_embeddings=False
    ),
    "qwen3": lambda n: Qwen3Config(**SMALL, vocab_size=n, tie_word_embeddings=True),
    "gemma3": lambda n: Gemma3TextConfig(
        **SMALL, **WINDOWED, vocab_size=n, query_pre_attn_scalar=8
    ),
    "gemma2": lambda n: Gemma2Config(
        **SMALL,
        **WINDOWED,
        vocab_size=n,
        query_pre_attn_scalar=8,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=4.0,
    ),
    "granite": lambda n: GraniteConfig(
        **SMALL,
        vocab_size=n,
        embedding_multiplier=2.0,
        logits_scaling=0.7,
        residual_multiplier=0.6,
        attention_multiplier=0.3,
        tie_word_embeddings=True,
    ),
    "cohere": lambda n: CohereConfig(**SMALL, vocab_size=n, logit_scale=0.6),
    "bert": lambda n: BertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        vocab_size=n,
    ),
}
"""A number of tokens -> configuration. All but BERT are causal language models."""


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, `<bos>` before every text."""
    tokenizer = _of_words([*SPECIALS, *LETTERS, "?"], ".|\n", special=SPECIALS[3:])
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of a judge's questions, so that they are short and a verdict is one."""
    words = ASKED.split()
    known = [*SPECIALS[:3], *TAGS, *MARKS, *words, *(f" {word}" for word in words)]
    return _of_words(known, PIECES)


def _of_words(
    known: list[str], pieces: str, *, special: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(special),
    )


def save_model(
    folder: Path, family: str, *, template: str | None = None, words: bool = False, seed: int = 0
) -> Path:
    """A causal language model and its tokenizer; made once.

    Args:
        words: of a judge's questions, and room for them; else of letters.
    """
    if not folder.exists():
        tokenizer, config = _prepared(family, template, words)
        model = AutoModelForCausalLM.from_config(config)
        _fill(model, seed)
        _save(folder, model, tokenizer)
    return folder


def save_judge(folder: Path) -> Path:
    """A model of judges' words that answers with a verdict, as a rule; made once."""
    if not folder.exists():
        tokenizer, config = _prepared("llama", None, words=True)
        model = AutoModelForCausalLM.from_config(config)
        _fill(model, 0)
        follows: dict[str, tuple[str, ...]] = {
            ":": (" ",),
            " ": ("<answer>",),
            "<answer>": ("1", "2"),
            "1": ("</answer>",),
            "2": ("</answer>",),
            "</answer>": ("<eos>",),
        }
        with torch.no_grad():
            states = model.get_input_embeddings().weight
            head = model.get_output_embeddings().weight
            # A direction of its own for each token that something follows.
            states[:, : len(follows)] = 0.0
            for k, (token, after) in enumerate(follows.items()):
                states[tokenizer.convert_tokens_to_ids(token)] = 0.0
                states[tokenizer.convert_tokens_to_ids(token), k] = 3.0
                for then in after:
                    head[tokenizer.convert_tokens_to_ids(then), k] += 5.0
        _save(folder, model, tokenizer)
    return folder


def save_classifier(
    folder: Path, family: str, *, labels: int, template: str | None = None, words: bool = False
) -> Path:
    """A sequence classifier: `bert`, an encoder, or a causal family with a score; made once."""
    if not folder.exists():
        tokenizer, config = _prepared(family, template, words)
        config.num_labels = labels
        model = AutoModelForSequenceClassification.from_config(config)
        _fill(model, 0)
        _save(folder, model, tokenizer)
    return folder


def _prepared(family: str, template: str | None, words: bool) -> tuple[Any, Any]:
    """Tokenizer and configuration."""
    tokenizer = word_tokenizer() if words else letter_tokenizer()
    tokenizer.chat_template = template
    config = FAMILIES[family](len(tokenizer))
    config.max_position_embeddings = 1024 if words else 128
    return tokenizer, config


def _fill(model: Any, seed: int) -> None:
    """Draws weights in the order of their names: states and logits are below 1, as rounding is
    then small, and the embeddings count for more than what layers add."""
    random = np.random.default_rng(seed)
    small: tuple[str, ...] = ("model.norm.weight",)
    if any("post_feedforward" in name for name, _ in model.named_parameters()):
        small += ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    with torch.no_grad():
        for name, weights in sorted(model.named_parameters()):
            drawn = torch.tensor(random.uniform(-1.0, 1.0, tuple(weights.shape))).float()
            if weights.dim() == 1:
                weights.add_(0.1 * drawn)
                # Norms at the end of a branch, and the last of all.
                if name.endswith(small):
                    weights.sub_(0.5)
            else:
                inputs = 12.0 if "embed" in name else weights.shape[-1]
                size = 0.4 if "o_proj" in name or "down_proj" in name else 1.0
                weights.copy_(size * drawn * (3.0 / inputs) ** 0.5)


def _save(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    model.float().eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Rows ---------------------------------------------------------------------------------------------

TEXTS = (
    ("it is sane", "as", "u"),
    ("ten", "i", "see"),
    ("rate us u", "an", "n"),
    ("sit", "tea", "at"),
    ("a nest in rain", "re", "si"),
    ("use it", "in", "unit"),
    ("is it", "e", "tin"),
    ("run at a train", "at", "r"),
)
"""Prompts with a better and a worse response, of uneven lengths."""


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pairs() -> list[dict[str, Any]]:
    return [{"prompt": p + " ", "chosen": c, "rejected": r} for p, c, r in TEXTS]


def chats() -> list[dict[str, Any]]:
    return [
        {
            "prompt": turns("user", p),
            "chosen": turns("assistant", c),
            "rejected": turns("assistant", r),
        }
        for p, c, r in TEXTS
    ]


def unpaired() -> list[dict[str, Any]]:
    """More desirable responses than others."""
    return [
        {"prompt": p + " ", "completion": r if i % 3 == 1 else c, "label": i % 3 != 1}
        for i, (p, c, r) in enumerate(TEXTS)
    ]


def labelled() -> list[dict[str, Any]]:
    """Pairs, some of them ties, with a margin or with votes."""
    more: list[dict[str, Any]] = [
        {"margin": 1.5, "tie": False},
        {"probability": 0.7},
        {"tie": True},
        {"margin": 0.25, "probability": 0.9},
        {},
        {"margin": 0.5},
        {"tie": True},
        {},
    ]
    return [row | own for row, own in zip(pairs(), more, strict=True)]


def decided() -> list[dict[str, Any]]:
    return [row for row in labelled() if not row.get("tie")]


def lists() -> list[dict[str, Any]]:
    """Ranked lists of two to four responses, with equal ranks."""
    ranks = ((1, 2), (2, 1, 3), (1, 1, 2), (3, 1, 2, 2), (2, 1), (1, 2, 3), (2, 2, 1), (1, 2))
    said = ("an", "see", "u", "it is")
    return [
        {"prompt": p + " ", "responses": [*said[: len(own)]], "rankings": list(own)}
        for (p, _, _), own in zip(TEXTS, ranks, strict=True)
    ]


WORDS = ("sun", "sea", "sky", "long", "sun sky", "sea sea sun")


def judged() -> list[dict[str, Any]]:
    """Pairs of a judge's words, with reasoning, critiques and ratings of both responses."""
    return [
        {
            "id": str(i),
            "prompt": turns("user", f"{i}?"),
            "chosen": turns("assistant", f"good {word}"),
            "rejected": turns("assistant", f"vile {WORDS[-i]}"),
            "why": "because right",
            "for": "right praise",
            "against": "wrong blame",
        }
        for i, word in enumerate(WORDS)
    ]


def rated() -> list[dict[str, Any]]:
    return [
        {
            "id": str(i),
            "prompt": f"{i}?",
            "completions": [
                {"text": f"good {word}", "rating": 5 - i % 2},
                {"text": f"vile {word}", "rating": 1 + i % 3},
            ],
        }
        for i, word in enumerate(WORDS)
    ]


ROWS: dict[str, Any] = {
    "pairs": pairs,
    "chats": chats,
    "unpaired": unpaired,
    "labelled": labelled,
    "decided": decided,
    "lists": lists,
    "judged": judged,
    "rated": rated,
}


def data(folder: Path, kind: str, *, train: int = 5) -> dict[str, Any]:
    """The first rows of a kind to train on, the rest held out: the `data` of a recipe."""
    rows = ROWS[kind]()
    parts = {"train": rows[:train], "eval": rows[train:]}
    for split, own in parts.items():
        path = folder / f"{kind}.{split}.{train}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(row) + "\n" for row in own))
    return {split: [{"path": str(folder / f"{kind}.{split}.{train}.jsonl")}] for split in parts}
