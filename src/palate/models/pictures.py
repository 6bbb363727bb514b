"""Images of data as a model that sees takes them: read and checked once, known by their content."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from palate.data.images import ImageInfo, ImageStore, check, find, load
from palate.data.items import PlacedImage, TokenIds, Tokens
from palate.data.layouts import ImageBatch
from palate.data.placing import ImageText
from palate.data.schema import ImageRef, VideoRef
from palate.data.videos import FRAMES
from palate.errors import DataError, ModelError
from palate.models.loading import load_config
from palate.models.model import Model
from palate.models.processor import ImageProcessor, load_processor
from palate.models.videos import VideoProcessor, open_videos
from palate.models.vision import vision_layout
from palate.recipes.images import ImagesRecipe, ModelImages
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
        videos: of a model that takes them.

    Attributes:
        mark: what chat templates write where an image stands.
        features: what the tower makes of images, where that is kept.
        videos_as_images: the model takes no videos: their frames are shown as images.
        video_frames: how many are taken of a video.
    """

    def __init__(
        self,
        processor: ImageProcessor,
        tokenizer: Any,
        placeholder: int,
        store: Path | None,
        *,
        limits: ImagesRecipe | None = None,
        videos: VideoProcessor | None = None,
        video_frames: int = FRAMES,
    ) -> None:
        self.processor = processor
        self.tokenizer = tokenizer
        self.placeholder = placeholder
        self.store = None if store is None else ImageStore(store)
        self.limits = limits or ImagesRecipe()
        self.mark = processor.mark
        self.features: KeptFeatures | None = None
        self.videos = videos
        self.videos_as_images = videos is None
        self.video_frames = video_frames
        self._infos: dict[str, ImageInfo] = {}
        self._several: dict[str, str] = {}
        self._clips: dict[str, tuple[str, ...]] = {}
        self._texts: dict[str, ImageText] = {}
        self._lengths: dict[str, int] = {}
        self._files: dict[str, Path | bytes] = {}
        self._pixels: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def of(self, image: ImageRef, root: Path, *, alone: bool = True) -> ImageText:
        """What stands for an image in a text.

        Args:
            alone: the text has no other image.

        Raises:
            ImageError: it cannot be read, or breaks a limit.
        """
        digest, data = self._stored(image, root)
        if not alone and self.processor.sees_number:
            file, digest = digest, hashlib.sha256(f"{digest}|among others".encode()).hexdigest()
            self._several[digest] = file
        if digest not in self._texts:
            made = self.processor.process(data, alone=digest not in self._several)
            self._keep(digest, made.pixels)
            core = self._core(made.text, self.placeholder)
            self._lengths[digest] = core.count(self.placeholder)
            self._texts[digest] = ImageText(digest, made.text, core, made.grid)
        return self._texts[digest]

    def _stored(self, image: ImageRef, root: Path) -> tuple[str, bytes]:
        """The digest of an image and its file, which is checked once."""
        data = load(image, root, self.limits)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._files:
            self._infos[digest] = info = check(data, self.limits)
            if image.data is None:
                self._files[digest] = find(str(image.path), image.root or root)
            else:
                self._files[digest] = data if self.store is None else self.store.put(data, info)
        return digest, data

    def of_video(self, video: VideoRef, root: Path) -> ImageText:
        """As `of`, of a video with its frames, for a model that takes videos."""
        assert self.videos is not None, "a model without videos"
        stored = [self._stored(frame, root) for frame in video.frames]
        names = tuple(digest for digest, _ in stored)
        key = _digest_of(names, video.rate)
        if key not in self._texts:
            clip = self.videos.clip([data for _, data in stored], video.rate)
            parts = []
            for numbers, text, grid in clip.groups:
                frames = tuple(names[number] for number in numbers)
                digest = _digest_of(frames, clip.interval)
                self._clips[digest] = frames
                core = self._core(text, self.videos.token_id)
                self._lengths[digest] = core.count(self.videos.token_id)
                parts.append(ImageText(digest, text, core, grid, clip.interval))
            self._texts[key] = replace(
                parts[0], text=clip.text, marks=self.videos.marks, parts=tuple(parts)
            )
        return self._texts[key]

    def infos(self, digest: str) -> list[ImageInfo]:
        """The files behind a digest: one, or a video's frames."""
        digest = self._several.get(digest, digest)
        return [self._infos[name] for name in self._clips.get(digest, (digest,))]

    def _core(self, text: str, placeholder: int) -> TokenIds:
        """From the first placeholder of what stands for an image to the last."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        places = [place for place, token in enumerate(ids) if token == placeholder]
        assert places, f"no placeholder in {text[:40]!r}"
        return ids[places[0] : places[-1] + 1]

    def pixels(self, digest: str) -> dict[str, Tensor]:
        """What the tower takes of an image or of frames that were read.

        Raises:
            DataError: its file is not what it was.
        """
        if digest in self._clips:
            # Not kept: a video is as large as all images that are.
            assert self.videos is not None
            return self.videos.pixels(list(map(self._read, self._clips[digest])))
        if digest not in self._pixels:
            file = self._several.get(digest, digest)
            made = self.processor.process(self._read(file), alone=file == digest)
            self._keep(digest, made.pixels)
        self._pixels.move_to_end(digest)
        return self._pixels[digest]

    def _read(self, digest: str) -> bytes:
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
        """Lets go of what was read: of a server no more is kept than of the request at work."""
        self._texts.clear()
        self._lengths.clear()
        self._files.clear()
        self._infos.clear()
        self._several.clear()
        self._clips.clear()
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
        ModelError: its processor cannot be loaded, or `model.images` does not fit the model.
    """
    model.pictures = pictures_of(recipe, tokenizer, store, limits, config=model.config)
    return model.pictures


def pictures_of(
    recipe: ModelRecipe,
    tokenizer: Any,
    store: Path | None = None,
    limits: ImagesRecipe | None = None,
    *,
    config: Any = None,
) -> Pictures | None:
    """As `open_pictures`, for models that are still to be loaded.

    Args:
        config: of the model; default: beside its files.
    """
    if config is None:
        config = load_config(recipe.path, recipe)
    vision = vision_layout(config)
    if vision is None:
        if recipe.images != ModelImages():
            raise ModelError(f"`model.images`: {recipe.path} sees no images")
        return None
    processor = load_processor(recipe, tokenizer, config=config)
    shown = recipe.images
    return Pictures(
        processor,
        tokenizer,
        vision.placeholder,
        store,
        limits=limits,
        videos=open_videos(processor, config, shown.frame_max_pixels or shown.max_pixels),
        video_frames=shown.video_frames,
    )


def _digest_of(frames: Sequence[str], time: float | None) -> str:
    """Of what a video shows: its frames, and how far they are apart."""
    return hashlib.sha256("|".join(["video", repr(time), *frames]).encode()).hexdigest()
