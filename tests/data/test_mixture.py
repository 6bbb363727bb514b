"""Mixtures: exact shares, nested draws, honest units, and rows that reconcile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from palate.data.build import Dataset, build
from palate.data.encode import Encoder
from palate.data.mixture import Measure, Selection, apportion, row_key, row_keys, select
from palate.data.schema import Preference, Response
from palate.errors import ModelError, RecipeError
from palate.recipes.mixture import MixtureRecipe
from palate.recipes.schema import DataRecipe, DataSource, LengthRecipe, PairingRecipe
from tiny_chat import byte_tokenizer

NAMES = ["a", "b", "c"]


def recipe(**keys: Any) -> MixtureRecipe:
    return MixtureRecipe.model_validate(keys)


def draw(
    counts: list[int],
    how: MixtureRecipe,
    *,
    seed: int = 0,
    size: int | None = None,
    order: np.ndarray[Any, Any] | None = None,
) -> tuple[Selection, list[str]]:
    """Of sources of these numbers of rows, and the ids taken; sizes are 1 or vary below `size`."""
    names = NAMES[: len(counts)]
    ids = [f"{name}:{i}" for name, n in zip(names, counts, strict=True) for i in range(n)]
    source = np.repeat(np.arange(len(counts)), counts)
    if order is not None:
        ids, source = [ids[i] for i in order], source[order]
    sizes = np.array([1 if size is None else 1 + int(i.split(":")[1]) % size for i in ids])
    found = select(source=source, key=row_keys(seed, ids), size=sizes, names=names, recipe=how)
    return found, [ids[i] for i in np.flatnonzero(found.mask)]


def taken(found: Selection) -> dict[str, int]:
    return {name: entry["taken"] for name, entry in found.account["sources"].items()}


def test_keys_are_fixed() -> None:
    # A change would silently change every mixture that was ever drawn.
    assert row_key(0, "hh:1") == 12276658401974440887
    assert row_key(1, "hh:1") == 3672942992003719154
    assert row_keys(0, ["hh:1"]).tolist() == [row_key(0, "hh:1")]


def test_counts_fractions_and_all() -> None:
    found, _ = draw([10, 8, 5], recipe(take={"a": 3, "b": 0.25, "c": "all"}))
    assert taken(found) == {"a": 3, "b": 2, "c": 5}
    assert found.account == {
        "unit": "pairs",
        "when_short": "error",
        "rows_taken": 10,
        "taken": 10,
        "sources": {
            "a": entry(10, 3, 3),
            "b": entry(8, 2, 2),
            "c": entry(5, 5, 5),
        },
    }
    json.dumps(found.account)


def entry(available: int, asked: int, taken: int) -> dict[str, Any]:
    return {
        "available": available,
        "asked": asked,
        "taken": taken,
        "rows_available": available,
        "rows_taken": taken,
        "short": asked > available,
    }


def test_weights_and_totals() -> None:
    assert taken(draw([90, 90], recipe(weights={"a": 2, "b": 1}, total=90))[0]) == {
        "a": 60,
        "b": 30,
    }
    assert taken(draw([9, 90, 20], recipe(weights="equal"))[0]) == {"a": 9, "b": 9, "c": 9}
    # Without a total, the largest that leaves none short.
    weights = {"a": 0.7, "b": 0.2, "c": 0.1}
    assert taken(draw([700, 200, 900], recipe(weights=weights))[0]) == {
        "a": 700,
        "b": 200,
        "c": 100,
    }
    assert sum(taken(draw([9, 9, 9], recipe(weights="equal", total=10))[0]).values()) == 10


def test_token_budgets() -> None:
    found, ids = draw([50, 400], recipe(weights="equal", unit="tokens", total=300), size=9)
    for name, mine in found.account["sources"].items():
        sizes = [1 + int(i.split(":")[1]) % 9 for i in ids if i.startswith(name)]
        assert mine["taken"] == sum(sizes) and mine["rows_taken"] == len(sizes)
        # Less than the budget by a part of one row.
        assert 150 - 9 < mine["taken"] <= 150
    assert found.account["unit"] == "tokens"


def test_short_sources() -> None:
    with pytest.raises(RecipeError, match=r"`mixture`: 1,000 pairs of 'b' are asked .* it has 8;"):
        draw([10, 8], recipe(take={"a": 3, "b": 1000}))
    found, _ = draw([10, 8], recipe(take={"a": 3, "b": 1000}, when_short="take_all"))
    assert taken(found) == {"a": 3, "b": 8}
    assert found.account["sources"]["b"] == entry(8, 1000, 8)
    # A source of which nothing is left.
    with pytest.raises(RecipeError, match="'b' are asked for, and it has 0"):
        draw([10, 0], recipe(take={"a": 3, "b": 1}))
    assert taken(draw([9, 0], recipe(take={"a": 3, "b": "all"}))[0]) == {"a": 3, "b": 0}
    with pytest.raises(RecipeError, match=r"`mixture\.weights`: 'b' has nothing"):
        draw([10, 0], recipe(weights="equal"))


def test_shares_must_name_the_sources() -> None:
    with pytest.raises(RecipeError, match=r"`mixture\.take`: no share of 'b', 'c'; say how much"):
        draw([3, 3, 3], recipe(take={"a": 1}))
    with pytest.raises(RecipeError, match=r"no source is named 'x'; there are 'a'"):
        draw([3], recipe(weights={"a": 1, "x": 1}))
    with pytest.raises(RecipeError, match="0 pairs of 'a' are less than one row"):
        draw([3], recipe(take={"a": 0.1}))
    with pytest.raises(RecipeError, match="2 tokens of 'a' are less than one row; its first has"):
        draw([9], recipe(take={"a": 2}, unit="tokens"), size=1000, seed=1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either `take` or `weights`"),
        ({"take": {"a": 1}, "weights": "equal"}, "either `take` or `weights`"),
        ({"take": {"a": 1.0}}, r"`take\.a`: a fraction is between 0 and 1; for everything"),
        ({"take": {"a": -0.5}}, r"`take\.a`: a fraction"),
        ({"take": {"a": 0}}, r"`take\.a`: takes nothing"),
        ({"take": {"a": "some"}}, "take"),
        ({"take": {"a": True}}, "take"),
        ({"take": {}}, "names no source"),
        ({"weights": {"a": 0}}, "weights"),
        ({"take": {"a": 1}, "total": 3}, "`total`: only with `weights`"),
        ({"weights": "equal", "tokenizer": "x"}, "`tokenizer`: only with `unit: tokens`"),
        ({"weights": "equal", "when_short": "repeat"}, "when_short"),
    ],
)
def test_contradicting_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**keys)


@given(
    small=st.integers(1, 60),
    more=st.integers(0, 60),
    unit=st.sampled_from(["pairs", "tokens"]),
    seed=st.integers(0, 3),
)
def test_smaller_shares_are_part_of_larger_ones(
    small: int, more: int, unit: str, seed: int
) -> None:
    size = 7 if unit == "tokens" else None

    def ids(n: int) -> set[str]:
        n = 7 + n if unit == "tokens" else n
        how = recipe(take={"a": n, "b": "all"}, unit=unit, when_short="take_all")
        return set(draw([60, 5], how, seed=seed, size=size)[1])

    assert ids(small) <= ids(small + more)


@given(
    total=st.integers(3, 80),
    more=st.integers(0, 20),
    weights=st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3),
)
def test_a_larger_total_takes_more_of_every_source(
    total: int, more: int, weights: list[float]
) -> None:
    one, two = apportion(total, weights), apportion(total + more, weights)
    assert (sum(one), sum(two)) == (total, total + more)
    assert all(a <= b for a, b in zip(one, two, strict=True))
    whole = sum(weights)
    assert all(abs(a - total * w / whole) < 3 for a, w in zip(one, weights, strict=True))


@pytest.mark.parametrize("weights", [[9.0, 5.0, 3.0, 0.0], [0.6, 0.3, 0.1], [1.0, 1.0, 5.0]])
def test_seats_go_to_the_highest_quotients_by_odd_numbers(weights: list[float]) -> None:
    """Sainte-Laguë by its definition; divisors 1, 2, 3 ... would give [9, 5, 2, 0] of 16."""
    assert apportion(16, [9, 5, 3, 0]) == [8, 5, 3, 0]
    for total in range(1, 40):
        quotients = sorted(
            ((w / (2 * k + 1), -i) for i, w in enumerate(weights) for k in range(total)),
            reverse=True,
        )
        seats = [-i for _, i in quotients[:total]]
        assert apportion(total, weights) == [seats.count(i) for i in range(len(weights))]


@given(permutation=st.permutations(range(30)), seed=st.integers(0, 3), n=st.integers(1, 12))
def test_neither_order_nor_other_sources_matter(permutation: list[int], seed: int, n: int) -> None:
    how = recipe(take={"a": n, "b": n})
    plain = set(draw([18, 12], how, seed=seed)[1])
    assert set(draw([18, 12], how, seed=seed, order=np.array(permutation))[1]) == plain
    alone = set(draw([18], recipe(take={"a": n}), seed=seed)[1])
    assert alone == {i for i in plain if i.startswith("a")}
    # Of any part of the rows, the ones taken before still come first.
    part = set(draw([9, 12], how, seed=seed)[1]) if n <= 9 else set()
    known = {f"a:{i}" for i in range(9)}
    assert {i for i in plain if i in known} <= part or n > 9


def test_a_seed_is_a_draw_of_its_own() -> None:
    how = recipe(take={"a": 500})
    one, two = (set(draw([1000], how, seed=seed)[1]) for seed in (0, 1))
    assert 180 < len(one & two) < 320
    assert one == set(draw([1000], how, seed=0)[1])


# What rows count for.


def test_measures() -> None:
    text = Preference(
        id="x",
        source="a",
        kind="pair",
        prompt="two words",
        responses=(Response(content=" one"), Response(content="and three more")),
    )
    chat = Preference(
        id="y",
        source="a",
        kind="pair",
        prompt=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hm?"}]}],
        responses=(
            Response(content=[{"role": "assistant", "content": "a b"}]),
            Response(content=[{"role": "assistant", "content": "c"}]),
        ),
    )
    pairs = Measure(recipe(weights="equal"))
    words = Measure(recipe(weights="equal", unit="tokens"))
    assert (pairs.counted_in, pairs([text, chat]).tolist()) == ("pairs", [1, 1])
    assert words.counted_in == "words (separated by white space)"
    assert words([text, chat]).tolist() == [6, 4]
    assert words([]).tolist() == []


def test_a_named_tokenizer_counts(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    measure = Measure(recipe(weights="equal", unit="tokens", tokenizer=str(tmp_path / "bytes")))
    responses = (Response(content=" one"), Response(content="é"))
    row = Preference(id="x", source="a", kind="pair", prompt="why", responses=responses)
    assert measure([row, row]).tolist() == [3 + 4 + 2] * 2
    assert measure.counted_in == f"tokens of {tmp_path / 'bytes'}"
    with pytest.raises(ModelError, match="nowhere: no readable tokenizer"):
        Measure(recipe(weights="equal", unit="tokens", tokenizer=str(tmp_path / "nowhere")))


# In a training recipe.

LENGTH = LengthRecipe(max_prompt_tokens=24, max_response_tokens=12)


def source(path: Path, rows: list[Any]) -> DataSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSource(path=str(path))


def pairs(n: int, longer: str = "") -> list[dict[str, Any]]:
    return [
        {"prompt": f"Q{i}", "chosen": f"yes{longer} {i}", "rejected": f"no {i}"} for i in range(n)
    ]


def made(*train: DataSource, kind: Any = "pair", seed: int = 0, **keys: Any) -> Dataset[Any]:
    data = DataRecipe(train=train, length=LENGTH, **keys)
    found = build(data, Encoder(byte_tokenizer(), length=LENGTH), kind=kind, seed=seed)
    for one in found.report["sources"]:
        lost = sum(one["rejected"].values()) + sum(one["dropped"].values())
        assert one["read"] == one["kept"] + lost + one["not_selected"]
    mine = [item.id for item in (*found.train, *found.eval)]
    assert mine == [row.id for row in (*found.train_rows, *found.eval_rows)]
    assert len(mine) == sum(one["items"] for one in found.report["sources"])
    return found


def test_training_takes_the_mixture(tmp_path: Path) -> None:
    a = source(tmp_path / "a.jsonl", [*pairs(20), {"prompt": "Q", "chosen": "x", "rejected": "x"}])
    b = source(tmp_path / "b.jsonl", pairs(30))
    found = made(a, b, mixture={"take": {"a": 5, "b": 0.5}})
    counts = {one["name"]: (one["kept"], one["not_selected"]) for one in found.report["sources"]}
    assert counts == {"a": (5, 15), "b": (15, 15)}
    assert found.report["mixture"]["sources"]["a"] == entry(20, 5, 5)
    assert found.report["train"]["pairs"] == 20
    ids = {item.id for item in found.train}
    larger = made(a, b, mixture={"take": {"a": 9, "b": "all"}})
    assert ids < {item.id for item in larger.train}
    assert made(a, b).report["mixture"] is None


def test_equal_tokens_are_counted_by_the_models_tokenizer(tmp_path: Path) -> None:
    a = source(tmp_path / "a.jsonl", pairs(9))
    b = source(tmp_path / "b.jsonl", pairs(9, longer=" indeed"))
    found = made(a, b, mixture={"weights": "equal", "unit": "tokens", "total": 120})
    account = found.report["mixture"]
    assert account["unit"] == "tokens"
    for name in ("a", "b"):
        mine = [item for item in found.train if item.source == name]
        tokens = sum(len(p.prompts[0]) + sum(map(len, p.responses)) for p in mine)
        assert tokens == account["sources"][name]["taken"] <= 60
        assert len(mine) == account["sources"][name]["rows_taken"]
    assert sum(found.report["train"]["tokens"].values()) == account["taken"]
    with pytest.raises(ValidationError, match=r"`mixture\.tokenizer`: the model's own"):
        made(a, mixture={"weights": "equal", "unit": "tokens", "tokenizer": "x"})


def test_what_is_held_out_does_not_depend_on_the_mixture(tmp_path: Path) -> None:
    a = source(tmp_path / "a.jsonl", pairs(40))
    few = made(a, eval_fraction=0.25, mixture={"take": {"a": 5}})
    many = made(a, eval_fraction=0.25, mixture={"take": {"a": 25}})
    assert {item.id for item in few.eval} == {item.id for item in many.eval}
    assert (len(few.eval), len(few.train), len(many.train)) == (10, 5, 25)
    assert few.report["sources"][0]["not_selected"] == 25
    with pytest.raises(RecipeError, match=r"`data\.mixture`: 31 pairs of 'a' .* it has 30"):
        made(a, eval_fraction=0.25, mixture={"take": {"a": 31}})


def test_part_of_the_pairs_of_a_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i}", "responses": [{"text": f"t{k}", "rating": k} for k in range(4)]}
        for i in range(8)
    ]
    a = source(tmp_path / "a.jsonl", rows)
    pairing = PairingRecipe(chosen="every", rejected="every")
    found = made(a, pairing=pairing, mixture={"take": {"a": 10}})
    (one,) = found.report["sources"]
    assert (one["items"], len(found.train)) == (10, 10)
    rows_of = {item.id.partition("/")[0] for item in found.train}
    assert one["kept"] == len(rows_of) == 8 - one["not_selected"]
    assert one["items_not_selected"] == 6 * one["kept"] - 10
    assert one["scored_by"] == {"overall": 8}
    shown = made(a, pairing=pairing, kind="demonstration", mixture={"take": {"a": 0.5}})
    # Three of the four answers of a prompt are chosen over another.
    assert shown.report["mixture"]["unit"] == "examples"
    assert shown.report["mixture"]["sources"]["a"]["available"] == 24
    with pytest.raises(RecipeError, match="one response is both chosen and rejected"):
        made(a, pairing=pairing, kind="unpaired")
    with pytest.raises(RecipeError, match="this loss knows no ties"):
        made(a, pairing=PairingRecipe(ties="as_ties"))


def test_flips_and_ties_of_ready_made_pairs_are_counted(tmp_path: Path) -> None:
    rows = [row | {"margin": -1.0 if i < 2 else 1.0} for i, row in enumerate(pairs(6))]
    a = source(tmp_path / "a.jsonl", rows)
    (one,) = made(a).report["sources"]
    assert (one["kept"], one["flips"]) == (6, {"the margin is negative": 2})
    (one,) = made(a, pairing=PairingRecipe(flips="drop")).report["sources"]
    assert (one["kept"], one["flips"]) == (4, {"the margin is negative": 2})
    assert one["dropped"] == {"label contradicted: the margin is negative": 2}
