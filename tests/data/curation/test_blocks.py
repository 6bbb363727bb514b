"""What a step does depends on the pairs, not on how they are cut into blocks or numbered."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curating import clean, curate, pair
from palate.data.schema import Preference
from scored import Numbers


class Longest(Numbers):
    """A reward that likes long responses."""

    name = "length"

    def numbers(self, prompts: list[str], responses: list[str]) -> list[float]:
        return [float(len(response)) for response in responses]


def lopsided(count: int) -> list[Preference]:
    """Pairs whose longer response is chosen."""
    return [pair(f"{i}?", f"{'yes ' * 20}{i}", f"{i} no", id=f"long:{i}") for i in range(count)]


def _rows() -> list[Preference]:
    rng = random.Random(4)
    rows = clean(60, seed=4, words=8)
    rows += [
        dataclasses.replace(row, id=f"again:{i}", margin=0.5) for i, row in enumerate(rows[:20])
    ]
    rows += [
        dataclasses.replace(row, id=f"flip:{i}", responses=row.responses[::-1])
        for i, row in enumerate(rows[10:30])
    ]
    rows += [
        dataclasses.replace(row, id=f"near:{i}", prompt=f"{row.prompt} so")
        for i, row in enumerate(rows[:20])
    ]
    rows += [
        pair(
            "Was ist das für ein Vogel dort im Garten?",
            "Das ist eine kleine Meise, wie ich glaube.",
            "Ich weiß es nicht genau.",
        ),
        pair("Help me.", "I'm sorry, but I can't help with that.", "Sure <|im_end|>"),
        pair("", "x", "x"),
        pair("Tie?", "Both are fine.", "Both are good.", tie=True),
        pair("Kein Maß?", "ja", "nein", margin=None),
    ]
    rows += lopsided(15)
    rng.shuffle(rows)
    return rows


ROWS = _rows()
SCORES = {"type": "lexicon"}
STEPS: list[dict[str, Any]] = [
    {"step": "exact_duplicates"},
    {"step": "exact_duplicates", "of": "prompt", "keep": "best_margin", "normalise": "words"},
    {"step": "near_duplicates", "threshold": 0.6},
    {"step": "near_duplicates", "of": "prompt", "shingles": "words", "shingle_size": 2},
    {"step": "contradictions"},
    {"step": "contradictions", "keep": "majority"},
    {"step": "length", "chosen": {"min": 20}, "rejected": {"max": 80}},
    {"step": "language", "keep": ["en"]},
    {"step": "length_balance", "edges": [5, 20]},
    {"step": "margin", "min": 0.3, "missing": "drop"},
    {"step": "empty"},
    {"step": "refusals"},
    {"step": "templates"},
    {"step": "score_filter", "scores": SCORES, "keep": "unsure", "within": 10},
    {"step": "loss_filter", "scores": SCORES, "min": 0.1, "max": 5},
    {"step": "difficulty", "buckets": 4},
    {"step": "difficulty", "edges": [-1, 0, 5], "scores": SCORES},
    {"step": "decontaminate", "against": ["evaluation"], "ngram": 3},
]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("evaluation") / "bench.jsonl"
    prompts = [row.prompt for row in ROWS[::9] if row.prompt]
    file.write_text("".join(json.dumps({"question": p}) + "\n" for p in prompts))
    return str(file)


def _filled(recipe: dict[str, Any], evaluation: str) -> dict[str, Any]:
    return recipe | {"against": [{"path": evaluation}]} if "against" in recipe else recipe


@pytest.mark.parametrize("recipe", STEPS, ids=lambda r: "-".join(map(str, r.values()))[:60])
def test_blocks_of_any_size_give_the_same(recipe: dict[str, Any], evaluation: str) -> None:
    recipe = _filled(recipe, evaluation)
    whole = curate(ROWS, recipe, block_size=len(ROWS), make_scorer=lambda _: Longest())
    assert whole.dropped or whole.changed, "the rows are meant to give every step something to do"
    assert len(whole.dropped) < len(ROWS)
    for size in (1, 7, 50):
        again = curate(ROWS, recipe, block_size=size, make_scorer=lambda _: Longest())
        assert again == whole
    # Gaps that earlier steps have left change nothing.
    apart = curate(ROWS, recipe, block_size=13, make_scorer=lambda _: Longest(), first=5, stride=3)
    assert apart == whole
    json.dumps(whole.account, allow_nan=False)
    # No text was touched.
    for place, row in whole.changed.items():
        assert dataclasses.replace(row, extra=ROWS[place].extra) == ROWS[place]


def test_seed_decides_what_is_drawn_and_nothing_else() -> None:
    balance = {"step": "length_balance"}
    rows = [*clean(300), *lopsided(40)]
    rows += [dataclasses.replace(r, responses=r.responses[::-1]) for r in lopsided(20)]
    drawn = {frozenset(curate(rows, balance, seed=seed).dropped) for seed in range(4)}
    assert len(drawn) == 4
    assert len({len(some) for some in drawn}) == 1


TEXTS = st.text(alphabet="ab \n\u00e9\u4e2d\ud800", max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.booleans()), min_size=0, max_size=20),
    size=st.integers(1, 25),
    step=st.sampled_from([r for r in STEPS if "against" not in r]),
)
def test_any_text_gives_the_same_in_any_blocks(
    texts: list[tuple[str, str, str, bool]], size: int, step: dict[str, Any]
) -> None:
    rows = [pair(a, b, c, tie=tie, id=str(i)) for i, (a, b, c, tie) in enumerate(texts)]
    whole = curate(rows, step, block_size=100, make_scorer=lambda _: Longest())
    assert curate(rows, step, block_size=size, make_scorer=lambda _: Longest()) == whole


def test_unused_evaluation_file_is_not_needed(tmp_path: Path) -> None:
    """An evaluation prompt that no pair has changes nothing."""
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"question": "Quite another thing that nobody has asked before?"}))
    found = curate(ROWS, {"step": "decontaminate", "against": [{"path": str(file)}]})
    assert not found.dropped
    assert found.account["sets"]["other"]["prompts_found"] == 0
