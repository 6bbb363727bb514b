"""The one row type: what every reader returns and everything downstream takes.

Imports nothing of ours but the errors. Text is never altered here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

Kind = Literal["pair", "rated", "unpaired", "demonstration", "answers", "prompt"]


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """One image of a row, as the source gives it; at least one of the three.

    Attributes:
        path: as written in the data, relative to the source's folder.
        data: the encoded file (PNG, JPEG ...), where the source holds it.
        digest: hex SHA-256 of the encoded file, once it has been read and checked.
        root: folder that `path` starts from, once that is known; where an image lies is no part of
            what it is.
    """

    path: str | None = None
    data: bytes | None = None
    digest: str | None = None
    root: Path | None = field(default=None, compare=False)


class ImagePart(TypedDict):
    """An image at its place among the texts of a turn."""

    type: Literal["image"]
    image: ImageRef


@dataclass(frozen=True, kw_only=True)
class VideoRef:
    """One video of a row: its frames in order, or where they are to be found.

    Attributes:
        frames: empty while they have not been looked up.
        file: a folder of frames or a video file, relative to the source's folder.
        rate: frames a second of `frames`, where it is known.
    """

    frames: tuple[ImageRef, ...] = ()
    file: ImageRef | None = None
    rate: float | None = None

    @property
    def refs(self) -> tuple[ImageRef, ...]:
        """What it lies in."""
        return self.frames or (() if self.file is None else (self.file,))

    def mapped(self, change: Callable[[ImageRef], ImageRef]) -> VideoRef:
        """The same with other files, `change` called in the order of `refs`."""
        if self.frames:
            return replace(self, frames=tuple(map(change, self.frames)))
        return replace(self, file=None if self.file is None else change(self.file))


class VideoPart(TypedDict):
    """A video at its place among the texts of a turn."""

    type: Literal["video"]
    video: VideoRef


Part = TextPart | ImagePart | VideoPart


class Message(TypedDict):
    """One chat turn. `content` is text, or parts where an image is among them."""

    role: str
    content: str | list[Part]


def text_in(content: str | list[Part]) -> str:
    """The text of a turn, its images left out."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


Content = str | list[Message]
"""Text, or chat turns. A prompt's turns end with the user's; a response's are the assistant's."""


def image_of(part: ImagePart) -> ImageRef:
    """The image of a part. Callers of scorers may give it as a path or a file, or not at all."""
    image: Any = part.get("image")
    if isinstance(image, ImageRef):
        return image
    if isinstance(image, bytes):
        return ImageRef(data=image)
    return ImageRef(path=None if image is None else str(image))


def video_of(part: VideoPart) -> VideoRef:
    """The video of a part. Callers of scorers may give it as a path or as a list of frames."""
    video: Any = part.get("video")
    if isinstance(video, VideoRef):
        return video
    if isinstance(video, (list, tuple)):
        return VideoRef(frames=tuple(image_of({"type": "image", "image": v}) for v in video))
    return VideoRef(file=None if video is None else ImageRef(path=str(video)))


def has_parts(content: Content) -> bool:
    """Whether a turn of it is made of parts, as turns with images are."""
    if not isinstance(content, str):
        for turn in content:
            if not isinstance(turn["content"], str):
                return True
    return False


def parts_in(content: Content) -> list[Part]:
    """The parts of all turns that are made of parts."""
    if isinstance(content, str) or not has_parts(content):
        return []
    contents = [turn["content"] for turn in content]
    return [part for parts in contents if not isinstance(parts, str) for part in parts]


def images_in(content: Content) -> list[ImageRef]:
    """The images of a text or chat and the files of its videos, in the order of its parts."""
    images: list[ImageRef] = []
    for part in parts_in(content):
        if part["type"] == "image":
            images.append(image_of(part))
        elif part["type"] == "video":
            images += video_of(part).refs
    return images


def has_video(content: Content) -> bool:
    """Whether a video is among its parts."""
    return any(part["type"] == "video" for part in parts_in(content))


def map_parts(content: Content, change: Callable[[Part], Sequence[Part]]) -> Content:
    """The same content with other parts in the place of each."""
    if isinstance(content, str) or not has_parts(content):
        return content
    return [
        turn
        if isinstance(turn["content"], str)
        else Message(
            role=turn["role"], content=[new for part in turn["content"] for new in change(part)]
        )
        for turn in content
    ]


def map_images(content: Content, change: Callable[[ImageRef], ImageRef]) -> Content:
    """The same content with other images, `change` called in the order of `images_in`."""

    def part_of(part: Part) -> list[Part]:
        if part["type"] == "text":
            return [part]
        if part["type"] == "video":
            return [{"type": "video", "video": video_of(part).mapped(change)}]
        return [{"type": "image", "image": change(image_of(part))}]

    return map_parts(content, part_of)


