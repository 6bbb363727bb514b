"""The routes in process: shapes, errors, batches, limits, the token."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from palate.cli import app as cli
from palate.errors import RecipeError, RunError
from palate.recipes.load import load_recipe
from palate.recipes.scorers import Scorer
from palate.recipes.serving import ScoreRecipe, ServeRecipe
from palate.rewards.groups import NO_ANSWER
from palate.serve.logs import Lines
from palate.serve.run import bind, token_of
from tiny_serve import Slow, ask, client, logged, run

NAME = "longer wins"


def test_shapes_of_the_routes() -> None:
    async def test() -> None:
        async with client() as c:
            assert (await c.get("/health")).json() == {"status": "ok"}
            info = (await c.get("/info")).json()
            assert info["scorer"]["name"] == NAME
            assert info["limits"]["max_request_responses"] == 256
            one = {"prompt": "p", "responses": ["a", "bb?", "ccc", "d"]}
            scores, reasons = [1.0, None, 3.0, 1.0], [None, "the score is no finite number"]
            reasons += [None, None]
            found = (await c.post("/score", json=one)).json()
            assert found == {"scores": scores, "reasons": reasons}
            chat = {
                "prompt": [{"role": "user", "content": "hi"}],
                "responses": [[{"role": "assistant", "content": "four"}]],
            }
            several = (await c.post("/score", json={"items": [one, chat]})).json()
            assert [item["scores"] for item in several["items"]] == [scores, [4.0]]
            ranked = (await c.post("/rank", json=one)).json()
            assert ranked == {"order": [2, 0, 3, 1], "scores": scores, "reasons": reasons}
            asked = {"query": ["pa", "qbcd"], "prompts": ["p", "q"], "labels": ["", ""]}
            got = (await c.post("/get_reward", json=asked)).json()
            assert got == {"rewards": [1.0, 3.0], "scores": [1.0, 3.0], "extra_logs": {}}
            got = (await c.post("/get_reward", json={"query": ["pa"], "prompts": []})).json()
            assert got["rewards"] == [2.0]
            (card,) = (await c.get("/v1/models")).json()["data"]
            turns = [*chat["prompt"], *chat["responses"][0]]
            body = {"model": card["id"], "messages": turns}
            made = (await c.post("/v1/chat/completions", json=body)).json()
            assert made["object"] == "chat.completion"
            assert made["choices"][0]["message"]["content"] == "reward:4.0"
            text = (await c.get("/metrics")).text
            assert 'palate_requests_total{route="/score",status="200"} 2.0' in text
            assert "palate_responses_scored_total 14.0" in text

    run(test)


def test_what_is_not_the_assistants_has_no_score() -> None:
    async def test() -> None:
        mine, yours = ({"role": r, "content": "abc"} for r in ("assistant", "user"))
        responses = [[yours], "abcd", [mine, yours], [mine, {"role": "tool", "content": "t"}, mine]]
        async with client() as c:
            answer = await c.post("/rank", json={"prompt": [yours], "responses": responses})
            found = answer.json()
            assert found["scores"] == [None, 4.0, None, 11.0]
            assert found["order"] == [3, 1, 0, 2]
            assert found["reasons"] == [NO_ANSWER, None, NO_ANSWER, None]

    run(test)


def test_what_is_wrong_is_said_in_one_line() -> None:
    cases: list[tuple[str, Any, int, str]] = [
        ("/score", b"{", 400, "not JSON"),
        ("/score", b'{"prompt": ' * 100_000, 400, "not JSON"),
        ("/score", b"\xff", 400, "not JSON"),
        ("/score", [], 422, "no JSON object"),
        ("/score", {"prompt": "p"}, 422, "responses: Field required"),
        ("/score", {"prompt": "p", "responses": []}, 422, "responses: "),
        ("/score", {"prompt": 3, "responses": ["a"]}, 422, "prompt: "),
        ("/score", {"prompt": "p", "responses": ["a"], "best_of": 3}, 422, "best_of: Extra"),
        ("/score", b'{"prompt": "p", "responses": ["\\ud800"]}', 422, "responses.0: half a"),
        ("/rank", {"items": [{"prompt": "p", "responses": [1]}]}, 422, "items.0.responses.0: "),
        ("/score", ask("x"), 422, "slow: knows no x"),
        ("/score", ask("y"), 500, "names this request"),
        ("/score", {"prompt": "p", "responses": ["a"] * 257}, 413, "257 responses"),
        ("/score", ask("a" * 10_000), 413, "larger than 9000 bytes"),
        ("/get_reward", {"query": ["pa"], "prompts": ["q"]}, 422, "query.0: does not begin"),
        ("/get_reward", {"query": ["a", "?"]}, 422, "query.1: the score is no"),
        ("/get_reward", {"query": ["a"], "prompts": ["a", "b"]}, 422, "2 prompts for 1"),
        ("/get_reward", {}, 422, "query: Field required"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ]
    user, assistant = ({"role": role, "content": "c"} for role in ("user", "assistant"))
    for body, status, text in (
        ({"model": "gpt", "messages": [user, assistant]}, 404, "no model of that name"),
        ({"model": NAME, "messages": [assistant, user]}, 422, "the last turn"),
        ({"model": NAME, "messages": [user, assistant], "stream": True}, 422, "stream"),
    ):
        cases.append(("/v1/chat/completions", body, status, text))

    async def test() -> None:
        async with client(max_request_bytes=9000) as c:
            for path, body, status, text in cases:
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                if len(raw) > 9000 and status == 400:
                    continue
                answer = await c.post(
                    path, content=raw, headers={"content-type": "application/json"}
                )
                message = answer.json()["error"]["message"]
                assert answer.status_code == status, (path, body, message)
                assert text in message and "\n" not in message
                assert answer.headers["x-request-id"]
        async with client() as c:  # nested deeper than a parser goes
            answer = await c.post(
                "/score", content=cases[1][1], headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400

    run(test)


def test_requests_at_once_share_a_batch_and_a_bad_one_costs_nobody_else() -> None:
    async def test() -> None:
        scorer = Slow()
        async with client(scorer, max_batch_responses=8, max_wait_ms=500) as c:
            texts = ["a" * (n + 1) for n in range(8)]
            answers = await asyncio.gather(*(c.post("/score", json=ask(t)) for t in texts))
            assert [a.json()["scores"] for a in answers] == [[float(len(t))] for t in texts]
            assert scorer.calls == [8]
            texts = ["a", "x", "bb", "y"]
            answers = await asyncio.gather(*(c.post("/score", json=ask(t)) for t in texts))
            assert [a.status_code for a in answers] == [200, 422, 200, 500]
            assert answers[2].json()["scores"] == [2.0]
            # One larger than a batch is a batch by itself.
            big = await c.post("/score", json={"prompt": "p", "responses": ["a"] * 20})
            assert big.json()["scores"] == [1.0] * 20

    run(test)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def test() -> None:
        scorer = Slow()
        scorer.hold = threading.Event()
        keys = {"max_queue_responses": 4, "max_request_responses": 4, "max_batch_responses": 1}
        async with client(scorer, max_wait_ms=0, **keys) as c:
            tasks = []
            for n in range(8):
                tasks.append(asyncio.create_task(c.post("/score", json=ask("a" * (n + 1)))))
                await asyncio.sleep(0.02)
            scorer.hold.set()
            answers = await asyncio.gather(*tasks)
            # One is being scored, four wait, the others are told.
            assert [a.status_code for a in answers] == [200] * 5 + [429] * 3
            assert int(answers[-1].headers["retry-after"]) >= 1
            assert [a.json()["scores"][0] for a in answers[:5]] == [1.0, 2.0, 3.0, 4.0, 5.0]
            assert (await c.post("/score", json=ask("z"))).status_code == 200

    run(test)


def test_a_late_answer_is_504_and_leaves_the_queue() -> None:
    async def test() -> None:
        scorer = Slow()
        scorer.hold = threading.Event()
        async with client(scorer, timeout_seconds=0.15, max_wait_ms=0) as c:
            answers = await asyncio.gather(*(c.post("/score", json=ask(t)) for t in ("a", "bb")))
            assert [a.status_code for a in answers] == [504, 504]
            assert "palate_queued_responses 0.0" in (await c.get("/metrics")).text
            scorer.hold.set()
            assert (await c.post("/score", json=ask("ccc"))).json()["scores"] == [3.0]

    run(test)


def test_a_body_that_does_not_come_is_408() -> None:
    async def test() -> None:
        async def trickle() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)

        async with client(timeout_seconds=0.1) as c:
            assert (await c.post("/score", content=trickle())).status_code == 408

    run(test)


def test_what_was_accepted_is_answered_when_the_server_ends() -> None:
    async def test() -> None:
        async with client(Slow(0.05), max_wait_ms=5000) as c:
            tasks = [asyncio.create_task(c.post("/score", json=ask(t))) for t in ("a", "bb")]
            await asyncio.sleep(0.05)
        assert [(await task).json()["scores"] for task in tasks] == [[1.0], [2.0]]

    run(test)


def test_the_token() -> None:
    async def test() -> None:
        async with client(token="s3cret") as c:
            assert (await c.get("/health")).status_code == 200
            for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "s3cret"}):
                answer = await c.post("/score", json=ask("a"), headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert (await c.get("/metrics", headers=headers)).status_code == 401
            for given in ("Bearer s3cret", "bearer s3cret", "BEARER   s3cret "):
                good = {"authorization": given}
                assert (await c.post("/score", json=ask("a"), headers=good)).status_code == 200
            for given in ("", "Bearer", "Bearer ", "Basic s3cret", "Bearer s3cre", "Bearer S3CRET"):
                bad = {"authorization": given}
                assert (await c.post("/score", json=ask("a"), headers=bad)).status_code == 401
        # As the environment holds it: letters of any alphabet, or bytes that are no UTF-8.
        for token in ("schl\u00fcssel", "\udcff"):
            sent = b"Bearer " + token.encode("utf-8", "surrogateescape")
            async with client(token=token) as c:
                found = await c.get("/info", headers={"authorization": sent})
                assert found.status_code == 200
                found = await c.get("/info", headers={"authorization": b"Bearer \xfc"})
                assert found.status_code == 401

    run(test)


def test_beyond_loopback_a_token_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.3", "scores.example"):
        with pytest.raises(ValueError, match="token_env"):
            ServeRecipe.model_validate({"scorer": {"type": "length"}, "host": host})
    for host in ("127.0.0.1", "::1", "localhost"):
        ServeRecipe.model_validate({"scorer": {"type": "length"}, "host": host})
    open_ = {"scorer": {"type": "length"}, "host": "0.0.0.0", "token_env": "SOME_TOKEN"}
    recipe = ServeRecipe.model_validate(open_)
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    with pytest.raises(RecipeError, match="SOME_TOKEN is not set"):
        token_of(recipe)
    monkeypatch.setenv("SOME_TOKEN", " t \n")
    assert token_of(recipe) == "t"


def test_others_see_names_of_models_and_not_where_they_are(tmp_path: Path) -> None:
    folders = [tmp_path / run / "model" for run in ("one", "two/same", "three/same")]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(str(number))
    paths = [str(folder) for folder in folders] + ["org/hub-model"]
    members = [{"scorer": {"type": "model", "path": path}} for path in paths]
    scorer = {"type": "ensemble", "members": members}

    async def test() -> None:
        async with client(scorer=Slow(), recipe={"scorer": scorer}) as c:
            whole = (await c.get("/info")).json()["scorer"]["weights"]
            assert sorted(whole) == sorted(paths)
        headers = {"authorization": "Bearer t"}
        async with client(scorer=Slow(), token="t", recipe={"scorer": scorer}) as c:
            found = (await c.get("/info", headers=headers)).json()
            assert str(tmp_path) not in json.dumps(found)
            own = found["scorer"]["weights"]
            assert sorted(own) == ["one", "org/hub-model", "same", "same (2)"]
            assert sorted(own.values()) == sorted(whole.values())
            assert own["one"] == whole[paths[0]]

    run(test)


def test_a_port_that_is_taken_is_one_line() -> None:
    first = bind(ServeRecipe.model_validate({"scorer": {"type": "length"}, "port": 0}))
    with first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(RunError, match=f"cannot listen at 127.0.0.1:{port}"):
            bind(ServeRecipe.model_validate({"scorer": {"type": "length"}, "port": port}))


def test_logs_are_json_and_hold_no_text(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with client() as c:
            headers = {"x-request-id": "mine-1"}
            answer = await c.post("/score", json=ask("a secret"), headers=headers)
            assert answer.headers["x-request-id"] == "mine-1"

    with logged(caplog):
        run(test)
    line = json.loads(Lines().format(caplog.records[-1]))
    assert (line["event"], line["id"], line["status"]) == ("request", "mine-1", 200)
    assert "secret" not in json.dumps(line)


def test_help_and_recipe(tmp_path: Path) -> None:
    for command, recipe, key in (
        ("serve", ServeRecipe, "max_queue_responses"),
        ("score", ScoreRecipe, "block_rows"),
    ):
        shown = CliRunner().invoke(cli, [command, "--help"])
        assert shown.exit_code == 0 and key in shown.stdout
        # Every type of scorer is named where the key is described.
        said = str(recipe.model_fields["scorer"].description)
        named = set(re.findall(r"[a-z_]+", said.partition(":")[2])) - {"or"}
        assert named == {
            kind.model_fields["type"].default for kind in get_args(get_args(Scorer)[0])
        }
    file = tmp_path / "serve.yaml"
    file.write_text("scorer: {type: length}\nport: 0\nmax_queue_responses: 300\n")
    shown = CliRunner().invoke(cli, ["serve", str(file), "--print-recipe"])
    assert shown.exit_code == 0, shown.output
    file.write_text(shown.stdout)
    loaded = load_recipe(ServeRecipe, file)
    assert (loaded.scorer.type, loaded.port, loaded.max_queue_responses) == ("length", 0, 300)
    assert loaded.max_wait_ms == ServeRecipe.model_fields["max_wait_ms"].default
    file.write_text("scorer: {type: length}\nmax_que_responses: 300\n")
    wrong = CliRunner().invoke(cli, ["serve", str(file)])
    assert wrong.exit_code == 2
    assert "line 2, column 1: unknown key `max_que_responses`; did you mean `max_q" in wrong.output
