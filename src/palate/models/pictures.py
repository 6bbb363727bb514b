"""Images of data as a model that sees takes them: read and checked once, known by their content."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from palate.data.images import ImageStore, check, find, load
from palate.data.items import PlacedImage, TokenIds, Tokens
from palate.data.layouts import ImageBatch
from palate.data.placing import ImageText
from palate.data.schema import ImageRef
from palate.errors import DataError
from palate.models.model import Model
from palate.models.processor import ImageProcessor, load_processor
from palate.recipes.images import ImagesRecipe
from palate.recipes.schema import ModelRecipe

if TYPE_CHECKING:
    from palate.models.image_cache import KeptFeatures

IMAGES = "images"
"""Folder beside run folders in which images that data hold as bytes are kept under their digests.
"""
KEPT = 32
"""Images whose pixels are kept in memory, the latest used."""


class Pictures:
    """The images that a model is shown.

    Args:
        processor: the model's. placeholder: id of the tokens that features take the place of.
        store: folder in which what came as bytes is kept under its digest; None: in memory. What
            came as a path is read where it lies.

    Attributes:
        mark: what chat templates write where an image stands.
        features: what the tower makes of images, where that is kept.
    """

    def __init__(
        self,
        processor: ImageProcessor,
        tokenizer: Any,
        placeholder: int,
        store: Path | None,
        *,
        limits: ImagesRecipe | None = None,
    ) -> None:
        self.processor = processor
        self.tokenizer = tokenizer
        self.placeholder = placeholder
        self.store = None if store is None else ImageStore(store)
        self.limits = limits or ImagesRecipe()
        self.mark = processor.mark
        self.features: KeptFeatures | None = None
        self._texts: dict[str, ImageText] = {}
        self._lengths: dict[str, int] = {}
        self._files: dict[str, Path | bytes] = {}
        self._pixels: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def of(self, image: ImageRef, root: Path) -> ImageText:
        """What stands for an image in a text.

        Raises:
            ImageError: it cannot be read, or breaks a limit.
        """
        data = load(image, root, self.limits)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._texts:
            info = check(data, self.limits)
            if image.data is None:
                self._files[digest] = find(str(image.path), image.root or root)
            else:
                self._files[digest] = data if self.store is None else self.store.put(data, info)
            made = self.processor.process(data)
            self._keep(digest, made.pixels)
            core = self._core(made.text)
            self._lengths[digest] = core.count(self.placeholder)
            self._texts[digest] = ImageText(digest, made.text, core, made.grid)
        return self._texts[digest]

    def _core(self, text: str) -> TokenIds:
        """From the first placeholder of what stands for an image to the last."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        places = [place for place, token in enumerate(ids) if token == self.placeholder]
        assert places, f"no placeholder in {text[:40]!r}"
        return ids[places[0] : places[-1] + 1]

    def pixels(self, digest: str) -> dict[str, Tensor]:
        """What the tower takes of an image that was read.

        Raises:
            DataError: its file is not what it was.
        """
        if digest not in self._pixels:
            self._keep(digest, self.processor.process(self._data(digest)).pixels)
        self._pixels.move_to_end(digest)
        return self._pixels[digest]

    def _data(self, digest: str) -> bytes:
        file = self._files[digest]
        if isinstance(file, bytes):
            return file
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataError(f"{file}: is not the image that it was")
        return data

    def forget(self) -> None:
        """Lets go of what was read, but for the latest pixels: of a server no more is kept than of
        the request at work."""
        for known in (self._texts, self._lengths, self._files):
            known.clear()
        self._pixels.clear()

    def _keep(self, digest: str, pixels: dict[str, Tensor]) -> None:
        self._pixels[digest] = pixels
        while len(self._pixels) > KEPT:
            self._pixels.popitem(last=False)

    @property
    def lengths(self) -> Mapping[str, int]:
        """Placeholder tokens of each image that was read, by its digest."""
        return self._lengths

    @property
    def reserved(self) -> frozenset[int]:
        """Ids that stand for what is no text."""
        processor = self.processor.processor
        names = ("image_token_id", "video_token_id", "audio_token_id")
        known = (getattr(processor, name, None) for name in names)
        return frozenset({self.placeholder, *(token for token in known if token is not None)})

    def example(self, *texts: TokenIds) -> Tokens:
        """A prompt of texts with an image of coloured squares between each two, for checks."""
        ids: list[int] = list(texts[0])
        images = []
        for number, text in enumerate(texts[1:]):
            squares = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
            size = (96 - 24 * number, 48 + 32 * number)
            file = io.BytesIO()
            Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
            shown = self.of(ImageRef(data=file.getvalue()), Path())
            images.append(PlacedImage(len(ids), len(shown.core), shown.digest, shown.grid))
            ids += (*shown.core, *text)
        return Tokens(tuple(ids), images=tuple(images))

    def filled(self, images: ImageBatch) -> ImageBatch:
        """The images of a batch with their features where all are kept, else with their pixels."""
        kept = self.features
        if kept is not None and all(digest in kept for digest in images.digests):
            return replace(images, features=tuple(map(kept.read, images.digests)))
        return replace(images, pixels=tuple(map(self.pixels, images.digests)))


def open_pictures(
    model: Model,
    recipe: ModelRecipe,
    tokenizer: Any,
    store: Path | None = None,
    limits: ImagesRecipe | None = None,
) -> Pictures | None:
    """The images that a model which sees is shown; None of one of text alone.

    From then on the model's batches have their images' pixels (`Model.collator`).

    Args:
        recipe: says where its processor is.

    Raises:
        ModelError: its processor cannot be loaded.
    """
    vision = model.backbone.vision
    if vision is None:
        return None
    processor = load_processor(recipe, tokenizer, config=model.config)
    model.pictures = Pictures(processor, tokenizer, vision.placeholder, store, limits=limits)
    return model.pictures
