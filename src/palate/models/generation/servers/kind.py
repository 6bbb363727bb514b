"""What every kind of server must do, as requests and answers in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from palate.data.image_urls import Wire
from palate.data.items import TokenIds
from palate.models.generation.engine import Sampling
from palate.store.http import HttpClient, brief

Json = dict[str, Any]
NEVER = -100.0
"""Added to the logit of a token that is not to be drawn; the least that OpenAI's protocol takes."""
FEW_ALTERNATIVES = 5
"""Of the first token, where the probe reads how probabilities are given."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One response that is asked for.

    Attributes:
        ids: of the prompt, as the encoder made them.
        turns: of a prompt with images, as OpenAI's clients send them; None of text alone.
        seed: of this response.
        model: name at the server. adapter: likewise; None where the model writes without one.
        stops: tokens that end a response. never: tokens that must not be drawn.
        alternatives: of each token, asked for with their log-probs.
    """

    ids: TokenIds
    sampling: Sampling
    seed: int
    model: str
    adapter: str | None = None
    turns: Sequence[Wire] | None = None
    stops: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    alternatives: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response as a server gives it.

    Attributes:
        ids: as sampled, the stop token included.
        logps: of each; NaN where the server gives none.
        finish: stop | length, or what else ended it.
        prompt_ids: of the prompt as the server ran it, where it tells.
        prompt_tokens: how many those were, where it tells.
        weights: name of the weights that wrote it, where it tells.
        first: log-probs of the first token's alternatives.
    """

    ids: TokenIds
    logps: tuple[float, ...]
    finish: str
    prompt_ids: TokenIds | None = None
    prompt_tokens: int | None = None
    weights: str | None = None
    first: Mapping[int, float] | None = None


class Kind(Protocol):
    """A kind of server.

    Attributes:
        name: with its version.
        filters: its log-probs are of the distribution after top-p and top-k, too.
        images: it can be asked about images so that the tokens of its prompt are known.
        raw_hint: what to start it with where its log-probs are of another distribution.
    """

    name: str
    filters: bool
    images: bool
    raw_hint: str

    def request(self, wanted: Wanted) -> tuple[str, Json]:
        """Address and body."""
        ...

    def answer(self, body: Json) -> Answer:
        """Raises:
        ServerError: no token ids, or something else.
        """
        ...

    def reload(self, folder: str, label: str) -> None:
        """From now on the model has the weights of a folder, and caches of the old are gone."""
        ...

    def load_adapter(self, name: str, folder: str) -> None: ...

    def unload_adapter(self, name: str) -> None: ...

    def weights(self) -> str | None:
        """The label of the weights that it has; None where it does not tell."""
        ...


def plain_sampling(wanted: Wanted) -> Json:
    """What both kinds call alike: all that a model's own generation settings could change."""
    sampling = wanted.sampling
    settings: Json = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(wanted.stops),
    }
    if wanted.never:
        settings["logit_bias"] = {str(token): NEVER for token in wanted.never}
    return settings


def no_ids(client: HttpClient) -> Exception:
    """The error of a server that gives text alone."""
    return client.error(
        "gives text alone, no token ids, and text encoded again is not what was sampled: use vLLM "
        "from 0.10.2, or SGLang"
    )


def numbers(values: Sequence[Any]) -> tuple[float, ...]:
    """Log-probs, NaN where there is none."""
    return tuple(math.nan if value is None else float(value) for value in values)


def control(client: HttpClient, url: str, body: Json | None, what: str, hint: str = "") -> Json:
    """What a server answers to something that is no question.

    Args:
        body: None of a GET.
        what: it should do. hint: what to do where it does not know the address.

    Raises:
        ServerError: it fails.
    """
    response = client.request(url, None if body is None else json.dumps(body))
    if response.status_code != 200:
        missing = f": {hint}" if hint and response.status_code in (404, 405) else ""
        words = f"{response.status_code}: {brief(response.text)}"
        raise client.error(f"does not {what}{missing} ({url} answers {words})")
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
