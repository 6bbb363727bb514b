"""Text formats, part two: the fixtures' records with anything at all somewhere in them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.data.containers import Record
from palate.data.readers import Context, RowError, readers
from palate.data.readers.meaning import read_row
from palate.data.schema import Preference, text_in
from text_formats_two import MINE, records

WORDS = [
    "",
    " ",
    "10",
    "nan",
    "1e999",
    "[]",
    "null",
    "user",
    "vote_tie",
    "\ud800",
    "<image>",
    "a.png",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(WORDS)
    | st.just(10**400)
    | st.binary(max_size=3)
)
KEYS = st.sampled_from(
    ["role", "content", "from", "value", "path", "bytes", "text", "overall", "x"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a record, not of the record."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    return [p for key in keys for p in ((*path, key), *places(value[key], (*path, key)))]


def read(name: str, record: Record, left: list[str]) -> Preference:
    context = Context(source="s", id="i", leave_out=lambda field, why: left.append(why))
    return read_row(readers()[name], record, context)


@functools.cache
def sound(name: str) -> list[Record]:
    """The records of a reader's fixtures of which it makes rows."""
    found = []
    for record in records(name):
        try:
            read(name, record, [])
        except RowError:
            continue
        found.append(record)
    return found


@st.composite
def mutated(draw: st.DrawFn, name: str) -> Record:
    record = draw(st.sampled_from(sound(name)))
    value: dict[str, Any] = copy.deepcopy(record.value)
    for _ in range(draw(st.integers(1, 2))):
        everywhere = places(value)
        if not everywhere:
            break
        *path, last = draw(st.sampled_from(everywhere))
        holder: Any = value
        for key in path:
            holder = holder[key]
        if isinstance(holder, dict) and draw(st.booleans()):
            del holder[last]
        elif isinstance(holder[last], str) and draw(st.booleans()):
            at = draw(st.integers(0, len(holder[last])))
            holder[last] = holder[last][:at] + draw(st.sampled_from(WORDS)) + holder[last][at:]
        else:
            holder[last] = draw(ANYTHING)
    return dataclasses.replace(record, value=value, textual=draw(st.booleans()))


@pytest.mark.parametrize("name", MINE)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_anything_is_a_row_or_a_named_refusal(name: str, data: st.DataObject) -> None:
    record = data.draw(mutated(name))
    before = repr(record.value)
    left: list[str] = []
    try:
        row = read(name, record, left)
    except RowError as error:
        assert error.reason and "\n" not in error.reason
        return
    finally:
        assert repr(record.value) == before
        assert all(why and "\n" not in why for why in left)
    assert row.kind == readers()[name].kind
    if row.kind == "pair":
        assert row.chosen.content != row.rejected.content or row.rejected.prompt
        assert row.margin is None or math.isfinite(row.margin)
    json.dumps(row.extra, allow_nan=False).encode("utf-8")
    contents = [row.prompt, *(response.content for response in row.responses)]
    texts, images = [], 0
    for content in contents:
        assert content
        for turn in [content] if isinstance(content, str) else content:
            inner = turn if isinstance(turn, str) else turn["content"]
            texts.append(text_in(inner))
            images += sum(p["type"] != "text" for p in inner) if isinstance(inner, list) else 0
    assert images == len(row.images)
    for image in row.images:
        assert image.path or image.data is not None
    for text in texts:
        text.encode("utf-8")
    for response in row.responses:
        numbers = [response.rating, *(response.aspects or {}).values()]
        assert all(n is None or math.isfinite(n) for n in numbers)
        assert response.generator is None or response.generator.encode("utf-8")


@pytest.mark.parametrize("name", MINE)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_recognition_survives_anything(name: str, data: st.DataObject) -> None:
    sample = [data.draw(mutated(name)).value for _ in range(2)]
    columns = {key for row in sample for key in row}
    for reader in readers().values():
        assert reader.recognise(columns, sample) is None or reader.shape
