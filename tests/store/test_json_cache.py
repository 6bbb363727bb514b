"""The cache of JSON values: what is written is there, what is half written is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from palate.errors import RunError
from palate.store.json_cache import JsonCache

ENTRIES = {"a": [0.1, "x\u2028\x85y"], "b": {"refused": None, "n": 3}}


def test_entries_and_notes_are_read_back(tmp_path: Path) -> None:
    first = JsonCache(tmp_path / "c.jsonl")
    first.add(ENTRIES, {"empty": 1})
    first.add({"c": []})
    for cache in (first, JsonCache(tmp_path / "c.jsonl")):
        assert [cache[key] for key in "abc"] == [*ENTRIES.values(), []]
        assert "d" not in cache and cache.notes == [{"empty": 1}, None]
    memory = JsonCache(None)
    memory.add(ENTRIES)
    assert memory["a"] == ENTRIES["a"]


@pytest.mark.parametrize("cut", [1, 9, 30, 60])
def test_a_line_that_a_kill_cut_off_costs_its_entries_alone(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    first = JsonCache(file)
    for key, value in ENTRIES.items():
        first.add({key: value})
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    again = JsonCache(file)
    # A line without its line feed alone is whole.
    assert "a" in again and ("b" in again) == (cut == 1)
    again.add({"b": 1})
    assert JsonCache(file)["b"] == 1 and JsonCache(file)["a"] == ENTRIES["a"]


def test_a_line_that_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    cache = JsonCache(file)
    cache.add({"a": 1.5})
    cache.add({"b": 2.5})
    file.write_text(file.read_text().replace("2.5", "2.6"))
    with pytest.raises(RunError, match=r"c\.jsonl, line 2: damaged; delete the line"):
        JsonCache(file)
