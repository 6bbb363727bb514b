"""`palate serve` under many clients at once, good requests and bad ones mixed.

    python benchmarks/serve_clients.py [MODEL] [--clients 64] [--seconds 60] [--questions 24]

MODEL is a reward model's folder or hub name; the packaged small model with a new head is prepared
when it is left out. Every client asks one request after another on loopback; every third is
malformed or too large. It fails unless every good request is answered once with the score that the
same model gives offline, every bad one is refused with its status, and the server's memory stays
flat (last ten seconds within 1.1 times of seconds 10 to 20). A request that is refused with 429 is
sent again after the time that the server names.

The last line is the requests answered a second by all clients over those of one client alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

LIMIT = 100_000
WORDS = "the a good bad answer to this question is long short and of course true false"
BAD: list[tuple[bytes, int]] = [
    (b'{"prompt": "p", "resp', 400),
    (b'{"prompt": NaN, "responses": ["a"]}', 400),
    (b'{"prompt": "p", "prompt": "q", "responses": ["a"]}', 400),
    (b'{"prompt": "p", "responses": "a"}', 422),
    (b'{"prompt": "p", "responses": []}', 422),
    (b'{"prompt": "p", "responses": [' + b"1," * (LIMIT // 3) + b"1]}", 422),
    (b'{"prompt": "p", "responses": ["' + b"a" * LIMIT + b'"]}', 413),
]
JSON = {"content-type": "application/json"}


class Tally:
    """What all clients saw."""

    def __init__(self) -> None:
        self.answered: list[tuple[int, list[float]]] = []
        self.seconds: list[float] = []
        self.refused: Counter[int] = Counter()
        self.again = 0
        self.wrong: list[str] = []


def questions(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS.split(), k=rng.randint(least, most)))

    return [
        {"prompt": f"{n}: {words(4, 12)}", "responses": [words(4, 24) for _ in range(2)]}
        for n in range(count)
    ]


@contextmanager
def served(model: str, folder: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server."""
    recipe = {
        "scorer": {"type": "model", "path": model},
        "port": 0,
        "max_request_bytes": LIMIT,
        "max_queue_responses": 256,
    }
    file = folder / "serve.yaml"
    file.write_text("# palate serve\n" + json.dumps(recipe))
    with (folder / "log.jsonl").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "palate", "serve", str(file)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit((folder / "log.jsonl").read_text()[-3000:])
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(60)


async def client(
    http: httpx.AsyncClient, number: int, asked: list[dict[str, Any]], until: float, tally: Tally
) -> None:
    rng = random.Random(number)
    while time.monotonic() < until:
        if rng.random() < 1 / 3:
            raw, status = rng.choice(BAD)
            answer = await http.post("/score", content=raw, headers=JSON)
            tally.refused[answer.status_code] += 1
            if answer.status_code != status or not answer.json()["error"]["message"]:
                tally.wrong.append(f"a bad request got {answer.status_code}, not {status}")
            continue
        place = rng.randrange(len(asked))
        start = time.monotonic()
        answer = await http.post("/score", json=asked[place])
        while answer.status_code == 429:
            tally.again += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
            answer = await http.post("/score", json=asked[place])
        if answer.status_code != 200:
            tally.wrong.append(f"a good request got {answer.status_code}: {answer.text[:200]}")
            continue
        tally.seconds.append(time.monotonic() - start)
        tally.answered.append((place, answer.json()["scores"]))


async def watch(pid: int, until: float) -> list[float]:
    """Resident memory of the server in MiB, each second."""
    memory = []
    while time.monotonic() < until:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        await asyncio.sleep(1)
    return memory


async def load(
    url: str, pid: int, clients: int, seconds: float, asked: list[dict[str, Any]]
) -> tuple[Tally, list[float], float]:
    tally, start = Tally(), time.monotonic()
    until = start + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        memory, *_ = await asyncio.gather(
            watch(pid, until),
            *(client(http, number, asked, until, tally) for number in range(clients)),
        )
    return tally, memory, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--questions", type=int, default=24)
    args = parser.parse_args()
    asked = questions(args.questions)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            from vs_trl_reward import starting_model

            from palate.demo.model import packaged_model

            args.model = str(Path(folder) / "model")
            starting_model(str(packaged_model(print).path), "bfloat16", Path(args.model))
        with served(args.model, Path(folder)) as (url, pid):
            alone, _, spent = asyncio.run(load(url, pid, 1, args.seconds / 6, asked))
            alone_per_second = len(alone.answered) / spent
            tally, memory, spent = asyncio.run(load(url, pid, args.clients, args.seconds, asked))
        from palate.recipes.scorers import ModelScorer
        from palate.rewards import Group, make_scorer, score_groups

        offline = score_groups(
            make_scorer(ModelScorer(path=args.model)),
            [Group(q["prompt"], tuple(q["responses"])) for q in asked],
            exact=True,
        )
    right = [[score.value for score in scores] for scores in offline]
    for run in (alone, tally):
        differ = sum(scores != right[place] for place, scores in run.answered)
        if differ:
            run.wrong.append(f"{differ} of {len(run.answered)} scores are not the offline ones")
    wrong = alone.wrong + tally.wrong
    rate = len(tally.answered) / spent
    print(f"{args.clients} clients, {spent:.0f} s: {len(tally.answered)} requests answered")
    print(f"refused: {dict(sorted(tally.refused.items()))}; sent again after 429: {tally.again}")
    ordered = sorted(tally.seconds)
    if ordered:
        tail = ordered[int(0.95 * (len(ordered) - 1))]
        print(f"seconds a request: median {statistics.median(ordered):.2f}, 95%: {tail:.2f}")
    if len(memory) >= 40:
        early, late = statistics.fmean(memory[10:20]), statistics.fmean(memory[-10:])
        print(f"server memory: {early:.0f} MiB, at the end {late:.0f} MiB ({late / early:.2f}x)")
        if late > 1.1 * early:
            wrong.append("the server's memory grew")
    print(f"requests a second: {alone_per_second:.2f} by one client, {rate:.2f} by all")
    for line, count in Counter(wrong).items():
        print(f"WRONG: {line} ({count}x)")
    print(f"{rate / alone_per_second:.2f}x" if alone_per_second else "0.00x")
    sys.exit(bool(wrong) or not tally.answered)


if __name__ == "__main__":
    main()
