"""Any JSON in any field is a row or a named refusal, never a traceback, and text stays itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palate.data.containers import Record
from palate.data.readers import Context, RowError, readers
from palate.data.readers.meaning import read_row
from palate.data.readers.trl_preference import shared_text
from palate.data.schema import Preference
from palate.data.stream import read_source
from palate.errors import DataError
from palate.recipes.schema import DataSource

FIELDS = sorted(
    {"prompt", "chosen", "rejected", "margin", "score_chosen", "score_rejected", "images", "id"}
    | {"completion", "label", "messages", "text", "instruction", "completions", "responses"}
)
KEYS = st.sampled_from(
    ["role", "content", "type", "text", "output", "rating", "rank", "preference", "tool_calls"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(
        ["user", "assistant", "system", " ", "\n\nHuman: a\n\nAssistant: b", "\ud800"]
    )
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=6
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": SCALARS}
)
ANSWER = st.fixed_dictionaries({"text": SCALARS, "rating": SCALARS})
VALUE = JSON | st.lists(TURN, max_size=3) | st.lists(ANSWER, max_size=3)
ROW = st.dictionaries(st.sampled_from(FIELDS), VALUE)


def contents(row: Preference) -> list[Any]:
    return [row.prompt, *(r.content for r in row.responses)]


def texts(row: Preference) -> Iterator[str]:
    """All texts of a row, parts by themselves."""
    for content in contents(row):
        for turn in content if isinstance(content, list) else [{"content": content}]:
            said = turn["content"]
            if isinstance(said, str):
                yield said
            else:
                yield from (part["text"] for part in said if part["type"] == "text")


@pytest.mark.parametrize("name", sorted(readers()))
@given(row=ROW, textual=st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_row_or_a_refusal(name: str, row: dict[str, Any], textual: bool) -> None:
    left: list[str] = []
    record = Record(file="f", row=1, value=row, textual=textual)
    context = Context(source="s", id="i", leave_out=lambda field, reason: left.append(reason))
    try:
        found = read_row(readers()[name], record, context)
    except RowError as error:
        assert error.reason and "\n" not in error.reason
        assert error.field is None or error.field.strip()
        return
    assert found.kind == readers()[name].kind
    if found.kind == "pair":
        assert found.chosen != found.rejected
    for text in texts(found):
        text.encode("utf-8")
    # Text is carried over whole, but for what stands for an image.
    said = json.dumps(list(row.values()))
    if name != "hh_rlhf" and (found.kind != "pair" or "prompt" in row):
        for text in texts(found):
            assert json.dumps(text)[1:-1] in said


@given(rows=st.lists(ROW | JSON, max_size=4))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_files_of_anything_reconcile(tmp_path: Path, rows: list[Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        result = read_source(DataSource(path=str(path)), seed=0)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert result.read == len(rows) == len(result.rows) + len(result.rejected)


@given(head=st.text(max_size=8), chosen=st.text(max_size=8), rejected=st.text(max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_shared_prompt_begins_both_and_empties_neither(
    head: str, chosen: str, rejected: str
) -> None:
    a, b = head + chosen, head + rejected
    shared = shared_text(a, b)
    assert a.startswith(shared) and b.startswith(shared)
    for side in (a, b):
        assert side[len(shared) :].strip() or not side.strip()
