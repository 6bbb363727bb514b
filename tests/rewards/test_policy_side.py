"""What a policy's rollout asks of scorers: several threads, and another tokenizer than its own."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from palate.data.scorer import Group, Score, Traits
from palate.errors import ModelError
from palate.recipes.scorers import RemoteScorer
from palate.rewards import score_concurrently
from palate.rewards.remote import Remote
from tiny_chat import CHATML, spacing_tokenizer
from tiny_judge import word_tokenizer
from tiny_scorer import scorer_of, spaced


class Waits:
    """Takes a while for each call, and says how many calls were under way at once."""

    name = "waits"

    def __init__(self, *, independent: bool = True) -> None:
        self.traits = Traits(independent=independent)
        self.counts: Counter[str] = Counter()
        self.calls: list[int] = []
        self.under_way = self.most = 0
        self._lock = threading.Lock()

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        with self._lock:
            self.calls.append(len(groups))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.02)
        with self._lock:
            self.under_way -= 1
        if any(group.prompt == "bad" for group in groups):
            raise ModelError("bad: cannot be scored")
        return [[Score(float(r)) for r in group.responses] for group in groups]  # type: ignore[arg-type]


def groups(n: int) -> list[Group]:
    return [Group("p", tuple(str(10 * i + j) for j in range(i % 3))) for i in range(n)]


def test_threads_keep_the_order() -> None:
    scorer = Waits()
    scored = score_concurrently(scorer, groups(30), 4)
    assert scored == scorer.score(groups(30))
    assert scorer.most == 4 and sum(scorer.calls[:-1]) == 30 and len(scorer.calls[:-1]) == 16


def test_one_call_where_a_score_depends_on_it_or_nothing_is_won() -> None:
    for scorer, workers, n in (
        (Waits(independent=False), 4, 30),
        (Waits(), 1, 30),
        (Waits(), 4, 1),
    ):
        assert len(score_concurrently(scorer, groups(n), workers)) == n
        assert scorer.calls == [n]
    assert score_concurrently(Waits(), [], 4) == []


def test_what_fails_in_a_thread_is_raised() -> None:
    with pytest.raises(ModelError, match="bad: cannot be scored"):
        score_concurrently(Waits(), [*groups(9), Group("bad", ("1",))], 3)


def test_threads_share_the_connections_of_a_server() -> None:
    import httpx

    under_way = most = 0
    lock = threading.Lock()

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        if request.url.path == "/info":
            return httpx.Response(404)
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        import json

        items = json.loads(request.content)["items"]
        scores = [{"scores": [float(r) for r in item["responses"]]} for item in items]
        return httpx.Response(200, json={"items": scores})

    recipe = RemoteScorer(url="http://s:1", concurrency=2, request_responses=1)
    scorer = Remote(recipe, transport=httpx.MockTransport(answer))
    scored = score_concurrently(scorer, groups(12), 6)
    assert [[s.value for s in scores] for scores in scored] == [
        [float(r) for r in group.responses]
        for group in groups(12)  # type: ignore[arg-type]
    ]
    assert most == 2


@pytest.mark.parametrize("template", [None, CHATML])
def test_policy_and_reward_model_with_different_tokenizers(template: Any) -> None:
    """A reward model reads text in its own tokens, whatever the policy's were."""
    policy, reward = word_tokenizer(), spacing_tokenizer()
    assert policy.get_vocab() != reward.get_vocab()
    scorer = scorer_of(spaced(template))
    texts = ["sun sea", "sky good"]
    ids = [policy(text)["input_ids"] for text in texts]
    prompt: Any = (
        "say a word: " if template is None else [{"role": "user", "content": "say a word"}]
    )
    decoded = tuple(policy.decode(of_text) for of_text in ids)
    assert list(decoded) == texts
    sampled = Group(prompt, decoded, response_ids=tuple(map(tuple, ids)))
    (scores,) = scorer.score([sampled])
    (plain,) = scorer.score([Group(prompt, tuple(texts))])
    assert scores == plain and scores[0].value is not None and scores[0].value != scores[1].value
