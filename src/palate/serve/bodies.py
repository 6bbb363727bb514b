"""Bodies of requests as JSON, strictly: nothing in one is passed over or read in two ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, Never

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

MOST_KEYS = 100
"""Of one object; none that is asked for has nearly as many, and each unknown one is a mistake."""
_SHOWN_CHARACTERS = 40


class JsonRoute(APIRoute):
    """A route that accepts uncompressed JSON, declared as JSON, and refuses every other body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            if request.method == "POST":
                _refuse_other(request)
            return await handle(_JsonRequest(request.scope, request.receive))

        return strictly


class _JsonRequest(Request):
    async def json(self) -> Any:
        """What the body says; FastAPI makes an error of the request of a JSONDecodeError."""
        return parsed(await self.body())


def parsed(body: bytes) -> Any:
    """The value in a body.

    Raises:
        json.JSONDecodeError: not JSON, or an object that has a key twice.
    """
    try:
        return json.loads(body, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise _error("not UTF-8") from None
    except RecursionError:
        raise _error("nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        # Python's limit on the digits of a number.
        raise _error("a number of too many digits") from None


def shown(name: str) -> str:
    """A key of a request, short and on one line."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise _error(f"an object of more than {MOST_KEYS} keys")
    by_name = dict(pairs)
    if len(by_name) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _error(f"the key {shown(name)} twice in one object")
            seen.add(name)
    return by_name


def _refuse_constant(name: str) -> Never:
    raise _error(f"{name} is no JSON")


def _error(text: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(text, "", 0)


def _refuse_other(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and "+json" in kind):
        given = shown(kind) if kind else "missing"
        raise HTTPException(415, f"Content-Type: application/json is needed, and it is {given}")
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise HTTPException(415, f"Content-Encoding: {shown(packed)} is not read: send it unpacked")
