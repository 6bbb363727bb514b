"""A scorer behind a server: one of `palate serve`, or one that OpenRLHF's clients ask."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, model_validator

from palate.data.image_urls import ImageUrls, as_frames
from palate.data.images import ImageError
from palate.data.schema import Content, Message, Part, image_of, images_in, text_in
from palate.data.scorer import TEXT, TEXT_AND_IMAGES, Group, Score, Span, Traits
from palate.data.templates import ChatTemplate, Refused
from palate.recipes.schema import ModelRecipe
from palate.recipes.scorers import RemoteScorer as Recipe
from palate.rewards.names import name_of
from palate.rewards.texts import as_chat, prompt_text, response_text
from palate.store.http import REFUSALS, HttpClient, brief

NO_REASON = "the server gives no score, and no reason"
NOT_ASKED = "refused by the server"
BLIND = "has images, and `images` of the remote scorer is not set: true asks a server that sees"
UNSENT = "has an image that cannot be sent: {}"


class _Answer(BaseModel):
    """The answer to one request, as JSON; what else a server says beside it is its own affair."""

    model_config = ConfigDict(extra="ignore")


class _SpanAnswer(_Answer):
    start: int
    stop: int
    value: float
    unit: Literal["characters", "tokens"] = "characters"


class _GroupAnswer(_Answer):
    """Of the responses to one prompt, in order; every list has an entry for each."""

    scores: list[float | None]
    reasons: list[str | None] | None = None
    texts: list[str | None] | None = None
    members: dict[str, list[float | None]] = {}
    spans: list[list[_SpanAnswer]] | None = None

    @model_validator(mode="after")
    def _as_many(self) -> _GroupAnswer:
        given = (self.reasons, self.texts, self.spans, *self.members.values())
        if any(len(values) != len(self.scores) for values in given if values is not None):
            raise ValueError("lists of different lengths")
        return self


class _Scored(_Answer):
    items: list[_GroupAnswer]


class _Rewards(_Answer):
    rewards: list[float | list[float]]


@dataclass(frozen=True)
class _Part:
    """Responses to one prompt that are sent together.

    Attributes:
        number, places: where they stand in what was asked.
    """

    number: int
    places: Sequence[int]
    group: Group


class Remote:
    """Asks by POST {url}/score, or {url}/get_reward.

    How long it waits and what it tries again: see `HttpClient`. Responses that the server refuses
    (400, 413, 422) while it scores others have no score, and the server's words as the reason;
    where it has scored none so far, that is an error, as everything else is.

    Args:
        transport: for tests. sleep: likewise.

    Raises:
        ModelError: no key in the environment variable that the recipe names, or no web address.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.recipe = recipe
        self.name = name_of(recipe)
        # The server puts batches together by itself, from whatever all its clients ask.
        read = TEXT_AND_IMAGES if recipe.images else TEXT
        self.traits = Traits(
            relative=recipe.relative, independent=True, modalities=read, blind=BLIND
        )
        self._images = ImageUrls()
        self.counts: Counter[str] = Counter()
        self._client = HttpClient(
            recipe,
            recipe.route,
            key="url",
            example="http://HOST:PORT",
            transport=transport,
            sleep=sleep,
        )
        self._checked = False
        self._has_scored = False
        self._template = None if recipe.tokenizer is None else _template(recipe.tokenizer)

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """What the server answers.

        Raises:
            ServerError: it does not answer, answers something else, or refuses all; it compares
                responses, and the recipe does not say so.
        """
        if not groups:
            return []
        self._check()
        unsent = self._unsent(groups)
        requests = list(self._requests(groups, unsent))
        scores: dict[tuple[int, int], Score] = {
            (i, j): Score(None, reason)
            for i, reason in unsent.items()
            for j in range(len(groups[i].responses))
        }
        for parts, answered in zip(requests, self._client.map(self._ask, requests), strict=True):
            for part, of_part in zip(parts, answered, strict=True):
                keys = [(part.number, place) for place in part.places]
                scores.update(zip(keys, of_part, strict=True))
        refused = [score.reason for score in scores.values() if _is_refusal(score)]
        if refused and not self._has_scored:
            raise self._client.error(str(refused[0]))
        return [[scores[i, j] for j in range(len(g.responses))] for i, g in enumerate(groups)]

    def _check(self) -> None:
        """That a server of ours compares responses exactly where the recipe says so."""
        if self._checked or self.recipe.route != "score":
            return
        answer = self._client.get("info")
        try:
            relative = answer.json()["scorer"]["relative"] if answer.status_code == 200 else None
        except (ValueError, KeyError, TypeError):
            relative = None  # somebody else's server
        if relative is not None and relative is not self.recipe.relative:
            what = "compares responses with one another" if relative else "scores each by itself"
            raise self._client.error(f"{what}: set `relative: {str(relative).lower()}`")
        self._checked = True

    def _unsent(self, groups: Sequence[Group]) -> dict[int, str]:
        """Number of each group with an image that cannot be sent -> why."""
        unsent = {}
        for i, group in enumerate(groups):
            try:
                shown = [] if isinstance(group.prompt, str) else as_frames(group.prompt)
                for image in images_in(shown):
                    self._images.read(image)
            except ImageError as error:
                unsent[i] = UNSENT.format(error.reason)
        return unsent

    def _requests(self, groups: Sequence[Group], unsent: Collection[int]) -> Iterator[list[_Part]]:
        """Parts of groups that go into one request; what shows images goes alone."""
        most = self.recipe.request_responses
        request: list[_Part] = []
        for i, group in enumerate(groups):
            if i in unsent:
                continue
            if request and (images_in(group.prompt) or images_in(request[-1].group.prompt)):
                yield request
                request = []
            n = len(group.responses)
            size = max(1, n) if self.recipe.relative else most
            for start in range(0, n, size):
                places = range(start, min(start + size, n))
                if request and sum(len(p.places) for p in request) + len(places) > most:
                    yield request
                    request = []
                request.append(_Part(i, places, group.part(places)))
        if request:
            yield request

    def _ask(self, parts: Sequence[_Part]) -> list[list[Score]]:
        """Scores of one request; one that is refused is sent again part by part."""
        body, read = self._body(parts)
        if body.get("query") == []:  # the template takes none of them
            return read({"rewards": []})
        answer = self._client.post(json.dumps(body), self._client.patience())
        if answer.status_code == 200:
            self._has_scored = True
            try:
                return read(answer.json())
            except ValueError:
                words = brief(answer.text)
                raise self._client.error(f"not scores of what was asked: {words}") from None
        if answer.status_code not in REFUSALS:
            raise self._client.error(f"answers {answer.status_code}: {brief(answer.text)}")
        if len(parts) > 1:
            return [scores for part in parts for scores in self._ask([part])]
        (part,) = parts
        if len(part.places) > 1 and not self.recipe.relative:
            singles = [
                _Part(part.number, [0], part.group.part([k])) for k in range(len(part.places))
            ]
            return [[score for single in singles for (score,) in self._ask([single])]]
        reason = f"{NOT_ASKED} ({answer.status_code}): {_message(answer)}"
        return [[Score(None, reason)] * len(part.places)]

    def _body(
        self, parts: Sequence[_Part]
    ) -> tuple[dict[str, Any], Callable[[Any], list[list[Score]]]]:
        """What is sent for parts of groups, and what reads the answer."""
        sizes = [len(part.places) for part in parts]
        if self.recipe.route == "score":
            sent: dict[str, str] = {}
            items = [
                {
                    "prompt": self._shown(p.group.prompt, sent),
                    "responses": [*map(_plain, p.group.responses)],
                    **self._columns(p.group),
                }
                for p in parts
            ]
            images = {"images": sent} if sent else {}
            return {"items": items, **images}, lambda document: _scored(document, sizes)
        texts: list[tuple[str, str] | str] = [
            self._text(part.group.prompt, response)
            for part in parts
            for response in part.group.responses
        ]
        rendered = [text for text in texts if not isinstance(text, str)]
        body = {
            "query": [prompt + response for prompt, response in rendered],
            "prompts": [prompt for prompt, _ in rendered],
            "labels": [None] * len(rendered),
        }
        return body, lambda document: _rewarded(document, texts, sizes)

    def _columns(self, group: Group) -> dict[str, Any]:
        columns = {n: group.columns[n] for n in self.recipe.columns if n in group.columns}
        return {"columns": columns} if columns else {}

    def _shown(self, prompt: Content, sent: dict[str, str]) -> Any:
        """A prompt as JSON, its images named by their digests.

        Args:
            sent: takes digest -> data URL of each.
        """
        if isinstance(prompt, str) or not images_in(prompt):
            return _plain(prompt)

        def part_of(part: Part) -> dict[str, str]:
            if part["type"] == "text":
                return {"type": "text", "text": part["text"]}
            assert part["type"] == "image", "videos are frames here"
            digest, url = self._images.read(image_of(part))
            sent[digest] = url
            return {"type": "image", "image": f"sha256:{digest}"}

        return [
            turn
            if isinstance(turn["content"], str)
            else {"role": turn["role"], "content": list(map(part_of, turn["content"]))}
            for turn in as_frames(prompt)
        ]

    def _text(self, prompt: Content, response: Content) -> tuple[str, str] | str:
        """Prompt and response as they are sent for a whole conversation; or why they are not."""
        if self._template is None:
            return prompt_text(prompt), response_text(response)
        turns = _plain(response)
        if isinstance(turns, str):
            turns = [Message(role="assistant", content=turns)]
        try:
            rendered = self._template.render(as_chat(_plain(prompt)), [turns])
        except Refused as error:
            return error.reason
        return rendered.prompt, rendered.responses[0]


