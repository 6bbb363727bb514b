"""A real server of vLLM's: does it write what it is asked for, and load what it is given?

`PALATE_VLLM_PYTHON` names the Python of an environment with vLLM; see docs/rollout-servers.md.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from palate.errors import ModelError
from palate.models.adapters import add_lora
from palate.models.generation.engine import Completion, Sampling
from palate.models.generation.server import ServerEngine
from palate.models.model import Model
from palate.recipes.rl_engines import ServerEngine as Recipe
from palate.recipes.schema import LoraRecipe
from palate.store.files import write_json
from server_cases import PROMPTS, STOP, policy, true_logps
from tiny_text import tiny_tokenizer

PYTHON = os.environ.get("PALATE_VLLM_PYTHON", "")
NAME, OTHER_STOP = "tiny", 70
START_SECONDS = 300
WORST = 1e-3
"""Between vLLM's log-probs and transformers', both in float32, nats."""

pytestmark = pytest.mark.skipif(
    not Path(PYTHON).is_file(), reason="PALATE_VLLM_PYTHON names no Python with vLLM"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose generation settings would change what it writes."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=STOP,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    write_json(path / "generation_config.json", {"eos_token_id": STOP})
    served = tmp_path_factory.mktemp("served")
    for file in path.iterdir():
        (served / file.name).write_bytes(file.read_bytes())
    settings = {"eos_token_id": [STOP, OTHER_STOP], "top_k": 1, "temperature": 0.3}
    write_json(served / "generation_config.json", settings | {"repetition_penalty": 1.3})
    return path


@dataclass
class Vllm:
    """A server that runs."""

    arguments: list[str]
    log: Path
    port: int
    process: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        own = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.arguments, stdout=log, stderr=log, env=kept | own, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        pytest.fail(f"vLLM does not start: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(folder: Path, log: Path, mode: str = "processed_logprobs") -> Iterator[Vllm]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    served = next(p for p in folder.parent.iterdir() if p.name.startswith("served"))
    arguments = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(served)]
    arguments += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--dtype", "float32", "--max-model-len", "200", "--enforce-eager"]
    arguments += ["--logprobs-mode", mode, "--enable-lora", "--max-lora-rank", "8"]
    found = Vllm(arguments, log, port)
    found.start()
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with serving(folder, tmp_path_factory.mktemp("log") / "vllm.log") as found:
        yield found


@contextmanager
def engine(server: Vllm, model: Model, run: Path, **keys: Any) -> Iterator[ServerEngine]:
    recipe = Recipe.model_validate({"urls": [server.url], "model": NAME} | keys)
    own = ServerEngine(recipe, tiny_tokenizer(), model, folder=run)
    try:
        yield own
    finally:
        own.close()


def moved(model: Model, seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def check(model: Model, found: list[Completion], sampling: Sampling) -> None:
    for one in found:
        assert one.logps == pytest.approx(true_logps(model, one, sampling), abs=WORST)
        assert one.finished is (one.response_ids[-1] == STOP)
        assert one.finished or len(one.response_ids) == sampling.max_new_tokens


SAMPLINGS = [
    Sampling(max_new_tokens=40, samples_per_prompt=8, temperature=0.7, seed=3),
    Sampling(max_new_tokens=8, samples_per_prompt=4, top_k=4, min_new_tokens=3),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_comes_back_is_the_policys_and_none_of_the_servers_settings(
    folder: Path, server: Vllm, tmp_path: Path, sampling: Sampling
) -> None:
    model = policy(folder)
    with engine(server, model, tmp_path) as own:
        own.sync(model)
        found = own.generate(PROMPTS, sampling)
        assert len(found) == 3 * sampling.samples_per_prompt
        check(model, found, sampling)
        assert own.generate(PROMPTS, sampling) == found
        ends = [one.response_ids for one in found if OTHER_STOP in one.response_ids]
        assert any(ids[-1] != OTHER_STOP for ids in ends) or sampling.top_k


@pytest.mark.parametrize("sync", ["reload", "merged", "lora"])
def test_new_weights_write_after_a_sync(
    folder: Path, server: Vllm, tmp_path: Path, sync: str
) -> None:
    model = policy(folder)
    if sync != "reload":
        model = Model.policy(add_lora(model.base, LoraRecipe(r=4))).eval()
    sampling = SAMPLINGS[0]
    with engine(server, policy(folder), tmp_path / "base") as own:
        own.sync(policy(folder))
    with engine(
        server, model, tmp_path / "run", sync="lora" if sync == "lora" else "reload"
    ) as own:
        for version in (1, 2):
            own.sync(moved(model, version))
            found = own.generate(PROMPTS, sampling)
            assert {one.version for one in found} == {version}
            check(model, found, sampling)


def test_weights_that_are_no_numbers_are_counted(
    folder: Path, server: Vllm, tmp_path: Path
) -> None:
    model = policy(folder)
    with engine(server, model, tmp_path) as own:
        with torch.no_grad():
            model.base.lm_head.weight.fill_(float("nan"))
        own.sync(model)
        assert own.generate(PROMPTS, Sampling(max_new_tokens=4)) == []
        assert own.take_counts()["no_log_prob"] == 3
        own.sync(policy(folder))


def test_a_server_killed_in_the_middle_and_started_anew_has_the_policys_weights(
    folder: Path, server: Vllm, tmp_path: Path
) -> None:
    model = moved(policy(folder), 5)
    sampling = Sampling(max_new_tokens=100, samples_per_prompt=20)
    with engine(server, model, tmp_path, retries=0, concurrency=4) as own:
        own.sync(model)
        handed: list[Completion] = []

        def kill_after_some(batch: list[Completion]) -> None:
            handed.extend(batch)
            if server.process.poll() is None:
                server.kill()

        with pytest.raises(ModelError, match="no server is left"):
            own.generate(PROMPTS, sampling, on_batch=kill_after_some)
        assert 0 < len(handed) < 60
        server.start()
        rest = own.generate(PROMPTS, sampling, skip=[(c.prompt, c.index) for c in handed])
        assert len(handed) + len(rest) == 60
        check(model, [*handed, *rest], sampling)


def test_the_log_probs_that_vllm_gives_unasked_are_refused(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path / "vllm.log", "raw_logprobs") as found:
        words = "start vLLM with --logprobs-mode processed_logprobs"
        with pytest.raises(ModelError, match=words), engine(found, policy(folder), tmp_path):
            pass
