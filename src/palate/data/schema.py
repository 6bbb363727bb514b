"""The one row type: what every reader returns and everything downstream takes.

Imports nothing of ours but the errors. Text is never altered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Kind = Literal["pair", "rated", "unpaired", "demonstration"]


class Message(TypedDict):
    """One chat turn. `content` is text (image parts come with the vision readers)."""

    role: str
    content: str


Content = str | list[Message]
"""Text, or chat turns. A prompt's turns end with the user's; a response's are the assistant's."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """One candidate answer.

    Attributes:
        content: text, or the turns that follow the prompt (usually one assistant turn).
        rating: higher is better; None when unrated.
        rank: 1 is best; None when unranked.
        label: True desirable, False undesirable (unpaired feedback); None otherwise.
        generator: who wrote it, where the source says.
    """

    content: Content
    rating: float | None = None
    rank: int | None = None
    label: bool | None = None
    generator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One row of preference data.

    `kind` says how `responses` is to be read:
      pair           responses[0] is chosen, responses[1] is rejected
      rated          two or more responses with `rating` or `rank`; pairing makes pairs of them
      unpaired       one response with `label`
      demonstration  one response to imitate (supervised fine-tuning)

    Attributes:
        id: stable within the source; made from file and row where the data has none.
        source: name of the data set, carried through to per-source metrics.
        prompt: text or chat turns; text and conversational are never mixed within one row.
        margin: chosen score minus rejected score, where the data gives it.
        tie: the annotator saw no difference.
        images: paths or digests of the prompt's images, in order of appearance.
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
    images: tuple[str, ...] = ()
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
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)
