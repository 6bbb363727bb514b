"""The samples of docs/data.md are what it says they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from palate.data.readers import read_source, readers
from palate.recipes.schema import DataSource

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SAMPLES = re.findall(
    r"^\*\*`(\w+)`\*\*(?:(?!^\*\*`).)*?^```json\n(.*?)^```",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def test_every_format_has_a_sample() -> None:
    assert {name for name, _ in SAMPLES} == set(readers())


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name, text in SAMPLES for line in text.splitlines()]
)
def test_samples_are_recognised(tmp_path: Path, name: str, line: str) -> None:
    file = tmp_path / "sample.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    result = read_source(DataSource(path=str(file)), seed=0)
    assert (result.format, len(result.rows)) == (name, 1)
