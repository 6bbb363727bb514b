"""/v1/chat/completions as OpenAI's clients ask it, and scorers that it cannot serve."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from palate.data.scorer import Score
from palate.recipes.scorers import PairwiseJudge, ServerChat
from palate.rewards.chat import Reply
from palate.rewards.combined import Member
from palate.rewards.ensemble import Ensemble
from palate.rewards.judge import Pairwise
from palate.rewards.length import Length
from tiny_judge import FakeWriter
from tiny_serve import Slow, client, run

NAME = "longer wins"
USER = {"role": "user", "content": "c"}


def asked(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [USER, {"role": "assistant", "content": content}]} | more


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]

    async def test() -> None:
        scorer = Slow()
        async with client(scorer) as c:
            found = await c.post("/v1/chat/completions", json=asked(parts))
            assert found.json()["choices"][0]["message"]["content"] == "reward:8.0"
            both = {"prompt": [{"role": "user", "content": parts}], "responses": ["a"]}
            assert (await c.post("/score", json=both)).status_code == 200
            assert scorer.asked == ["one, two", "a"]
            for part, text in (
                ({"type": "image_url", "image_url": {"url": "data:"}}, "read in prompts, not in"),
                ({"type": "input_audio", "input_audio": {}}, "are read"),
                ({"type": "text"}, "has `text`, and nothing else"),
                ({"type": "text", "text": "a", "cache_control": {}}, "cache_control: Extra"),
                ("text", "is no JSON object"),
            ):
                found = await c.post("/v1/chat/completions", json=asked([parts[0], part]))
                message = found.json()["error"]["message"]
                assert found.status_code == 422 and text in message, message
                assert message.startswith("messages.1.content.1")
            for content in ([], None, 3, {}):
                found = await c.post("/v1/chat/completions", json=asked(content))
                assert found.status_code == 422

    run(test)


def test_options_of_sampling_are_taken_where_they_change_nothing() -> None:
    idle: list[tuple[str, list[Any], list[Any]]] = [
        ("temperature", [None, 0, 0.0, 1, 1.0], [0.7, 2, -1, True, "0"]),
        ("top_p", [None, 1, 1.0], [0.9, 0, True]),
        ("n", [None, 1], [0, 2, True]),
        ("stream", [None, False], [True]),
        ("presence_penalty", [None, 0, 0.0], [0.1]),
        ("frequency_penalty", [None, 0], [-2]),
        ("logprobs", [None, False], [True]),
        ("max_tokens", [None, 1, 4096], [0, -1, 1.5, "16"]),
        ("max_completion_tokens", [None, 16], [0]),
        ("seed", [None, 7, -7], [1.5, "7"]),
        ("stop", [], [None, "\n"]),
        ("tools", [], [[]]),
    ]

    async def test() -> None:
        async with client() as c:
            for option, good, bad in idle:
                for value in good:
                    found = await c.post("/v1/chat/completions", json=asked("d", **{option: value}))
                    assert found.status_code == 200, (option, value, found.text)
                    assert found.json()["choices"][0]["message"]["content"] == "reward:1.0"
                for value in bad:
                    found = await c.post("/v1/chat/completions", json=asked("d", **{option: value}))
                    assert found.status_code == 422, (option, value)
                    message = found.json()["error"]["message"]
                    assert message.startswith(f"{option}: "), message

    run(test)


def test_a_scorer_that_compares_says_what_serves_it() -> None:
    def say(question: str, _: int) -> Reply:
        first, second = (question.find(word) for word in ("emerald", "granite"))
        return Reply(text=f"<answer>{1 if first < second else 2}</answer>", finished=True)

    recipe = PairwiseJudge(chat=ServerChat(url="http://j/v1", model="m"), method="sampled")

    def judge() -> Pairwise:
        return Pairwise(recipe, FakeWriter(say))

    async def test(scorer: Any, best: float) -> None:
        async with client(scorer) as c:
            found = await c.post("/v1/chat/completions", json=asked("emerald"))
            message = found.json()["error"]["message"]
            assert found.status_code == 422
            assert "use /rank or /score with several responses to one prompt" in message
            one = {"query": ["Q: emerald", "R: granite"], "prompts": ["Q: ", "R: "]}
            found = await c.post("/get_reward", json=one)
            message = found.json()["error"]["message"]
            assert found.status_code == 422 and message.startswith("query.0: the only response")
            assert "several queries of one prompt, or use /rank or /score" in message
            several = {"query": ["Q: granite", "Q: emerald"], "prompts": ["Q: ", "Q: "]}
            rewards = (await c.post("/get_reward", json=several)).json()["rewards"]
            assert rewards[1] == best and rewards[0] < best
            both = {"prompt": "Q", "responses": ["granite", "emerald"]}
            assert (await c.post("/rank", json=both)).json()["order"] == [1, 0]

    run(lambda: test(judge(), 1.0))
    members = [Member(scorer=judge()), Member(scorer=Length("shorter"))]
    # (1 - 7) / 2: the wins, and less the characters.
    run(lambda: test(Ensemble(members, "mean"), -3.0))


def test_info_tells_how_wide_the_members_score() -> None:
    async def test() -> None:
        wide, narrow = Length(), Length("shorter")
        narrow.score = lambda groups: [[Score(0.01 * len(r)) for r in g.responses] for g in groups]
        scorer = Ensemble([Member(scorer=wide), Member(scorer=narrow)])
        async with client(scorer) as c:
            assert (await c.get("/info")).json()["members"]["raw"][0]["n"] == 0
            body = {"prompt": "Q", "responses": ["granite", "emerald!", "opal"]}
            found = (await c.post("/score", json=body)).json()
            assert found["members"]["longer wins"] == [7.0, 8.0, 4.0]
            told = (await c.get("/info")).json()["members"]
        assert [(one["name"], one["n"]) for one in told["raw"]] == [
            ("longer wins", 3),
            ("shorter wins", 3),
        ]
        assert told["raw"][0]["within"] == pytest.approx(statistics.stdev([7, 8, 4]))
        assert "longer wins makes 99%" in told["warning"]
        async with client(Length()) as c:
            assert (await c.get("/info")).json()["members"] is None

    run(test)
