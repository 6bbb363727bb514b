"""Whose fault an error is, that nothing which was sent is logged, and a scorer that is stuck."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jinja2.exceptions import TemplateError

from palate.data.scorer import Score, Traits
from palate.errors import ModelError
from palate.recipes.scorers import PointwiseJudge, ServerChat
from palate.rewards.chat.server import Server
from palate.rewards.combined import Member
from palate.rewards.ensemble import Ensemble
from palate.rewards.judge import Pointwise
from palate.serve.logs import Lines
from palate.serve.metrics import Metrics
from scored import Numbers
from tiny_serve import Slow, ask, client, lines_of, logged, process, run

SECRET = "my secret"


class Picky(Numbers):
    """A scorer here that quotes what it does not take."""

    name = "picky"
    traits = Traits(independent=True)

    def numbers(self, prompts: Any, responses: Any) -> list[float]:
        if any(SECRET in response for response in responses):
            raise ModelError(f"picky: takes no {responses[0]}")
        if any("broken" in response for response in responses):
            raise ZeroDivisionError(f"over {responses[0]}")
        if any("twice" in response for response in responses):
            raise TemplateError(f"no\n{responses[0]}")
        return [1.0] * len(responses)


def judge(answers: Any) -> Pointwise:
    """A judge whose server answers so; it says what it was sent, as some do."""

    def handle(request: httpx.Request) -> httpx.Response:
        found = answers(json.loads(request.content)["messages"][0]["content"])
        if isinstance(found, int):
            return httpx.Response(found, text=f"cannot answer {request.content.decode()}")
        message = {"role": "assistant", "content": found}
        return httpx.Response(200, json={"choices": [{"message": message}]})

    chat = ServerChat(url="http://judge.example/v1", model="m", retries=0)
    recipe = PointwiseJudge(chat=chat, method="sampled")
    return Pointwise(recipe, Server(chat, transport=httpx.MockTransport(handle)))


def verdict(question: str) -> int | str:
    return 503 if "down" in question else "<answer>7</answer>"


@pytest.mark.parametrize("local_first", [False, True])
def test_an_error_is_of_whoever_made_it(
    local_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    members = [Member(scorer=judge(verdict)), Member(scorer=Picky())]
    scorer = Ensemble(members[::-1] if local_first else members)

    async def test() -> None:
        async with client(scorer) as c:
            # At once, so that they share a batch that fails.
            texts = ["fine", SECRET, "down " + SECRET[3:]]
            good, bad, down = await asyncio.gather(*(c.post("/score", json=ask(t)) for t in texts))
            assert good.json()["scores"] == [4.0]
            assert bad.status_code == 422 and bad.json()["error"]["message"].startswith("picky:")
            assert bad.json()["error"]["type"] == "invalid_request_error"
            assert down.status_code == 502 and "answers 503" in down.json()["error"]["message"]
            assert down.json()["error"]["type"] == "server_error"
            assert (await c.post("/score", json=ask("broken"))).status_code == 500
            refused = await c.post("/score", json=ask("twice"))
            message = refused.json()["error"]["message"]
            assert refused.status_code == 422 and message.endswith("template refuses it: no twice")
        async with client(scorer, token="t") as c:
            headers = {"authorization": "Bearer t"}
            down = await c.post("/score", json=ask("down"), headers=headers)
            message = down.json()["error"]["message"]
            assert message == "the scorer's own server failed: answers 503"

    with logged(caplog):
        run(test)
    lines = [json.loads(Lines().format(record)) for record in dict.fromkeys(caplog.records)]
    events = [(line["event"], line.get("reason")) for line in lines if line["event"] != "request"]
    assert events.count(("unscorable", "ModelError")) == 1
    assert events.count(("server_failed", "answers 503")) == 2
    (fault,) = [line for line in lines if line["event"] == "failed"]
    assert "in score" in fault["traceback"] and fault["traceback"].endswith("ZeroDivisionError\n")
    assert events.count(("unscorable", "TemplateError")) == 1
    for word in ("secret", "over broken", "twice"):
        assert word not in json.dumps(lines)


def test_a_traceback_has_all_places_and_no_words() -> None:
    def inner() -> None:
        raise KeyError(SECRET)

    def outer() -> None:
        try:
            inner()
        except KeyError as error:
            raise RuntimeError(SECRET * 2) from error

    try:
        outer()
    except RuntimeError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("palate.serve", logging.ERROR, "f", 1, "failed", (), info)
    text = json.loads(Lines().format(record))["traceback"]
    assert "in inner" in text and "in outer" in text
    assert "builtins.KeyError" in text and "builtins.RuntimeError" in text
    assert SECRET not in text


def test_reasons_are_counted_without_details() -> None:
    metrics = Metrics()
    metrics.responses([[Score(None, f"the chat template refuses it: no {SECRET}")]])
    text = metrics.text().decode()
    assert 'unscored_total{reason="the chat template refuses it"} 1.0' in text


NOTING = """
import asyncio, collections, logging
import palate.serve.run as run
from palate.data.scorer import Score, Traits
from palate.recipes.serving import ServeRecipe

class Noting:
    name = "noting"
    traits = Traits()
    counts = collections.Counter()

    def score(self, groups):
        logging.getLogger("palate").warning("%s: says %s", self.name, groups[0].responses[0])
        return [[Score(0.0)] * len(group.responses) for group in groups]

run.make_scorer = lambda *args, **more: Noting()
run.serve(ServeRecipe.model_validate({"scorer": {"type": "length"}, "port": 0}))
"""


def test_notes_of_other_parts_are_lines_without_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process(["-c", NOTING], log) as (url, own):
        assert httpx.post(f"{url}/score", json=ask(SECRET)).json()["scores"] == [0.0]
        own.terminate()
        assert own.wait(20) == 0
    assert "secret" not in log.read_text()
    (note,) = [line for line in lines_of(log) if line["event"] == "note"]
    assert note["logger"] == "palate" and ".score:" in note["place"]
    assert note["level"] == "warning"


@pytest.fixture
def stuck() -> Iterator[Slow]:
    scorer = Slow()
    scorer.hold = threading.Event()
    yield scorer
    scorer.hold.set()


def test_health_says_that_a_scorer_is_stuck(stuck: Slow) -> None:
    async def test() -> None:
        async with client(stuck, timeout_seconds=1, max_wait_ms=0) as c:
            asked = asyncio.create_task(c.post("/score", json=ask("a")))
            await asyncio.sleep(0.05)
            # At work, and in time.
            assert (await c.get("/health")).json() == {"status": "ok"}
            assert (await asked).status_code == 504
            await asyncio.sleep(0.05)
            found = await c.get("/health")
            assert found.status_code == 503 and found.json()["status"] == "stuck"
            error = found.json()["error"]
            assert error["code"] == "scorer_stuck" and "longer than 1 s" in error["message"]
            assert (await c.head("/health")).status_code == 503
            assert stuck.hold is not None
            stuck.hold.set()
            assert (await c.post("/score", json=ask("bb"))).json()["scores"] == [2.0]
            await asyncio.sleep(0.3)
            assert (await c.get("/health")).json() == {"status": "ok"}

    run(test)


def test_health_is_of_one_call_and_not_of_a_long_day() -> None:
    async def test() -> None:
        slow = Slow(0.2)
        async with client(slow, exact=True, timeout_seconds=1, max_wait_ms=50) as c:
            asked = [asyncio.create_task(c.post("/score", json=ask("a" * n))) for n in range(1, 9)]
            while not all(task.done() for task in asked):
                assert (await c.get("/health")).status_code == 200
                await asyncio.sleep(0.02)

    run(test)
