"""The row stream: each record once, the same rows for everybody, from any place on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_cases import built, rows_of
from palate.data.containers import Rejection, indexed
from palate.data.readers import registry
from palate.data.stream import NotDrawn, Row, RowStream, drawn, read_source
from palate.data.stream.draw import Least, draw_keys
from palate.recipes.schema import DataSource


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(folder: Path, n: int = 60) -> str:
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(n)]
    for i in range(0, n, 4):
        rows[i] = {"prompt": "half a row"}
    return write(folder / "pairs.jsonl", rows)


def answers(folder: Path, sizes: tuple[int, ...] = (3, 1, 4, 2, 1, 5, 2, 2)) -> str:
    """Votes on a record each, with a broken record within the third prompt."""
    rows = [
        {"prompt": f"q{k}", "completion": "z" * (n + 1), "label": n % 2 == 0}
        for k, size in enumerate(sizes)
        for n in range(size)
    ]
    rows.insert(6, {"prompt": "q2", "completion": "no label"})
    return write(folder / "answers.jsonl", rows)


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpaired feedback as a format with an answer a record."""
    reader = registry.readers()["trl_unpaired"]

    def read(record: Any, context: Any) -> Any:
        row = reader.read(record, context)
        rating = float(bool(row.responses[0].label))
        response = replace(row.responses[0], label=None, rating=rating)
        return replace(row, kind="rated", responses=(response,))

    made = replace(reader, read=read, grouped=True, kind="rated")
    known = {**registry.readers(), "trl_unpaired": made}
    monkeypatch.setattr(registry, "readers", lambda: known)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Row -> how often it was parsed."""
    from palate.data.containers.indexed import parsed

    counted: Counter[int] = Counter()

    def count(text: bytes, file: str, row: int) -> Any:
        counted[row] += 1
        return parsed(text, file, row)

    monkeypatch.setattr("palate.data.containers.lines.parsed", count)
    return counted


def prompts(path: str, **keys: Any) -> list[str]:
    return [row.prompt for row in read_source(DataSource(path=path, **keys), seed=0).rows]


def test_a_drawn_source_parses_each_record_once(tmp_path: Path, asked: Counter[int]) -> None:
    path = pairs(tmp_path)
    stream = RowStream(DataSource(path=path, limit=20), seed=0)
    recognised = Counter(asked)
    assert set(recognised.values()) == {1}
    chunks = list(stream.chunks())
    asked.subtract(recognised)
    read = sum(chunk.read for chunk in chunks)
    rows = [row.place for chunk in chunks for row in chunk.rows]
    assert len(rows) == len(set(rows)) == 20
    assert set(asked.values()) <= {0, 1} and asked.total() == read
    assert 20 < read < 40


def test_the_drawn_rows_are_those_with_the_least_keys(tmp_path: Path) -> None:
    path = pairs(tmp_path)
    usable = [i for i in range(60) if i % 4]
    keys = dict(enumerate(draw_keys(range(60), 0, "pairs").tolist()))
    expected = sorted(sorted(usable, key=keys.__getitem__)[:20])
    assert prompts(path, limit=20) == [f"p{i}" for i in expected]
    assert prompts(path, limit=9) == [f"p{i}" for i in sorted(sorted(usable, key=keys.get)[:9])]


def test_rows_added_to_a_file_leave_the_order_of_the_others(tmp_path: Path) -> None:
    few = set(prompts(pairs(tmp_path), limit=20))
    many = set(prompts(pairs(tmp_path, 80), limit=20))
    old = {f"p{i}" for i in range(60)}
    assert many & old < few and len(many & old) >= 10


def test_every_row_is_as_likely_as_another() -> None:
    counts = np.zeros(40)
    for seed in range(2000):
        counts[drawn(40, 10, seed, "source")] += 1
    # Binomial: 500 expected, standard deviation 19.
    assert abs(counts - 500).max() < 90
    assert len(set(draw_keys(range(10_000), 0, "s").tolist())) == 10_000


@pytest.mark.parametrize("limit", [1, 4, 5, 9])
def test_the_least_of_a_stream_are_those_of_the_whole(limit: int) -> None:
    least = Least[int](limit, 3, "source")
    removed = [v for start in range(0, 9, 2) for v in least.add(range(start, min(start + 2, 9)))]
    assert least.kept() == drawn(9, limit, 3, "source").tolist()
    assert sorted(removed + least.kept()) == list(range(9))


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("lone", [False, True])
def test_grouped_rows_are_whole_and_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grouped: None,
    asked: Counter[int],
    piece: int,
    limit: int | None,
    lone: bool,
) -> None:
    path = answers(tmp_path)
    monkeypatch.setattr(indexed, "PIECE_ROWS", piece)
    stream = RowStream(DataSource(path=path, limit=limit), seed=1, keep_lone=lone)
    asked.clear()
    chunks = list(stream.chunks())
    assert set(asked.values()) == {1}  # one pass over the source
    rows = [row for chunk in chunks for row in chunk.rows]
    whole = [(f"q{k}", n) for k, n in enumerate((3, 1, 4, 2, 1, 5, 2, 2)) if n > 1 or lone]
    if limit is not None:
        whole = [whole[i] for i in drawn(len(whole), limit, 1, "answers")]
    assert [(row.row.prompt, row.records) for row in rows] == whole
    assert [len(row.row.responses) for row in rows] == [n for _, n in whole]
    read, merged = sum(chunk.read for chunk in chunks), sum(chunk.merged for chunk in chunks)
    rejected = sum(len(chunk.rejected) for chunk in chunks)
    beyond = sum(chunk.not_drawn.rows for chunk in chunks)
    assert (read, rejected) == (21, 1 if lone else 3)
    assert read == len(rows) + beyond + merged + rejected
    assert beyond == (0 if limit is None else (8 if lone else 6) - limit)


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("answered", [False, True])
def test_entries_go_on_from_any_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grouped: None,
    asked: Counter[int],
    limit: int | None,
    answered: bool,
) -> None:
    path = answers(tmp_path) if answered else pairs(tmp_path, 23)
    monkeypatch.setattr(indexed, "PIECE_ROWS", 4)
    stream = RowStream(DataSource(path=path, limit=limit), seed=1)
    entries = list(stream.entries())
    kinds = Counter(type(entry) for entry in entries)
    assert kinds[Row] == (limit or (6 if answered else 17)) and kinds[Rejection]
    assert (kinds[NotDrawn] > 0) is (answered and limit is not None)
    for start in range(len(entries) + 1):
        assert list(stream.entries(start)) == entries[start:]
    if limit is None and not answered:
        asked.clear()
        list(stream.entries(10))
        assert min(asked) == 9  # the piece that the place is in


def test_data_build_draws_the_rows_that_training_draws(tmp_path: Path, grouped: None) -> None:
    for path, limit in ((pairs(tmp_path), 20), (answers(tmp_path), 3)):
        keys = {"pairing": {"rejected": "worst"}} if "answers" in path else {}
        report = built(tmp_path / f"out{limit}", [{"path": path, "limit": limit}], **keys)
        read = read_source(DataSource(path=path, limit=limit), seed=0)
        (source,) = report["sources"]
        assert {row["prompt"] for row in rows_of(tmp_path / f"out{limit}")} == {
            row.prompt for row in read.rows
        }
        assert (source["read"], source["merged"]) == (read.read, read.merged)
        assert source["not_selected"] == read.not_drawn
        assert sum(source["rejected"].values()) == len(read.rejected)


def test_a_limit_does_not_depend_on_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pairs(tmp_path, 400)
    for module in ("palate.data.stream.draw", "palate.data.containers.indexed"):
        monkeypatch.setattr(f"{module}.PIECE_ROWS", 20)
    for workers in (1, 2):
        built(tmp_path / f"out{workers}", [{"path": path, "limit": 200}], workers=workers)
    assert rows_of(tmp_path / "out1") == rows_of(tmp_path / "out2")
