"""A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one) as a judge."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np

from palate.data.schema import Message
from palate.errors import ModelError
from palate.recipes.scorers import ServerChat
from palate.rewards.chat.base import Reply

TOP = 20
"""Alternatives asked for at a place; the most that these servers give."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
REFUSALS = (400, 413, 422)
"""Statuses of a request that the server will not take, however often it is sent."""
SHORT_QUESTION = "Hello."
WITHHELD = "withheld by the server's filter"
_TIME = "`timeout_seconds` x (`retries` + 1)"
"""What one question may wait in all."""

log = logging.getLogger("palate")


@dataclass(frozen=True, kw_only=True)
class _Dialect:
    """What a server calls the limit of tokens, and whether it takes a seed."""

    limit: str = "max_tokens"
    seeds: bool = True

    def body(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options as this server takes them."""
        named = {self.limit if key == "max_tokens" else key: v for key, v in options.items()}
        return named if self.seeds else {k: v for k, v in named.items() if k != "seed"}

    def after(self, refusal: str, options: dict[str, Any]) -> _Dialect:
        """What to try next where a server refuses with these words."""
        if self.limit == "max_tokens" and "max_completion_tokens" in refusal:
            return replace(self, limit="max_completion_tokens")
        if self.seeds and "seed" in options and re.search(r"\bseed\b", refusal):
            return replace(self, seeds=False)
        return self


@dataclass
class _Patience:
    """What is left of the time that one question may take, retries and waits included, seconds."""

    left: float


class Server:
    """Asks by POST {url}/chat/completions.

    Refused connections, timeouts and answers of 429 or 5xx are tried again, waiting twice as long
    each time or as long as Retry-After says. One question waits `timeout_seconds` x (`retries` + 1)
    in all and no longer: where Retry-After asks for more than is left of that, it fails at once. A
    question that the server refuses (400, 413, 422: too long for it, against its policy) although
    it answers a short one that is asked in the same way has no answer; it is logged once.
    Everything else is one clear error.

    Args:
        transport: for tests. sleep: likewise.

    Raises:
        ModelError: no key in the environment variable that the recipe names, or no web address.
    """

    def __init__(
        self,
        recipe: ServerChat,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.recipe = recipe
        self.name = recipe.model.rpartition("/")[2] or recipe.model
        self._url = f"{_address(recipe.url)}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if recipe.api_key_env is not None:
            key = os.environ.get(recipe.api_key_env)
            if not key:
                raise ModelError(
                    f"{recipe.url}: the environment variable {recipe.api_key_env} holds no key"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            transport=transport,
            limits=httpx.Limits(max_connections=recipe.concurrency),
        )
        self._sleep = sleep
        self._dialect = _Dialect()
        self._lock = threading.Lock()
        self._takes: dict[str, bool] = {}
        self._told: set[str] = set()

    def reply(
        self,
        questions: Sequence[list[Message]],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> list[list[Reply]]:
        """See `Chat.reply`. One request a sample, each with a seed of its own where one is drawn.

        A server that takes no seed is asked without one, which is logged.
        """

        def ask(job: tuple[list[Message], int]) -> Reply:
            question, sample = job
            options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
            if temperature:
                options["seed"] = seed + sample
            choice = self._ask(question, options)
            if isinstance(choice, str):
                return Reply(text="", finished=True, refused=choice)
            return self._reply(choice)

        jobs = [(question, sample) for question in questions for sample in range(samples)]
        found = self._all(ask, jobs)
        return [found[i : i + samples] for i in range(0, len(found), samples)]

    def choose(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        """See `Chat.choose`: of options that are among the server's top alternatives.

        The answer begun is sent as an assistant's turn to be gone on with, which vLLM and SGLang
        do (`continue_final_message`). An option of several tokens is told by its first one, where
        no other option begins so; the probabilities of its spellings are added up.
        """

        def ask(question: list[Message]) -> dict[str, float] | None:
            choice = self._ask(
                question,
                {
                    "temperature": 0.0,
                    "max_tokens": 1,
                    "logprobs": True,
                    "top_logprobs": TOP,
                    "add_generation_prompt": False,
                    "continue_final_message": True,
                },
            )
            return None if isinstance(choice, str) else self._chosen(choice, options)

        return self._all(ask, list(questions))

    def _reply(self, choice: dict[str, Any]) -> Reply:
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else 0
        if isinstance(content, list):
            parts = [p.get("text") for p in content if isinstance(p, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(message, dict) or not isinstance(content, str | None):
            raise ModelError(f"{self._url}: not a chat completion: {_brief(json.dumps(choice))}")
        reason = choice.get("finish_reason")
        if reason == "content_filter":
            return Reply(text="", finished=True, refused=WITHHELD)
        thoughts = [message.get(key) for key in ("reasoning_content", "reasoning")]
        thought = next((t for t in thoughts if isinstance(t, str) and t.strip()), "")
        return Reply(
            text=_unicode(content or ""),
            finished=reason != "length",
            thought=_unicode(thought.strip()),
        )

    def _chosen(self, choice: dict[str, Any], options: Sequence[str]) -> dict[str, float] | None:
        logprobs = choice.get("logprobs")
        places = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not isinstance(places, list):
            raise ModelError(f"{self._url}: gives no log-probabilities: use `method: sampled`")
        if not places:
            return None  # it ended at once
        listed = places[0].get("top_logprobs") if isinstance(places[0], dict) else None
        if not listed:
            raise ModelError(
                f"{self._url}: gives no alternatives (`top_logprobs`): use `method: sampled`"
            )
        try:
            found = [(str(item["token"]), float(item["logprob"])) for item in listed]
            if any(math.isnan(logp) for _, logp in found):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            brief = _brief(json.dumps(listed))
            raise ModelError(f"{self._url}: no log-probabilities: {brief}") from None
        if max(found, key=lambda item: item[1])[0].strip().startswith("<"):
            self._tell(
                "begins its answer anew instead of going on with it, and no verdict can be read "
                "there: use `method: sampled`"
            )
            return None
        said: dict[str, float] = {}
        for token, logp in found:
            start = token.strip().lower()
            meant = [option for option in options if start and option.startswith(start)]
            if len(meant) == 1 and logp > -math.inf:
                # Its spellings ("1", " 1") are tokens apart: it is said where any of them is.
                said[meant[0]] = float(np.logaddexp(said.get(meant[0], -math.inf), logp))
        return said or None

    def _all(self, ask: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(max_workers=self.recipe.concurrency) as pool:
            return list(pool.map(ask, jobs))

    def _ask(self, question: list[Message], options: dict[str, Any]) -> dict[str, Any] | str:
        """The first choice; or why the server refuses this question, where it answers others."""
        patience = _Patience(self.recipe.timeout_seconds * (self.recipe.retries + 1))
        answer = self._post(question, options, patience)
        if answer.status_code == 200:
            return self._choice(answer)
        problem = f"answers {answer.status_code}: {_brief(answer.text)}"
        if answer.status_code in REFUSALS:
            if self._takes_others(question, options, patience):
                self._tell(f"refuses a question, which is left without an answer: it {problem}")
                return f"refused by the server ({answer.status_code})"
            if "continue_final_message" in options:
                problem += (
                    "; `method: logits` needs a server that goes on with a begun answer and gives "
                    "log-probabilities: else use `method: sampled`"
                )
        raise ModelError(f"{self._url}: {problem}")

    def _takes_others(
        self, question: list[Message], options: dict[str, Any], patience: _Patience
    ) -> bool:
        """Whether a short question is answered with the same options: then the fault is this
        question's, and none of the recipe's."""
        key = json.dumps({k: v for k, v in options.items() if k != "seed"}, sort_keys=True)
        begun = question[-1:] if question[-1]["role"] == "assistant" else []
        with self._lock:
            if key not in self._takes:
                short = [Message(role="user", content=SHORT_QUESTION), *begun]
                self._takes[key] = self._post(short, options, patience).status_code == 200
            return self._takes[key]

    def _post(
        self, question: list[Message], options: dict[str, Any], patience: _Patience
    ) -> httpx.Response:
        """The server's answer, asked in its own dialect once that is known."""
        dialect = self._dialect
        answer = self._send(question, dialect.body(options), patience)
        while answer.status_code in REFUSALS:
            other = dialect.after(answer.text, options)
            if other == dialect:
                return answer
            dialect = other
            answer = self._send(question, dialect.body(options), patience)
        if answer.status_code == 200:
            if self._dialect.seeds and not dialect.seeds:
                self._tell("takes no `seed`: what it samples cannot be drawn again")
            self._dialect = dialect
        return answer

    def _send(
        self, question: list[Message], options: dict[str, Any], patience: _Patience
    ) -> httpx.Response:
        # Escaped, so that half a surrogate pair, which UTF-8 does not have, can be sent.
        body = json.dumps({"model": self.recipe.model, "messages": question} | options)
        wait = FIRST_WAIT_SECONDS
        for attempt in range(self.recipe.retries + 1):
            answer, problem = self._attempt(body, patience)
            if answer is not None and problem is None:
                return answer
            if attempt == self.recipe.retries:
                break
            asked = None if answer is None else _retry_after(answer)
            # Of its own accord it waits no longer than leaves time for the next attempt.
            pause = min(wait, max(0.0, patience.left) / 2) if asked is None else asked
            if pause >= patience.left:
                if asked is not None:
                    problem = (
                        f"{problem}; it asks for a wait of {asked:.0f} s (Retry-After), and "
                        f"{max(0.0, patience.left):.0f} s are left of {_TIME}"
                    )
                break
            self._sleep(pause)
            patience.left -= pause
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        raise ModelError(f"{self._url}: {problem}")

    def _attempt(self, body: str, patience: _Patience) -> tuple[httpx.Response | None, str | None]:
        """The answer, where there is one, and what is wrong with it, where something is."""
        limit = min(self.recipe.timeout_seconds, patience.left)
        if limit <= 0:
            return None, f"no time is left for an answer ({_TIME})"
        began = time.monotonic()
        try:
            answer = self._read(body, began, limit)
        except httpx.TimeoutException:
            whole = limit == self.recipe.timeout_seconds
            name = "`timeout_seconds`" if whole else f"what was left of {_TIME}"
            return None, f"no answer within {limit:.3g} s ({name})"
        except httpx.RequestError as error:
            return None, f"no answer ({type(error).__name__})"
        finally:
            patience.left -= time.monotonic() - began
        if answer.status_code == 429 or answer.status_code >= 500:
            return answer, f"answers {answer.status_code}: {_brief(answer.text)}"
        return answer, None

    def _read(self, body: str, began: float, limit: float) -> httpx.Response:
        """The whole answer. The client's own limit is of every piece of it."""
        with self._client.stream("POST", self._url, content=body, timeout=limit) as answer:
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if time.monotonic() - began > limit:
                    raise httpx.ReadTimeout("", request=answer.request)
        # Its content is decoded.
        headers = {k: v for k, v in answer.headers.items() if k in ("content-type", "retry-after")}
        return httpx.Response(answer.status_code, headers=headers, content=bytes(content))

    def _choice(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            choice = answer.json()["choices"][0]
            if not isinstance(choice, dict):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError):
            brief = _brief(answer.text)
            raise ModelError(f"{self._url}: not a chat completion: {brief}") from None
        return choice

    def _tell(self, text: str) -> None:
        """Logs a thing once of its kind."""
        kind = text.partition(":")[0]
        if kind not in self._told:
            self._told.add(kind)
            log.warning("%s: %s", self._url, text)


def _address(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        fits = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx.InvalidURL:
        fits = False
    if not fits:
        raise ModelError(f"`chat.url`: {url} is no address: write http://HOST:PORT/v1")
    return url.rstrip("/")


def _brief(text: str) -> str:
    return " ".join(text.split())[:200]


def _unicode(text: str) -> str:
    """The text without halves of surrogate pairs, which no file takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds to wait: Retry-After holds them, or a date."""
    given = answer.headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return seconds if seconds > 0 else None
