"""Requests and answers as JSON: shapes, and what is refused."""

from __future__ import annotations

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

from palate.data.schema import Content, Message


def _unicode(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("half a surrogate pair is no Unicode text")
    return text


Text = Annotated[str, AfterValidator(_unicode)]


class Shape(BaseModel):
    """Base of all requests: a key that is not known is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Turn(Shape):
    """One chat turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text


Prompt = Text | Annotated[list[Turn], Field(min_length=1)]
Answer = Text | Annotated[list[Turn], Field(min_length=1)]


class Item(Shape):
    """A prompt with responses to it."""

    prompt: Prompt
    """Text, or chat turns that end before the response."""
    responses: Annotated[list[Answer], Field(min_length=1)]
    """Each a text, or the turns that follow the prompt."""


class Batch(Shape):
    """Several prompts."""

    items: Annotated[list[Item], Field(min_length=1)]


def _which(value: Any) -> str:
    several = isinstance(value, Batch) or (isinstance(value, dict) and "items" in value)
    return "batch" if several else "item"


Asked = Annotated[
    Annotated[Item, Tag("item")] | Annotated[Batch, Tag("batch")], Discriminator(_which)
]
"""One prompt, or several."""


class GetReward(BaseModel):
    """What OpenRLHF's remote reward client sends."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: Annotated[list[Text], Field(min_length=1)]
    """Prompts and responses as one text each, in the words of the model's chat template."""
    prompts: list[Text] | None = None
    """The part of each query before the response. `labels` are for rewards by rule and not read."""

    @model_validator(mode="after")
    def _as_many(self) -> GetReward:
        # The client sends an empty list where it has none.
        if self.prompts and len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.query)} queries")
        return self


class ChatCompletion(Shape):
    """A conversation whose last turn is to be scored."""

    model: Text
    messages: Annotated[list[Turn], Field(min_length=2)]
    stream: Literal[False] = False
    n: Literal[1] = 1

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


def content(value: str | list[Turn]) -> Content:
    """A prompt or response as scorers take it."""
    if isinstance(value, str):
        return value
    return [Message(role=turn.role, content=turn.content) for turn in value]


_SHAPES = ("body", "item", "batch", "list[", "function-")


def problem(errors: list[Any]) -> str:
    """The first of pydantic's errors in one line, without what was sent."""
    first = errors[0]
    # Which of several shapes was tried is of no use to a reader.
    parts = [str(part) for part in first["loc"]]
    where = ".".join(part for part in parts if part == "items" or not part.startswith(_SHAPES))
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
