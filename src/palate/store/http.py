"""One server that is asked in JSON, patiently: what judges, remote scorers and rollouts share."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx

from palate.errors import ModelError
from palate.recipes.scorers import ServerBase

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
REFUSALS = (400, 413, 422)
"""Statuses of a request that the server will not take, however often it is sent."""
_TIME = "`timeout_seconds` x (`retries` + 1)"
"""What one question may wait in all."""

log = logging.getLogger("palate")
Task = TypeVar("Task")
Answer = TypeVar("Answer")


class ServerError(ModelError):
    """A server that was asked failed, refused, or answered something else."""


@dataclass
class Patience:
    """What is left of the time that one question may take, retries and waits included, seconds."""

    left: float


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One request and what came of it.

    Attributes:
        answer: None where none came.
        problem: why it may be asked again; None of an answer that stands.
        broken: the connection was refused or broke off: the server may have been started anew.
    """

    answer: httpx.Response | None = None
    problem: str | None = None
    broken: bool = False

    @property
    def wait(self) -> float | None:
        """Seconds that the server asks to wait (Retry-After)."""
        return None if self.answer is None else _retry_after(self.answer)


class HttpClient:
    """Asks one server.

    Refused connections, timeouts and answers of 429 or 5xx are tried again, waiting twice as long
    each time or as long as Retry-After says. One question waits `timeout_seconds` x (`retries` + 1)
    in all and no longer: where Retry-After asks for more than is left of that, it fails at once.

    Args:
        route: that is asked, behind the recipe's address.
        key: of the recipe where it stands in a document, for messages.
        example: of an address, for messages.
        transport: for tests. sleep: likewise.

    Raises:
        ModelError: no key in the environment variable that the recipe names, or no web address.
    """

    def __init__(
        self,
        recipe: ServerBase,
        route: str,
        *,
        key: str,
        example: str,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.recipe = recipe
        if not _is_address(recipe.url):
            raise ModelError(f"`{key}`: {recipe.url} is no address: write {example}")
        self.base = recipe.url.rstrip("/")
        self.url = f"{self.base}/{route}"
        headers = {"Content-Type": "application/json"}
        if recipe.api_key_env is not None:
            secret = os.environ.get(recipe.api_key_env)
            if not secret:
                raise ModelError(
                    f"{recipe.url}: the environment variable {recipe.api_key_env} holds no key"
                )
            headers["Authorization"] = f"Bearer {secret}"
        self._client = httpx.Client(
            headers=headers,
            transport=transport,
            limits=httpx.Limits(max_connections=recipe.concurrency),
        )
        # One set of threads for all callers: more requests than connections would wait in vain.
        self._threads = ThreadPoolExecutor(max_workers=recipe.concurrency)
        self._sleep = sleep
        self._warned: set[str] = set()

    def patience(self) -> Patience:
        """The time of a new question."""
        return Patience(self.recipe.timeout_seconds * (self.recipe.retries + 1))

    def map(self, ask: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
        """Answers to several questions, `concurrency` of them under way at once, whoever asks."""
        return list(self._threads.map(ask, tasks))

    def warn(self, text: str) -> None:
        """Logs a thing once of its kind."""
        kind = text.partition(":")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s: %s", self.url, text)

    def error(self, problem: str) -> ServerError:
        """An error of this server."""
        return ServerError(f"{self.url}: {problem}")

    def get(self, route: str) -> httpx.Response:
        """The server's answer to a GET of another route; see `post`."""
        return self.request(f"{self.base}/{route}", None)

    def request(self, url: str, body: str | None) -> httpx.Response:
        """The server's answer at an address: to a POST, or to a GET where there is no body."""
        return self._send(url, body, self.patience())

    def post(self, body: str, patience: Patience) -> httpx.Response:
        """The server's answer to a body.

        Raises:
            ServerError: none came, or only such as mean that it may come later.
        """
        return self._send(self.url, body, patience)

    def _send(self, url: str, body: str | None, patience: Patience) -> httpx.Response:
        wait = FIRST_WAIT_SECONDS
        for number in range(self.recipe.retries + 1):
            attempt = self._attempt(url, body, patience)
            if attempt.answer is not None and attempt.problem is None:
                return attempt.answer
            problem = attempt.problem
            if number == self.recipe.retries:
                break
            asked = attempt.wait
            # Of its own accord it waits no longer than leaves time for the next attempt.
            pause = min(wait, max(0.0, patience.left) / 2) if asked is None else asked
            if pause >= patience.left:
                if asked is not None:
                    problem = (
                        f"{problem}; it asks for a wait of {asked:.0f} s (Retry-After), and "
                        f"{max(0.0, patience.left):.0f} s are left of {_TIME}"
                    )
                break
            self._sleep(pause)
            patience.left -= pause
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        raise ServerError(f"{url}: {problem}")

    def _attempt(self, url: str, body: str | None, patience: Patience) -> Attempt:
        limit = min(self.recipe.timeout_seconds, patience.left)
        if limit <= 0:
            return Attempt(problem=f"no time is left for an answer ({_TIME})")
        began = time.monotonic()
        try:
            whole = limit == self.recipe.timeout_seconds
            return self.attempt(
                url, body, limit, "`timeout_seconds`" if whole else f"what was left of {_TIME}"
            )
        finally:
            patience.left -= time.monotonic() - began

    def attempt(
        self, url: str, body: str | None, seconds: float, limit: str = "`timeout_seconds`"
    ) -> Attempt:
        """One request, not tried again: a POST, or a GET where there is no body.

        Args:
            seconds: that the whole answer may take. limit: what they are, for messages.
        """
        try:
            answer = self._read(url, body, time.monotonic(), seconds)
        except httpx.TimeoutException:
            return Attempt(problem=f"no answer within {seconds:.3g} s ({limit})")
        except httpx.RequestError as error:
            return Attempt(problem=f"no answer ({type(error).__name__})", broken=True)
        if answer.status_code == 429 or answer.status_code >= 500:
            problem = f"answers {answer.status_code}: {brief(answer.text)}"
            return Attempt(answer=answer, problem=problem)
        return Attempt(answer=answer)

    def close(self) -> None:
        """Ends its connections."""
        self._client.close()

    def _read(self, url: str, body: str | None, began: float, limit: float) -> httpx.Response:
        """The whole answer. The client's own limit is of every piece of it."""
        method = "GET" if body is None else "POST"
        with self._client.stream(method, url, content=body, timeout=limit) as answer:
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if time.monotonic() - began > limit:
                    raise httpx.ReadTimeout("", request=answer.request)
        # Its content is decoded.
        headers = {k: v for k, v in answer.headers.items() if k in ("content-type", "retry-after")}
        return httpx.Response(answer.status_code, headers=headers, content=bytes(content))


def brief(text: str) -> str:
    """The beginning of a text, on one line."""
    return " ".join(text.split())[:200]


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds to wait: Retry-After holds them, or a date."""
    given = answer.headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return seconds if seconds > 0 else None
