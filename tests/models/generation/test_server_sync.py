"""New weights at a server: loaded anew or as adapters, and never old ones unnoticed."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from palate.errors import ModelError
from palate.models.adapters import add_lora
from palate.models.generation.engine import Completion, Sampling
from palate.models.merged import merged_weights
from palate.models.model import Model
from palate.recipes.schema import LoraRecipe
from policy_server import serving
from server_cases import PROMPTS, Make, policy, true_logps

SAMPLING = Sampling(max_new_tokens=8, samples_per_prompt=2, seed=1)
KINDS = ("vllm", "sglang")


def moved(model: Model, seed: int = 0) -> Model:
    """The policy after an update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def with_adapters(folder: Path) -> Model:
    base = policy(folder).base
    return Model.policy(add_lora(base, LoraRecipe(r=4))).eval()


def written_by(model: Model, found: list[Any]) -> bool:
    """Whether all responses have this policy's log-probs."""
    return all(
        one.logps == pytest.approx(true_logps(model, one, SAMPLING), abs=1e-3) for one in found
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sync", ["reload", "merged", "lora"])
def test_after_a_sync_the_policy_of_now_writes(
    folder: Path, engine: Make, kind: str, sync: str
) -> None:
    model = policy(folder) if sync == "reload" else with_adapters(folder)
    with serving(folder, kind=kind) as server:
        own = engine(server, policy_model=model, sync="lora" if sync == "lora" else "reload")
        for version in (1, 2):
            old = own.generate(PROMPTS, SAMPLING)
            assert {one.version for one in old} == {version - 1}
            moved(model, version)
            assert not written_by(model, old)
            before = {name: p.clone() for name, p in model.named_parameters()}
            own.sync(model)
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
            assert own.version == version
            new = own.generate(PROMPTS, SAMPLING)
            assert {one.version for one in new} == {version}
            assert written_by(model, new)
            # What servers loaded before is not kept.
            folders = list(own._folder.iterdir())
            assert [path.name for path in folders] == [f"v{version:06d}"]
        if kind == "vllm" and sync != "lora":
            assert len(server.asked("/reset_prefix_cache")) == 2
        if sync == "lora":
            prefix = "/v1" if kind == "vllm" else ""
            loaded = [body["lora_name"] for body in server.asked(f"{prefix}/load_lora_adapter")]
            unloaded = [body["lora_name"] for body in server.asked(f"{prefix}/unload_lora_adapter")]
            assert unloaded == loaded[:-1]
            assert len(set(loaded)) == 2


def test_merged_weights_are_what_peft_merges(folder: Path) -> None:
    model = moved(with_adapters(folder))
    merged = merged_weights(model.base)
    hf: Any = model.hf
    expected = hf.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(merged[name], weight, atol=1e-5), name


def test_a_server_that_cannot_load_weights_says_how_to_start_it(folder: Path, engine: Make) -> None:
    with serving(folder, reloads=False) as server:
        own = engine(server)
        words = r"does not load weights anew: start it with VLLM_SERVER_DEV_MODE=1 \(.* 404"
        with pytest.raises(ModelError, match=words):
            own.sync(policy(folder))
        assert own.version == 0


@pytest.mark.parametrize(
    ("kind", "sync"), [(kind, sync) for kind in KINDS for sync in ("reload", "lora")]
)
def test_a_server_started_anew_is_given_the_weights_again(
    folder: Path, engine: Make, kind: str, sync: str
) -> None:
    model = policy(folder) if sync == "reload" else with_adapters(folder)
    moved(model)
    with serving(folder, kind=kind) as server:
        own = engine(server, policy_model=model, sync=sync)
        own.sync(model)
        server.kill()
        server.start_again()
        assert written_by(model, own.generate(PROMPTS, SAMPLING))


def test_a_server_started_anew_in_the_middle_of_a_call_never_writes_with_its_first_weights(
    folder: Path, engine: Make
) -> None:
    """Not even one that does not name its weights."""
    model = moved(policy(folder))
    with serving(folder, labels=False, seconds=0.01) as server:
        own = engine(server, concurrency=3, retries=5)
        own.sync(model)
        handed: list[Completion] = []

        def start_anew_after_some(batch: list[Completion]) -> None:
            if len(handed) < 3 <= len(handed) + len(batch):
                server.kill()
                server.start_again()
            handed.extend(batch)

        sampling = replace(SAMPLING, samples_per_prompt=6)
        found = own.generate(PROMPTS, sampling, on_batch=start_anew_after_some)
        assert len(found) == 18
        assert written_by(model, found)
        assert len(server.asked("/collective_rpc")) == 1


def test_weights_that_another_run_put_there_are_noticed(folder: Path, engine: Make) -> None:
    ours, others = moved(policy(folder), 1), moved(policy(folder), 2)
    with serving(folder) as server:
        first = engine(server)
        first.sync(ours)
        second = engine(server, sync_dir=first._folder.parent.parent / "elsewhere")
        second.sync(others)
        assert written_by(ours, first.generate(PROMPTS, SAMPLING))


def test_runs_that_share_a_folder_for_weights_keep_apart(
    folder: Path, engine: Make, tmp_path: Path
) -> None:
    with serving(folder) as server:
        own = engine(server, sync_dir=tmp_path / "shared")
        other = tmp_path / "shared" / "other-run" / "v000001"
        other.mkdir(parents=True)
        own.sync(policy(folder))
        assert own._folder.parent == tmp_path / "shared"
        assert other.exists()


def test_one_of_two_servers_that_misses_a_sync_is_given_it_later(
    folder: Path, engine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    model = moved(policy(folder))
    with serving(folder) as one, serving(folder) as two:
        own = engine(one, two, retries=1)
        two.kill()
        with caplog.at_level(logging.WARNING, logger="palate"):
            own.sync(model)
        assert "is given the weights again before it is asked" in caplog.text
        two.start_again()
        found = own.generate(PROMPTS, Sampling(max_new_tokens=8, samples_per_prompt=8, seed=1))
        assert len(two.asked("/v1/completions")) > 0
        assert written_by(model, found)


def test_a_sync_waits_for_what_is_under_way(folder: Path, engine: Make) -> None:
    """Else a response would have two policies' tokens."""
    model = policy(folder)
    old = policy(folder)
    with serving(folder, seconds=0.05) as server:
        own = engine(server, concurrency=2)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(own.generate(PROMPTS, SAMPLING)))
        thread.start()
        while not server.asked("/v1/completions"):
            time.sleep(0.01)
        own.sync(moved(model))
        thread.join()
        by_version = {v: [one for one in found if one.version == v] for v in (0, 1)}
        assert by_version[0] and by_version[1]
        assert written_by(old, by_version[0])
        assert written_by(model, by_version[1])
