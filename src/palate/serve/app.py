"""The routes of a server of scores.

/score and /rank are ours. /get_reward is what OpenRLHF's remote reward client asks. On
/v1/chat/completions the reward comes as a completion, as NVIDIA's NIM serves reward models: the
conversation ends with the answer to be scored, and the completion says `reward:<number>`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import palate
from palate.errors import PalateError
from palate.evaluate.reward.library import identities, name_of
from palate.recipes.scorers import Chat, EnsembleScorer, ServerChat
from palate.recipes.scorers import Scorer as ScorerRecipe
from palate.recipes.serving import ServeRecipe
from palate.rewards.base import Scorer, is_relative
from palate.rewards.rendered import reads_rendered
from palate.rewards.rows import Outcome, members_of
from palate.serve.batcher import Batcher, Groups, QueueFull, Rendered, Stopping, Work
from palate.serve.bodies import JsonRoute
from palate.serve.guard import REQUEST_ID, App, Guard, error_body
from palate.serve.logs import log
from palate.serve.messages import (
    Asked,
    ChatCompletion,
    GetReward,
    Item,
    ModelCard,
    content,
    problem,
)
from palate.serve.metrics import Metrics

ROUTES = frozenset(
    (
        "/health",
        "/info",
        "/metrics",
        "/score",
        "/rank",
        "/get_reward",
        "/v1/models",
        "/v1/chat/completions",
    )
)


_KIND = "invalid_request_error"


class TooMany(Exception):
    """More responses in one request than are allowed."""


def make_app(scorer: Scorer, recipe: ServeRecipe, token: str | None = None) -> App:
    """The ASGI application that serves a scorer.

    Its work begins and ends with the ASGI lifespan; at the end what was accepted is answered.

    Args:
        token: that clients must send; None asks for none.
    """
    metrics = Metrics()
    server = _Server(scorer, recipe, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        yield
        await server.batcher.stop()

    # No pages: they would load scripts from elsewhere.
    app = FastAPI(
        title="palate serve",
        version=palate.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = JsonRoute
    routes: list[tuple[str, str, Any]] = [
        ("GET", "/health", server.health),
        ("GET", "/info", server.info),
        ("GET", "/metrics", server.metrics_text),
        ("GET", "/v1/models", server.models),
        ("POST", "/score", server.score),
        ("POST", "/rank", server.rank),
        ("POST", "/get_reward", server.get_reward),
        ("POST", "/v1/chat/completions", server.chat_completion),
    ]
    assert {path for _, path, _ in routes} == ROUTES
    for method, path, function in routes:
        # Load balancers ask by HEAD.
        methods = ["GET", "HEAD"] if method == "GET" else [method]
        app.add_api_route(path, function, methods=methods, response_model=None)
    # What a scorer here cannot score is the request's fault; a judge's server may be down.
    remote = any(isinstance(one, ServerChat) for one in chats_in(recipe.scorer))
    _handle_errors(app, unfit=502 if remote else 422)
    return Guard(
        app,
        metrics=metrics,
        token=token,
        routes=ROUTES,
        max_bytes=recipe.max_request_bytes,
        timeout=recipe.timeout_seconds,
    )


class _Server:
    """What the routes share."""

    def __init__(self, scorer: Scorer, recipe: ServeRecipe, metrics: Metrics) -> None:
        self.scorer = scorer
        self.recipe = recipe
        self.metrics = metrics
        self.name = name_of(recipe.scorer)
        self.relative = is_relative(scorer)
        self.rendered = reads_rendered(scorer)
        self.weights = identities(recipe.scorer)
        self.started = int(time.time())
        self.batcher = Batcher(
            scorer,
            metrics,
            exact=recipe.exact,
            max_batch=recipe.max_batch_responses,
            max_wait=recipe.max_wait_ms / 1000,
            max_queue=recipe.max_queue_responses,
        )

    async def health(self) -> dict[str, Any]:
        """Whether it answers."""
        return {"status": "ok"}

    async def info(self) -> dict[str, Any]:
        """What is served, and within what limits."""
        recipe = self.recipe
        return {
            "palate": palate.__version__,
            "scorer": {
                "name": self.name,
                "type": recipe.scorer.type,
                "weights": self.weights,
                "relative": self.relative,
                "reads_rendered": self.rendered,
            },
            "exact": recipe.exact,
            "limits": {
                "max_batch_responses": recipe.max_batch_responses,
                "max_wait_ms": recipe.max_wait_ms,
                "max_queue_responses": recipe.max_queue_responses,
                "max_request_bytes": recipe.max_request_bytes,
                "max_request_responses": recipe.max_request_responses,
                "timeout_seconds": recipe.timeout_seconds,
            },
        }

    async def metrics_text(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        """As OpenAI lists models."""
        card = ModelCard(id=self.name, created=self.started)
        return {"object": "list", "data": [card.model_dump()]}

    async def score(self, body: Asked) -> dict[str, Any]:
        """Scores of responses, in the order given."""
        return _shaped(body, [_scores(own) for own in await self._groups(body)])

    async def rank(self, body: Asked) -> dict[str, Any]:
        """As `score`, with the places of the responses from best to worst."""
        return _shaped(
            body,
            [{"order": _order(own), **_scores(own)} for own in await self._groups(body)],
        )

    async def get_reward(self, body: GetReward) -> dict[str, Any]:
        """OpenRLHF's shape: a number for every query, or an error that says which has none."""
        prompts = body.prompts or None
        if self.rendered:
            (outcomes,) = await self._work(Rendered(texts=body.query, prompts=prompts))
        else:
            outcomes = await self._split(body.query, prompts)
        rewards = []
        for place, outcome in enumerate(outcomes):
            if outcome.score is None:
                raise HTTPException(422, f"query.{place}: {outcome.reason}")
            rewards.append(outcome.score)
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    async def chat_completion(self, body: ChatCompletion) -> dict[str, Any]:
        """The reward of the last turn, as a completion."""
        if body.model != self.name:
            raise HTTPException(404, f"no model of that name: this is {self.name}")
        turns = [content([turn])[0] for turn in body.messages]
        work = Groups(prompts=[turns[:-1]], responses=[[turns[-1:]]])  # type: ignore[list-item]
        ((outcome,),) = await self._work(work)
        if outcome.score is None:
            raise HTTPException(422, str(outcome.reason))
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": f"reward:{outcome.score!r}"},
                    "logprobs": None,
                }
            ],
        }

    async def _groups(self, body: Asked) -> list[list[Outcome]]:
        items = [body] if isinstance(body, Item) else body.items
        return await self._work(
            Groups(
                prompts=[content(item.prompt) for item in items],
                responses=[[content(r) for r in item.responses] for item in items],
            )
        )

    async def _split(self, queries: Sequence[str], prompts: Sequence[str] | None) -> list[Outcome]:
        """Of scorers that know no template: what follows the prompt is the response."""
        given = prompts or [""] * len(queries)
        groups: dict[str, list[int]] = {}
        for place, (query, prompt) in enumerate(zip(queries, given, strict=True)):
            if not query.startswith(prompt):
                raise HTTPException(422, f"query.{place}: does not begin with its prompt")
            # Judges that compare need all answers to a prompt at once.
            groups.setdefault(prompt, []).append(place)
        found = await self._work(
            Groups(
                prompts=list(groups),
                responses=[[queries[k][len(p) :] for k in own] for p, own in groups.items()],
            )
        )
        outcomes = dict(
            pair
            for own, scored in zip(groups.values(), found, strict=True)
            for pair in zip(own, scored, strict=True)
        )
        return [outcomes[place] for place in range(len(queries))]

    async def _work(self, work: Work) -> list[list[Outcome]]:
        if len(work) > self.recipe.max_request_responses:
            raise TooMany(
                f"{len(work)} responses in one request, and "
                f"{self.recipe.max_request_responses} are allowed"
            )
        return await self.batcher.submit(work)


