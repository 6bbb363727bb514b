"""Language models that are asked questions, as recipes: on this machine, or behind a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.images import ModelImages
from palate.recipes.losses import Positive, Strict
from palate.recipes.schema import Count, Dtype


class LocalChat(Strict):
    """A causal language model on this machine."""

    type: Literal["local"] = "local"
    path: str
    """Hub name or local folder."""
    revision: str | None = None
    """Hub revision."""
    dtype: Dtype = "bfloat16"
    chat_template: Path | Literal["model", "plain"] = "model"
    """The tokenizer's own template, a Jinja file, or `plain`, for a model without one."""
    batch_size: Count = 8
    """Conversations of one forward pass."""
    images: ModelImages = ModelImages()
    """How large images are shown, and how much of a video. Of models that see."""


class ServerBase(Strict):
    """How a server is asked."""

    url: str
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself is written nowhere."""
    timeout_seconds: Positive = 60.0
    """Of one request; a question takes at most this times `retries` + 1 in all."""
    retries: Annotated[int, Field(ge=0)] = 3
    """After a refused connection, a timeout or an answer of 429 or 5xx."""
    concurrency: Count = 8
    """Requests under way at once."""


class ServerChat(ServerBase):
    """A model behind an OpenAI-compatible server."""

    type: Literal["server"] = "server"
    url: str
    """Up to the version: http://127.0.0.1:8000/v1."""
    model: str
    """Its name there."""
    images: bool = False
    """It is asked about images, which go to it in the question as data URLs: for a model that
    sees."""


Chat = Annotated[LocalChat | ServerChat, Field(discriminator="type")]
