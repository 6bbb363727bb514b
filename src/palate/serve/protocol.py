"""uvicorn's HTTP with a time limit for the head of a request, and errors in our shape."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from palate.serve.guard import error_body


def protocol(head_seconds: float) -> type[H11Protocol]:
    """The class of connections.

    Args:
        head_seconds: that a request may take from its first byte to the end of its head, and a new
            connection to its first request; after them the connection is closed.
    """

    class Protocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head = self.loop.call_later(head_seconds, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
            if waits and self._head is None and self.conn.trailing_data[0]:
                self._head = self.loop.call_later(head_seconds, self._late)
            elif not waits:
                self._forget()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, msg, "invalid_request_error")

        def _forget(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _late(self) -> None:
            self._head = None
            if self.transport.is_closing():
                return
            if self.conn.trailing_data[0]:
                text = f"the request did not arrive within {head_seconds:g} s"
                self._refuse(408, text, "timeout_error")
            else:
                self.transport.close()

        def _refuse(self, status: int, text: str, kind: str) -> None:
            """Answers what is no request, and closes the connection."""
            body = json.dumps(error_body(text, kind)).encode()
            head = h11.Response(
                status_code=status,
                reason=HTTPStatus(status).phrase,
                headers=[
                    ("content-type", "application/json"),
                    ("content-length", str(len(body))),
                    ("connection", "close"),
                ],
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol
