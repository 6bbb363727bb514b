"""The log-ratio of two models as a score of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from palate.data.curation import Dropped, build_steps
from palate.data.curation.base import Block, Means
from palate.data.schema import Preference, Response
from palate.errors import ModelError
from palate.recipes.curation import LogRatioScores, LossFilter
from palate.rewards import make_scorer
from scored import groups_of
from tiny_text import save_tiny, tiny_text_model, tiny_tokenizer


def pair(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(
        id=prompt,
        source="s",
        kind="pair",
        prompt=prompt,
        responses=(Response(content=chosen), Response(content=rejected)),
    )


ROWS = [
    pair("The sky is", " blue.", " a green field of tea."),
    pair("Two and two", " make four", " are."),
    pair("x" * 90, "y", "z"),
]


def log_prob(seed: int, prompt: str, response: str) -> float:
    """Of the response and the end after it, token by token."""
    tokenizer = tiny_tokenizer()
    start = tokenizer(prompt)["input_ids"]
    ids = start + tokenizer(response, add_special_tokens=False)["input_ids"] + [2]
    with torch.no_grad():
        logits = tiny_text_model(seed=seed)(torch.tensor([ids])).logits[0].double()
    steps = logits.log_softmax(-1)
    return sum(float(steps[t - 1, ids[t]]) for t in range(len(start), len(ids)))


@pytest.mark.parametrize("average", [False, True])
def test_scores_are_those_of_the_two_models(tmp_path: Path, average: bool) -> None:
    policy, reference = (str(save_tiny(tmp_path / n, seed=i)) for i, n in enumerate("pr"))
    recipe = LogRatioScores(
        policy=policy,
        reference=reference,
        beta=0.5,
        average=average,
        dtype="float32",
        max_tokens=80,
    )
    asked = groups_of([r.prompt for r in ROWS], [[o.content for o in r.responses] for r in ROWS])
    scores = [[s.value for s in own] for own in make_scorer(recipe).score(asked)]
    for row, found in zip(ROWS[:2], scores, strict=False):
        for response, score in zip(row.responses, found, strict=True):
            text = str(response.content)
            expected = log_prob(0, str(row.prompt), text) - log_prob(1, str(row.prompt), text)
            length = len(text) + 1 if average else 1
            assert score == pytest.approx(0.5 * expected / length, abs=1e-4)
    assert scores[2] == [None, None], "longer than max_tokens"


def test_a_loss_filter_uses_them(tmp_path: Path) -> None:
    policy = str(save_tiny(tmp_path / "p"))
    scores = LogRatioScores(policy=policy, dtype="float32", max_tokens=80)
    recipe = LossFilter(scores=scores, max=0.7)
    (step,) = build_steps([recipe], Means(make_scorer=make_scorer))
    judged = step.judge(Block(first=0, index=[0, 1, 2], rows=ROWS))
    # The shorter response is the more probable one under any model.
    assert [isinstance(j, Dropped) for j in judged] == [False, True, True]
    assert step.account()["scores"] == "log-probability of p"
    assert step.account()["pairs"] == {"scored": 2, "ties": 0, "without_score": 1}


def test_vocabularies_must_be_the_same(tmp_path: Path) -> None:
    policy = save_tiny(tmp_path / "p")
    other = tiny_text_model()
    other.resize_token_embeddings(300)
    other.save_pretrained(tmp_path / "r")
    recipe = LogRatioScores(policy=str(policy), reference=str(tmp_path / "r"), dtype="float32")
    with pytest.raises(ModelError, match="has a vocabulary of 300"):
        make_scorer(recipe)
