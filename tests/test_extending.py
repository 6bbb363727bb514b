"""The files of docs/extending.md are run, each with its own test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from palate.losses import LOSSES

PAGE = Path(__file__).parents[1] / "docs/extending.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, re.DOTALL)


def test_every_part_is_there() -> None:
    headings = re.findall(r"^## A (.*)$", TEXT, re.MULTILINE)
    assert headings == ["loss", "head", "scorer", "reader", "model family", "stage"]
    assert len(BLOCKS) == len(headings)


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_each_file_passes_its_own_test(name: str, code: str) -> None:
    known = dict(LOSSES)
    namespace: dict[str, Any] = {"__name__": name.removesuffix(".py")}
    try:
        exec(compile(code, name, "exec"), namespace)
        tests = [value for key, value in namespace.items() if key.startswith("test_")]
        assert tests
        for test in tests:
            test()
    finally:
        for added in LOSSES.keys() - known.keys():
            del LOSSES[added]
