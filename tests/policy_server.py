"""A small server of completions in a process of its own: the routes of vLLM's, or of SGLang's.

Token ids in, token ids and log-probs of the distribution drawn from out; weights loaded anew from
disk, adapters loaded while it runs. What goes wrong with real servers can be switched on.

    with serving(folder, raw=True) as server:
        server.url, server.asked(), server.kill()
"""

from __future__ import annotations

import json
import math
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

NAME = "tiny"


@dataclass(frozen=True)
class Manner:
    """How the server behaves.

    Attributes:
        kind: vllm | sglang | other.
        raw: log-probs from before the temperature. unfiltered: from before top-k. logits: no
            log-probs at all.
        text_only: no token ids. top_k: that it cuts every distribution to.
        seconds: every token but the first takes. context: tokens of prompt and response together.
        own_stop: ends responses, unless told not to. bos: put before every prompt.
        nan_share: of seeds whose log-probs hold a NaN. failures: questions refused with 503 before
            the first is answered. reloads: whether it loads weights anew. labels: whether it names
            them. expanded: what it makes of a prompt with images. writes: what it is made to write.
    """

    kind: str = "vllm"
    raw: bool = False
    unfiltered: bool = False
    logits: bool = False
    text_only: bool = False
    top_k: int = 0
    seconds: float = 0.0
    context: int = 200
    own_stop: int | None = None
    bos: bool = False
    nan_share: float = 0.0
    failures: int = 0
    reloads: bool = True
    labels: bool = True
    expanded: tuple[int, ...] | None = None
    writes: tuple[int, ...] | None = None


