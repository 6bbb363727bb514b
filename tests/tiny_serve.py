"""A slow scorer behind the routes of `palate serve`, in this process or in another, for tests."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from palate.errors import ModelError
from palate.recipes.serving import ServeRecipe
from palate.rewards.texts import response_text
from palate.serve.app import make_app
from palate.serve.protocol import protocol
from scored import Numbers

JSON = {"content-type": "application/json"}


class Slow(Numbers):
    """Length after a while; refuses what holds an x, and breaks over a y."""

    name = "slow"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[int] = []
        self.asked: list[str] = []
        self.hold: threading.Event | None = None

    def numbers(self, prompts: Any, responses: Any) -> list[float]:
        texts = [response_text(response) for response in responses]
        self.asked += texts
        if any("x" in text for text in texts):
            raise ModelError("slow: knows no x")
        if any("y" in text for text in texts):
            raise ZeroDivisionError
        self.calls.append(len(texts))
        time.sleep(self.seconds)
        if self.hold is not None:
            self.hold.wait(5)
        return [float("nan") if "?" in text else float(len(text)) for text in texts]


def made(
    scorer: Any = None,
    *,
    token: str | None = None,
    recipe: dict[str, Any] | None = None,
    **keys: Any,
) -> Any:
    """The application.

    Args:
        recipe: keys that have the names of other arguments.
    """
    given = {"scorer": {"type": "length"}, "exact": False, "max_wait_ms": 20} | keys
    own = ServeRecipe.model_validate(given | (recipe or {}))
    return make_app(scorer or Slow(), own, token)


@asynccontextmanager
async def client(scorer: Any = None, **keys: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = made(scorer, **keys)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.app.router.lifespan_context(app.app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as found,
    ):
        yield found


@contextmanager
def listening(
    scorer: Any = None, *, head_seconds: float = 5.0, **keys: Any
) -> Iterator[tuple[str, int]]:
    """A server on loopback, in a thread."""
    config = uvicorn.Config(
        made(scorer, **keys), http=protocol(head_seconds), log_config=None, ws="none"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield bound.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def process(arguments: list[str], log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A Python process that serves, and where it answers.

    Args:
        log: file that its stderr is added to.
    """
    with log.open("a") as errors:
        found = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert found.stdout is not None
        try:
            url = found.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), log.read_text()
            yield url, found
        finally:
            found.kill()
            found.wait()
            found.stdout.close()


def lines_of(log: Path) -> list[dict[str, Any]]:
    """What a process logged."""
    return [json.loads(line) for line in log.read_text().splitlines()]


@contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Has pytest see what the server logs in this process."""
    logger = logging.getLogger("palate.serve")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


def exchanged(address: tuple[str, int], *sent: bytes | float, wait: float = 3.0) -> bytes:
    """What comes back until the server closes, or nothing comes for `wait` seconds.

    Args:
        sent: bytes, and seconds to wait between them.
    """
    found = b""
    with socket.create_connection(address, timeout=wait) as connection:
        for part in sent:
            if isinstance(part, bytes):
                connection.sendall(part)
            else:
                time.sleep(part)
        try:
            while came := connection.recv(65536):
                found += came
        except TimeoutError:
            return found + b"<open>"
    return found


def raw(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def ask(text: str) -> dict[str, Any]:
    return {"prompt": "p", "responses": [text]}
