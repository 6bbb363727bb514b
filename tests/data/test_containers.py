"""The same rows from every kind of container, and the choice of splits."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from palate.data.containers import Record, open_records
from palate.data.stream import read_source
from palate.errors import DataError, RecipeError
from palate.recipes.schema import DataSource

TEXTS = [
    {"prompt": f"p{i}", "chosen": f"good \u00e9 {i}\n", "rejected": f"bad, {i}"} for i in range(7)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": f"q{i}"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "margin": i / 2,
    }
    for i in range(7)
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".jsonl":
        plain.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif plain.suffix == ".json":
        plain.write_text(json.dumps(rows), encoding="utf-8")
    elif plain.suffix == ".csv":
        with plain.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("suffix", "rows"),
    # CSV has no lists, and so no chats.
    [(".csv", TEXTS), *((s, r) for s in (".jsonl", ".json", ".parquet") for r in (TEXTS, CHATS))],
)
def test_files(tmp_path: Path, suffix: str, packed: str, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / f"rows{suffix}{packed}"
    write(path, rows)
    result = read_source(DataSource(path=str(path)), seed=0)
    assert result.format == "trl_preference"
    assert result.files == [path]
    assert [row.prompt for row in result.rows] == [row["prompt"] for row in rows]
    assert [row.margin for row in result.rows] == [row.get("margin") for row in rows]
    contents = [(row.chosen.content, row.rejected.content) for row in result.rows]
    assert contents == [(row["chosen"], row["rejected"]) for row in rows]


def test_saved_data_sets(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_list(CHATS), datasets.Dataset.from_list(CHATS[:2])
    train.save_to_disk(tmp_path / "one")
    result = read_source(DataSource(path=str(tmp_path / "one")), seed=0)
    assert [row.prompt for row in result.rows] == [row["prompt"] for row in CHATS]
    assert [file.suffix for file in result.files] == [".arrow"]
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    source = DataSource(path=str(tmp_path / "two"), split="test")
    result = read_source(source, seed=0)
    assert len(result.rows) == 2
    assert result.rows[0].source == "two"
    with pytest.raises(DataError, match="has the splits test, train: name one"):
        read_source(source.model_copy(update={"split": None}), seed=0)
    with pytest.raises(DataError, match="has no split 'dev', only test, train"):
        read_source(source.model_copy(update={"split": "dev"}), seed=0)
    with pytest.raises(RecipeError, match="`subset`"):
        read_source(source.model_copy(update={"subset": "en"}), seed=0)
    (tmp_path / "one" / "dataset_info.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not a readable data set"):
        read_source(DataSource(path=str(tmp_path / "one")), seed=0)


def test_folders_of_files(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    write(tmp_path / "en" / "train-00000-of-00002.parquet", CHATS[:3])
    write(tmp_path / "en" / "train-00001-of-00002.jsonl.gz", CHATS[3:])
    write(tmp_path / "en" / "validation.jsonl", CHATS[:1])
    (tmp_path / "en" / "dataset_infos.json").write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text("data", encoding="utf-8")
    source = DataSource(path=str(tmp_path), name="all", subset="en", split="train")
    result = read_source(source, seed=0)
    assert [row.prompt for row in result.rows] == [row["prompt"] for row in CHATS]
    assert [row.row for row in result.rows] == [1, 2, 3, 1, 2, 3, 4]
    assert len({row.id for row in result.rows}) == 7
    assert len(read_source(source.model_copy(update={"split": "dev"}), seed=0).rows) == 1
    with pytest.raises(DataError, match="has the splits train, validation: name one"):
        read_source(source.model_copy(update={"split": None}), seed=0)
    with pytest.raises(DataError, match="no folder 'fr' in it"):
        read_source(source.model_copy(update={"subset": "fr"}), seed=0)


def test_a_folder_never_mixes_what_names_tell_apart(tmp_path: Path) -> None:
    write(tmp_path / "part1.jsonl", CHATS[:2])
    write(tmp_path / "part2.jsonl", CHATS[2:])
    assert len(read_source(DataSource(path=str(tmp_path)), seed=0).rows) == 7
    write(tmp_path / "train.jsonl", CHATS)
    with pytest.raises(DataError, match="has the splits part1, part2, train: name one"):
        read_source(DataSource(path=str(tmp_path)), seed=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="a folder without data files"):
        read_source(DataSource(path=str(empty)), seed=0)


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(path: str, **options: Any) -> Any:
        asked.append((path, options))
        return datasets.Dataset.from_list(CHATS)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("palate.data.containers.hub.unreachable", lambda: False)
    source = DataSource(path="somebody/pairs", subset="en", split="train", limit=3)
    result = read_source(source, seed=0)
    assert asked == [("somebody/pairs", {"name": "en", "split": "train"})]
    assert (len(result.rows), result.rows[0].source, result.files) == (3, "pairs", [])


def test_an_unreachable_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **options: Any) -> Any:
        raise ConnectionError(f"Couldn't reach {path}\non the Hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("palate.data.containers.hub.unreachable", lambda: False)
    expected = "somebody/pairs: no such file or folder here, and as a hub data set: Couldn't reach"
    with pytest.raises(DataError, match=expected) as caught:
        read_source(DataSource(path="somebody/pairs"), seed=0)
    assert "\n" not in str(caught.value)


def test_no_hub_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("palate.data.containers.hub.unreachable", lambda: True)
    with pytest.raises(DataError, match="somebody/pairs: no such file or folder here, and the hub"):
        open_records(DataSource(path="somebody/pairs"))


def test_a_folder_of_a_hub_set_is_a_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(path: str, **options: Any) -> Any:
        asked.append(options)
        if "name" in options:
            raise ValueError("BuilderConfig 'harmless-base' not found")
        return datasets.Dataset.from_list([{"chosen": "a b", "rejected": "a c"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("palate.data.containers.hub.unreachable", lambda: False)
    source = DataSource(path="somebody/pairs", subset="harmless-base", split="train")
    assert len(open_records(source)) == 1
    assert asked[1] == {"data_dir": "harmless-base", "split": "train"}


def test_splits_are_read_off_the_hubs_file_names(tmp_path: Path) -> None:
    for split in ("train_prefs", "train_sft", "test_prefs"):
        rows = [{"prompt": split, "chosen": "a", "rejected": "b"}]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    (found,) = open_records(DataSource(path=str(tmp_path), split="train_prefs")).fetch([0])
    assert isinstance(found, Record) and found.value["prompt"] == "train_prefs"
    with pytest.raises(DataError, match="test_prefs, train_prefs, train_sft: name one"):
        open_records(DataSource(path=str(tmp_path)))