class Writer:
    """A model that writes one response at a time."""

    def __init__(self, folder: str, manner: Manner) -> None:
        torch.set_num_threads(1)
        self.manner = manner
        self.lock = threading.Lock()
        self.label = "default"
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.failures = manner.failures
        self.load(folder)

    def load(self, folder: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def add(self, name: str, folder: str) -> None:
        if not self.adapters and not isinstance(self.model, PeftModel):
            self.model = PeftModel.from_pretrained(self.model, folder, adapter_name=name).eval()
        else:
            self.model.load_adapter(folder, adapter_name=name)
        self.adapters[name] = folder

    @torch.no_grad()
    def write(self, ids: list[int], seed: int, adapter: str | None, params: dict[str, Any]):
        """Tokens, the log-probs of each, those of the first one's alternatives, and the reason."""
        generator = torch.Generator().manual_seed(seed)
        stops = set(params["stop_token_ids"])
        if self.manner.own_stop is not None and not params.get("ignore_eos"):
            stops.add(self.manner.own_stop)
        written: list[int] = []
        logps: list[float] = []
        first: list[tuple[int, float]] = []
        most = min(params["most"], self.manner.context - len(ids))
        while len(written) < most:
            time.sleep(self.manner.seconds if written else 0)
            with self.lock:
                logits = self._logits(ids + written, adapter)
            for token, bias in params.get("logit_bias", {}).items():
                logits[int(token)] += bias
            if len(written) < params["least"]:
                logits[list(stops)] = -math.inf
            cold = logits / params["temperature"]
            top_k = self.manner.top_k or params["top_k"]
            kept = cold.clone()
            if top_k > 0:
                kept[kept < kept.topk(top_k).values[-1]] = -math.inf
            drawn = int(torch.multinomial(kept.softmax(-1), 1, generator=generator))
            if self.manner.writes is not None:
                drawn = self.manner.writes[len(written)]
            shown = logits if self.manner.raw else cold if self.manner.unfiltered else kept
            told = shown if self.manner.logits else shown.log_softmax(-1)
            if not written:
                best = told.topk(5)
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                first = [(token, max(logp, -9999.0)) for token, logp in pairs]
            written.append(drawn)
            logps.append(float(told[drawn]))
            if drawn in stops:
                return written, logps, first, "stop"
        return written, logps, first, "length"

    def _logits(self, ids: list[int], adapter: str | None) -> torch.Tensor:
        inputs = torch.tensor([ids])
        if adapter is not None:
            self.model.set_adapter(adapter)
        elif isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                return self.model(input_ids=inputs).logits[0, -1].float()
        return self.model(input_ids=inputs).logits[0, -1].float()


def completion(writer: Writer, body: dict[str, Any]) -> tuple[int, Any]:
    """vLLM's /v1/completions and /v1/chat/completions."""
    manner = writer.manner
    adapter = None if body["model"] == NAME else body["model"]
    if adapter is not None and adapter not in writer.adapters:
        return 404, {"error": f"no model {adapter}"}
    chat = "messages" in body
    ids = list(manner.expanded or ()) if chat else body["prompt"]
    if manner.bos:
        ids = [1, *ids]
    if len(ids) + body["max_tokens"] > manner.context:
        return 400, {"error": {"message": "too long"}}
    params = {"most": body["max_tokens"], "least": body["min_tokens"]} | body
    written, logps, first, finish = writer.write(ids, body["seed"], adapter, params)
    if body["seed"] and body["seed"] % 1000 < 1000 * manner.nan_share:
        return 400, {"error": "Out of range float values are not JSON compliant: nan"}
    names = [f"token_id:{token}" for token in written]
    choice: dict[str, Any] = {"index": 0, "text": "?", "finish_reason": finish}
    if chat:
        places = [{"token": t, "logprob": p} for t, p in zip(names, logps, strict=True)]
        choice["logprobs"] = {"content": places}
    else:
        top = {f"token_id:{token}": logp for token, logp in first}
        choice["logprobs"] = {"token_logprobs": logps, "tokens": names, "top_logprobs": [top]}
    answer = {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}
    if manner.text_only:
        choice["logprobs"]["tokens"] = ["?"] * len(written)
    else:
        choice["token_ids"] = written
        (answer if chat else choice)["prompt_token_ids"] = ids
    return 200, answer


def generation(writer: Writer, body: dict[str, Any]) -> tuple[int, Any]:
    """SGLang's /generate."""
    given = body["sampling_params"]
    adapter = body.get("lora_path")
    if adapter is not None and adapter not in writer.adapters:
        return 400, {"error": {"message": f"no adapter {adapter}"}}
    params = {"most": given["max_new_tokens"], "least": given["min_new_tokens"]} | given
    written, logps, first, finish = writer.write(
        body["input_ids"], given["sampling_seed"], adapter, params
    )
    places = [[logp, token, None] for token, logp in zip(written, logps, strict=True)]
    meta: dict[str, Any] = {
        "finish_reason": {"type": finish},
        "prompt_tokens": len(body["input_ids"]),
        "output_top_logprobs": [[[logp, token, None] for token, logp in first]],
        "weight_version": writer.label,
    }
    if not writer.manner.text_only:
        meta["output_token_logprobs"] = places
    return 200, {"text": "?", "meta_info": meta}


def asked(writer: Writer, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
    """What is answered at a path."""
    manner = writer.manner
    vllm, sglang = manner.kind == "vllm", manner.kind == "sglang"
    writes = path in ("/v1/completions", "/v1/chat/completions", "/generate")
    writer.asked.append({"path": path, "body": body})
    if writes and writer.failures > 0:
        writer.failures -= 1
        return 503, {"error": "busy"}
    if path == "/asked":
        return 200, writer.asked
    if path == "/v1/models":
        return 200, {"data": [{"id": NAME, "max_model_len": manner.context}]}
    if vllm and path == "/version":
        return 200, {"version": "0.0.0"}
    if sglang and path == "/server_info":
        return 200, {"version": "0.0.0"}
    if vllm and writes and path != "/generate":
        return completion(writer, body)
    if sglang and path == "/generate":
        return generation(writer, body)
    if vllm and manner.reloads and path == "/collective_rpc":
        with writer.lock:
            writer.load(body["kwargs"]["weights_path"])
        return 200, {"results": [None]}
    if vllm and manner.reloads and path == "/reset_prefix_cache":
        return 200, {"success": True}
    if vllm and manner.labels and path == "/update_weight_version":
        writer.label = body["new_version"]
        return 200, {"success": True}
    if vllm and manner.labels and path == "/weight_info":
        return 200, {"weight_version": writer.label}
    if sglang and manner.reloads and path == "/update_weights_from_disk":
        with writer.lock:
            writer.load(body["model_path"])
        writer.label = body["weight_version"]
        return 200, {"success": True, "message": "done"}
    prefix = "/v1" if vllm else ""
    if path == f"{prefix}/load_lora_adapter":
        if body["lora_name"] in writer.adapters:
            return 400, {"success": False, "error_message": "has already been loaded"}
        with writer.lock:
            writer.add(body["lora_name"], body["lora_path"])
        return 200, {"success": True}
    if path == f"{prefix}/unload_lora_adapter":
        if writer.adapters.pop(body["lora_name"], None) is None:
            return 404, {"success": False}
        with writer.lock:
            writer.model.delete_adapter(body["lora_name"])
        return 200, {"success": True}
    return 404, {"error": "Not Found"}


def serve(folder: str, manner: Manner, bound: socket.socket) -> None:
    """Serves until it is killed."""
    writer = Writer(folder, manner)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"])) or "{}"))

        def _answer(self, body: dict[str, Any] | None) -> None:
            status, answer = asked(writer, self.path, body)
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(bound.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = bound
    server.daemon_threads = True
    server.serve_forever()


@dataclass
class Served:
    """A server that runs."""

    folder: str
    manner: Manner
    port: int
    process: Any = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self, path: str) -> list[Any]:
        """Bodies of what was asked at a path."""
        found = httpx.get(f"http://127.0.0.1:{self.port}/asked", timeout=60).json()
        return [one["body"] for one in found if one["path"] == path]

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def start_again(self, **changes: Any) -> None:
        """Another process, with the weights that the first began with."""
        self.manner = replace(self.manner, **changes)
        self.process = _process(self.folder, self.manner, self.port)[0]


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["policy_server"])


def _process(folder: str, manner: Manner, port: int = 0) -> tuple[Any, int]:
    # What connects before it serves waits.
    with socket.create_server(("127.0.0.1", port)) as bound:
        process = _CONTEXT.Process(target=serve, args=(folder, manner, bound), daemon=True)
        process.start()
        return process, bound.getsockname()[1]


@contextmanager
def serving(folder: Path, **manner: Any) -> Iterator[Served]:
    """A server of the model in a folder."""
    own = Manner(**manner)
    process, port = _process(str(folder), own)
    served = Served(str(folder), own, port, process)
    try:
        yield served
    finally:
        served.kill()
