"""Requests and answers as JSON: shapes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from palate.data.schema import Content, ImageRef, Message
from palate.data.schema import Part as ContentPart
from palate.serve.bodies import shown


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is no Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]


class RequestModel(BaseModel):
    """Base of all requests: a key that is not known is a mistake, not a wish.

    The lists of requests fail at their first mistake: a list of them all could be a thousand times
    as large as the request.
    """

    model_config = ConfigDict(extra="forbid", strict=True)


def _known(kind: str) -> str:
    if kind not in ("text", "image", "image_url"):
        raise ValueError('parts of type "text", "image" and "image_url" are read')
    return kind


class ImageUrl(RequestModel):
    """Where an image is, as OpenAI's clients say it."""

    url: Text
    detail: Literal["auto"] | None = None
    """Images are looked at as they are."""


class Part(RequestModel):
    """A part of a turn: a text, or an image, which is a data URL, the digest of one that is sent
    beside the request, a path, or an address."""

    type: Annotated[str, AfterValidator(_known)]
    text: Text | None = None
    image: Text | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _of_its_type(self) -> Part:
        given = [name for name in ("text", "image", "image_url") if getattr(self, name) is not None]
        if given != [self.type]:
            raise ValueError(f'a part of type "{self.type}" has `{self.type}`, and nothing else')
        return self

    @property
    def written(self) -> str | None:
        """What an image part says of where its image is; None of a text."""
        return self.image if self.image_url is None else self.image_url.url


class Turn(RequestModel):
    """One chat turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(min_length=1, fail_fast=True)]
    """A text, or parts; those of text alone are one text together."""

    def read(self, images: Mapping[str, ImageRef]) -> str | list[ContentPart]:
        """The content as scorers take it."""
        if isinstance(self.content, str):
            return self.content
        if all(part.written is None for part in self.content):
            return "".join(part.text or "" for part in self.content)
        return [
            {"type": "text", "text": part.text or ""}
            if part.written is None
            else {"type": "image", "image": images[part.written]}
            for part in self.content
        ]


Prompt = Text | Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
Answer = Text | Annotated[list[Turn], Field(min_length=1, fail_fast=True)]

Images = Annotated[dict[str, Text], Field(min_length=1)] | None
"""Images that parts name as sha256:HEX: digest -> data URL."""


class Item(RequestModel):
    """A prompt with responses to it."""

    prompt: Prompt
    """Text, or chat turns that end before the response."""
    responses: Annotated[list[Answer], Field(min_length=1, fail_fast=True)]
    """Each a text, or the turns that follow the prompt."""
    columns: dict[str, Any] = {}
    """What else is known of the prompt (a right answer, a rubric), for scorers that read it."""


class ScoredPrompt(Item):
    """One prompt with its responses."""

    images: Images = None


class Batch(RequestModel):
    """Several prompts."""

    items: Annotated[list[Item], Field(min_length=1, fail_fast=True)]
    images: Images = None


def _which(value: Any) -> str:
    several = isinstance(value, Batch) or (isinstance(value, dict) and "items" in value)
    return "batch" if several else "item"


ScoreRequest = Annotated[
    Annotated[ScoredPrompt, Tag("item")] | Annotated[Batch, Tag("batch")], Discriminator(_which)
]
"""One prompt, or several."""


class GetReward(BaseModel):
    """What OpenRLHF's remote reward client sends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    """Prompts and responses as one text each, in the words of the model's chat template."""
    prompts: Annotated[list[Text], Field(fail_fast=True)] | None = None
    """The part of each query before the response."""
    labels: Any = None
    """For rewards by rule; not read."""

    @model_validator(mode="after")
    def _as_many(self) -> GetReward:
        # The client sends an empty list where it has none.
        if self.prompts and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.query)} queries")
        return self


def _unused(*values: float) -> AfterValidator:
    """Accepts null and these values of a sampling option: those that change no reward."""

    def check(value: float | None) -> float | None:
        if value is not None and value not in values:
            given = " or ".join(map(str, values))
            raise ValueError(f"a reward is not sampled: leave it out, or send {given}")
        return value

    return AfterValidator(check)


_Limit = Annotated[int, Field(ge=1)] | None


class ChatCompletion(RequestModel):
    """A conversation whose last turn is to be scored.

    Nothing is drawn and nothing is cut: options of sampling are taken where they say as much.
    """

    model: Text
    messages: Annotated[list[Turn], Field(min_length=2, fail_fast=True)]
    images: Images = None
    stream: Literal[False] | None = None
    n: Annotated[int | None, _unused(1)] = None
    temperature: Annotated[float | None, _unused(0, 1)] = None
    top_p: Annotated[float | None, _unused(1)] = None
    presence_penalty: Annotated[float | None, _unused(0)] = None
    frequency_penalty: Annotated[float | None, _unused(0)] = None
    logprobs: Literal[False] | None = None
    max_tokens: _Limit = None
    """A reward is never cut: any limit is kept."""
    max_completion_tokens: _Limit = None
    seed: int | None = None

    @model_validator(mode="after")
    def _ends(self) -> ChatCompletion:
        if self.messages[-1].role != "assistant":
            raise ValueError("messages: the last turn is the one that is scored: the assistant's")
        return self


class ModelCard(BaseModel):
    """One entry of /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "palate"


def content(value: str | list[Turn], images: Mapping[str, ImageRef]) -> Content:
    """A prompt or response as scorers take it.

    Args:
        images: by what is written in image parts; see `named_images`.
    """
    if isinstance(value, str):
        return value
    return [Message(role=turn.role, content=turn.read(images)) for turn in value]


def named_images(where: str, value: str | list[Turn]) -> Iterator[tuple[str, str]]:
    """(where, what is written there) of the image parts of a prompt or response."""
    for i, turn in enumerate([] if isinstance(value, str) else value):
        for j, part in enumerate([] if isinstance(turn.content, str) else turn.content):
            if part.written is not None:
                yield f"{where}.{i}.content.{j}", part.written


_SHAPES = ("body", "item", "batch", "list[", "function-")
_NO_OBJECT = ("model_type", "model_attributes_type", "dict_type")


def problem(errors: list[Any]) -> str:
    """The most telling of pydantic's errors in one line, without what was sent."""
    # Where a value may have several shapes, the one it comes nearest to went wrong deepest.
    first = max(errors, key=lambda error: len(error["loc"]))
    # Which of several shapes was tried is of no use to a reader.
    parts = [shown(str(part)) for part in first["loc"]]
    where = ".".join(part for part in parts if part == "items" or not part.startswith(_SHAPES))
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] in _NO_OBJECT or (not where and first["type"] == "missing"):
        return f"{where or 'the body'} is no JSON object"
    return f"{where}: {message}" if where else message