@dataclass(frozen=True, kw_only=True)
class Response:
    """One candidate answer.

    Attributes:
        content: text, or the turns that follow the prompt (usually one assistant turn).
        rating: higher is better; None when unrated.
        aspects: ratings by aspect (helpfulness ...), higher is better; None where there are none.
        votes: net votes of people; None where the source counts none.
        rank: 1 is best, equal ranks are ties; None when unranked.
        label: True desirable, False undesirable (unpaired feedback); None otherwise.
        generator: who wrote it, where the source says.
        prompt: the prompt that this response answers, where it differs from the row's (a critique
            answers a question about its own response; an answer may have seen another image).
    """

    content: Content
    rating: float | None = None
    aspects: dict[str, float] | None = None
    votes: float | None = None
    rank: int | None = None
    label: bool | None = None
    generator: str | None = None
    prompt: Content | None = None


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One row of preference data.

    `kind` says how `responses` is to be read:
      pair           responses[0] is chosen, responses[1] is rejected
      rated          two or more responses with a rating, aspects, votes or a rank; pairing makes
                     pairs of them
      unpaired       one response with `label`
      demonstration  one response to imitate (supervised fine-tuning)
      answers        one or more responses that nobody judged, to be scored; no training takes them
      prompt         no response: one to be answered by a policy

    Attributes:
        id: stable within the source; made from file and row where the data has none.
        source: name of the data set, carried through to per-source metrics.
        prompt: text or chat turns; text and conversational are never mixed within one row.
        margin: chosen score minus rejected score, where the data gives it.
        tie: of a pair: the annotator saw no difference, and the order means nothing.
        row: 1-based row in the source file, for messages.
        conversation: prompt and response are one conversation in the source, whose earlier
            answers are as much to be imitated as the last, `context_answers` aside.
        context_answers: which of the prompt's answers, counted from 0, the source says are not to
            be trained on.
        extra: fields of the source kept for reports (JSON values only).
    """

    id: str
    source: str
    kind: Kind
    prompt: Content
    responses: tuple[Response, ...]
    margin: float | None = None
    tie: bool = False
    row: int | None = None
    conversation: bool = False
    context_answers: frozenset[int] = frozenset()
    extra: dict[str, Any] | None = None

    @property
    def chosen(self) -> Response:
        if self.kind != "pair":
            raise TypeError(f"a {self.kind} row has no chosen response")
        return self.responses[0]

    @property
    def rejected(self) -> Response:
        if self.kind != "pair":
            raise TypeError(f"a {self.kind} row has no rejected response")
        return self.responses[1]

    @property
    def contents(self) -> list[Content]:
        """Its prompt, and of each response its own prompt, if it has one, and what it says."""
        every = [self.prompt]
        for response in self.responses:
            if response.prompt is not None:
                every.append(response.prompt)
            every.append(response.content)
        return every

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The prompt's, in the order of its parts."""
        return tuple(images_in(self.prompt))

    @property
    def all_images(self) -> tuple[ImageRef, ...]:
        """Those of everything in the row, and the files of its videos."""
        if isinstance(self.prompt, str):
            return ()
        contents = self.contents
        if not any(map(has_parts, contents)):
            return ()
        return tuple(image for content in contents for image in images_in(content))

    @property
    def has_images(self) -> bool:
        """Whether there is an image anywhere in the row."""
        if isinstance(self.prompt, str):
            return False  # texts and chats are never mixed within one row
        contents = self.contents
        return any(map(has_parts, contents)) and any(map(images_in, contents))

    @property
    def has_videos(self) -> bool:
        """Whether there is a video anywhere in the row."""
        return not isinstance(self.prompt, str) and any(map(has_video, self.contents))

    def with_images(self, change: Callable[[ImageRef], ImageRef]) -> Preference:
        """The row with other images, `change` called in the order of `all_images`."""
        return self.with_contents(lambda content: map_images(content, change))

    def with_contents(self, change: Callable[[Content], Content]) -> Preference:
        """The row with other contents, `change` called in the order of `contents`."""
        prompt = change(self.prompt)
        responses = []
        for response in self.responses:
            asked = None if response.prompt is None else change(response.prompt)
            content = change(response.content)
            responses.append(replace(response, prompt=asked, content=content))
        return replace(self, prompt=prompt, responses=tuple(responses))

    @property
    def has_own_prompts(self) -> bool:
        """Whether a response answers another prompt than the row's."""
        return any(r.prompt is not None for r in self.responses)

    @property
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)
