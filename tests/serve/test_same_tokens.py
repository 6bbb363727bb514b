"""Training, evaluation, `palate score` and every route of a server read the same tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from palate.data.encode import Encoder
from palate.data.items import Item
from palate.data.schema import Preference, Response
from palate.evaluate.reward import score_files
from palate.recipes.serving import ScoreRecipe
from palate.rewards.combined import Member
from palate.rewards.ensemble import Ensemble
from scored import Alike, flat_values
from tiny_chat import CHATML, DOUBLE_END, NO_END, STRICT, byte_tokenizer
from tiny_scorer import conversation, heads_of, scorer_of, spaced
from tiny_serve import client, run

MAKE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "ml": lambda: byte_tokenizer(adds_bos=False, template=CHATML),
    "ml-bos": lambda: byte_tokenizer(adds_bos=True, template=CHATML),
    "strict": lambda: byte_tokenizer(adds_bos=True, template=STRICT),
    "double": lambda: byte_tokenizer(adds_bos=False, template=DOUBLE_END),
    "no-end": lambda: byte_tokenizer(adds_bos=False, template=NO_END),
    "spaced": lambda: spaced(CHATML),
    "text": lambda: byte_tokenizer(adds_bos=True),
    "spaced-text": lambda: spaced(None),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_the_same_tokens_everywhere(
    make: Callable[[], PreTrainedTokenizerFast], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make()
    chat = tokenizer.chat_template is not None
    prompt: Any
    response: Any
    prompt, response = conversation(chat)
    pair = Preference(
        id="",
        source="",
        kind="pair",
        prompt=prompt,
        responses=(
            Response(content=response),
            Response(content=[{**response[0], "content": "no"}] if chat else "no"),
        ),
    )
    trained = Encoder(tokenizer).encode_row(pair)
    assert isinstance(trained, Item)
    right = trained.prompts[0].ids + trained.responses[0].ids

    scorer = scorer_of(tokenizer)
    read: list[tuple[int, ...]] = []
    real = scorer.score_encoded

    def spying(groups: Any) -> Any:
        read.extend(ids[0].ids + ids[1].ids for group in groups for ids in group)
        return real(groups)

    monkeypatch.setattr(scorer, "score_encoded", spying)
    (score,) = flat_values(scorer, [prompt], [response])
    assert read.pop() == right

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": prompt, "completion": response}) + "\n")
    monkeypatch.setattr("palate.evaluate.reward.score.make_scorer", lambda *_, **__: scorer)
    recipe = {"output_dir": tmp_path / "out", "scorer": {"type": "length"}, "exact": True}
    result = score_files(ScoreRecipe.model_validate(recipe | {"data": [{"path": str(file)}]}))
    assert json.loads(result.scores.read_text())["score"] == score
    assert read.pop() == right

    shown = prompt if not chat else scorer.encoder.template.render(prompt, [response]).prompt
    said = response[0]["content"] if chat else response
    texts = [shown + said + end for end in ("<eos>", "<end>", "<end>\n", "")]

    async def served() -> None:
        async with client(scorer, exact=True) as c:
            for answer in [response, said] if chat else [response]:
                found = await c.post("/score", json={"prompt": prompt, "responses": [answer]})
                assert found.json()["scores"] == [score] and read.pop() == right
            body = {"query": texts, "prompts": [shown] * len(texts)}
            found = await c.post("/get_reward", json=body)
            assert found.json()["rewards"] == [score] * len(texts)
            assert read == [right] * len(texts)
            if chat:
                turns = {"model": "longer wins", "messages": [*prompt, *response]}
                found = await c.post("/v1/chat/completions", json=turns)
                assert found.json()["choices"][0]["message"]["content"] == f"reward:{score!r}"
                assert read.pop() == right

    asyncio.run(served())


def test_an_ensemble_gives_one_score_on_every_route() -> None:
    scorer = heads_of(MAKE["ml-bos"](), rule="min")
    prompt, response = conversation(True)
    said = response[0]["content"]  # type: ignore[index]
    render = scorer.members[0].scorer.encoder.template.render  # type: ignore[attr-defined]
    shown = render(prompt, [response]).prompt

    async def served() -> None:
        async with client(scorer, exact=True) as c:
            assert (await c.get("/info")).json()["scorer"]["reads_rendered"] is True
            body = {"prompt": prompt, "responses": [said, "no"]}
            wanted = (await c.post("/score", json=body)).json()
            texts = [shown + said + "<eos>", "<bos>" + shown + "no<end>\n<pad>"]
            for prompts in ([shown] * 2, None):
                found = (
                    await c.post("/get_reward", json={"query": texts, "prompts": prompts})
                ).json()
                assert found["rewards"] == found["scores"] == wanted["scores"]
                assert found["members"] == wanted["members"] and len(found["members"]) == 3

    run(served)


def test_an_ensemble_of_readers_and_others_is_given_no_rendered_text() -> None:
    model = scorer_of(MAKE["ml"]())
    scorer = Ensemble([Member(scorer=model), Member(scorer=Alike())], name="both")

    async def served() -> None:
        async with client(scorer, exact=True) as c:
            assert (await c.get("/info")).json()["scorer"]["reads_rendered"] is False
            found = await c.post("/get_reward", json={"query": ["<start>user\na"]})
            message = found.json()["error"]["message"]
            assert found.status_code == 422 and message.startswith(
                "both: of its members tiny reads"
            )
            assert message.endswith(
                "alike, which looks at prompts, too, does not: use /score or /rank"
            )
            body = {"prompt": "p", "responses": ["a"]}
            assert (await c.post("/score", json=body)).json()["scores"][0] is not None

    run(served)
