"""Atomic writes, append-only logs and content digests."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from palate.errors import RunError
from palate.store import files
from palate.store.digests import sha256_file, sha256_tree


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"x": "é", "y": [1, 2]})
    assert files.read_json(path) == {"x": "é", "y": [1, 2]}
    files.write_json(path, {"x": 2})
    assert files.read_json(path) == {"x": 2}
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_written_file_has_the_mode_that_open_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    files.write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_is_one_line_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "status.json"
    files.write_json(path, {"step": 1})
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(RunError) as caught:
        files.write_json(path, {"step": 2})
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "disk is full" in message
    assert files.read_json(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_interrupt_during_a_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        files.write_text(tmp_path / "x", "text")
    with pytest.raises(RunError, match="cannot write"):
        files.append_jsonl(tmp_path / "x", {})


def test_json_refuses_what_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        files.append_jsonl(tmp_path / "a.jsonl", {"loss": float("inf")})
    assert list(tmp_path.iterdir()) == []


def test_append_closes_an_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_jsonl(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    files.append_jsonl(path, {"step": 3})
    lines = path.read_text().splitlines()
    assert [json.loads(lines[0]), json.loads(lines[2])] == [{"step": 1}, {"step": 3}]
    assert len(lines) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
def test_append_to_a_full_disk_is_one_line() -> None:
    with pytest.raises(RunError, match="disk is full"):
        files.append_jsonl("/dev/full", {"step": 1})


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b'{"a": 1,\n}', "line 2: not JSON"), (b'"\xff"', "not UTF-8")],
)
def test_unreadable_json_says_where(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RunError, match=expected):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match="No such file"):
        files.read_json(tmp_path / "absent.json")


def test_digests_follow_content_and_names_not_location(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        files.write_text(tmp_path / folder / "sub" / "x.txt", "hello")
        files.write_text(tmp_path / folder / "y.txt", "world")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    files.write_text(tmp_path / "empty", "")
    assert sha256_file(tmp_path / "empty") == empty
    assert sha256_tree([tmp_path / "a"]) == sha256_tree([tmp_path / "b"])
    before = sha256_tree([tmp_path / "a", tmp_path / "empty"])
    assert before == sha256_tree([tmp_path / "empty", tmp_path / "a"])
    (tmp_path / "a" / "y.txt").rename(tmp_path / "a" / "z.txt")
    assert sha256_tree([tmp_path / "a"]) != sha256_tree([tmp_path / "b"])


def test_lines_end_where_a_line_of_json_ends(tmp_path):
    """A text may hold what other readers take for an end of a line."""
    path = tmp_path / "lines.jsonl"
    values = [{"text": "a\u2028b\x85c"}, {"text": "d"}]
    for value in values:
        files.append_jsonl(path, value)
    assert list(files.read_jsonl(path)) == values
    path.write_text("", encoding="utf-8")
    assert list(files.read_jsonl(path)) == []
    path.write_text("1\n\n2\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"lines\.jsonl, line 2: no JSON"):
        list(files.read_jsonl(path))
