"""A built folder as a source: rows keep their sources, through a build and through training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_cases import built, chat_pair, rated, rows_of, text_pair, write_jsonl
from palate.data.content import bare
from palate.data.stream import read_source
from palate.errors import DataError
from palate.recipes.schema import DataSource, TuneRecipe
from palate.train import tune
from tiny_text import save_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    a = write_jsonl(tmp_path / "a.jsonl", [text_pair(i) for i in range(24)])
    b = write_jsonl(tmp_path / "b.jsonl", [rated(i) for i in range(12)])
    built(
        tmp_path / "out",
        [{"path": a, "name": "plain"}, {"path": b, "name": "scored"}],
        pairing={"rejected": "worst"},
        output={"eval_fraction": 0.25, "llamafactory": True},
    )
    return tmp_path / "out"


def test_rows_keep_their_source_and_id(folder: Path) -> None:
    result = read_source(DataSource(path=str(folder), split="train"), seed=0)
    assert (result.format, result.rejected) == ("palate_pairs", [])
    rows = rows_of(folder)
    assert [row.id for row in result.rows] == [row["id"] for row in rows]
    assert [row.source for row in result.rows] == [row["source"] for row in rows]
    assert [row.margin for row in result.rows] == [row["partial_margin"] for row in rows]
    assert result.rows[0].prompt == rows[0]["prompt"]
    held = read_source(DataSource(path=str(folder), split="eval"), seed=0)
    assert [row.id for row in held.rows] == [row["id"] for row in rows_of(folder, "eval")]
    with pytest.raises(DataError, match="has the splits test, train: name one"):
        read_source(DataSource(path=str(folder)), seed=0)


def test_a_build_of_a_build_is_the_same(folder: Path, tmp_path: Path) -> None:
    report = built(tmp_path / "again", [{"path": folder, "split": "train"}])
    assert rows_of(tmp_path / "again") == rows_of(folder)
    assert set(report["train"]["by_source"]) == {"plain", "scored"}
    taken = {"take": {"plain": 5, "scored": "all"}}
    mixed = built(tmp_path / "mixed", [{"path": folder, "split": "train"}], mixture=taken)
    assert mixed["train"]["by_source"]["plain"] == 5


def test_training_logs_each_source(folder: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    recipe = TuneRecipe.model_validate(
        {
            "output_dir": tmp_path / "run",
            "model": {
                "path": str(tmp_path / "tiny"),
                "dtype": "float32",
                "chat_template": "plain",
            },
            "data": {
                "train": [{"path": str(folder), "split": "train"}],
                "eval": [{"path": str(folder), "split": "eval"}],
            },
            "train": {"batch_size_pairs": 8, "micro_batch_size_pairs": 8, "max_steps": 3},
        }
    )
    run = tune(recipe).path
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines if line["split"] == "train" for name in line}
    assert {"rewards/accuracies/plain", "rewards/accuracies/scored"} <= names
    evaluation: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    assert '"plain"' in json.dumps(evaluation)


def test_texts_stay_texts(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [text_pair(i, margin=1.0) for i in range(5)])
    built(tmp_path / "out", [{"path": file}])
    rows = read_source(DataSource(path=str(tmp_path / "out")), seed=0).rows
    assert [row.prompt for row in rows] == [text_pair(i)["prompt"] for i in range(5)]
    assert [row.margin for row in rows] == [1.0] * 5


def test_rows_that_are_none(tmp_path: Path) -> None:
    good = chat_pair(0, tie=False, source="s", id="i")
    bad: list[dict[str, Any]] = [
        {**good, "tie": None},
        {**good, "source": ""},
        {**good, "images": ["a.png"]},
        {**good, "chosen": good["rejected"]},
        {**good, "prompt": "text"},
        {**good, "prompt": [{"role": "user", "content": [{"type": "video"}]}]},
    ]
    file = write_jsonl(tmp_path / "a.jsonl", [good, *bad])
    result = read_source(DataSource(path=str(file)), seed=0)
    assert (result.format, len(result.rows)) == ("palate_pairs", 1)
    assert [item.counted_as for item in result.rejected] == [
        "tie: null",
        "source: empty",
        "images: not as many as the prompt has places for",
        "rejected: identical to chosen",
        "prompt: text beside chat turns",
        "prompt.content: neither a text nor an image part",
    ]
    image = [{"type": "image"}, {"type": "text", "text": "what?"}]
    file = write_jsonl(
        tmp_path / "b.jsonl",
        [{**good, "prompt": [{"role": "user", "content": image}], "images": ["a.png"]}],
    )
    (row,) = read_source(DataSource(path=str(file)), seed=0).rows
    assert bare(row.prompt) == [{"role": "user", "content": image}]
    assert row.images[0].path == "a.png"