def chats_in(recipe: ScorerRecipe) -> list[Chat]:
    """The language models that a scorer asks."""
    members = [m.scorer for m in recipe.members] if isinstance(recipe, EnsembleScorer) else [recipe]
    return [member.chat for member in members if hasattr(member, "chat")]


def _scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scores": [o.score for o in outcomes],
        "reasons": [o.reason for o in outcomes],
    }
    if any(o.text is not None for o in outcomes):
        found["texts"] = [o.text for o in outcomes]
    if members := members_of(outcomes):
        found["members"] = members
    return found


def _order(outcomes: Sequence[Outcome]) -> list[int]:
    """Best first, equal ones as given, those without a score last."""

    def key(place: int) -> tuple[bool, float]:
        score = outcomes[place].score
        return score is None, 0.0 if score is None else -score

    return sorted(range(len(outcomes)), key=key)


def _shaped(body: Asked, found: list[dict[str, Any]]) -> dict[str, Any]:
    return found[0] if isinstance(body, Item) else {"items": found}


def _handle_errors(app: FastAPI, *, unfit: int) -> None:
    """Every error in one shape, with a status that says whose it is.

    Args:
        unfit: of what the scorer refuses.
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

    @app.exception_handler(PalateError)
    async def _unfit(request: Request, error: PalateError) -> Response:
        # Of a scorer here the words may be the request's own, and those are not for logs.
        words = str(error) if unfit == 502 else type(error).__name__
        log("unscorable", logging.WARNING, id=request.scope[REQUEST_ID], reason=words)
        return answer(unfit, str(error), "server_error" if unfit == 502 else _KIND)
