"""The recipes of `palate score` and `palate serve`: a scorer over files, and behind HTTP."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.images import ImagesRecipe
from palate.recipes.losses import Positive, Strict
from palate.recipes.schema import Count, DataSource, RunRecipe
from palate.recipes.scorers import Scorer


class ScoreRecipe(RunRecipe):
    """Scores of all responses in data files."""

    resume: bool = False
    """Go on with an interrupted run of the same recipe, after the last block that it wrote."""
    scorer: Scorer
    """What scores, by its `type`: model, heads, classifier, lexicon, length, rule, function,
    verifier, remote, pointwise, pairwise, rubric, critic, judge_verdict, ensemble, mixture or
    hybrid."""
    data: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    """Files of any format that palate reads: of pairs both sides are scored, of ratings all
    answers."""
    exact: bool = False
    """Score every response in a pass of its own, so that not even the last bits of a score depend
    on what is scored beside it; slower. Judges that compare see whole rows in any case."""
    images: Literal["shown", "removed"] = "shown"
    """removed: prompts without their images, whatever the scorer reads: what a blind one says, as
    the weights of `shortcut` in `palate reward` want it."""
    block_rows: Count = 512
    """Rows scored together and written at once; batches are of like lengths among them."""
    baselines: bool = False
    """Write baselines.jsonl, too: the mean score of each prompt's responses, which `type: hybrid`
    centres a model's scores by. For responses of the policy that online learning starts from."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the scores."""


_HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class ServeImages(ImagesRecipe):
    """Images of requests: their limits, and from where they may come besides the request."""

    max_pixels: Count = 16_777_216
    """Width times height, read from the header before anything is decoded."""
    max_images: Annotated[int, Field(ge=1, le=100)] = 16
    """Image parts of a request; requests with more are refused with 413."""
    root: Path | None = None
    """Folder below which parts may name files by paths; default: none may."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts whose addresses (http, https) are fetched: example.org, example.org:8080, 10.0.0.5. A
    name must be of a public address; a private one is listed as such. Default: none is fetched."""
    fetch_seconds: Positive = 10.0
    """For all addresses of a request."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for number, host in enumerate(self.allow_hosts):
            if not _HOST.fullmatch(host):
                yield f"allow_hosts.{number}", f"'{host}' is no host: write example.org"
        if self.fetch_seconds != 10.0 and not self.allow_hosts:
            yield "fetch_seconds", "only with `allow_hosts`: nothing else is fetched"


class ServeRecipe(Strict):
    """A scorer behind HTTP."""

    scorer: Scorer
    """What scores, by its `type`: model, heads, classifier, lexicon, length, rule, function,
    verifier, remote, pointwise, pairwise, rubric, critic, judge_verdict, ensemble, mixture or
    hybrid."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of drawing the validation rows of an ensemble, and the answers of a rule."""
    exact: bool = True
    """Score every response in a pass of its own: bit for bit what `palate score` gives with
    `exact`, whatever other clients ask meanwhile. Without it requests share passes: faster on an
    accelerator, equal to rounding."""
    host: str = "127.0.0.1"
    """Address to listen at; beyond loopback only with `token_env`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one, which is printed."""
    token_env: str | None = None
    """Environment variable that holds the bearer token which clients must send; the token itself
    is written nowhere."""
    max_batch_responses: Count = 64
    """Responses collected for one call of the scorer."""
    max_wait_ms: Annotated[float, Field(ge=0.0, le=10_000.0)] = 5.0
    """How long a request waits for others to share its batch."""
    max_queue_responses: Count = 1024
    """Responses that may wait; beyond them requests are refused with 429."""
    max_request_bytes: Count = 4_194_304
    """Larger requests are refused with 413."""
    max_request_responses: Count = 256
    """Requests with more responses are refused with 413."""
    timeout_seconds: Positive = 60.0
    """A request that is not answered by then is answered with 504."""
    images: ServeImages = ServeImages()
    """Images in prompts, where the scorer reads them."""
    shutdown_seconds: Count = 60
    """How long a stopping server works on what it has accepted."""

    @property
    def is_loopback(self) -> bool:
        """Whether nobody beyond this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.is_loopback and self.token_env is None:
            yield "token_env", f"required at {self.host}: others than this machine can reach it"
        if self.max_queue_responses < self.max_request_responses:
            yield (
                "max_queue_responses",
                "less than max_request_responses: such a request never fits",
            )
