"""Multimodal formats: the fixtures' records with anything at all somewhere in them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_formats import MINE, records
from palate.data.containers import Record
from palate.data.readers import Context, RowError, readers
from palate.data.readers.meaning import read_row
from palate.data.schema import Preference

WORDS = [
    "",
    " ",
    "N/A",
    "5",
    "nan",
    "[]",
    "{}",
    "[null]",
    "<image>",
    "<ImageHere>",
    "]\n",
    "Question: [",
    "[Response 2]:\n",
    "The better response: [2]",
    "<answer>1</answer>",
    "data:image/png;base64,",
    "iVBORw0KGgo",
    "clip.mp4",
    "\ud800",
    "../a.png",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=4)
    | st.sampled_from(WORDS)
    | st.just(10**400)
)
KEYS = st.sampled_from(
    ["role", "content", "from", "value", "type", "text", "image", "path", "bytes", "Rating", "url"]
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


def strings(value: Any) -> list[str]:
    """All texts in a value, also inside JSON in texts."""
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        return [value, *(strings(inner) if isinstance(inner, (list, dict)) else [])]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []


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
        kind = draw(st.sampled_from(["remove", "edit", "replace"]))
        if kind == "remove" and isinstance(holder, dict):
            del holder[last]
        elif kind == "edit" and isinstance(holder[last], str):
            at = draw(st.integers(0, len(holder[last])))
            holder[last] = holder[last][:at] + draw(st.sampled_from(WORDS)) + holder[last][at:]
        else:
            anything = draw(ANYTHING)
            # Some formats write their rows out as JSON in texts.
            nested = draw(st.integers(0, 3)) == 0
            holder[last] = json.dumps(anything, default=str) if nested else anything
    return dataclasses.replace(record, value=value, textual=draw(st.booleans()))


@pytest.mark.parametrize("name", MINE)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
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
    json.dumps(row.extra, allow_nan=False).encode("utf-8")
    held = strings(record.value)
    count = 0
    for content in (row.prompt, *(response.content for response in row.responses)):
        assert content
        for turn in [{"content": content}] if isinstance(content, str) else content:
            inner = turn["content"]
            parts = [{"type": "text", "text": inner}] if isinstance(inner, str) else inner
            count += sum(part["type"] == "image" for part in parts)
            count += sum(len(p["video"].refs) for p in parts if p["type"] == "video")
            for part in parts:
                if part["type"] == "text":
                    part["text"].encode("utf-8")
                    # Text is carried over whole, but for what stands for an image.
                    assert any(part["text"] in text for text in held)
    assert count == len(row.images)
    for image in row.images:
        assert image.path or image.data is not None
    if row.kind == "pair":
        assert row.chosen.content != row.rejected.content


@pytest.mark.parametrize("name", MINE)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_recognition_survives_anything(name: str, data: st.DataObject) -> None:
    sample = [data.draw(mutated(name)).value for _ in range(2)]
    columns = {key for row in sample for key in row}
    for reader in readers().values():
        assert reader.recognise(columns, sample) is None or reader.shape
