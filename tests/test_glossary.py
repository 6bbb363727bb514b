"""The glossary names what there is: every path of code in it can be imported."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "glossary.md"
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `(palate[\w.]*)` \|$", PAGE.read_text(), re.M)


def resolve(path: str) -> Any:
    """The module, class, function or attribute at a dotted path."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            value = getattr(value, name)
        return value
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize("path", sorted({path for _, _, path in ROWS}))
def test_a_path_of_the_glossary_exists(path: str) -> None:
    assert resolve(path) is not None


def test_every_line_of_a_table_has_a_term_and_a_path() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    headers = [line for line in lines if line == "| term | what it is | where |"]
    assert len(lines) - len(headers) == len(ROWS) > 50
    terms = [term for term, _, _ in ROWS]
    assert len(set(terms)) == len(terms)


def test_a_path_that_is_gone_is_told() -> None:
    with pytest.raises(AttributeError):
        resolve("palate.data.items.Example")
    with pytest.raises(ModuleNotFoundError):
        resolve("nothing.of.ours")


def test_the_readme_leads_there() -> None:
    assert "[Glossary](docs/glossary.md)" in (ROOT / "README.md").read_text()
