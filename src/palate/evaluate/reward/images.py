"""Images of evaluation data: found, checked and told by their content before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palate.data.containers import Record
from palate.data.images import ImageError, ImageStore, located_image
from palate.data.readers.base import RowError
from palate.data.readers.pictures import PLACE, place_images
from palate.data.schema import ImageRef, Message, Preference, map_images
from palate.data.videos import FRAMES, SUFFIXES, by_number, chosen_places, located
from palate.evaluate.reward.benchmark import Parse, Read, read_items
from palate.evaluate.reward.items import BenchmarkItem
from palate.recipes.images import ImagesRecipe
from palate.recipes.schema import DataSource

NO_FRAMES = "no folder of frames: unpack the video into pictures"
_NOWHERE = Path("no images here")


@dataclass(frozen=True, kw_only=True)
class EvalImages:
    """Where images of evaluation data lie, and where their copies go.

    Attributes:
        root: folder that paths start from; default: that of each source's own file.
        store: takes images that come as bytes; None leaves them with their items, in memory.
    """

    root: Path | None = None
    store: ImageStore | None = None

    def of(self, source: DataSource) -> SourceImages:
        """Those of one source."""
        if self.root is not None:
            return SourceImages(self.root.expanduser(), self.store)
        path = Path(source.path).expanduser()
        if path.exists():
            return SourceImages(path if path.is_dir() else path.parent, self.store)
        # Data of the hub brings its images along: no path of it leads to a file here.
        return SourceImages(_NOWHERE, self.store)


class SourceImages:
    """The images of one source, each path read once.

    Args:
        root: folder that paths start from. store: see `EvalImages`.
    """

    def __init__(self, root: Path, store: ImageStore | None) -> None:
        self.root = root
        self.store = store
        self.limits = ImagesRecipe()
        self._read: dict[str, ImageRef | ImageError] = {}

    def asked(self, question: str, images: Sequence[ImageRef], field: str) -> list[Message]:
        """A question about images as a prompt: they stand where it has `<image>`, or before it.

        Raises:
            RowError: of the first image that cannot be used, or another number of `<image>`.
        """
        turns = place_images([Message(role="user", content=question)], images, field)
        try:
            prompt = map_images(turns, self._located)
        except ImageError as error:
            raise RowError(field, error.reason) from None
        assert not isinstance(prompt, str)
        return prompt

    def located(self, row: Preference) -> Preference:
        """The row with its images found and checked.

        Raises:
            ImageError: of the first one that cannot be used.
        """
        return located(row, self.root, self.limits, self.store)

    def frames(self, folder: str, most: int = FRAMES) -> list[ImageRef]:
        """The frames of a video that was unpacked into a folder; see `spread`.

        Raises:
            RowError: no such folder, or nothing in it (field `video`).
        """
        target = self.root / folder
        try:
            names = [file.name for file in target.iterdir()] if target.is_dir() else []
        except OSError:
            names = []
        names = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
        if not names:
            raise RowError("video", NO_FRAMES)
        # That no path leads out of the root is seen when each is read.
        return spread([ImageRef(path=f"{folder.rstrip('/')}/{name}") for name in names], most)

    def _located(self, image: ImageRef) -> ImageRef:
        if image.data is not None or image.path is None:
            return located_image(image, self.root, self.limits, self.store)
        if image.path not in self._read:
            try:
                self._read[image.path] = located_image(image, self.root, self.limits)
            except ImageError as error:
                self._read[image.path] = error
        read = self._read[image.path]
        if isinstance(read, ImageError):
            raise ImageError(read.reason)
        return read


class ImageBenchmark:
    """A benchmark with images, each record of whose files is a pair.

    Args:
        images: where the images lie.

    Attributes:
        shape: its format in words.
    """

    shape: str

    def __init__(self, images: EvalImages | None = None) -> None:
        self.images = images or EvalImages()

    def read(self, sources: Sequence[DataSource], seed: int) -> Read:
        """See `Benchmark.read`."""
        return read_items(sources, self._parser, seed, self.shape)

    def parse(self, record: Record, images: SourceImages) -> BenchmarkItem:
        """The item of a record.

        Raises:
            RowError: it is none.
        """
        raise NotImplementedError

    def _parser(self, source: DataSource) -> Parse:
        images = self.images.of(source)
        return lambda record: self.parse(record, images)


def spread(frames: Sequence[ImageRef], most: int = FRAMES) -> list[ImageRef]:
    """`most` of a video's frames at equal steps, the first and the last among them; all, where
    there are no more. Paths are put in order, numbers in them by value."""
    ordered = list(frames)
    if all(frame.path is not None for frame in ordered):
        ordered.sort(key=lambda frame: by_number(str(frame.path)))
    return [ordered[place] for place in chosen_places(len(ordered), most)]


def with_frame_places(question: str, frames: int) -> str:
    """The question with a place for each frame where it has one for the video."""
    places = PLACE * frames
    if "<video>" in question:
        return question.replace("<video>", places, 1)
    return question.replace(PLACE, places) if question.count(PLACE) == 1 else question
