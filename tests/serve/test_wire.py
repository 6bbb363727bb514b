"""What comes over the wire: odd bodies, slow and vanishing clients, work that nobody waits for."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter, ValidationError

from palate.data.scorer import Group, Score
from palate.errors import ModelError, RunError
from palate.recipes.serving import ServeRecipe
from palate.serve.batcher import Batcher, Groups
from palate.serve.bodies import parsed
from palate.serve.messages import ChatCompletion, GetReward, ScoreRequest
from palate.serve.metrics import MOST_REASONS, OTHER, Metrics
from palate.serve.run import bind, serve
from tiny_serve import (
    JSON,
    Slow,
    ask,
    client,
    exchanged,
    lines_of,
    listening,
    logged,
    process,
    raw,
    run,
)

GOOD = json.dumps(ask("abc")).encode()


def test_a_body_is_json_once_and_nothing_else() -> None:
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (GOOD, {"content-type": "application/json; charset=utf-8"}, 200, ""),
        (GOOD, {"content-type": "application/vnd.api+json"}, 200, ""),
        (b"\xef\xbb\xbf" + GOOD, JSON, 200, ""),
        (GOOD, {}, 415, "application/json is needed, and it is missing"),
        (GOOD, {"content-type": "text/plain"}, 415, "and it is text/plain"),
        (gzip.compress(GOOD), JSON | {"content-encoding": "gzip"}, 415, "gzip is not read"),
        (b'{"prompt": "p", "prompt": "q", "responses": ["a"]}', JSON, 400, "the key prompt twice"),
        (b'{"prompt": NaN, "responses": ["a"]}', JSON, 400, "NaN is no JSON"),
        (b'{"prompt": 1' + b"1" * 5000 + b"}", JSON, 400, "too many digits"),
        (b"[" * 90_000, JSON, 400, "nested too deeply"),
        (b'{"prompt": "\xff"}', JSON, 400, "not UTF-8"),
        (b'{"prompt": "p",}', JSON, 400, "character 15"),
        (b"", JSON, 422, "the body is no JSON object"),
        (b"null", JSON, 422, "the body is no JSON object"),
        (b'{"prompt": "", "responses": ["a"], "a\\nb": 1}', JSON, 422, "a\\nb: Extra"),
        (
            b'{"prompt": "", "responses": ["a"], "' + b"k" * 999 + b'": 1}',
            JSON,
            422,
            "kkk...: Extra",
        ),
        (
            b'{"prompt": [{"role": "bot", "content": "c"}], "responses": ["a"]}',
            JSON,
            422,
            "prompt.0.role: Input should be 'system'",
        ),
        (b'{"prompt": "p", "responses": [["a"]]}', JSON, 422, "responses.0.0 is no JSON object"),
    ]

    async def test() -> None:
        async with client() as c:
            for body, headers, status, text in cases:
                found = await c.post("/score", content=body, headers=headers)
                assert found.status_code == status, (body[:60], found.text)
                if status != 200:
                    message = found.json()["error"]["message"]
                    assert text in message and len(message.splitlines()) == 1, message
                    assert len(message) < 200
            old = {"query": ["pa"], "response": ["b"]}
            found = await c.post("/get_reward", json=old)
            assert found.status_code == 422 and "response: Extra" in found.text

    run(test)


def test_a_request_full_of_mistakes_is_refused_at_the_first() -> None:
    """Else an error of each: a gigabyte of them for a megabyte of request."""
    many = [1] * 50_000
    shapes: list[tuple[Any, dict[str, Any]]] = [
        (ScoreRequest, {"prompt": "p", "responses": many}),
        (ScoreRequest, {"prompt": many, "responses": ["a"]}),
        (ScoreRequest, {"prompt": "p", "responses": [many]}),
        (ScoreRequest, {"items": many}),
        (ScoreRequest, {"items": [{"prompt": "p", "responses": many}] * 100}),
        (GetReward, {"query": many}),
        (GetReward, {"query": ["a"], "prompts": many}),
        (ChatCompletion, {"model": "m", "messages": many}),
    ]
    for shape, value in shapes:
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(shape).validate_python(value)
        assert caught.value.error_count() < 5, value.keys()
    with pytest.raises(json.JSONDecodeError, match="more than 100 keys"):
        parsed(json.dumps({str(n): 1 for n in range(101)}).encode())


def test_other_methods_and_paths() -> None:
    async def test() -> None:
        async with client() as c:
            assert (await c.head("/health")).status_code == 200
            found = await c.put("/score")
            assert found.status_code == 405 and found.headers["allow"] == "POST"
            assert found.json()["error"]["message"] == "Method Not Allowed"
            found = await c.post("/score/", json=ask("a"))
            assert found.status_code == 404 and found.json()["error"]["message"] == "Not Found"
            # Latin letters that are no ASCII would come back as other bytes.
            found = await c.get("/health", headers={"x-request-id": b"caf\xe9"})
            assert found.headers["x-request-id"].isalnum()
            assert found.headers["x-request-id"].isascii()

    run(test)


async def given_up(scorer: Slow, texts: Sequence[str], late: Sequence[str], exact: bool) -> None:
    """Requests that are cancelled while the scorer is at the first of them, then one more.

    The order is kept by events and not by a clock: how fast the machine is changes nothing.
    """
    scorer.hold = threading.Event()
    batcher = Batcher(scorer, Metrics(), exact=exact, max_batch=8, max_wait=0.05, max_queue=8)

    def sent(text: str) -> asyncio.Task[Any]:
        return asyncio.create_task(batcher.submit(Groups(groups=[Group("p", (text,))])))

    batcher.start()
    asked = [sent(text) for text in texts]
    while not scorer.asked:
        await asyncio.sleep(0.01)
    asked += [sent(text) for text in late]
    await asyncio.sleep(0)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    scorer.hold.set()
    ((last,),) = await sent("last")
    assert last.value == 4.0
    await batcher.stop()


def test_work_of_requests_that_were_given_up_is_not_begun() -> None:
    for exact, texts in ((True, ("a", "x", "bbb", "cccc")), (False, ("a",))):
        scorer = Slow()
        asyncio.run(given_up(scorer, texts, ("dd", "ee"), exact))
        assert scorer.asked == ["a", "last"]


def test_a_batch_with_a_bad_request_is_not_repeated_for_those_given_up() -> None:
    class Late(Slow):
        def numbers(self, prompts: Any, responses: Any) -> list[float]:
            self.asked += responses
            assert self.hold is not None
            self.hold.wait(5)
            if len(responses) > 1:
                raise ModelError("slow: knows no batches")
            return [float(len(response)) for response in responses]

    scorer = Late()
    asyncio.run(given_up(scorer, ("x", "aa"), (), False))
    assert scorer.asked == ["x", "aa", "last"]


def test_exact_requests_are_answered_as_soon_as_they_are_scored() -> None:
    async def test() -> None:
        scorer = Slow(0.3)
        async with client(scorer, exact=True, max_wait_ms=50) as c:
            tasks = [asyncio.create_task(c.post("/score", json=ask("a" * n))) for n in (1, 2, 3)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1 and len(scorer.calls) < 3
            assert [(await task).json()["scores"] for task in tasks] == [[1.0], [2.0], [3.0]]
            # The batch is counted when it ends, which is after its last answer.
            while "palate_batch_responses_sum 3.0" not in (await c.get("/metrics")).text:
                await asyncio.sleep(0.01)

    run(test)


def test_nothing_is_done_for_a_client_that_went_away(caplog: pytest.LogCaptureFixture) -> None:
    scorer = Slow()
    scorer.hold = threading.Event()
    with (
        logged(caplog),
        listening(scorer, max_batch_responses=1, max_wait_ms=0) as address,
    ):
        for text in ("first", "second", "third"):
            body = json.dumps(ask(text)).encode()
            exchanged(address, raw("/score", body), wait=0.5)
        half = raw("/score", GOOD)[:-5]
        exchanged(address, half, wait=0.5)
        scorer.hold.set()
        url = f"http://{address[0]}:{address[1]}"
        assert httpx.post(f"{url}/score", json=ask("last")).json()["scores"] == [4.0]
        assert "palate_queued_responses 0.0" in httpx.get(f"{url}/metrics").text
    assert scorer.asked == ["first", "last"]
    # Other tests may have switched the propagation to pytest's own handler on or off.
    records = list(dict.fromkeys(caplog.records))
    fields = [getattr(record, "fields", {}) for record in records]
    found = [own["status"] for own in fields if own.get("route") == "/score"]
    assert found == [499] * 4 + [200]


def test_a_head_that_does_not_come_is_408_and_what_is_no_http_is_400() -> None:
    with listening(head_seconds=0.3) as address:
        found = exchanged(address, b"POST /score HTTP/1.1\r\nHo")
        assert found.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"within 0.3 s" in found
        assert exchanged(address) == b""
        found = exchanged(address, b"\x16\x03\x01\r\n\r\n")
        head, _, body = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert json.loads(body)["error"]["message"]
        # One that is slow after its head has the time of a request.
        whole = raw("/score", GOOD)
        assert b'"scores":[3.0]' in exchanged(address, whole, wait=1.5)
        assert b'"scores":[3.0]' in exchanged(address, whole[:-3], 0.5, whole[-3:], wait=1.5)


def test_metrics_are_for_prometheus_and_name_few_reasons() -> None:
    metrics = Metrics()
    many = [[Score(None, f'"reason\\ {n}\n') for n in range(3 * MOST_REASONS)] + [Score(1.0)]]
    metrics.responses(many)
    metrics.answered("/score", 200, 0.1)
    families = {f.name: f for f in text_string_to_metric_families(metrics.text().decode())}
    unscored = {
        sample.labels["reason"]: sample.value
        for sample in families["palate_responses_unscored"].samples
        if sample.name.endswith("_total")
    }
    assert len(unscored) == MOST_REASONS + 1 and unscored[OTHER] == 2 * MOST_REASONS
    assert unscored['"reason\\ 0\n'] == 1.0
    (one,) = (s for s in families["palate_requests"].samples if s.name.endswith("_total"))
    assert one.labels == {"route": "/score", "status": "200"}


def test_a_port_taken_since_it_was_bound_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sockets may be bound to one port until one of them listens."""
    recipe = ServeRecipe.model_validate({"scorer": {"type": "length"}, "port": 0})
    first = bind(recipe)
    with first:
        again = recipe.model_copy(update={"port": first.getsockname()[1]})
        second = bind(again)
        first.listen()
        monkeypatch.setattr("palate.serve.run.bind", lambda _: second)
        monkeypatch.setattr("palate.serve.logs.log_lines", lambda: None)
        with pytest.raises(RunError, match=r"cannot listen at 127\.0\.0\.1:.*in use"):
            serve(again)


