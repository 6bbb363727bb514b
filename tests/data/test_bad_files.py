"""Files that are broken in every way: one line, or one counted row, and the rest is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate.data.containers import gzipped
from palate.data.stream import ReadResult, read_source
from palate.errors import DataError, RecipeError
from palate.recipes.schema import DataSource

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
LINE = json.dumps(PAIR).encode() + b"\n"


def read(path: Path, **source: Any) -> ReadResult:
    result = read_source(DataSource(path=str(path), **source), seed=0)
    assert result.read == len(result.rows) + len(result.rejected)
    return result


def faults(result: ReadResult) -> list[tuple[int, str]]:
    return [(item.row, item.counted_as) for item in result.rejected]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".ndjson", ".json"])
def test_bad_lines_are_named_and_the_others_read(tmp_path: Path, suffix: str) -> None:
    lines = [
        LINE,
        b'{"prompt": "p", "chosen"\n',
        b"\n",
        b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n',
        b"[1, 2]\n",
        b"12345\n",
        b"[" * 100_000 + b"\n",
        b"1" * 5000 + b"\n",
        LINE.strip(),
    ]
    result = read(written(tmp_path / f"rows{suffix}", b"".join(lines)))
    assert [row.row for row in result.rows] == [1, 9]
    assert [row for row, _ in faults(result)] == [2, 4, 5, 6, 7, 8]
    reasons = [reason for _, reason in faults(result)]
    assert reasons[0].startswith("not JSON: ")
    assert reasons[1:5] == [
        "not UTF-8",
        "a list, not an object",
        "a number, not an object",
        "JSON nested too deeply",
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_a_key_given_twice(tmp_path: Path, name: str) -> None:
    twice = b'{"prompt": "p", "prompt": "q", "chosen": "a", "rejected": "b"}'
    turn = b'[{"role": "assistant", "content": "a", "content": "b"}]'
    nested = b'{"prompt": "p", "chosen": %s, "rejected": [{"role": "assistant", "content": "c"}]}'
    rows = [LINE.strip(), twice, nested % turn]
    text = b"[%s]" % b",\n".join(rows) if name == "rows.json" else b"\n".join(rows)
    result = read(written(tmp_path / name, text))
    assert len(result.rows) == 1
    assert faults(result) == [(2, "prompt: given twice"), (3, "content: given twice")]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n") * 2
    result = read(written(tmp_path / "rows.jsonl", data))
    assert (len(result.rows), result.rejected) == (2, [])


def test_a_gzip_file_that_ends_early(tmp_path: Path) -> None:
    rows = [PAIR | {"prompt": f"p{i * 7919 % 1000003}", "noise": f"{i**7:x}"} for i in range(3000)]
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    result = read(path)
    assert 0 < len(result.rows) < 3000
    (last,) = result.rejected
    assert last.row == len(result.rows) + 1
    assert last.reason == "the gzip data ends early; nothing after it is read"
    # It is counted also when only a few rows are drawn.
    assert len(read(path, limit=5).rejected) == 1


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    data = bytearray(gzip.compress(LINE * 9))
    data[-6] ^= 0xFF  # in the checksum
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="the gzip checksum is wrong: damaged"):
        read(path)
    path.write_bytes(LINE)
    with pytest.raises(DataError, match=r"named \.gz but not gzip"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read(path)
    path.write_bytes(gzip.compress(LINE) + gzip.compress(LINE) + b"\0" * 99)
    assert len(read(path).rows) == 2
    path.write_bytes(gzip.compress(LINE) + b"tail")
    assert faults(read(path))[0][1].startswith("something other than gzip follows")


def test_decompression_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzipped, "LIMIT_BYTES", 10_000)
    with pytest.raises(DataError, match="more than 10,000 bytes when decompressed"):
        read(written(tmp_path / "rows.jsonl.gz", LINE * 1000))


def test_json_arrays(tmp_path: Path) -> None:
    rows = json.dumps([PAIR, {"prompt": "p"}, 7, PAIR], indent=1).encode()
    result = read(written(tmp_path / "rows.json", rows))
    assert [row.row for row in result.rows] == [1, 4]
    assert faults(result) == [(2, "chosen: missing"), (3, "a number, not an object")]
    broken = read(written(tmp_path / "cut.json", rows[:-20]))
    assert [row.row for row in broken.rows] == [1]
    assert broken.rejected[-1].row == 4
    assert "nothing after it is read" in broken.rejected[-1].reason
    bytes_ = rows.replace(b'"good"', b'"\xff"', 1)
    assert faults(read(written(tmp_path / "latin.json", bytes_)))[0] == (1, "not UTF-8")
    missing = written(tmp_path / "comma.json", b"[" + LINE + LINE + b"]")
    assert faults(read(missing)) == [
        (2, "not JSON: no ',' or ']' after an object; nothing after it is read")
    ]


def test_csv(tmp_path: Path) -> None:
    text = (
        "prompt,chosen,rejected,margin\n"
        'p,"two\nlines, and ""quotes""",bad,1.5\n'
        "p,good,bad\n"
        "p,good,bad,much\n"
        "\n"
        "p,g\xff,bad,\n"
        'p,"x"y,bad,\n'
        f"p,{'long ' * 40000},bad,\n"
    )
    result = read(written(tmp_path / "rows.csv", text.encode("latin-1")))
    assert [row.row for row in result.rows] == [2, 9]
    assert result.rows[0].chosen.content == 'two\nlines, and "quotes"'
    assert [row.margin for row in result.rows] == [1.5, None]
    assert [row for row, _ in faults(result)] == [4, 5, 7, 8]
    assert faults(result)[0][1] == "not as many cells as the header has columns"
    assert faults(result)[1][1] == "margin: text, not a number"
    assert faults(result)[2][1] == "chosen: not UTF-8"
    assert faults(result)[3][1].startswith("not CSV: ")


