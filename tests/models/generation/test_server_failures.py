"""Servers that fail, are slow or die in the middle: what is asked again, and what is said."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from palate.errors import ModelError
from palate.models.generation.engine import Completion, Sampling
from palate.models.generation.servers.pool import AskAgain, Pool
from palate.store.http import ServerError
from policy_server import serving
from server_cases import PROMPTS, Make, policy, prompt, true_logps

SAMPLING = Sampling(max_new_tokens=8, samples_per_prompt=6, seed=2)


def test_prompts_of_a_killed_server_go_to_the_other_and_none_is_asked_twice(
    folder: Path, engine: Make
) -> None:
    with serving(folder, seconds=0.02) as one, serving(folder, seconds=0.02) as two:
        own = engine(one, two, concurrency=4, retries=1)
        asked = len(one.asked("/v1/completions"))
        handed: list[Completion] = []

        def kill_after_some(batch: list[Completion]) -> None:
            handed.extend(batch)
            if len(handed) >= 4 and two.process.is_alive():
                two.kill()

        found = own.generate(PROMPTS, SAMPLING, on_batch=kill_after_some)
        assert not two.process.is_alive()
        keys = [(c.prompt, c.index) for c in found]
        assert keys == [(i, k) for i in range(3) for k in range(6)]
        assert len(handed) == len(found)
        bodies = one.asked("/v1/completions")[asked:]
        seeds = [body["seed"] for body in bodies]
        assert len(set(seeds)) == len(seeds)
    with serving(folder) as alone:
        again = engine(alone).generate(PROMPTS, SAMPLING)
    assert [c.response_ids for c in again] == [c.response_ids for c in found]


def test_the_last_server_killed_is_one_line_and_nothing_finished_is_lost(
    folder: Path, engine: Make
) -> None:
    with serving(folder, seconds=0.02) as server:
        own = engine(server, concurrency=3, retries=1)
        handed: list[Completion] = []

        def kill_after_some(batch: list[Completion]) -> None:
            handed.extend(batch)
            if len(handed) >= 3 and server.process.is_alive():
                server.kill()

        with pytest.raises(ModelError, match=r"no answer \(.*\): no server is left") as error:
            own.generate(PROMPTS, SAMPLING, on_batch=kill_after_some)
        assert "\n" not in str(error.value)
        assert server.url in str(error.value)
        assert 3 <= len(handed) < 18
        server.start_again()
        done = [(c.prompt, c.index) for c in handed]
        rest = own.generate(PROMPTS, SAMPLING, skip=done)
        assert sorted(done + [(c.prompt, c.index) for c in rest]) == [
            (i, k) for i in range(3) for k in range(6)
        ]
        for one in [*handed, *rest]:
            assert one.logps == pytest.approx(true_logps(policy(folder), one, SAMPLING), abs=1e-4)


def test_a_busy_server_is_asked_again(folder: Path, engine: Make) -> None:
    with serving(folder) as server:
        own = engine(server)
        server.kill()
        server.start_again(failures=2)
        found = own.generate(PROMPTS[:1], Sampling(max_new_tokens=2, samples_per_prompt=4))
        assert len(found) == 4


def test_a_slow_answer_is_a_timeout_and_is_named(folder: Path, engine: Make) -> None:
    with serving(folder, seconds=1) as server:
        server.asked("/")  # it has started
        own = engine(server, timeout_seconds=2, retries=0)
        with pytest.raises(ModelError, match=r"no answer within 2 s \(`timeout_seconds`\)"):
            own.generate([prompt("a")], Sampling(max_new_tokens=8))


def test_a_refused_prompt_ends_the_call_after_the_others_are_handed_on(
    folder: Path, engine: Make
) -> None:
    """The server's context is smaller than it said when the run began."""
    with serving(folder, context=100) as server:
        own = engine(server, concurrency=1)
        server.kill()
        server.start_again(context=20)
        handed: list[Completion] = []
        prompts = [prompt("a"), prompt("a" * 30), prompt("b")]
        with pytest.raises(ModelError, match=r"refuses a prompt of 31 tokens: 400: .*too long"):
            own.generate(prompts, Sampling(max_new_tokens=4), on_batch=handed.extend)
        assert [c.prompt for c in handed] == [0]


class Fake:
    """A server that fails so often, then takes its time."""

    def __init__(self, fails: int = 0, seconds: float = 0.0, broken: bool = True) -> None:
        self.fails = fails
        self.seconds = seconds
        self.broken = broken
        self.most = 0
        self.now = 0
        self.answered: list[int] = []
        self.lock = threading.Lock()

    def ask(self, job: int) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            fails, self.fails = self.fails, self.fails - 1
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        if fails > 0:
            raise AskAgain("busy", broken=self.broken)
        self.answered.append(job)
        return 10 * job


def run(pool: Pool[Fake], jobs: Any) -> list[tuple[int, int]]:
    return [pair for batch in pool.run(jobs, Fake.ask) for pair in batch]


def test_questions_are_shared_out_by_speed_within_the_limit() -> None:
    fast, slow = Fake(seconds=0.005), Fake(seconds=0.05)
    found = run(Pool([fast, slow], concurrency=3, retries=0), range(60))
    assert sorted(found) == [(k, 10 * k) for k in range(60)]
    assert len(fast.answered) > 2 * len(slow.answered) > 0
    assert fast.most == slow.most == 3


def test_few_questions_are_spread_evenly() -> None:
    one, two = Fake(seconds=0.05), Fake(seconds=0.05)
    run(Pool([one, two], concurrency=16, retries=0), range(4))
    assert len(one.answered) == len(two.answered) == 2


def test_failures_under_way_at_once_count_as_one() -> None:
    """Eight broken connections of one restart are no eight failures."""
    server = Fake(fails=8, seconds=0.3)
    found = run(Pool([server], concurrency=8, retries=1), range(8))
    assert len(found) == 8


def test_a_question_that_always_fails_ends_the_run_and_not_the_server() -> None:
    class Picky(Fake):
        def ask(self, job: int) -> int:
            if job == 3:
                raise AskAgain("breaks over 3")
            return super().ask(job)

    server = Picky()
    found: list[int] = []
    with pytest.raises(ServerError, match="breaks over 3"):
        for batch in Pool([server], concurrency=1, retries=1).run([0, 1, 2, 3], Picky.ask):
            found += [job for job, _ in batch]
    assert found == [0, 1, 2]


def test_nothing_asked_is_nothing_answered() -> None:
    assert run(Pool([Fake()], concurrency=2, retries=0), []) == []


def test_a_reader_that_stops_ends_the_asking() -> None:
    server = Fake(seconds=0.01)
    pool = Pool([server], concurrency=1, retries=0)
    for _ in pool.run(range(100), Fake.ask):
        break
    time.sleep(0.1)
    assert len(server.answered) < 20
