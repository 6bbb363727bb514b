"""The routes of a server of scores.

/score and /rank are ours. /get_reward is what OpenRLHF's remote reward client asks. On
/v1/chat/completions the reward comes as a completion, as NVIDIA's NIM serves reward models: the
conversation ends with the answer to be scored, and the completion says `reward:<number>`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from palate.data.scorer import Group, Score, Scorer, part_values, values_by_part
from palate.recipes.serving import ServeRecipe
from palate.rewards.combined import Combined
from palate.rewards.identity import identities
from palate.rewards.judge import ALONE
from palate.rewards.members import MemberSums
from palate.rewards.mixture import NO_STATISTICS
from palate.rewards.names import name_of, short_name
from palate.rewards.rendered import reads_rendered, why_not_rendered
from palate.rewards.texts import as_chat
from palate.serve.batcher import Batcher, Groups, Rendered, Request
from palate.serve.bodies import JsonRoute
from palate.serve.errors import TooMany, handle_errors
from palate.serve.guard import App, Guard, error_body
from palate.serve.images import RequestImages
from palate.serve.messages import (
    ChatCompletion,
    GetReward,
    Item,
    ModelCard,
    ScoredPrompt,
    ScoreRequest,
    content,
    named_images,
)
from palate.serve.metrics import Metrics
from palate.store.names import unique_names
from palate.store.versions import __version__

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
_SEVERAL = "/rank or /score with several responses to one prompt"
"""What serves a scorer that compares."""


def make_app(scorer: Scorer, recipe: ServeRecipe, token: str | None = None) -> App:
    """The ASGI application that serves a scorer.

    Its work begins and ends with the ASGI lifespan; at the end what was accepted is answered.

    Args:
        token: that clients must send; None asks for none.
    """
    metrics = Metrics()
    private = token is not None or not recipe.is_loopback
    server = _Server(scorer, recipe, metrics, private=private)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        yield
        await server.batcher.stop()

    # No pages: they would load scripts from elsewhere.
    app = FastAPI(
        title="palate serve",
        version=__version__,
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
    handle_errors(app, private=private)
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

    def __init__(
        self, scorer: Scorer, recipe: ServeRecipe, metrics: Metrics, *, private: bool
    ) -> None:
        self.scorer = scorer
        self.recipe = recipe
        self.metrics = metrics
        self.name = name_of(recipe.scorer)
        self.relative = scorer.traits.relative
        self.rendered = reads_rendered(scorer)
        self.why_not_rendered = why_not_rendered(scorer)
        weights = identities(recipe.scorer)
        self.weights = _named(weights) if private else weights
        self.started = int(time.time())
        self.blind = None if "image" in scorer.traits.modalities else scorer.traits.blind
        self.images = RequestImages(recipe.images, self.blind)
        self.spread = MemberSums(scorer.numbers) if isinstance(scorer, Combined) else None
        self.batcher = Batcher(
            scorer,
            metrics,
            exact=recipe.exact,
            max_batch=recipe.max_batch_responses,
            max_wait=recipe.max_wait_ms / 1000,
            max_queue=recipe.max_queue_responses,
        )

    async def health(self) -> dict[str, Any] | Response:
        """Whether it answers; it does not where the scorer is at one call for too long."""
        busy, most = self.batcher.busy_seconds, self.recipe.timeout_seconds
        if busy <= most:
            return {"status": "ok"}
        text = f"the scorer has been at one call for {busy:.0f} s, longer than {most:g} s"
        body = {"status": "stuck", **error_body(text, "server_error", "scorer_stuck")}
        return JSONResponse(body, status_code=503)

    async def info(self) -> dict[str, Any]:
        """What is served, within what limits, and how wide the members of an ensemble have scored
        on /score and /rank."""
        recipe = self.recipe
        return {
            "palate": __version__,
            "scorer": {
                "name": self.name,
                "type": recipe.scorer.type,
                "weights": self.weights,
                "relative": self.relative,
                "reads_rendered": self.rendered,
                "reads_images": self.blind is None,
            },
            "members": None if self.spread is None else self.spread.described(),
            "exact": recipe.exact,
            "limits": {
                "max_batch_responses": recipe.max_batch_responses,
                "max_wait_ms": recipe.max_wait_ms,
                "max_queue_responses": recipe.max_queue_responses,
                "max_request_bytes": recipe.max_request_bytes,
                "max_request_responses": recipe.max_request_responses,
                "timeout_seconds": recipe.timeout_seconds,
                **self._image_limits(),
            },
        }

    def _image_limits(self) -> dict[str, Any]:
        if self.blind is not None:
            return {}
        limits = self.recipe.images
        return {
            "max_images": limits.max_images,
            "max_image_bytes": limits.max_bytes,
            "max_image_pixels": limits.max_pixels,
            "image_formats": list(limits.formats),
        }

    async def metrics_text(self) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        """As OpenAI lists models."""
        card = ModelCard(id=self.name, created=self.started)
        return {"object": "list", "data": [card.model_dump()]}

    async def score(self, body: ScoreRequest) -> dict[str, Any]:
        """Scores of responses, in the order given."""
        return _shaped(body, [_shown(scores) for scores in await self._groups(body)])

    async def rank(self, body: ScoreRequest) -> dict[str, Any]:
        """As `score`, with the places of the responses from best to worst."""
        return _shaped(
            body,
            [{"order": _order(scores), **_shown(scores)} for scores in await self._groups(body)],
        )

    async def get_reward(self, body: GetReward) -> dict[str, Any]:
        """OpenRLHF's shape: a number for every query, or an error that says which has none."""
        if self.why_not_rendered is not None:
            raise HTTPException(422, self.why_not_rendered)
        prompts = body.prompts or None
        if self.rendered:
            (scores,) = await self._work(Rendered(texts=body.query, prompts=prompts))
        else:
            scores = await self._split(body.query, prompts)
        rewards = []
        for place, score in enumerate(scores):
            if score.value is None:
                reason = score.reason
                if reason in (ALONE, NO_STATISTICS):
                    reason += f"; send several queries of one prompt, or use {_SEVERAL}"
                raise HTTPException(422, f"query.{place}: {reason}")
            rewards.append(score.value)
        answer: dict[str, Any] = {"rewards": rewards, "scores": rewards, "extra_logs": {}}
        if members := values_by_part(scores):
            answer["members"] = members
        return answer

    async def chat_completion(self, body: ChatCompletion) -> dict[str, Any]:
        """The reward of the last turn, as a completion."""
        if body.model != self.name:
            raise HTTPException(404, f"no model of that name: this is {self.name}")
        if self.relative:
            text = f"{self.name} compares responses, and a conversation has one: use {_SEVERAL}"
            raise HTTPException(422, text)
        named = list(named_images("messages", body.messages))
        scored = f"messages.{len(body.messages) - 1}."
        _refuse_images(at for at, _ in named if at.startswith(scored))
        images = await self.images.read(named, body.images)
        turns = [turn for m in body.messages for turn in as_chat(content([m], images))]
        ((score,),) = await self._work(Groups(groups=[Group(turns[:-1], (turns[-1:],))]))
        if score.value is None:
            raise HTTPException(422, str(score.reason))
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": f"reward:{score.value!r}"},
                    "logprobs": None,
                }
            ],
        }

    async def _groups(self, body: ScoreRequest) -> list[list[Score]]:
        alone = isinstance(body, ScoredPrompt)
        items: Sequence[Item] = [body] if isinstance(body, ScoredPrompt) else body.items
        named: list[tuple[str, str]] = []
        for i, item in enumerate(items):
            where = "" if alone else f"items.{i}."
            named += named_images(f"{where}prompt", item.prompt)
            for j, response in enumerate(item.responses):
                _refuse_images(at for at, _ in named_images(f"{where}responses.{j}", response))
        images = await self.images.read(named, body.images)
        scored = await self._work(
            Groups(
                groups=[
                    Group(
                        content(item.prompt, images),
                        tuple(content(response, images) for response in item.responses),
                        columns=item.columns,
                    )
                    for item in items
                ]
            )
        )
        if self.spread is not None:
            self.spread.add(
                [(i, part_values(score)) for i, scores in enumerate(scored) for score in scores]
            )
        return scored

    async def _split(self, queries: Sequence[str], prompts: Sequence[str] | None) -> list[Score]:
        """Of scorers that know no template: what follows the prompt is the response."""
        given = prompts or [""] * len(queries)
        groups: dict[str, list[int]] = {}
        for place, (query, prompt) in enumerate(zip(queries, given, strict=True)):
            if not query.startswith(prompt):
                raise HTTPException(422, f"query.{place}: does not begin with its prompt")
            # Judges that compare need all answers to a prompt at once.
            groups.setdefault(prompt, []).append(place)
        scored = await self._work(
            Groups(
                groups=[
                    Group(prompt, tuple(queries[place][len(prompt) :] for place in places))
                    for prompt, places in groups.items()
                ]
            )
        )
        by_place = {
            place: score
            for places, scores in zip(groups.values(), scored, strict=True)
            for place, score in zip(places, scores, strict=True)
        }
        return [by_place[place] for place in range(len(queries))]

    async def _work(self, work: Request) -> list[list[Score]]:
        if len(work) > self.recipe.max_request_responses:
            raise TooMany(
                f"{len(work)} responses in one request, and "
                f"{self.recipe.max_request_responses} are allowed"
            )
        return await self.batcher.submit(work)


