"""vLLM's server.

Prompts go as token ids to /v1/completions, those with images as turns to /v1/chat/completions, and
token ids come back (`return_token_ids`). Weights are loaded anew by /collective_rpc
(`reload_weights`), which there is with VLLM_SERVER_DEV_MODE=1; adapters by /v1/load_lora_adapter,
with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora.
"""

from __future__ import annotations

import time
from typing import Any

from palate.models.generation.servers.kind import (
    Answer,
    Json,
    Wanted,
    control,
    no_ids,
    numbers,
    plain_sampling,
)
from palate.store.http import HttpClient, brief

TOKEN = "token_id:"
"""What vLLM writes before ids in the place of tokens."""
DEV_MODE = "start it with VLLM_SERVER_DEV_MODE=1"
LORA_MODE = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
_CACHE_TRIES, _CACHE_WAIT_SECONDS = 20, 0.25


class Vllm:
    """See `Kind`.

    Args:
        root: of the server, without /v1. version: as it says.
    """

    filters = True
    images = True
    raw_hint = "start vLLM with --logprobs-mode processed_logprobs"

    def __init__(self, client: HttpClient, root: str, version: str) -> None:
        self.name = f"vLLM {version}"
        self._client = client
        self._root = root
        self._labels = True

    def request(self, wanted: Wanted) -> tuple[str, Json]:
        """See `Kind`. All that a model's generation_config.json could set is sent."""
        sampling = wanted.sampling
        body: Json = {
            "model": wanted.adapter or wanted.model,
            "max_tokens": sampling.max_new_tokens,
            "min_tokens": sampling.min_new_tokens,
            "seed": wanted.seed,
            # Without it the served model's own stop tokens would end responses, too.
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **plain_sampling(wanted),
        }
        if wanted.turns is None:
            body |= {"prompt": list(wanted.ids), "logprobs": wanted.alternatives}
            return f"{self._client.base}/completions", body
        body |= {"messages": list(wanted.turns), "logprobs": True}
        return f"{self._client.base}/chat/completions", body

    def answer(self, body: Json) -> Answer:
        """See `Kind`."""
        try:
            choice = body["choices"][0]
            logprobs = choice.get("logprobs") or {}
            logps: Any
            tokens: Any
            if "content" in logprobs:
                logps = [place["logprob"] for place in logprobs["content"]]
                tokens = [place["token"] for place in logprobs["content"]]
            else:
                logps, tokens = logprobs.get("token_logprobs"), logprobs.get("tokens")
            ids = _ids(choice.get("token_ids"), tokens)
            if ids is None:
                raise no_ids(self._client)
            if logps is None:
                raise self._client.error("gives no log-probs")
            prompt = choice.get("prompt_token_ids") or body.get("prompt_token_ids")
            usage = body.get("usage") or {}
            first = next(iter(logprobs.get("top_logprobs") or ()), None)
            return Answer(
                ids=ids,
                logps=numbers(logps),
                finish=str(choice.get("finish_reason")),
                prompt_ids=None if prompt is None else tuple(map(int, prompt)),
                prompt_tokens=usage.get("prompt_tokens"),
                first=_by_id(first),
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._client.error(f"not a completion: {brief(str(body))}") from None

    def reload(self, folder: str, label: str) -> None:
        """See `Kind`."""
        call = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        url = f"{self._root}/collective_rpc"
        control(self._client, url, call, "load weights anew", DEV_MODE)
        self._forget()
        if self._labels:
            response = self._client.request(
                f"{self._root}/update_weight_version", f'{{"new_version": "{label}"}}'
            )
            self._labels = response.status_code == 200

    def _forget(self) -> None:
        """Empties the cache of prefixes, which the old weights made; others' requests may hold it
        a while."""
        url = f"{self._root}/reset_prefix_cache"
        for _ in range(_CACHE_TRIES):
            response = control(self._client, url, {}, "empty its cache of prefixes", DEV_MODE)
            # Older ones say nothing where they have done it.
            if response.get("success", True):
                return
            time.sleep(_CACHE_WAIT_SECONDS)
        raise self._client.error("does not empty its cache of prefixes: others' requests hold it")

    def load_adapter(self, name: str, folder: str) -> None:
        """See `Kind`."""
        body = {"lora_name": name, "lora_path": folder}
        url = f"{self._client.base}/load_lora_adapter"
        control(self._client, url, body, "load an adapter", LORA_MODE)

    def unload_adapter(self, name: str) -> None:
        """See `Kind`."""
        url = f"{self._client.base}/unload_lora_adapter"
        control(self._client, url, {"lora_name": name}, "unload an adapter", LORA_MODE)

    def weights(self) -> str | None:
        """See `Kind`. Servers older than this route do not tell."""
        if not self._labels:
            return None
        response = self._client.request(f"{self._root}/weight_info", None)
        if response.status_code != 200:
            self._labels = False
            return None
        label = response.json().get("weight_version")
        return None if label is None else str(label)


def _ids(given: Any, tokens: Any) -> tuple[int, ...] | None:
    if given is not None:
        return tuple(map(int, given))
    if not tokens or not all(str(token).startswith(TOKEN) for token in tokens):
        return None
    return tuple(int(token.removeprefix(TOKEN)) for token in tokens)


def _by_id(top: Any) -> dict[int, float] | None:
    if not isinstance(top, dict):
        return None
    named = {token: logp for token, logp in top.items() if str(token).startswith(TOKEN)}
    return {int(token.removeprefix(TOKEN)): float(logp) for token, logp in named.items()}
