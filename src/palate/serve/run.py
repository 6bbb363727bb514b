"""The process of `palate serve`: a socket, a model, signals."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from palate.errors import PalateError, RecipeError, RunError
from palate.recipes.serving import ServeRecipe
from palate.rewards.build import make_scorer

if TYPE_CHECKING:
    from palate.serve.guard import App


def serve(recipe: ServeRecipe) -> None:
    """Serves a recipe's scorer until the process is told to stop (SIGINT, SIGTERM).

    Prints the address when it answers. When told to stop, it takes no new connection, answers what
    it has accepted, and returns.

    Raises:
        RecipeError: the variable of the token is not set.
        RunError: the address cannot be listened at.
        PalateError: the extra `serve` is missing, or the scorer cannot be loaded.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import transformers
        import uvicorn
    except ImportError:
        text = "serving needs fastapi, uvicorn and prometheus-client: pip install 'palate[serve]'"
        raise PalateError(text) from None
    from palate.serve.app import make_app
    from palate.serve.logs import log, log_lines

    token = token_of(recipe)
    # Lines of JSON go to stderr, and progress bars do not belong among them.
    transformers.utils.logging.disable_progress_bar()
    # Bound before the model is loaded, so that a port that is taken is said at once; it does not
    # listen yet, and nobody waits in vain.
    bound = bind(recipe)
    with bound:
        app: App = make_app(make_scorer(recipe.scorer, seed=recipe.seed), recipe, token)
        log_lines()
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=recipe.shutdown_seconds,
            server_header=False,
        )
        url = _url(bound)

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    log("listening", url=url)
                    print(url, flush=True)

        with _signals_are_no_errors():
            Server(config).run(sockets=[bound])
        log("stopped")


def token_of(recipe: ServeRecipe) -> str | None:
    """The bearer token of a recipe.

    Raises:
        RecipeError: its variable is not set.
    """
    if recipe.token_env is None:
        return None
    token = os.environ.get(recipe.token_env, "").strip()
    if not token:
        raise RecipeError(f"`token_env`: the environment variable {recipe.token_env} is not set")
    return token


def bind(recipe: ServeRecipe) -> socket.socket:
    """A socket at the recipe's address, not yet listening.

    Raises:
        RunError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(
            recipe.host, recipe.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot listen at {recipe.host}:{recipe.port}: {reason}") from None
    return bound


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _signals_are_no_errors() -> Iterator[None]:
    """uvicorn raises the signals that stopped it once more when it is done; being told to stop is
    how a server ends."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda *_: None) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
