"""A real server in a process of its own: many clients, good and bad, and what a signal does."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from palate.data.scorer import Score
from palate.recipes.scorers import ModelScorer
from palate.rewards.build import make_scorer
from palate.rewards.groups import score_groups
from scored import groups_of
from tiny import CONFIGS
from tiny_chat import CHATML, byte_tokenizer
from tiny_serve import JSON, lines_of, process

CLIENTS, EACH = 16, 8
LIMIT = 20_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model, in the files of plain transformers."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = CONFIGS["gemma3"]()
    tokenizer = byte_tokenizer(adds_bos=False, template=CHATML)
    config.vocab_size, config.num_labels = len(tokenizer), 1
    config.pad_token_id = tokenizer.pad_token_id
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def served(
    model: Path, folder: Path, **keys: Any
) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    scorer = {"type": "model", "path": str(model), "dtype": "float32"}
    recipe = {"scorer": scorer, "port": 0, "max_request_bytes": LIMIT} | keys
    file = folder / "serve.yaml"
    file.write_text("# palate serve\n" + json.dumps(recipe))
    return process(["-m", "palate", "serve", str(file)], folder / "log.jsonl")


def question(rng: random.Random) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "say " + "a" * rng.randint(1, 20)}],
        "responses": ["word " * rng.randint(1, 9) + str(rng.random()) for _ in range(3)],
    }


BAD: list[tuple[bytes, int]] = [
    (b'{"prompt": "p", "resp', 400),
    (b'{"prompt": "p", "responses": "a"}', 422),
    (b'{"prompt": "p", "responses": ["' + b"a" * LIMIT * 2 + b'"]}', 413),
]


async def interrupted(
    url: str, asked: list[dict[str, Any]], own: subprocess.Popen[str], kind: signal.Signals
) -> list[list[float] | None]:
    """Answers to requests among which a signal comes; None where the connection broke."""

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> list[float] | None:
        try:
            found = await client.post("/score", json=body)
        except httpx.TransportError:
            return None
        assert found.status_code == 200
        scores: list[float] = found.json()["scores"]
        return scores

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        tasks = [asyncio.create_task(one(client, body)) for body in asked]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        own.send_signal(kind)
        return list(await asyncio.gather(*tasks))


def check(scorer: Any, asked: list[dict[str, Any]], found: list[list[float] | None]) -> None:
    """Some were answered, and those with the offline scores."""
    assert any(scores is not None for scores in found)
    offline = offline_scores(scorer, asked)
    for scores, offline_scored in zip(found, offline, strict=True):
        assert scores in (None, [score.value for score in offline_scored])


def offline_scores(scorer: Any, asked: Any) -> list[list[Score]]:
    groups = groups_of([q["prompt"] for q in asked], [q["responses"] for q in asked])
    return score_groups(scorer, groups, exact=True)


def test_every_valid_request_is_answered_once_with_the_offline_score(
    model: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    asked = [[question(rng) for _ in range(EACH)] for _ in range(CLIENTS)]
    late = [question(rng) for _ in range(40)]
    answers: dict[tuple[int, int], Any] = {}
    refused: list[tuple[int, int]] = []

    async def one(client: httpx.AsyncClient, number: int) -> None:
        for k, body in enumerate(asked[number]):
            found = await client.post("/score", json=body)
            assert found.status_code == 200, found.text
            assert (number, k) not in answers
            answers[number, k] = found.json()["scores"]
            raw, status = BAD[(number + k) % len(BAD)]
            bad = await client.post("/score", content=raw, headers=JSON)
            assert bad.json()["error"]["message"]
            refused.append((bad.status_code, status))

    async def all_of(url: str) -> str:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(one(client, number) for number in range(CLIENTS)))
            return (await client.get("/metrics")).text

    with served(model, tmp_path) as (url, own):
        metrics = asyncio.run(all_of(url))
        last = asyncio.run(interrupted(url, late, own, signal.SIGTERM))
        assert own.wait(20) == 0
    scorer = make_scorer(ModelScorer(path=str(model), dtype="float32"))
    check(scorer, late, last)
    for number, own in enumerate(asked):
        offline = offline_scores(scorer, own)
        for k, offline_scored in enumerate(offline):
            assert answers[number, k] == [score.value for score in offline_scored]
    assert len(answers) == CLIENTS * EACH
    assert len(refused) == CLIENTS * EACH and all(got == want for got, want in refused)
    assert f'route="/score",status="200"}} {float(CLIENTS * EACH)}' in metrics
    assert f"palate_responses_scored_total {float(CLIENTS * EACH * 3)}" in metrics
    lines = lines_of(tmp_path / "log.jsonl")
    done = [line for line in lines if line["event"] == "request" and line["route"] == "/score"]
    # Whoever was accepted before the signal got an answer.
    assert len(done) == CLIENTS * EACH * 2 + sum(scores is not None for scores in last)
    assert lines[-1]["event"] == "stopped"


def test_a_kill_loses_nothing_silently(model: Path, tmp_path: Path) -> None:
    """Each client has the right answer, or is told that there is none by its connection."""
    rng = random.Random(1)
    asked = [question(rng) for _ in range(40)]
    with served(model, tmp_path, max_batch_responses=6) as (url, own):
        found = asyncio.run(interrupted(url, asked, own, signal.SIGKILL))
        assert own.wait(20) == -signal.SIGKILL
    assert None in found
    check(make_scorer(ModelScorer(path=str(model), dtype="float32")), asked, found)
