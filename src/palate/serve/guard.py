"""What every request passes first: token, size, time, an id, a log line, a count."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from palate.serve.logs import log
from palate.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = "palate.request_id"
"""Key of a request's id in its ASGI scope."""
OPEN = frozenset(("/health",))
"""Routes that need no token: a load balancer has none, and they say nothing."""
DRAINED = 16
"""A body too large is read on, and thrown away, up to this many times the limit: a client that
is still sending reads no answer."""
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error in the shape of OpenAI's."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Guard:
    """ASGI middleware around the routes.

    Args:
        token: that clients must send; None asks for none.
        routes: paths that are counted by name.
        timeout: seconds that a request has from its first byte to its answer.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        token: str | None,
        routes: frozenset[str],
        max_bytes: int,
        timeout: float,
    ) -> None:
        self.app = app
        self.metrics = metrics
        # As it is in the environment, UTF-8 or not.
        self.token = None if token is None else token.encode("utf-8", "surrogateescape")
        self.routes = routes
        self.max_bytes = max_bytes
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Request(self, scope, receive, send).answer()

    def allows(self, path: str, headers: dict[bytes, bytes]) -> bool:
        """Whether a request has the token that it needs."""
        if self.token is None or path in OPEN:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token)


class _Request:
    """One request on its way.

    Its work ends with its client: nothing is done for one that went away.
    """

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard = guard
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers = {name.lower(): value for name, value in scope["headers"]}
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope[REQUEST_ID] = self.id
        self.status = 0
        self.body: bytes | None = None
        self.read = False

    async def answer(self) -> None:
        path = self.scope["path"]
        route = path if path in self.guard.routes else "other"
        start = time.monotonic()
        try:
            async with asyncio.timeout(self.guard.timeout):
                await self._handle(path)
        except TimeoutError:
            await self._refuse_late()
        except asyncio.CancelledError:
            # The server ends before the answer is there.
            if not self.status:
                await self._refuse(503, "the server is stopping", "server_error")
        except Exception:
            # The application has answered already.
            log("failed", logging.ERROR, exc_info=True, id=self.id, route=route)
        finally:
            seconds = time.monotonic() - start
            # A client that went away before its answer: 499, as proxies log it.
            status = self.status or 499
            self.guard.metrics.answered(route, status, seconds)
            log(
                "request",
                id=self.id,
                method=self.scope["method"],
                route=route,
                status=status,
                seconds=round(seconds, 6),
                bytes=None if self.body is None else len(self.body),
            )

    async def _handle(self, path: str) -> None:
        if not self.guard.allows(path, self.headers):
            text = "a bearer token is needed: Authorization: Bearer ..."
            challenge = {b"www-authenticate": b"Bearer"}
            await self._refuse(401, text, "authentication_error", headers=challenge)
            return
        try:
            body = await self._read()
        except ConnectionError:
            return
        if body is None:
            text = f"the request is larger than {self.guard.max_bytes} bytes"
            await self._refuse(413, text, "invalid_request_error", code="request_too_large")
            return
        self.body = body
        await self._until_gone()

    async def _until_gone(self) -> None:
        """Runs the routes, for as long as there is a client."""
        work = asyncio.ensure_future(self.guard.app(self.scope, self._replay, self._send))
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done() or self.status:
                await work
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _read(self) -> bytes | None:
        """The body, or None of one that is too large.

        Raises:
            ConnectionError: the client went away before it had sent it.
        """
        limit = self.guard.max_bytes
        stated = self.headers.get(b"content-length", b"0")
        declared = int(stated) if stated.isascii() and stated.isdigit() else 0
        chunks: list[bytes] = []
        size = 0
        while declared <= limit * DRAINED:
            event = await self.receive()
            if event["type"] == "http.disconnect":
                raise ConnectionError
            chunk = event.get("body", b"")
            size += len(chunk)
            if max(size, declared) <= limit:
                chunks.append(chunk)
            else:
                chunks.clear()
            if not event.get("more_body", False) or size > limit * DRAINED:
                break
        return b"".join(chunks) if max(size, declared) <= limit else None

    async def _replay(self) -> Event:
        if not self.read:
            self.read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        # Whether the client is there is watched elsewhere.
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            headers = [*event.get("headers", []), (b"x-request-id", self.id.encode())]
            event = {**event, "headers": headers}
        await self.send(event)

    async def _refuse_late(self) -> None:
        if self.status:
            return
        seconds = self.guard.timeout
        if self.body is None:
            text = f"the request did not arrive within {seconds:g} s"
            await self._refuse(408, text, "timeout_error", headers={b"connection": b"close"})
        else:
            await self._refuse(504, f"no answer within {seconds:g} s", "timeout_error")

    async def _refuse(
        self,
        status: int,
        message: str,
        kind: str,
        *,
        code: str | None = None,
        headers: dict[bytes, bytes] | None = None,
    ) -> None:
        body = json.dumps(error_body(message, kind, code)).encode()
        head = {
            b"content-type": b"application/json",
            b"content-length": str(len(body)).encode(),
            **(headers or {}),
        }
        start = {"type": "http.response.start", "status": status, "headers": list(head.items())}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
