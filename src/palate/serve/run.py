"""The process of `palate serve`: a socket, a model, signals."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from palate.errors import PalateError, RecipeError, RunError
from palate.recipes.serving import ServeRecipe
from palate.rewards.build import make_scorer

if TYPE_CHECKING:
    from palate.serve.guard import App


def serve(recipe: ServeRecipe) -> None:
    """Serves a recipe's scorer until the process is told to stop (SIGINT, SIGTERM).

    Prints the address when it answers. When told to stop, it takes no new connection, answers what
    it has accepted, and returns; where the scorer still works on requests that were given up, it
    ends the process.

    Raises:
        RecipeError: the variable of the token is not set, or `images.root` is no folder.
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
    from palate.serve.batcher import THREAD
    from palate.serve.logs import log, log_lines
    from palate.serve.protocol import protocol

    token = token_of(recipe)
    check_folders(recipe)
    # Lines of JSON go to stderr, and progress bars do not belong among them.
    transformers.utils.logging.disable_progress_bar()
    # Bound before the model is loaded, so that a port that is taken is said at once; it does not
    # listen yet, so that no client connects before the model is there.
    bound = bind(recipe)
    with bound:
        app: App = make_app(make_scorer(recipe.scorer, seed=recipe.seed), recipe, token)
        log_lines()
        config = uvicorn.Config(
            app,
            http=protocol(recipe.timeout_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=recipe.shutdown_seconds,
            server_header=False,
        )
        url = _url(bound)

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                try:
                    await super().startup(sockets)
                except OSError as error:
                    raise _unheard(recipe, error) from None
                if self.started:
                    log("listening", url=url)
                    print(url, flush=True)

        server = Server(config)
        with _signals_stop(server):
            server.run(sockets=[bound])
        log("stopped")
    if any(thread.name.startswith(THREAD) for thread in threading.enumerate()):
        # A thread cannot be ended, and the interpreter would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


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


def check_folders(recipe: ServeRecipe) -> None:
    """
    Raises:
        RecipeError: the folder of images is none.
    """
    root = recipe.images.root
    if root is not None and not root.is_dir():
        raise RecipeError(f"`images.root`: {root} is no folder")


def bind(recipe: ServeRecipe) -> socket.socket:
    """A socket at the recipe's address, not yet listening.

    Raises:
        RunError: the address cannot be had.
    """
    try:
        addresses = socket.getaddrinfo(
            recipe.host, recipe.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise _unheard(recipe, error) from None
    # A name may stand for an address that this machine does not have, such as IPv6's loopback.
    for family, kind, number, _, address in addresses:
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            return bound
        except OSError as error:
            bound.close()
            problem = error
    raise _unheard(recipe, problem)


def _unheard(recipe: ServeRecipe, error: Exception) -> RunError:
    reason = getattr(error, "strerror", None) or str(error)
    return RunError(f"cannot listen at {recipe.host}:{recipe.port}: {reason}")


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _signals_stop(server: Any) -> Iterator[None]:
    """uvicorn handles signals only while it runs, and raises those that stopped it once more when
    it is done; being told to stop is how a server ends."""

    def stop(*_: object) -> None:
        server.should_exit = True

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, stop) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
