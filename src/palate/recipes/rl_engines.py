"""Where responses come from, as recipes: this process, or OpenAI-compatible servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Positive, Strict
from palate.recipes.schema import Count


class CorrectionRecipe(Strict):
    """Importance weights pi_trainer(token) / pi_engine(token), for an engine that rounds otherwise,
    samples from a part of the distribution, or lags behind."""

    level: Literal["token", "sequence"] = "token"
    """sequence: the product over a response."""
    mode: Literal["truncate", "mask"] = "truncate"
    """Of weights above `cap`: truncate: held at it; mask: not trained on."""
    cap: Positive = 2.0


class EngineBase(Strict):
    correction: CorrectionRecipe | None = None
    """Default: none; how far engine and trainer differ is measured in any case."""


class LocalEngine(EngineBase):
    """The model that is trained, in this process."""

    type: Literal["local"] = "local"
    batch_size: Count = 64
    """Responses that are written at once."""


class ServerEngine(EngineBase):
    """Servers that speak OpenAI's protocol, as vLLM and SGLang do."""

    type: Literal["server"] = "server"
    urls: Annotated[tuple[str, ...], Field(min_length=1)]
    """Up to the version: http://127.0.0.1:8000/v1; prompts are shared out over them."""
    model: str
    """Its name there."""
    sync: Literal["reload", "lora"] = "reload"
    """How new weights reach it: reload: a folder that it loads anew; lora: an adapter that it loads
    beside the base model."""
    sync_dir: Path | None = None
    """Folder that the server reads too; default: in the run folder."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Updates that a token may be older than the policy that is trained; older responses are
    dropped, and counted."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself is written nowhere."""
    timeout_seconds: Positive = 600.0
    """Of one request."""
    retries: Annotated[int, Field(ge=0)] = 3
    """After a refused connection, a timeout or an answer of 429 or 5xx."""
    concurrency: Count = 16
    """Requests under way at once, at each server."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.urls)) < len(self.urls):
            yield "urls", "one server twice"


Engine = Annotated[LocalEngine | ServerEngine, Field(discriminator="type")]
