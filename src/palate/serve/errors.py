"""Every error in one shape, with a status that says whose it is."""

from __future__ import annotations

import logging
import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from jinja2.exceptions import TemplateError
from starlette.exceptions import HTTPException

from palate.errors import PalateError
from palate.serve.batcher import QueueFull, Stopping
from palate.serve.guard import REQUEST_ID, error_body
from palate.serve.logs import log
from palate.serve.messages import problem
from palate.store.http import ServerError

_KIND = "invalid_request_error"
_SAFE = re.compile(
    r"answers \d{3}|no answer|not a chat completion|not scores"
    r"|gives no (?:log-probabilities|alternatives)"
)
"""What of the words about a server's failure cannot be a request's."""


class TooMany(Exception):
    """More responses or images in one request than are allowed."""


def handle_errors(app: FastAPI, *, private: bool) -> None:
    """Has the application answer all errors.

    Args:
        private: clients are not told where a server is that the scorer asks.
    """

    def answer(status: int, text: str, kind: str = _KIND, **headers: str) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return JSONResponse(error_body(text, kind), status_code=status, headers=named)

    @app.exception_handler(RequestValidationError)
    async def _shape(_: Request, error: RequestValidationError) -> Response:
        errors = list(error.errors())
        if errors[0]["type"] == "json_invalid":
            place, text = errors[0]["loc"][-1], errors[0]["ctx"]["error"]
            return answer(400, f"not JSON: {text}" + (f" character {place}" if place else ""))
        return answer(422, problem(errors))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        text = "not JSON" if error.status_code == 400 else str(error.detail)
        return answer(error.status_code, text, **(error.headers or {}))

    @app.exception_handler(TooMany)
    async def _many(_: Request, error: TooMany) -> Response:
        return answer(413, str(error))

    @app.exception_handler(QueueFull)
    async def _full(_: Request, error: QueueFull) -> Response:
        return answer(429, str(error), "rate_limit_error", retry_after=str(error.retry_after))

    @app.exception_handler(Stopping)
    async def _stop(_: Request, error: Stopping) -> Response:
        return answer(503, "the server is stopping", "server_error", retry_after="5")

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        # The guard logs it, with its traceback.
        text = f"the server failed; its log names this request {request.scope[REQUEST_ID]}"
        return answer(500, text, "server_error")

    @app.exception_handler(TemplateError)
    async def _refused(request: Request, error: TemplateError) -> Response:
        log("unscorable", logging.WARNING, id=request.scope[REQUEST_ID], reason="TemplateError")
        return answer(422, f"the chat template refuses it: {' '.join(str(error).split())[:200]}")

    @app.exception_handler(PalateError)
    async def _unfit(request: Request, error: PalateError) -> Response:
        # What a scorer here cannot score is the request's fault; a server that it asks may be down.
        # The words of either may quote the request, and are for its client alone.
        id_, words = request.scope[REQUEST_ID], str(error)
        if not isinstance(error, ServerError):
            log("unscorable", logging.WARNING, id=id_, reason=type(error).__name__)
            return answer(422, words)
        safe = _SAFE.search(words)
        reason = safe[0] if safe else type(error).__name__
        log("server_failed", logging.WARNING, id=id_, reason=reason)
        text = f"the scorer's own server failed: {reason}" if private else words
        return answer(502, text, "server_error")
