"""Tiny random models of every family that sees, and what their processors would give them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WIDTH, WORDS, IMAGE, VIDEO, START, END = 64, 300, 5, 6, 7, 8
"""Hidden size, vocabulary, and the ids of placeholders and of what stands around an image."""
SIDE, PATCH = 56, 14

_TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_SIGLIP = _TOWER | {"model_type": "siglip_vision_model"}
_CLIP = _TOWER | {"model_type": "clip_vision_model"}
_QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO} | {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def _mrope(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    return {"rope_parameters": rope | more}


def _qwen2_vl() -> dict[str, Any]:
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}
    tower |= {"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {"text_config": _TEXT | _mrope(), "vision_config": tower} | _QWEN_IDS


def _qwen2_5_vl() -> dict[str, Any]:
    tower = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    tower |= {"out_hidden_size": WIDTH, "window_size": 56, "fullatt_block_indexes": [1]}
    tower |= {"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {"text_config": _TEXT | _mrope(), "vision_config": tower} | _QWEN_IDS


def _qwen3(deepstack: bool) -> dict[str, Any]:
    tower = {"depth": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    tower |= {"out_hidden_size": WIDTH, "patch_size": 16, "spatial_merge_size": 2}
    tower |= {"temporal_patch_size": 2, "num_position_embeddings": 64}
    if deepstack:
        tower["deepstack_visual_indexes"] = [0, 1, 2]
    return {"vision_config": tower} | _QWEN_IDS


def _qwen3_vl() -> dict[str, Any]:
    return _qwen3(True) | {"text_config": _TEXT | {"head_dim": 16} | _mrope(mrope_interleaved=True)}


def _qwen3_5() -> dict[str, Any]:
    """As released: three layers of linear attention for one of full attention."""
    text = _TEXT | {"head_dim": 16, "num_hidden_layers": 4}
    text |= {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    text |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    text |= _mrope(mrope_interleaved=True, partial_rotary_factor=1.0)
    return _qwen3(False) | {"text_config": text}


def _gemma3() -> dict[str, Any]:
    text = _TEXT | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 16}
    text |= {"query_pre_attn_scalar": 1}
    text |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    ids = {"image_token_id": IMAGE, "boi_token_id": START, "eoi_token_id": END}
    return {"text_config": text, "vision_config": _SIGLIP, "mm_tokens_per_image": 4} | ids


def _paligemma() -> dict[str, Any]:
    text = _TEXT | {"model_type": "gemma", "head_dim": 16}
    return {"text_config": text, "vision_config": _SIGLIP, "image_token_id": IMAGE} | {
        "projection_dim": WIDTH
    }


def _llava(text: str, tower: dict[str, Any], **more: Any) -> dict[str, Any]:
    ids = {"image_token_id": IMAGE, "image_token_index": IMAGE, "vision_feature_layer": -1}
    return {"text_config": _TEXT | {"model_type": text}, "vision_config": tower} | ids | more


_GRIDS = [[56, 56], [56, 112], [112, 56], [112, 112]]


def _smolvlm(tower: str) -> dict[str, Any]:
    return {
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_config": _TOWER | {"model_type": tower},
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "pad_token_id": 0,
    }


def _internvl() -> dict[str, Any]:
    tower = _TOWER | {"model_type": "internvl_vision"}
    tower |= {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    text = _TEXT | {"model_type": "qwen2"}
    return {"text_config": text, "vision_config": tower, "image_token_id": IMAGE} | {
        "downsample_ratio": 0.5
    }


def _mistral3() -> dict[str, Any]:
    tower = _TOWER | {"model_type": "pixtral", "head_dim": 16}
    text = _TEXT | {"model_type": "mistral", "sliding_window": None, "head_dim": 16}
    ids = {"image_token_index": IMAGE, "image_token_id": IMAGE}
    return (
        {"text_config": text, "vision_config": tower, "spatial_merge_size": 2}
        | ids
        | {"vision_feature_layer": -1}
    )


def _lfm2_vl() -> dict[str, Any]:
    """As released: short convolutions between layers of attention."""
    tower = _TOWER | {"model_type": "siglip2_vision_model", "num_patches": 64}
    del tower["image_size"]
    text = _TEXT | {"model_type": "lfm2", "block_dim": WIDTH, "block_ff_dim": 128}
    text |= {"layer_types": ["conv", "full_attention", "conv"]}
    return {"text_config": text, "vision_config": tower, "image_token_id": IMAGE} | {
        "downsample_factor": 2,
        "projector_hidden_size": WIDTH,
    }


def _fast_vlm() -> dict[str, Any]:
    """A tower of convolutions, as FastVLM has it."""
    tower = {"model_type": "efficientnet", "width_coefficient": 0.1, "depth_coefficient": 0.1}
    tower |= {"image_size": SIDE, "hidden_dim": 128, "hidden_size": 128}
    tower |= {"dropout_rate": 0.0, "drop_connect_rate": 0.0, "batch_norm_eps": 1e-12}
    text = _TEXT | {"model_type": "llama"}
    return {"text_config": text, "vision_config": tower, "image_token_index": IMAGE} | {
        "image_token_id": IMAGE,
        "image_seq_length": 4,
    }


Pixels = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A family of models that see.

    Attributes:
        config: of a tiny model. pixels: of an image, by its number: two images may have two sizes.
        shares: whether nothing but attention moves information between tokens.
        close: how far states may be apart: convolutions round otherwise in a batch of images.
    """

    config: Callable[[], dict[str, Any]]
    pixels: Callable[[int], Pixels]
    shares: bool = True
    close: float = 1e-5


