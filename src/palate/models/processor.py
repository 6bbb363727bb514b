"""A model's image processor: pixels for its tower, and the tokens that stand for an image.

transformers' processors are asked for what they know of their family: what is written where an
image stands, and what the tower is given. Texts are tokenised elsewhere, as they are without
images. Video processors, which want torchvision, are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from palate.data.images import LONGEST, TOO_LONG, UNFIT, ImageError
from palate.data.pixels import PixelLimits, decoded
from palate.errors import ModelError
from palate.models.loading import NO_HUB, hub_is_needed_and_absent, load_config, readable
from palate.recipes.schema import ModelRecipe

_PROBED = (16, 64, 320, 1280)
"""Sides of the squares that show whether a processor goes by the size of an image."""
_NUMBER = "batch_num_images"
_NO_PIXELS = frozenset({"num_crops", "num_patches", "rows", "cols", _NUMBER})
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
        processor: transformers'. options: of its image processor, as `do_pan_and_scan`.
        resize: what is done to images before the processor sees them.

    Attributes:
        mark: what chat templates write where an image stands.
        sees_number: it shows an image otherwise where there are others: without tiles
            (LLaVA-OneVision).
    """

    def __init__(
        self,
        processor: Any,
        options: dict[str, Any] | None = None,
        resize: PixelLimits | None = None,
    ) -> None:
        self.processor = processor
        self.options = dict(options or {})
        self.resize = resize
        self.mark: str = processor.image_token
        self.sees_number = _NUMBER in processor.image_processor.model_input_names

    def process(self, data: bytes, *, alone: bool = True) -> ProcessedImage:
        """An image from its encoded file, which was checked before.

        It is turned as its EXIF says; of several frames the first is taken; what is transparent is
        laid on white.

        Args:
            alone: the text has no other image; see `sees_number`.

        Raises:
            ImageError: the processor cannot take it.
        """
        image = decoded(data)
        if self.resize is not None:
            image = self.resize.applied(image)
        return self.processed(image, alone=alone)

    def processed(
        self, image: Image.Image, *, alone: bool = True, **options: Any
    ) -> ProcessedImage:
        """As `process`, of an image in upright RGB, with further options of the processor."""
        if max(image.size) > LONGEST * min(image.size):
            raise ImageError(TOO_LONG)
        # What the processor itself would ask its image processor for.
        asked = self.options | options
        merged = self.processor._merge_kwargs(return_tensors="pt", images_kwargs=asked)
        together = [image] if alone or not self.sees_number else [image, image]
        try:
            made = self.processor._process_images([together], **merged["images_kwargs"])
        except (ValueError, ArithmeticError):
            raise ImageError(UNFIT) from None
        processed, (text, *_) = made
        pixels = {
            name: value
            for name, value in processed.items()
            if isinstance(value, Tensor) and name not in _NO_PIXELS
        }
        if len(together) > 1:
            # The tower is told how many there are, and shown one of them.
            told = torch.as_tensor(processed[_NUMBER])
            pixels = {name: value[:1] for name, value in pixels.items()} | {_NUMBER: told}
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
        parts: list[Any] = [type(self.processor).__name__, told, sorted(self.options.items())]
        if self.resize is not None:
            parts.append(dataclasses.asdict(self.resize))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
        ModelError: it has none, one that cannot be loaded here, or one without the options that
            `model.images` gives.
    """
    if config is None:
        config = load_config(recipe.path, recipe)
    offline = hub_is_needed_and_absent(recipe.path)
    kind = _kind(config, recipe, offline)
    with readable(recipe.path, NO_HUB if offline else None, what="processor"):
        loaded: Any = images_only(kind).from_pretrained(
            recipe.path,
            revision=recipe.revision or "main",
            trust_remote_code=recipe.trust_remote_code,
            local_files_only=offline,
            backend="pil",
        )
    loaded.tokenizer = tokenizer
    made = ImageProcessor(loaded, options)
    images = recipe.images
    if images.min_pixels is not None or images.max_pixels is not None:
        limit_pixels(made, PixelLimits(images.min_pixels, images.max_pixels))
    return made


def _kind(config: Any, recipe: ModelRecipe, offline: bool) -> Any:
    """The class of a model's processor: its family's, or the one that its files name."""
    try:
        return PROCESSOR_MAPPING[type(config)]
    except KeyError:
        pass
    with readable(recipe.path, NO_HUB if offline else None, what="processor"):
        told, _ = ProcessorMixin.get_processor_dict(
            recipe.path, revision=recipe.revision or "main", local_files_only=offline
        )
    kind = getattr(transformers, str(told.get("processor_class")), None)
    if not isinstance(kind, type) or not issubclass(kind, ProcessorMixin):
        raise ModelError(f"{recipe.path}: {config.model_type} has no processor")
    return kind


def limit_pixels(processor: ImageProcessor, limits: PixelLimits) -> None:
    """Has a processor show images within limits: by its own options, or resized before.

    Raises:
        ModelError: every image is given as many tokens, whatever its size.
    """
    images = processor.processor.image_processor
    if has_pixel_options(images):
        size = dict(images.size)
        if limits.min_pixels is not None:
            size["shortest_edge"] = limits.min_pixels
        if limits.max_pixels is not None:
            size["longest_edge"] = limits.max_pixels
        if size["shortest_edge"] > size["longest_edge"]:
            raise ModelError(
                f"`model.images`: min_pixels ({size['shortest_edge']}) is above max_pixels "
                f"({size['longest_edge']}); of what is not given the processor's own is taken"
            )
        # Not an option of calls: so it is saved with the model.
        images.size = type(images.size)(**size)
        return
    texts = {processor.processed(Image.new("RGB", (n, n))).text for n in _PROBED}
    if len(texts) == 1:
        raise ModelError(
            f"`model.images`: {type(processor.processor).__name__} gives every image as many "
            "tokens, and has no option for pixels"
        )
    processor.resize = limits


def has_pixel_options(images: Any) -> bool:
    """Whether an image processor has limits of pixels of its own, as Qwen's and their kin."""
    return "min_pixels" in getattr(images.valid_kwargs, "__annotations__", {})


def images_only(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without the parts that do not read images."""
    parts = ["image_processor", "tokenizer"]
    if kind.get_attributes() == parts:
        return kind
    body: dict[str, Any] = {"get_attributes": classmethod(lambda cls: parts)}
    init: Any = kind.__init__
    n_optional = len(init.__defaults__ or ())
    if init.__code__.co_argcount - 1 > n_optional:
        # SmolVLM's must be given a video processor. transformers looks into the code of `__init__`
        # for the settings that it takes, so that it can only be the same code.
        missing = (None,) * (init.__code__.co_argcount - 1 - n_optional)
        defaults = (*missing, *(init.__defaults__ or ()))
        code = init.__code__, init.__globals__, init.__name__, defaults, init.__closure__
        body["__init__"] = types.FunctionType(*code)
    made: type[ProcessorMixin] = type(kind.__name__, (kind,), body)
    return made
