"""What goes to disk between two stages comes back equal."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palate.data.construct.blocks import BlockFile, write_block
from palate.data.schema import ImageRef, Preference, Response

TEXT = st.text(max_size=20).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))
NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.none()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ROLES = st.sampled_from(["user", "assistant"])
IMAGE = st.builds(
    ImageRef, path=st.sampled_from(["images/ab.png", "images/cd.png"]), digest=st.just("ab" * 32)
)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}) | st.fixed_dictionaries(
    {"type": st.just("image"), "image": IMAGE}
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": TEXT | st.lists(PART, max_size=3)}),
    min_size=1,
    max_size=3,
)


@st.composite
def pairs(draw: st.DrawFn) -> Preference:
    content = draw(st.sampled_from([TEXT, TURNS]))
    response = st.builds(
        Response,
        content=content,
        rating=NUMBER,
        aspects=st.none() | st.dictionaries(TEXT, st.floats(0, 10), max_size=2),
        votes=NUMBER,
        rank=st.none() | st.integers(1, 9),
        label=st.none() | st.booleans(),
        generator=st.none() | TEXT,
    )
    return Preference(
        id=draw(TEXT),
        source=draw(TEXT),
        kind="pair",
        prompt=draw(content),
        responses=(draw(response), draw(response)),
        margin=draw(NUMBER),
        tie=draw(st.booleans()),
        row=draw(st.none() | st.integers(1, 10**9)),
        extra=draw(st.none() | st.dictionaries(TEXT, JSON, max_size=2)),
    )


@given(rows=st.lists(pairs(), max_size=5))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rows_come_back_equal(rows: list[Preference], tmp_path: Path) -> None:
    path = tmp_path / "block.arrow"
    write_block(path, rows)
    block = BlockFile(path=path, ledger=0, file="f", first=0, rows=len(rows))
    assert block.load() == rows
    some = list(range(0, len(rows), 2))
    assert block.load(some) == [rows[i] for i in some]