def _drawn(number: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + number))


def _patches(channels: int) -> Callable[[int], Pixels]:
    def pixels(number: int) -> Pixels:
        grid = torch.tensor([[1, 4 + 2 * (number % 2), 6]])
        values = _drawn(number, int(grid.prod()), channels)
        return {"pixel_values": values, "image_grid_thw": grid}

    return pixels


def _square(number: int) -> Pixels:
    return {"pixel_values": _drawn(number, 1, 3, SIDE, SIDE)}


def _tiles(number: int) -> Pixels:
    """An image in tiles beside the whole of it."""
    return {
        "pixel_values": _drawn(number, 1, 3, 3, SIDE, SIDE),
        "image_sizes": torch.tensor([[56, 100]]),
    }


def _split(number: int) -> Pixels:
    return {"pixel_values": _drawn(number, 1, 2, 3, SIDE, SIDE)}


def _sized(number: int) -> Pixels:
    return _square(number) | {"image_sizes": torch.tensor([[SIDE, SIDE]])}


def _packed(number: int) -> Pixels:
    return {
        "pixel_values": _drawn(number, 1, 64, 3 * PATCH * PATCH),
        "spatial_shapes": torch.tensor([[8, 8]]),
        "pixel_attention_mask": torch.ones(1, 64, dtype=torch.long),
    }


FAMILIES = {
    "qwen2_vl": Family(_qwen2_vl, _patches(3 * 2 * PATCH**2)),
    "qwen2_5_vl": Family(_qwen2_5_vl, _patches(3 * 2 * PATCH**2)),
    "qwen3_vl": Family(_qwen3_vl, _patches(3 * 2 * 16**2)),
    "qwen3_5": Family(_qwen3_5, _patches(3 * 2 * 16**2), shares=False),
    "gemma3": Family(_gemma3, _square),
    "paligemma": Family(_paligemma, _square),
    "llava": Family(lambda: _llava("llama", _CLIP), _square),
    "llava_next": Family(lambda: _llava("llama", _CLIP, image_grid_pinpoints=_GRIDS[1:]), _tiles),
    "llava_onevision": Family(
        lambda: _llava(
            "qwen2",
            _SIGLIP,
            video_token_id=VIDEO,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=_GRIDS,
        ),
        _tiles,
    ),
    "smolvlm": Family(lambda: _smolvlm("smolvlm_vision"), _split),
    "idefics3": Family(lambda: _smolvlm("idefics3_vision"), _split),
    "internvl": Family(_internvl, _square),
    "mistral3": Family(_mistral3, _sized),
    "lfm2_vl": Family(_lfm2_vl, _packed, shares=False),
    "fast_vlm": Family(_fast_vlm, _square, close=1e-4),
}


def tiny_vision_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A random model whose attention is not flat, and whose words are not all as likely."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **FAMILIES[family].config())
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and not parameter.any():
                parameter.normal_(std=0.2)  # a projector that begins at zero
            elif parameter.dim() >= 2 and parameter.std() < 0.05:
                parameter.mul_(4.0)
            if "language_model" in name and ("q_proj" in name or "k_proj" in name):
                parameter.mul_(3.0)
            if "embed_tokens" in name or "lm_head" in name:
                parameter.mul_(3.0)
    _calibrate(model, FAMILIES[family])
    return model.eval()


@torch.no_grad()
def _calibrate(model: PreTrainedModel, family: Family) -> None:
    """Gives batch norms the statistics of some images: drawn at random, a tower of convolutions
    would see nothing at all."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        pixels = torch.cat([family.pixels(i)["pixel_values"] for i in range(8)])
        model.train()
        model.base_model.get_image_features(pixel_values=pixels.to(model.dtype))


# Processors ---------------------------------------------------------------------------------------

_QWEN = {"image": "<|image_pad|>", "start": "<|vision_start|>", "end": "<|vision_end|>"}
_LLAVA = {"image": "<image>", "start": "<im_start>", "end": "<im_end>"}
_IDEFICS = {"image": "<image>", "start": "<fake_token_around_image>", "end": "<global-img>"}
_NAMES: dict[str, dict[str, str]] = {
    "qwen2_5_vl": _QWEN,
    "gemma3": {"image": "<image_soft_token>", "start": "<start_of_image>", "end": "<end_of_image>"},
    "llava": _LLAVA,
    "idefics3": _IDEFICS,
    "qwen2_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_5": _QWEN,
    "paligemma": _LLAVA,
    "llava_next": _LLAVA,
    "llava_onevision": _LLAVA,
    "smolvlm": _IDEFICS,
    "internvl": {"image": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>"},
    "fast_vlm": _LLAVA,
}
_MARKS = {name: names["image"] for name, names in _NAMES.items()} | {"gemma3": "<start_of_image>"}
_MARKS |= {
    name: "<|vision_start|><|image_pad|><|vision_end|>"
    for name, names in _NAMES.items()
    if names is _QWEN
}
_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}MARK"
    "{% elif part.type == 'video' %}VIDEO{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% if m.role == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


_PALIGEMMA = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}"
    "{% if m.role == 'user' %}<bos>{% endif %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}<eos>{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""Images first, BOS behind them, and a line break before the answer: as its processor writes."""


