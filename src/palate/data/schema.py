"""The one row type: what every reader returns and everything downstream takes.

Imports nothing of ours but the errors. Text is never altered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Kind = Literal["pair", "rated", "unpaired", "demonstration", "answers"]


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """The place of an image; which one it is says its number among the prompt's image parts."""

    type: Literal["image"]


Part = TextPart | ImagePart


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


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """One image of a row, as the source gives it; at least one of the three.

    Attributes:
        path: as written in the data, relative to the source's folder.
        data: the encoded file (PNG, JPEG ...), where the source holds it.
        digest: hex SHA-256 of the encoded file, once it has been read and checked.
    """

    path: str | None = None
    data: bytes | None = None
    digest: str | None = None


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
        images: the prompt's images as this response saw them, where they differ from the row's.
        prompt: the prompt that this response answers, where it differs from the row's (a critique
            answers a question about its own response).
    """

    content: Content
    rating: float | None = None
    aspects: dict[str, float] | None = None
    votes: float | None = None
    rank: int | None = None
    label: bool | None = None
    generator: str | None = None
    images: tuple[ImageRef, ...] | None = None
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

    Attributes:
        id: stable within the source; made from file and row where the data has none.
        source: name of the data set, carried through to per-source metrics.
        prompt: text or chat turns; text and conversational are never mixed within one row.
        margin: chosen score minus rejected score, where the data gives it.
        tie: of a pair: the annotator saw no difference, and the order means nothing.
        images: the prompt's, in the order of its image parts.
        row: 1-based row in the source file, for messages.
        extra: fields of the source kept for reports (JSON values only).
    """

    id: str
    source: str
    kind: Kind
    prompt: Content
    responses: tuple[Response, ...]
    margin: float | None = None
    tie: bool = False
    images: tuple[ImageRef, ...] = ()
    row: int | None = None
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
    def has_images(self) -> bool:
        return bool(self.images) or any(r.images for r in self.responses)

    @property
    def has_own_prompts(self) -> bool:
        """Whether a response answers another prompt than the row's."""
        return any(r.prompt is not None for r in self.responses)

    @property
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)
