"""What the heads of a model remember of one another's passes."""

from __future__ import annotations

from typing import Any

import pytest

from palate.models.model import Model
from palate.rewards import model
from palate.rewards.groups import score_groups
from palate.rewards.model import ModelScorer
from palate.rewards.rendered import score_rendered
from scored import groups_of
from tiny_chat import CHATML, byte_tokenizer
from tiny_scorer import heads_of, scorer_of
from tiny_serve import client, run

FEW = 8


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Responses of each pass, with room for few."""
    found: list[int] = []
    forward = Model.forward

    def counted(self: Any, batch: Any, *args: Any, **more: Any) -> Any:
        out = forward(self, batch, *args, **more)
        found.append(len(out.rewards))
        return out

    monkeypatch.setattr(Model, "forward", counted)
    monkeypatch.setattr(model, "MOST_KNOWN", FEW)
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_heads_share_the_passes_of_a_call_larger_than_the_memory(
    exact: bool, sequences: list[int]
) -> None:
    scorer = heads_of(byte_tokenizer(template=CHATML))
    prompts: list[Any] = [f"say {n}" for n in range(5)]
    answers: list[Any] = [[f"word {n} {k}" for k in range(4)] for n in range(5)]
    score_groups(scorer, groups_of(prompts[:1], answers[:1]))
    sequences.clear()
    first = scorer.members[0].scorer
    assert isinstance(first, ModelScorer)
    found = score_groups(scorer, groups_of(prompts[1:], answers[1:]), exact=exact)
    assert all(len(own.parts) == 3 for group in found for own in group)
    assert sum(sequences) == 16
    rendered = [
        first.encoder.template.render([{"role": "user", "content": p}], []) for p in prompts
    ]
    texts = [shown.prompt + "other" for shown in rendered] * 2
    sequences.clear()
    score_rendered(scorer, [f"{text} {k}" for k, text in enumerate(texts)])
    assert sum(sequences) == 10


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "head"])
def test_calls_beyond_number_leave_little(heads: bool, sequences: list[int]) -> None:
    tokenizer = byte_tokenizer(template=CHATML)
    scorer: Any = heads_of(tokenizer)
    if not heads:
        scorer = ModelScorer(scorer_of(tokenizer, heads=3).model, tokenizer=tokenizer, head=1)
    inner = scorer.members[0].scorer.model if heads else scorer.model
    for n in range(6):
        said = groups_of(["say"], [[f"word {n} {k}" for k in range(5)]])
        score_groups(scorer, said, exact=n % 2 == 0)
        # What was known before a call, and what the call asked about.
        assert len(model._KNOWN_HEADS[inner]) <= FEW + 5
    # Three passes would be three times as many; the check of the layout has two of four.
    assert 30 <= sum(sequences) < 45


@pytest.mark.parametrize("exact", [False, True])
def test_a_server_of_heads_keeps_nothing(exact: bool, sequences: list[int]) -> None:
    scorer = heads_of(byte_tokenizer(template=CHATML))
    first = scorer.members[0].scorer
    assert isinstance(first, ModelScorer)

    async def test() -> None:
        async with client(scorer, exact=exact) as c:
            body = {"prompt": "say", "responses": ["a word", "another"]}
            for _ in range(2):
                found = await c.post("/score", json=body)
                assert len(found.json()["members"]) == 3
            text = first.encoder.template.render([{"role": "user", "content": "say"}], []).prompt
            found = await c.post("/get_reward", json={"query": [text + "it", text + "more"]})
            assert len(found.json()["rewards"]) == 2
            assert not model._KNOWN_HEADS.get(first.model)

    run(test)
    # Two responses three times, and perhaps the check of the layout with its two.
    assert 6 <= sum(sequences) <= 10