def tiny_vision_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A token a byte; the family's special tokens under the ids of the tiny models."""
    names = _NAMES[family]
    specials = ["<pad>", "<bos>", "<eos>", "<unused 3>", "<unused 4>", names["image"]]
    is_qwen = names is _QWEN
    film = "<|video_pad|>" if is_qwen else "<video>"
    specials += [film, names["start"], names["end"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rows = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    vocabulary = {token: i for i, token in enumerate([*specials, *letters, *rows])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    extra = {"image_token": names["image"]}
    if family == "gemma3":
        extra |= {"boi_token": names["start"], "eoi_token": names["end"]}
    if is_qwen:
        extra |= {"video_token": film}
        extra |= {"vision_start_token": names["start"], "vision_end_token": names["end"]}
    if family == "internvl":
        extra = {"start_image_token": names["start"], "end_image_token": names["end"]}
        extra |= {"context_image_token": names["image"], "video_token": film}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=[*specials[3:], *rows],
        extra_special_tokens=extra,
    )
    shown = f"<|vision_start|>{film}<|vision_end|>" if is_qwen else film
    made.chat_template = _TEMPLATE.replace("MARK", _MARKS[family]).replace("VIDEO", shown)
    if family == "paligemma":
        made.chat_template = _PALIGEMMA
    return made


def save_tiny_vision(folder: Path, family: str) -> Path:
    """Model, tokenizer and processor of a family, as a published folder has them."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from palate.models.processor import images_only

    model = tiny_vision_model(family)
    model.save_pretrained(folder)
    tokenizer = tiny_vision_tokenizer(family)
    tokenizer.save_pretrained(folder)
    if family == "fast_vlm":
        # Its released folders name a processor; transformers has none for the family.
        kind: Any = LlavaProcessor
    else:
        kind = images_only(PROCESSOR_MAPPING[type(model.config)])
    _processor(family, kind, tokenizer).save_pretrained(folder)
    return folder


def _pil(module: str, name: str) -> Any:
    """An image processor without torchvision."""
    path = f"transformers.models.{module}.image_processing_pil_{module}"
    return getattr(importlib.import_module(path), f"{name}ImageProcessorPil")


def _processor(family: str, kind: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    side = {"height": SIDE, "width": SIDE}
    clip = {"size": {"shortest_edge": SIDE}, "crop_size": side}
    more: dict[str, Any] = {}
    if _NAMES[family] is _QWEN:
        patch = PATCH if family in ("qwen2_vl", "qwen2_5_vl") else 16
        size = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2}
        images = _pil("qwen2_vl", "Qwen2VL")(patch_size=patch, merge_size=2, size=size)
    elif family == "gemma3":
        images, more = _pil("gemma3", "Gemma3")(size=side), {"image_seq_length": 4}
    elif family in ("idefics3", "smolvlm"):
        size = {"longest_edge": 2 * SIDE}
        made = _pil(family, "Idefics3" if family == "idefics3" else "SmolVLM")
        images = made(size=size, max_image_size={"longest_edge": SIDE})
        more = {"image_seq_len": 4}
    elif family == "paligemma":
        images = _pil("siglip", "Siglip")(size=side)
        images.image_seq_length = (SIDE // PATCH) ** 2
    elif family == "llava_onevision":
        images = _pil("llava_onevision", "LlavaOnevision")(size=side, image_grid_pinpoints=_GRIDS)
        more = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    elif family == "internvl":
        images = _pil("got_ocr2", "GotOcr2")(size=side, max_patches=4)
        more = {"image_seq_length": 4}
    elif family == "fast_vlm":
        # Its tower gives a token for 32 by 32 pixels.
        clip = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
        images = _pil("clip", "CLIP")(**clip)
        more = {"patch_size": 32, "vision_feature_select_strategy": "full"}
    else:
        images = _pil("clip", "CLIP")(**clip)
        if family == "llava_next":
            images = _pil("llava_next", "LlavaNext")(**clip, image_grid_pinpoints=_GRIDS[1:])
        more = {"patch_size": PATCH, "vision_feature_select_strategy": "default"}
        more |= {"num_additional_image_tokens": 1}
    return kind(image_processor=images, tokenizer=tokenizer, **more)


PROCESSED = ["qwen2_5_vl", "gemma3", "llava", "idefics3"]
"""Families whose processor is tried in every way, one of a kind."""
COMPARED = [name for name in _NAMES if name not in PROCESSED and name != "paligemma"]
"""Families whose processor is compared with what is made here."""
