"""A model's image processor: pixels for its tower, and the tokens that stand for an image.

transformers' processors are asked for what they know of their family: what is written where an
image stands, and what the tower is given. Texts are tokenised elsewhere, as they are without
images. Video processors, which want torchvision, are left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.processing_auto import (
    PROCESSOR_MAPPING,
    processor_class_from_name,
)

from palate.errors import ModelError
from palate.models.loading import NO_HUB, hub_is_needed_and_absent, load_config, readable
from palate.recipes.schema import ModelRecipe

_NO_PIXELS = frozenset({"num_crops", "num_patches", "rows", "cols", "batch_num_images"})
"""What image processors tell their processor, and towers do not take."""


@dataclass(frozen=True)
class ProcessedImage:
    """An image as a model is given it.

    Attributes:
        pixels: what `get_image_features` takes, of this image alone.
        text: what is written in a prompt in the place of its mark.
        grid: (frames, rows, columns) of its tokens, where positions go by them.
    """

    pixels: dict[str, Tensor]
    text: str
    grid: tuple[int, int, int] | None


class ImageProcessor:
    """The processor of a model that sees, for images alone.

    Args:
        processor: transformers'. options: of its image processor, as `min_pixels`.

    Attributes:
        mark: what chat templates write where an image stands.
    """

    def __init__(self, processor: Any, options: dict[str, Any] | None = None) -> None:
        self.processor = processor
        self.options = dict(options or {})
        self.mark: str = processor.image_token

    def process(self, data: bytes) -> ProcessedImage:
        """An image from its encoded file, which was checked before.

        It is turned as its EXIF says; of several frames the first is taken; what is transparent is
        laid on white.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = upright(Image.open(io.BytesIO(data)))
        # What the processor itself would ask its image processor for.
        options = self.processor._merge_kwargs(return_tensors="pt", images_kwargs=self.options)
        processed, (text,) = self.processor._process_images([[image]], **options["images_kwargs"])
        pixels = {
            name: value
            for name, value in processed.items()
            if isinstance(value, Tensor) and name not in _NO_PIXELS
        }
        return ProcessedImage(pixels, text, self._grid(pixels))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes it beside a model, with the tokenizer that was trained with and its template."""
        self.processor.tokenizer = tokenizer
        self.processor.chat_template = tokenizer.chat_template
        self.processor.save_pretrained(folder)

    def _grid(self, pixels: dict[str, Tensor]) -> tuple[int, int, int] | None:
        if "image_grid_thw" not in pixels:
            return None
        merge = int(self.processor.image_processor.merge_size)
        frames, rows, columns = pixels["image_grid_thw"][0].tolist()
        return frames, rows // merge, columns // merge

    @cached_property
    def digest(self) -> str:
        """Changes with anything that the pixels of an image depend on."""
        settings = self.processor.image_processor.to_dict()
        told = {key: repr(value) for key, value in settings.items() if key != "_name_or_path"}
        parts = [type(self.processor).__name__, told, sorted(self.options.items())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def upright(image: Image.Image) -> Image.Image:
    """The first frame as 8-bit RGB, turned as its EXIF says, on white where it is transparent."""
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # 16 bits a channel: Pillow's own conversion would cut the upper half off.
        high = np.asarray(image).max()
        top = 65535.0 if image.mode.startswith("I") and high > 255 else 255.0
        image = image.point(lambda value: value * (255.0 / top)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        shown = image.convert("RGBA")
        white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        white.alpha_composite(shown)
        image = white
    return image.convert("RGB")


def load_processor(
    recipe: ModelRecipe,
    tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any] | None = None,
    *,
    config: Any = None,
) -> ImageProcessor:
    """The processor of a model that sees.

    Args:
        recipe: says where its files are. config: of the model; default: beside them.

    Raises:
        ModelError: it has none, or one that cannot be loaded here.
    """
    if config is None:
        config = load_config(recipe.path, recipe)
    offline = hub_is_needed_and_absent(recipe.path)
    where: dict[str, Any] = {"revision": recipe.revision or "main", "local_files_only": offline}
    with readable(recipe.path, NO_HUB if offline else None, what="processor"):
        kind = _kind(config, recipe.path, where)
        loaded: Any = images_only(kind).from_pretrained(
            recipe.path, trust_remote_code=recipe.trust_remote_code, backend="pil", **where
        )
    loaded.tokenizer = tokenizer
    return ImageProcessor(loaded, options)


def _kind(config: Any, path: str, where: dict[str, Any]) -> type[ProcessorMixin]:
    """The processor class of a model: its family's, or the one that the folder was saved with."""
    mapping: Any = PROCESSOR_MAPPING
    kind: type[ProcessorMixin] | None
    try:
        kind = mapping[type(config)]
    except KeyError:
        # FastVLM: transformers has no class of its own for it.
        saved, _ = ProcessorMixin.get_processor_dict(path, **where)
        kind = processor_class_from_name(saved.get("processor_class") or "")
    if kind is None:
        raise ModelError(f"{path}: {config.model_type} has no processor")
    return kind


def images_only(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without the parts that do not read images."""
    parts = ["image_processor", "tokenizer"]
    if kind.get_attributes() == parts:
        return kind
    made: type[ProcessorMixin] = type(
        kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: parts)}
    )
    return made
