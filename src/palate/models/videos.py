"""Videos as Qwen's models take them: patches over pairs of frames, made by their image processor.

transformers' video processors want torchvision. What they do beyond an image processor is to put
each `temporal_patch_size` frames that follow each other into one patch, where an image is put in
again and again. The tower attends within such a group of frames alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from palate.data.images import ImageError
from palate.data.pixels import decoded
from palate.models.processor import ImageProcessor, ProcessedImage, has_pixel_options

RATE = 2.0
"""Frames a second where nobody says: what Qwen's own loader takes for lists of frames."""
SIZES = "frames of several sizes"
_NATIVE = frozenset({"Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"})
_APART = frozenset({"Qwen3VLProcessor"})
"""Processors that write a time before each group of frames."""


@dataclass(frozen=True)
class Clip:
    """A video as a prompt holds it.

    Attributes:
        text: what is written in the place of its mark.
        groups: frames that are placed together, by their numbers, with the text of their tokens and
            their grid (groups of frames, rows, columns).
        interval: between the positions of two groups.
    """

    text: str
    groups: tuple[tuple[tuple[int, ...], str, tuple[int, int, int]], ...]
    interval: float


class VideoProcessor:
    """Videos by the image processor of a model of Qwen's.

    Args:
        images: the model's. config: of the model. max_pixels: of a frame.

    Attributes:
        marks: what chat templates write where a video stands.
    """

    def __init__(self, images: ImageProcessor, config: Any, max_pixels: int | None = None) -> None:
        self.images = images
        self.processor = copy.copy(images.processor)
        settings = self.processor.image_processor
        self.span = int(settings.temporal_patch_size)
        self.merge = int(settings.merge_size)
        # Its text for a video asks the video processor for no more.
        self.processor.video_processor = SimpleNamespace(
            merge_size=self.merge, temporal_patch_size=self.span
        )
        self.tokens_per_second = getattr(config.vision_config, "tokens_per_second", None)
        self.apart = type(images.processor).__name__ in _APART
        mark = self.processor.video_token
        self.marks: tuple[str, ...] = (mark,)
        if self.apart:
            # The borders that templates write around a video are those of its first frames.
            around = self.processor.vision_start_token, self.processor.vision_end_token
            self.marks += (mark.join(around),)
        self.options: dict[str, Any] = {}
        if max_pixels is not None and has_pixel_options(settings):
            size = dict(settings.size)
            size["longest_edge"] = max_pixels
            size["shortest_edge"] = min(size["shortest_edge"], max_pixels)
            self.options = {"size": size}

    @property
    def token_id(self) -> int:
        """The id of the tokens that stand for a video."""
        return int(self.processor.video_token_id)

    def clip(self, frames: Sequence[bytes], rate: float | None) -> Clip:
        """What stands for a video.

        Args:
            frames: encoded files, checked before. rate: frames a second; default: `RATE`.

        Raises:
            ImageError: frames of several sizes, or such as the processor cannot take.
        """
        rate = rate or RATE
        images = [decoded(data).size for data in frames]
        if len(set(images)) > 1:
            raise ImageError(SIZES)
        grid = self._frame(frames[0]).pixels["image_grid_thw"]
        _, rows, columns = (int(n) for n in grid[0].tolist())
        numbers = [min(i, len(frames) - 1) for i in range(-(-len(frames) // self.span) * self.span)]
        groups = len(numbers) // self.span
        told = {
            "video_grid_thw": torch.tensor([[groups, rows, columns]]),
            "video_metadata": [SimpleNamespace(fps=rate, frames_indices=list(range(len(frames))))],
        }
        text = self.processor.replace_video_token(told, video_idx=0)
        shown = rows // self.merge, columns // self.merge
        token, n = self.processor.video_token, shown[0] * shown[1]
        if not self.apart:
            interval = 1.0
            if self.tokens_per_second is not None:
                interval = float(self.tokens_per_second) * self.span / rate
            whole = (tuple(numbers), token * (groups * n), (groups, *shown))
            return Clip(text, (whole,), interval)
        parts = [
            (tuple(numbers[k * self.span : (k + 1) * self.span]), token * n, (1, *shown))
            for k in range(groups)
        ]
        return Clip(text, tuple(parts), 1.0)

    def pixels(self, frames: Sequence[bytes]) -> dict[str, Tensor]:
        """What the tower takes of frames that are placed together, as of an image.

        Args:
            frames: a multiple of `temporal_patch_size` encoded files.
        """
        made = [self._frame(data).pixels for data in frames]
        grid = made[0]["image_grid_thw"].clone()
        grid[0, 0] = len(frames) // self.span
        patches = [
            self._group([each["pixel_values"] for each in made[start : start + self.span]])
            for start in range(0, len(made), self.span)
        ]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grid}

    def _group(self, frames: Sequence[Tensor]) -> Tensor:
        """[n, channels * span * side * side] patches over frames that follow each other.

        Args:
            frames: patches of each as of an image, in which the span shows it again and again.
        """
        side = int(self.processor.image_processor.patch_size) ** 2
        shaped = [patches.view(len(patches), -1, self.span, side) for patches in frames]
        mixed = torch.stack([patches[:, :, 0] for patches in shaped], dim=2)
        return mixed.reshape(frames[0].shape)

    def _frame(self, data: bytes) -> ProcessedImage:
        return self.images.processed(decoded(data), **self.options)


def open_videos(
    images: ImageProcessor, config: Any, max_pixels: int | None = None
) -> VideoProcessor | None:
    """What makes videos of frames, for a model that takes them; None for others."""
    takes = type(images.processor).__name__ in _NATIVE and config.video_token_id is not None
    return VideoProcessor(images, config, max_pixels) if takes else None
