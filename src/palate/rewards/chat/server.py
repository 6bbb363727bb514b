"""A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one) as a judge."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np

from palate.data.image_urls import ImageUrls, Wire, as_frames, small_image, url_part
from palate.data.images import ImageError
from palate.data.schema import Message, has_parts
from palate.recipes.scorers import ServerChat
from palate.rewards.chat.base import Reply
from palate.store.http import REFUSALS, HttpClient, Patience, brief

TOP = 20
"""Alternatives asked for at a place; the most that these servers give."""
SHORT_QUESTION = "Hello."
BLIND = "has images, and `chat.images` is not set: true asks a server whose model reads them"
WITHHELD = "withheld by the server's filter"


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


class Server:
    """Asks by POST {url}/chat/completions.

    How long it waits and what it tries again: see `HttpClient`. A question that the server refuses
    (400, 413, 422: too long for it, against its policy) although it answers a short one that is
    asked in the same way has no answer; it is logged once. Everything else is one clear error.

    Images stand among a question's texts as data URLs, in their places. A question with one that
    cannot be read has no answer.

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
        self._client = HttpClient(
            recipe,
            "chat/completions",
            key="chat.url",
            example="http://HOST:PORT/v1",
            transport=transport,
            sleep=sleep,
        )
        self.blind = None if recipe.images else BLIND
        self._images = ImageUrls()
        self._dialect = _Dialect()
        self._lock = threading.Lock()
        self._takes: dict[str, bool] = {}

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
            sent = self._sent(question)
            if isinstance(sent, str):
                return Reply(text="", finished=True, refused=sent)
            options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
            if temperature:
                options["seed"] = seed + sample
            choice = self._ask(sent, options)
            if isinstance(choice, str):
                return Reply(text="", finished=True, refused=choice)
            return self._reply(choice)

        jobs = [(question, sample) for question in questions for sample in range(samples)]
        replies = self._client.map(ask, jobs)
        return [replies[i : i + samples] for i in range(0, len(replies), samples)]

    def choose(
        self, questions: Sequence[list[Message]], options: Sequence[str]
    ) -> list[dict[str, float] | None]:
        """See `Chat.choose`: of options that are among the server's top alternatives.

        The answer begun is sent as an assistant's turn to be gone on with, which vLLM and SGLang
        do (`continue_final_message`). An option of several tokens is told by its first one, where
        no other option begins so; the probabilities of its spellings are added up.
        """

        def ask(question: list[Message]) -> dict[str, float] | None:
            sent = self._sent(question)
            if isinstance(sent, str):
                self._client.warn(f"a question is left without an answer: it {sent}")
                return None
            choice = self._ask(
                sent,
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

        return self._client.map(ask, list(questions))

    def _reply(self, choice: dict[str, Any]) -> Reply:
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else 0
        if isinstance(content, list):
            parts = [p.get("text") for p in content if isinstance(p, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(message, dict) or not isinstance(content, str | None):
            raise self._client.error(f"not a chat completion: {brief(json.dumps(choice))}")
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
            raise self._client.error("gives no log-probabilities: use `method: sampled`")
        if not places:
            return None  # it ended at once
        listed = places[0].get("top_logprobs") if isinstance(places[0], dict) else None
        if not listed:
            raise self._client.error(
                "gives no alternatives (`top_logprobs`): use `method: sampled`"
            )
        try:
            alternatives = [(str(item["token"]), float(item["logprob"])) for item in listed]
            if any(math.isnan(logp) for _, logp in alternatives):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            words = brief(json.dumps(listed))
            raise self._client.error(f"no log-probabilities: {words}") from None
        if max(alternatives, key=lambda item: item[1])[0].strip().startswith("<"):
            self._client.warn(
                "begins its answer anew instead of going on with it, and no verdict can be read "
                "there: use `method: sampled`"
            )
            return None
        logps: dict[str, float] = {}
        for token, logp in alternatives:
            start = token.strip().lower()
            meant = [option for option in options if start and option.startswith(start)]
            if len(meant) == 1 and logp > -math.inf:
                # Its spellings ("1", " 1") are tokens apart: it is said where any of them is.
                logps[meant[0]] = float(np.logaddexp(logps.get(meant[0], -math.inf), logp))
        return logps or None

    def _sent(self, question: list[Message]) -> list[Wire] | str:
        """The turns as they are sent; or why they are not."""
        if not has_parts(question):
            return [dict(turn) for turn in question]
        if self.blind is not None:
            return self.blind
        try:
            return [self._images.turn(turn) for turn in as_frames(question)]
        except ImageError as error:
            return f"has an image that cannot be sent: {error.reason}"

    def _ask(self, question: list[Wire], options: dict[str, Any]) -> dict[str, Any] | str:
        """The first choice; or why the server refuses this question, where it answers others."""
        patience = self._client.patience()
        answer = self._post(question, options, patience)
        if answer.status_code == 200:
            return self._choice(answer)
        problem = f"answers {answer.status_code}: {brief(answer.text)}"
        if answer.status_code in REFUSALS:
            if self._takes_others(question, options, patience):
                self._client.warn(
                    f"refuses a question, which is left without an answer: it {problem}"
                )
                return f"refused by the server ({answer.status_code})"
            if "continue_final_message" in options:
                problem += (
                    "; `method: logits` needs a server that goes on with a begun answer and gives "
                    "log-probabilities: else use `method: sampled`"
                )
            if _shows(question):
                problem += "; `chat.images: true` needs a server whose model reads images"
        raise self._client.error(problem)

    def _takes_others(
        self, question: list[Wire], options: dict[str, Any], patience: Patience
    ) -> bool:
        """Whether a short question is answered with the same options: then the fault is this
        question's, and none of the recipe's."""
        shows = _shows(question)
        told = {k: v for k, v in options.items() if k != "seed"}
        key = json.dumps([shows, told], sort_keys=True)
        begun = question[-1:] if question[-1]["role"] == "assistant" else []
        with self._lock:
            if key not in self._takes:
                content: Any = SHORT_QUESTION
                if shows:
                    content = [url_part(small_image()), {"type": "text", "text": content}]
                short = [{"role": "user", "content": content}, *begun]
                self._takes[key] = self._post(short, options, patience).status_code == 200
            return self._takes[key]

    def _post(
        self, question: list[Wire], options: dict[str, Any], patience: Patience
    ) -> httpx.Response:
        """The server's answer, asked in its own dialect once that is known."""
        dialect = self._dialect
        answer = self._send(question, dialect.body(options), patience)
        while answer.status_code in REFUSALS:
            next_dialect = dialect.after(answer.text, options)
            if next_dialect == dialect:
                return answer
            dialect = next_dialect
            answer = self._send(question, dialect.body(options), patience)
        if answer.status_code == 200:
            if self._dialect.seeds and not dialect.seeds:
                self._client.warn("takes no `seed`: what it samples cannot be drawn again")
            self._dialect = dialect
        return answer

    def _send(
        self, question: list[Wire], options: dict[str, Any], patience: Patience
    ) -> httpx.Response:
        # Escaped, so that half a surrogate pair, which UTF-8 does not have, can be sent.
        body = json.dumps({"model": self.recipe.model, "messages": question} | options)
        return self._client.post(body, patience)

    def _choice(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            choice = answer.json()["choices"][0]
            if not isinstance(choice, dict):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError):
            words = brief(answer.text)
            raise self._client.error(f"not a chat completion: {words}") from None
        return choice


def _shows(question: Sequence[Wire]) -> bool:
    """Whether there is an image in turns as they are sent."""
    return any(
        part["type"] == "image_url"
        for turn in question
        if not isinstance(turn["content"], str)
        for part in turn["content"]
    )


def _unicode(text: str) -> str:
    """The text without halves of surrogate pairs, which no file takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
