"""The table of docs/models.md says what is measured."""

from __future__ import annotations

import re
from typing import Any

import pytest

from model_families import FAMILIES, family_model
from models_table import BEGIN, END, PAGE, Row, measured, page_with, written
from palate.models.attention import NAME, use_rows
from palate.models.structure import backbone_of, sharing_obstacle

FAST = (
    "deepseek_v32",
    "doge",
    "falcon_h1",
    "gemma2",
    "gemma3_text",
    "gemma3n_text",
    "gpt_neo",
    "jamba",
    "lfm2",
    "llama",
    "llama4_text",
    "mistral",
    "modernbert_decoder",
)
"""One of each kind of verdict, and those that once had a wrong one."""


def assert_as_written(family: str) -> None:
    assert str(measured(family)) == written(PAGE.read_text(encoding="utf-8"))[family]


# Said by PEFT of experts that hold several matrices in one, which get no adapters.
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("family", FAST)
def test_the_page_says_what_is_measured(family: str) -> None:
    assert_as_written(family)


@pytest.mark.slow
@pytest.mark.table
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(FAST)))
def test_the_page_says_what_is_measured_of_all(family: str) -> None:
    assert_as_written(family)


def test_every_family_has_its_row_and_none_is_wrong() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert list(written(text)) == sorted(FAMILIES)
    assert "WRONG" not in text


def test_writing_the_table_leaves_the_rest_of_the_page() -> None:
    rows = [Row("a", "b", "c", "d", "e", "f"), Row("g", "h", "i", "j", "k", "l")]
    page = page_with(rows, f"before\n{BEGIN}old{END}after\n")
    assert page.startswith(f"before\n{BEGIN}| family ") and page.endswith(f"{END}after\n")
    assert written(page) == {"a": str(rows[0]), "g": str(rows[1])}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parts_decide_as_the_page_says(family: str) -> None:
    """All families, without a forward pass."""
    shared = written(PAGE.read_text(encoding="utf-8"))[family].split(" | ")[3]
    reason = sharing_obstacle(backbone_of(family_model(family)))
    if reason is not None:
        assert shared in (f"runs plain: {reason}", "")
    else:
        assert not re.search("mask is known|not known here|position ids", shared)


@pytest.mark.parametrize(
    ("family", "kernel"), [("llama", NAME), ("deepseek_v32", "sdpa"), ("gemma2", "eager")]
)
def test_only_code_that_asks_no_names_of_kernels_runs_ours(family: str, kernel: str) -> None:
    model: Any = family_model(family)
    use_rows(model)
    assert model.config._attn_implementation == kernel
