"""A model in the shape of Qwen2.5-VL 3B, its processor, and pairs about images of a known size.

Widths are a quarter of the released model's, depths a ninth (language model) and an eighth (tower):
7.6M and 19.5M weights. The vocabulary is such that the head has the same share in the language
model's products as there. Weights are random: of speed and memory they say what real ones say.
"""

from __future__ import annotations

import functools
import json
import math
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel as Tower,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from palate.models.processor import images_only

WORDS = 4096
PATCH, MERGE = 14, 2
SIDE = PATCH * MERGE
"""Pixels that a token of an image stands for, along each side."""
SPECIAL = ("<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|image_pad|>")
SPECIAL += ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 512,
    "intermediate_size": 2752,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8192,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [16, 24, 24],
        "rope_theta": 1e6,
    },
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Attention of weights as small as transformers draws them would be flat.
    "initializer_range": 0.05,
}
VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 320,
    "num_heads": 4,
    "intermediate_size": 856,
    "out_hidden_size": 512,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [3],
    "initializer_range": 0.05,
}
_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOWER = r".*\bvisual\b.*"
"""Names of the modules of the tower and of what projects its features."""


def save_model(folder: Path) -> None:
    """Model, tokenizer (a token a letter) and processor, as a published folder has them."""
    torch.manual_seed(0)
    ids = {"image_token_id": SPECIAL.index("<|image_pad|>")}
    ids |= {"video_token_id": SPECIAL.index("<|video_pad|>")}
    config = AutoConfig.for_model(
        "qwen2_5_vl", text_config=TEXT, vision_config=VISION, tie_word_embeddings=True, **ids
    )
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    # Images come in the size that the tower takes.
    size = {"shortest_edge": SIDE**2, "longest_edge": 16384 * SIDE**2}
    images = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=size)
    kind: Any = images_only(Qwen2_5_VLProcessor)
    processor = kind(
        image_processor=images, tokenizer=tokenizer, chat_template=tokenizer.chat_template
    )
    processor.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(SPECIAL[3:]),
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    made.chat_template = _TEMPLATE
    return made


def make_pairs(folder: Path, name: str, count: int, image: int, question: int, reply: int) -> Path:
    """Pairs of random letters, each about an image of coloured squares of its own.

    Args:
        image, question, reply: their tokens; an image is square.
    """
    across = math.isqrt(image)
    if across**2 != image:
        raise SystemExit(
            f"--image-tokens: {image} is no square: {across**2} and {(across + 1) ** 2}"
        )
    rng, colours = random.Random(0), np.random.default_rng(0)

    def text(n: int) -> list[dict[str, str]]:
        return [{"type": "text", "text": "".join(rng.choices(string.ascii_lowercase, k=n))}]

    rows = []
    for i in range(count):
        squares = colours.integers(0, 256, (across, across, 3), dtype=np.uint8)
        size = (across * SIDE, across * SIDE)
        file = folder / f"{name}-{i}.png"
        Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(file)
        rows.append(
            {
                "prompt": [{"role": "user", "content": [{"type": "image"}, *text(question)]}],
                # The end-of-text token counts in a response.
                "chosen": [{"role": "assistant", "content": text(reply - 1)}],
                "rejected": [{"role": "assistant", "content": text(reply - 1)}],
                "images": [file.name],
            }
        )
    pairs = folder / f"{name}.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pairs


def read_pairs(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def load_processor(folder: str) -> Any:
    kind: Any = images_only(Qwen2_5_VLProcessor)
    return kind.from_pretrained(folder, backend="pil")


def load_model(folder: str, dtype: str) -> PreTrainedModel:
    """The model with tower and projector frozen."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.base_model.visual.requires_grad_(False)
    return model


class TowerPasses:
    """Counts the images that go through the towers of this process.

    Attributes:
        images: so far; the same image twice counts twice.
    """

    def __init__(self) -> None:
        self.images = 0
        forward = Tower.forward

        @functools.wraps(forward)
        def counting(tower: Any, hidden: Any, grid_thw: Any, **options: Any) -> Any:
            self.images += len(grid_thw)
            return forward(tower, hidden, grid_thw, **options)

        Tower.forward = counting