def _refuse_images(places: Iterable[str]) -> None:
    for at in places:
        raise HTTPException(422, f"{at}: images are read in prompts, not in what is scored")


def _named(weights: Mapping[str, str]) -> dict[str, str]:
    """Identities of weights under the names of their models, without the folders they are in."""
    names = unique_names(
        Path(short_name(path)).name if Path(path).is_dir() else path for path in weights
    )
    return dict(zip(names, weights.values(), strict=True))


def _shown(scores: Sequence[Score]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "scores": [score.value for score in scores],
        "reasons": [score.reason for score in scores],
    }
    if any(score.text is not None for score in scores):
        shown["texts"] = [score.text for score in scores]
    if members := values_by_part(scores):
        shown["members"] = members
    if any(score.spans for score in scores):
        shown["spans"] = [[asdict(span) for span in score.spans] for score in scores]
    return shown


def _order(scores: Sequence[Score]) -> list[int]:
    """Best first, equal ones as given, those without a score last."""

    def key(place: int) -> tuple[bool, float]:
        value = scores[place].value
        return value is None, 0.0 if value is None else -value

    return sorted(range(len(scores)), key=key)


def _shaped(body: ScoreRequest, answers: list[dict[str, Any]]) -> dict[str, Any]:
    return answers[0] if isinstance(body, ScoredPrompt) else {"items": answers}
