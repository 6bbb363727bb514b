"""One server: what it is, whether it has the policy's weights, and how it is asked."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from palate.errors import ModelError
from palate.models.generation.servers.kind import Answer, Kind, Wanted, control
from palate.models.generation.servers.pool import AskAgain
from palate.models.generation.servers.sglang import Sglang
from palate.models.generation.servers.vllm import Vllm
from palate.recipes.rl_engines import ServerEngine as Recipe
from palate.recipes.scorers import ServerBase
from palate.store.http import HttpClient, ServerError, brief

NOT_A_NUMBER = "Out of range float values are not JSON compliant"
"""What vLLM says, with status 400 (0.32), in the place of an answer with a NaN in it."""

_CLOSE_SECONDS = 5.0


class NotNumbers(Exception):
    """A response without log-probs that are numbers."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a policy's weights are called and where they lie.

    Attributes:
        label: no other weights are called so.
    """

    label: str
    folder: Path


class Node:
    """A server of one model.

    Args:
        url: up to the version.

    Attributes:
        kind: what it is. model: name of the model there.
        context: tokens that prompt and response may have together; None where it does not tell.

    Raises:
        ModelError: it does not answer, is of no known kind, or has no such model.
    """

    def __init__(self, recipe: Recipe, url: str) -> None:
        self.recipe = recipe
        self.url = url
        self.model = recipe.model
        connection = ServerBase(
            url=url,
            api_key_env=recipe.api_key_env,
            timeout_seconds=recipe.timeout_seconds,
            retries=recipe.retries,
            concurrency=recipe.concurrency,
        )
        self._client = HttpClient(
            connection,
            "completions",
            key="rollout.engine.urls",
            example="http://HOST:PORT/v1",
        )
        self._label: str | None = None
        self._adapter: str | None = None
        self._breaks = 0
        self._lock = threading.Lock()
        try:
            self.kind = _kind(self._client)
            self.context = self._context()
        except BaseException:
            self._client.close()
            raise

    def ask(self, wanted: Wanted) -> Answer:
        """One response.

        Raises:
            AskAgain: none came, or the server failed.
            NotNumbers: it has log-probs that JSON does not have.
            ServerError: the server refuses, or answers something else.
        """
        url, body = self.kind.request(wanted)
        breaks = self._breaks
        attempt = self._client.attempt(url, json.dumps(body), self.recipe.timeout_seconds)
        if attempt.broken:
            # Whatever answers there next may have other weights, as may what answers others now.
            self._breaks += 1
            self._label = None
        answer = attempt.answer
        if answer is not None and answer.status_code >= 400 and NOT_A_NUMBER in answer.text:
            raise NotNumbers
        if attempt.problem is not None or answer is None:
            problem = f"{url}: {attempt.problem}"
            raise AskAgain(problem, broken=attempt.broken, wait=attempt.wait)
        lost = wanted.adapter is not None and wanted.adapter in answer.text
        if answer.status_code in (400, 404) and lost:
            self._label = None
            raise AskAgain(f"{url}: has lost adapter {wanted.adapter}", broken=True)
        if answer.status_code != 200:
            words = f"{answer.status_code}: {brief(answer.text)}"
            raise ServerError(f"{url}: refuses a prompt of {len(wanted.ids)} tokens: {words}")
        try:
            content = answer.json()
        except ValueError:
            raise ServerError(f"{url}: not JSON: {brief(answer.text)}") from None
        parsed = self.kind.answer(content)
        if parsed.finish == "abort":
            raise AskAgain(f"{url}: broke a response off", broken=True)
        if self._breaks != breaks:
            raise AskAgain(f"{url}: was lost meanwhile", broken=True)
        return parsed

    def make_ready(self, weights: Weights) -> None:
        """Sees to it that it has these weights.

        Raises:
            AskAgain: it cannot be reached. ServerError: it does not load them.
        """
        with self._lock:
            if self._label == weights.label:
                return
            try:
                self._load(weights)
            except ServerError as error:
                raise AskAgain(str(error), broken=True) from error

    def _load(self, weights: Weights) -> None:
        folder = str(weights.folder)
        if self.recipe.sync == "reload":
            self.kind.reload(folder, weights.label)
        else:
            old, self._adapter = self._adapter, weights.label
            if old == weights.label:
                # It may have kept what it is given again.
                self._unload(old)
            self.kind.load_adapter(weights.label, folder)
            if old is not None and old != weights.label:
                self._unload(old)
        self._label = weights.label

    def _unload(self, name: str) -> None:
        """Unloads an adapter; one that was started anew has it no more."""
        with suppress(ServerError):
            self.kind.unload_adapter(name)

    def check_weights(self) -> None:
        """Finds out, where the server tells, whether it was started anew or given other weights by
        others since it was last asked; then it is given the policy's anew before it is asked."""
        if self.recipe.sync == "reload" and self._label is not None:
            try:
                label = self.kind.weights()
            except ServerError:
                label = ""
            if label is not None and label != self._label:
                self._label = None

    def wrote(self, answer: Answer, weights: Weights) -> bool:
        """Whether these weights wrote this, as far as the server tells."""
        if self.recipe.sync != "reload" or answer.weights in (None, weights.label):
            return True
        self._label = None
        return False

    def close(self) -> None:
        """Ends its connections; its adapter is unloaded where it still answers."""
        if self._adapter is not None and self._label is not None:
            url = f"{self._client.base}/models"
            if self._client.attempt(url, None, _CLOSE_SECONDS).problem is None:
                self._unload(self._adapter)
        self._client.close()

    def _context(self) -> int | None:
        listing = control(self._client, f"{self._client.base}/models", None, "list its models")
        try:
            models = {str(item["id"]): item for item in listing["data"]}
        except (KeyError, TypeError):
            raise self._client.error("lists no models at /models") from None
        if self.model not in models:
            names = ", ".join(sorted(models)[:5]) or "none"
            raise ModelError(f"{self.url}: has no model {self.model!r} (it has: {names})")
        length = models[self.model].get("max_model_len")
        return None if length is None else int(length)


def _kind(client: HttpClient) -> Kind:
    """What a server is, by the routes that it has.

    Raises:
        ModelError: it does not answer, or is something else.
    """
    root = client.base.removesuffix("/v1")
    if (version := _version(client, f"{root}/version")) is not None:
        return Vllm(client, root, version)
    for route in ("server_info", "get_server_info"):
        if (version := _version(client, f"{root}/{route}")) is not None:
            return Sglang(client, root, version)
    raise client.error(
        "is neither vLLM (/version) nor SGLang (/server_info): of others it is not known how token "
        "ids come back and new weights go in"
    )


def _version(client: HttpClient, url: str) -> str | None:
    response = client.request(url, None)
    if response.status_code != 200:
        return None
    try:
        content = response.json()
    except ValueError:
        return None
    version = content.get("version") if isinstance(content, dict) else None
    return None if version is None else str(version)
