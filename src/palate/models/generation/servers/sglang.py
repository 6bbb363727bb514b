"""SGLang's server.

Prompts go as token ids to its own route, /generate, whose log-probs name the tokens that they are
of. Weights are loaded anew by /update_weights_from_disk, adapters by /load_lora_adapter. Its
log-probs are of the distribution after the temperature, but before top-p and top-k; its samples
depend on their seeds with --enable-deterministic-inference alone.
"""

from __future__ import annotations

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


class Sglang:
    """See `Kind`.

    Args:
        root: of the server, without /v1. version: as it says.
    """

    filters = False
    images = False
    raw_hint = "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB"

    def __init__(self, client: HttpClient, root: str, version: str) -> None:
        self.name = f"SGLang {version}"
        self._client = client
        self._root = root

    def request(self, wanted: Wanted) -> tuple[str, Json]:
        """See `Kind`."""
        sampling = wanted.sampling
        params: Json = {
            "max_new_tokens": sampling.max_new_tokens,
            "min_new_tokens": sampling.min_new_tokens,
            "sampling_seed": wanted.seed,
            **plain_sampling(wanted),
        }
        body: Json = {
            "input_ids": list(wanted.ids),
            "sampling_params": params,
            "return_logprob": True,
            "top_logprobs_num": wanted.alternatives,
        }
        if wanted.adapter is not None:
            body["lora_path"] = wanted.adapter
        return f"{self._root}/generate", body

    def answer(self, body: Json) -> Answer:
        """See `Kind`."""
        try:
            meta = body["meta_info"]
            places = meta.get("output_token_logprobs")
            if places is None:
                raise no_ids(self._client)
            finish = meta["finish_reason"]
            top = next(iter(meta.get("output_top_logprobs") or ()), None)
            return Answer(
                ids=tuple(int(place[1]) for place in places),
                logps=numbers([place[0] for place in places]),
                finish=str(finish["type"] if isinstance(finish, dict) else finish),
                prompt_tokens=meta.get("prompt_tokens"),
                weights=meta.get("weight_version"),
                first=None if top is None else {int(item[1]): float(item[0]) for item in top},
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._client.error(f"not a generation: {brief(str(body))}") from None

    def reload(self, folder: str, label: str) -> None:
        """See `Kind`."""
        body = {"model_path": folder, "weight_version": label, "flush_cache": True}
        self._ask("update_weights_from_disk", body, "load weights anew")

    def load_adapter(self, name: str, folder: str) -> None:
        """See `Kind`."""
        body = {"lora_name": name, "lora_path": folder}
        self._ask("load_lora_adapter", body, "load an adapter", "start it with --enable-lora")

    def unload_adapter(self, name: str) -> None:
        """See `Kind`."""
        self._ask("unload_lora_adapter", {"lora_name": name}, "unload an adapter")

    def weights(self) -> str | None:
        """See `Kind`. Each answer tells."""
        return None

    def _ask(self, route: str, body: Json, what: str, hint: str = "") -> None:
        response = control(self._client, f"{self._root}/{route}", body, what, hint)
        if response.get("success") is False:
            words = response.get("message") or response.get("error_message")
            raise self._client.error(f"does not {what}: {brief(str(words))}")