def test_a_name_is_listened_at_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def several(*args: Any, **more: Any) -> Any:
        (own,) = real("127.0.0.1", 0, type=socket.SOCK_STREAM)
        return [(*own[:4], ("192.0.2.1", 0)), own]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    recipe = ServeRecipe.model_validate(
        {"scorer": {"type": "length"}, "host": "localhost", "port": 0}
    )
    with bind(recipe) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


SLOW = """
import sys, time
import palate.serve.run as run
from palate.recipes.serving import ServeRecipe

from palate.data.scorer import Traits

class Slow:
    name = "slow"
    traits = Traits()

    def score(self, groups):
        time.sleep(30)

run.make_scorer = lambda *args, **more: Slow()
keys = {"scorer": {"type": "length"}, "port": 0, "shutdown_seconds": 1}
run.serve(ServeRecipe.model_validate(keys))
"""


def test_a_server_ends_in_time_though_its_scorer_does_not(tmp_path: Path) -> None:
    log, found = tmp_path / "log", list[httpx.Response]()
    with process(["-c", SLOW], log) as (url, own):

        def asking() -> None:
            found.append(httpx.post(f"{url}/score", json=ask("a"), timeout=25))

        thread = threading.Thread(target=asking)
        thread.start()
        time.sleep(0.5)
        own.send_signal(signal.SIGTERM)
        own.send_signal(signal.SIGTERM)
        assert own.wait(20) == 0
        thread.join(5)
    assert found[0].status_code == 503
    assert found[0].json()["error"]["message"] == "the server is stopping"
    lines = lines_of(log)
    assert not any("traceback" in line for line in lines) and lines[-1]["event"] == "stopped"