def test_csv_labels_and_headers(tmp_path: Path) -> None:
    text = "prompt,completion,label\na,b,True\na,c,0\na,d,perhaps\n"
    result = read(written(tmp_path / "rows.csv", text.encode()))
    assert [row.responses[0].label for row in result.rows] == [True, False]
    assert faults(result) == [(4, "label: neither true nor false")]
    with pytest.raises(DataError, match="two columns of the CSV header have one name"):
        read(written(tmp_path / "twice.csv", b"prompt,prompt\na,b\n"))
    with pytest.raises(DataError, match="no row"):
        read(written(tmp_path / "head.csv", b"prompt,chosen,rejected\n"))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    chosen = pa.array([b"good", b"\xff", None], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"prompt": ["p"] * 3, "chosen": chosen, "rejected": ["bad"] * 3}), path)
    result = read(path)
    assert [row.row for row in result.rows] == [1]
    assert faults(result) == [(2, "chosen: not UTF-8"), (3, "chosen: null")]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not readable Parquet"):
        read(path)


@pytest.mark.parametrize("key", ["a\nb", "\ud800", "k" * 3000, "\x1b[2J"])
def test_names_of_fields_are_shown_in_one_line(tmp_path: Path, key: str) -> None:
    turns = [{"role": "user", "content": "q", key: 1}, {"role": "assistant", "content": "a"}]
    rows = [json.dumps({"messages": turns}), f"{{{json.dumps(key)}: 1, {json.dumps(key)}: 2}}"]
    good = json.dumps({"messages": [turns[1] | {"role": "user"}, turns[1]]})
    result = read(written(tmp_path / "rows.jsonl", "\n".join([*rows, good]).encode()))
    assert [item.row for item in result.rejected] == [1, 2]
    for item in result.rejected:
        assert len(str(item)) < 300 + len(str(tmp_path)) and str(item).isprintable()
    column = written(tmp_path / "column.jsonl", json.dumps(PAIR | {key: 1}).encode())
    assert read(column).why.isprintable()
    unknown = written(tmp_path / "unknown.jsonl", json.dumps({key: 1}).encode())
    with pytest.raises(DataError) as raised:
        read(unknown)
    assert str(raised.value).isprintable()


def test_an_empty_list_of_answers_beside_ratings(tmp_path: Path) -> None:
    answers = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}
    lines = [json.dumps(row).encode() for row in (answers, answers | {"responses": []})]
    result = read(written(tmp_path / "rows.jsonl", b"\n".join(lines)))
    assert faults(result) == [(2, "scores: not a rating for each answer")]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    column = pa.array(["a"])
    names = ["prompt", "chosen", "rejected", "chosen"]
    pq.write_table(pa.table([column] * 4, names=names), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="two columns have one name, 'chosen'"):
        read(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("none/at/all", None, "no such file or folder"),
        ("rows.jsonl", b"", "empty"),
        ("rows.jsonl", b"\n \n", "empty"),
        ("rows.json", b"[]", "no row"),
        ("rows.txt", LINE, "no known kind of file; known: .jsonl"),
        ("rows.zip", LINE, "no known kind of file"),
        ("rows.jsonl", b"not json\n", "no usable row; .*row 1: not JSON"),
        ("rows.jsonl", b'{"chosen": "a", "rejected": 1}\n', "no usable row of 1 as trl_pref"),
    ],
)
def test_one_line_where_nothing_can_be_read(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert name.partition(".")[0] in str(caught.value)


def test_options_that_a_file_has_no_use_for(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", LINE)
    assert len(read(path, split="train").rows) == 1
    with pytest.raises(RecipeError, match=r"`split`: .* is a file: one split, called train"):
        read(path, split="test")
    with pytest.raises(RecipeError, match=r"`subset`: .* is a file"):
        read(path, subset="en")


def test_only_plain_digits_are_numbers_in_csv(tmp_path: Path) -> None:
    margins = ["1_0", "\u0663", "\uff11", "0x1F", "1:30", "1e1", " 2.5 "]
    rows = "".join(f"p{n},good,bad,{margin}\n" for n, margin in enumerate(margins))
    result = read(written(tmp_path / "m.csv", f"prompt,chosen,rejected,margin\n{rows}".encode()))
    assert [row.margin for row in result.rows] == [10.0, 2.5]
    assert [fault for _, fault in faults(result)] == ["margin: text, not a number"] * 5