def _template(path: str) -> ChatTemplate:
    from palate.models.loading import load_tokenizer

    return ChatTemplate(load_tokenizer(ModelRecipe(path=path)), "model")


def _scored(document: Any, sizes: Sequence[int]) -> list[list[Score]]:
    """The answer of /score.

    Raises:
        ValueError: not scores of so many responses.
    """
    items = _Scored.model_validate(document).items
    if [len(item.scores) for item in items] != list(sizes):
        raise ValueError
    return [[_score(item, place) for place in range(len(item.scores))] for item in items]


def _rewarded(
    document: Any, texts: Sequence[tuple[str, str] | str], sizes: Sequence[int]
) -> list[list[Score]]:
    """The answer of /get_reward, of those texts that were sent.

    Raises:
        ValueError: not a number for each.
    """
    rewards = _Rewards.model_validate(document).rewards
    values = [value for r in rewards for value in (r if isinstance(r, list) else [r])]
    if len(values) != sum(not isinstance(text, str) for text in texts):
        raise ValueError
    left = iter(values)
    scores = iter([Score(None, t) if isinstance(t, str) else Score.of(next(left)) for t in texts])
    return [[next(scores) for _ in range(size)] for size in sizes]


def _score(item: _GroupAnswer, place: int) -> Score:
    value = item.scores[place]
    reason = None if item.reasons is None else item.reasons[place]
    parts = {
        name: Score(values[place])
        for name, values in item.members.items()
        if values[place] is not None
    }
    spans = [] if item.spans is None else item.spans[place]
    return Score(
        value,
        (reason or NO_REASON) if value is None else None,
        None if item.texts is None else item.texts[place],
        parts,
        tuple(Span(**span.model_dump()) for span in spans),
    )


def _is_refusal(score: Score) -> bool:
    return score.reason is not None and score.reason.startswith(NOT_ASKED)


def _message(answer: httpx.Response) -> str:
    """The server's words, without what they are wrapped in."""
    try:
        return brief(str(answer.json()["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return brief(answer.text)


def _plain(content: Content) -> Content:
    """A content as JSON: a text, or turns whose parts of text are one."""
    if isinstance(content, str):
        return content
    return [Message(role=turn["role"], content=text_in(turn["content"])) for turn in content]
