"""The published files, where they are present: all rows accounted for, text unaltered."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from palate.data.build import build
from palate.data.encode import Encoder
from palate.data.stream import read_source
from palate.errors import DataError
from palate.recipes.schema import DataRecipe, DataSource, LengthRecipe, PairingRecipe
from tiny_chat import byte_tokenizer

DATA = Path(
    os.environ.get("PALATE_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data"
)
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no public data at {DATA}: set PALATE_DATA to its folder"
)
LENGTH = LengthRecipe(max_prompt_tokens=4000, max_response_tokens=2000)


def lines(path: Path) -> dict[int, Any]:
    with gzip.open(path) as file:
        return {i + 1: json.loads(line) for i, line in enumerate(file)}


def test_hh_rlhf_comes_out_byte_for_byte() -> None:
    path = DATA / "hh_rlhf" / "harmless-base" / "train.jsonl.gz"
    tokenizer = byte_tokenizer()
    data = DataRecipe(train=(DataSource(path=str(path)),), length=LENGTH)
    found = build(data, Encoder(tokenizer, "plain", LENGTH), kind="pair", seed=0)
    (entry,) = found.report["sources"]
    assert (entry["format"], entry["read"]) == ("hh_rlhf", 1475)
    assert entry["rejected"] == {
        "chosen: empty": 3,
        "chosen: differs from the other before its last turn": 3,
        "rejected: differs from the other before its last turn": 1,
    }
    assert entry["read"] == entry["kept"] + 7 + sum(entry["dropped"].values())
    raw = lines(path)
    for pair, row in zip(found.train, found.train_rows, strict=True):
        for ids, side in ((pair.responses[0].ids, "chosen"), (pair.responses[1].ids, "rejected")):
            text = tokenizer.decode([*pair.prompts[0].ids, *ids])
            assert row.row is not None
            whole = f"<bos>{raw[row.row][side]}<eos>"
            assert text == whole or (len(ids) == 2000 and whole.startswith(text))


def test_hh_rlhf_test_split() -> None:
    folder = DATA / "hh_rlhf" / "harmless-base"
    result = read_source(DataSource(path=str(folder), split="test"), seed=0)
    assert (result.read, len(result.rows)) == (245, 245)


@pytest.mark.parametrize(("split", "rows", "empty"), [("train", 502, 2), ("test", 79, 0)])
def test_alpaca_ratings(split: str, rows: int, empty: int) -> None:
    path = DATA / "alpaca_eval_ratings" / f"{split}.jsonl.gz"
    result = read_source(DataSource(path=str(path), limit=rows), seed=0)
    assert (result.format, result.read, len(result.rows)) == ("rated", rows, rows)
    assert [item.counted_as for item in result.left_out] == ["completions.output: empty"] * empty
    assert all(1 <= r.rating <= 2 for row in result.rows for r in row.responses if r.rating)


def test_alpaca_pairs_reconcile() -> None:
    folder = DATA / "alpaca_eval_ratings"
    data = DataRecipe(
        train=(DataSource(path=str(folder / "train.jsonl.gz")),),
        eval=(DataSource(path=str(folder / "test.jsonl.gz")),),
        pairing=PairingRecipe(min_gap=0.2),
        length=LENGTH,
    )
    found = build(data, Encoder(byte_tokenizer(), "plain", LENGTH), kind="pair", seed=0)
    for entry in found.report["sources"]:
        assert entry["read"] == entry["kept"] + sum(entry["dropped"].values())
    assert found.report["eval"]["prompts_in_train"] == 0
    assert all(item.pair.margin is not None and item.pair.margin > 0.2 for item in found.train)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rm_bench/chat_filtered.json", "no usable row of 129 as trl_preference"),
        ("sentiment/movie_reviews.zip", "no known kind of file"),
    ],
)
def test_files_of_other_kinds_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(DataSource(path=str(DATA / name)), seed=0)
