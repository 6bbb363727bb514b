"""The samples of docs/data.md are what it says they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from palate.data.readers import readers
from palate.data.stream import read_source
from palate.recipes.schema import DataSource

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SAMPLES = re.findall(
    r"^\*\*`(\w+)`\*\*(?:(?!^\*\*`).)*?^```json\n(.*?)^```",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def test_every_format_of_ones_own_has_a_sample() -> None:
    own = {name for name, reader in readers().items() if not reader.licence}
    assert {name for name, _ in SAMPLES} >= own


def test_every_format_is_in_the_table() -> None:
    text = (PAGE.parent / "formats.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    found = {cells[0].strip("`"): (cells[1], cells[2]) for cells in rows}
    assert found == {
        name: ("<br>".join(f"`{hub}`" for hub in r.hub) or "\u2013", r.licence or "\u2013")
        for name, r in readers().items()
    }


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name, text in SAMPLES for line in text.splitlines()]
)
def test_samples_are_recognised(tmp_path: Path, name: str, line: str) -> None:
    file = tmp_path / "sample.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    result = read_source(DataSource(path=str(file)), seed=0)
    assert (result.format, len(result.rows)) == (name, 1)
