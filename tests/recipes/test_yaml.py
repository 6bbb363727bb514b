"""The YAML of the library: scalars of YAML 1.2, one line for what is malformed, round trips."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml as reader_of_yaml_1_1  # transformers needs PyYAML: what most of the field reads with
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.errors import RecipeError
from palate.recipes import ScoreRecipe, TuneRecipe, load_recipe, resolve_yaml
from palate.recipes.keys import keys_of
from palate.recipes.load import VERBS, check_recipe
from palate.recipes.losses import Strict
from palate.recipes.yaml import MAX_DEPTH, dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # The examples of YAML 1.2.2, section 10.3.2, and its neighbours.
        *(("null", None), ("~", None), ("", None), ("Null", None), ("nuLL", "nuLL")),
        *(("true", True), ("FALSE", False), ("True", True), ("tRUE", "tRUE")),
        *(("0", 0), ("-19", -19), ("+12", 12), ("0o7", 7), ("0x3A", 58), ("-0", 0)),
        *(("0.", 0.0), ("-0.0", -0.0), (".5", 0.5), ("+12e03", 12000.0), ("-2E+05", -2e5)),
        *((".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf), ("1e3", 1e3)),
        # What YAML 1.1, or Python, takes for a number, a truth or a date is text.
        *((text, text) for text in ("1_0", "1_000.5", "190:20:30", "1:30", "0b11", "1,000")),
        *((text, text) for text in ("yes", "No", "on", "OFF", "y", "2020-01-01", "2020-99-99")),
        *((text, text) for text in ("\u0663", "\uff11\uff10", "\u00b2", "0o8", "0xg", "--1", "1e")),
        *((text, text) for text in ("inf", "nan", "NaN", ".nAn", "=", "1e5.0", ".", "-.", "+")),
        # Tags say what a scalar is.
        *(("!!str 010", "010"), ("! 12", "12"), ("!!float 3", 3.0), ("!!int 0x10", 16)),
        *(("!!seq [1]", [1]), ("!!map {a: 1}", {"a": 1}), ("!!null ''", None)),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    read = parse_yaml(f"a: {text}\n", "f")["a"]
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_read() -> None:
    assert math.isnan(parse_yaml("a: .nan", "f")["a"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 010", "1, column 4: 010 is octal to some and decimal to others: write it without the"),
        ("a: [1, -007]", "1, column 8: -007 is octal to some"),
        ("a: 9223372036854775808", "1, column 4: 9223372036854775808 is beyond 64 bits"),
        ("a: 0x1" + 40 * "0", "1, column 4: 0x1" + 40 * "0" + " is beyond 64 bits"),
        ("b: 1\na: 1" + 5000 * "0", "2, column 4: 1000"),
        ("a: 1e999", "1, column 4: 1e999 is beyond the range of floating-point numbers"),
        ("a: -1e-999", "1, column 4: -1e-999 is beyond the range"),
        ("a: 1" + 5000 * "0" + ".0", "1, column 4: 1000"),
        ("a: !!bool maybe", "1, column 4: 'maybe' is no !!bool"),
        ("a: !!int 1.5", "1, column 4: '1.5' is no !!int"),
        ("a: !!float x", "1, column 4: 'x' is no !!float"),
        ("a: !!null x", "1, column 4: 'x' is no !!null"),
        ("a: !!timestamp 2020-99-99", "1, column 4: tag !!timestamp is not supported"),
        ("a: !!binary aGk=", "1, column 4: tag !!binary is not supported"),
        ("a: !!set {x}", "1, column 4: tag !!set is not supported"),
        ("a: !!python/object/apply:os.system [ls]", "1, column 4: tag !!python/object/apply:os"),
        ("a: !mine x", "1, column 4: tag !mine is not supported"),
        ("a: !!seq x", "1, column 4: tag !!seq is not supported"),
        ("a: " + 500 * "[" + 500 * "]", "1, column 53: nested more than 50 levels deep"),
        ("a: " + 100_000 * "{b: ", "1, column 200: nested more than 50 levels deep"),
        ("a: &a [*a]", "1, column 8: an alias stands inside what it refers to"),
        ("a: *b\nb: &b 1", "1, column 4: no value above is marked &b"),
        ("a: 1\na: 2", "2, column 1: `a` is given twice (first: f, line 1, column 1)"),
        ("a: {b: {c: 1, c: 1}}", "1, column 15: `a.b.c` is given twice"),
        ("1: x", "1, column 1: key 1 is not text"),
        ("? [a]\n: x", "1, column 3: key ['a'] is not text"),
        ("true: x", "1, column 1: key True is not text"),
        ("<<: {}", "1, column 1: merge keys (<<) are not supported"),
        ("a: 1\n---\nb: 2", "2, column 1: more than one YAML document"),
        ("a:\n\tb: 1", "2, column 1: not valid YAML: "),
        ("a: [1\nb: 2", "2, column 2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: @x", "1, column 4: not valid YAML: "),
        ("a: \x00", "1, column 4: character #x0000 is not allowed in YAML"),
        ("a: \x07", "1, column 4: character #x0007 is not allowed in YAML"),
        ("a: b\n\udc80: 1", "2, column 1: character #xdc80 is not allowed in YAML"),
        ('a: "\\0"', "1, column 4: text holds the character #x0000"),
        ('a: "\\ud800"', "1, column 4: text holds the character #xd800"),
        ('a: "\\UFFFFFFFF"', "1, column 2: after here: not valid YAML: "),
        ("%YAML 9.9\n---\na: 1", "1, column 1: not valid YAML: "),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(text: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "f")
    assert str(caught.value).startswith(f"f, line {line}")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_aliases_that_multiply_end_soon() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    started = time.process_time()
    with pytest.raises(RecipeError, match="more than 100000 values, aliases written out"):
        parse_yaml("\n".join(rows), "f")
    assert time.process_time() - started < 5
    chain = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, MAX_DEPTH + 50))]
    with pytest.raises(RecipeError, match="nested more than"):
        parse_yaml("\n".join(chain), "f")


def test_an_alias_is_what_was_last_marked_and_a_value_of_its_own() -> None:
    read = parse_yaml("a: &x {k: 1}\nb: *x\nc: &x 2\nd: *x", "f")
    assert read == {"a": {"k": 1}, "b": {"k": 1}, "c": 2, "d": 2}
    assert read["a"] is not read["b"]


def test_origins_are_the_places_of_keys_and_items() -> None:
    origins: dict[Any, str] = {}
    parse_yaml("a:\n  - b: 1\n  -   c\nd: {e: 2}", "f", origins)
    assert origins == {
        ("a",): "f, line 1, column 1",
        ("a", 0): "f, line 2, column 5",
        ("a", 0, "b"): "f, line 2, column 5",
        ("a", 1): "f, line 3, column 7",
        ("d",): "f, line 4, column 1",
        ("d", "e"): "f, line 4, column 5",
    }


_ODD = (
    *("1e3", "010", "1_0", "0x1F", "0o7", "190:20:30", ".5", "5.", "1.", "-", "+1", ".inf", ".nan"),
    *("yes", "No", "on", "off", "y", "n", "true", "null", "~", "", "2020-01-01", "=", "<<", "?"),
    *("a: b", "a #b", "#a", "- a", "[a", "{a", "*a", "&a", "!a", "|", ">", "%a", "@a", "`a", "---"),
    *("'", '"', "\\", "\t", " a", "a ", "a\n", "\na", "a\n\n b\n", "\r\n", "\x85", "\u2028"),
    *("\ufeff", "\x7f", "\u00a0", "\u0663", "caf\u00e9", "\U0001f600", "...", 300 * "x"),
    *(" ".join(60 * ["word"]), " ".join(60 * ["wo  rd"]), "a\\" * 80),
)
_TEXT = st.one_of(
    st.sampled_from(_ODD),
    st.from_regex(r"[-+0-9._eExob:]{1,8}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=120),
)
_VALUES = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), _TEXT),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXT, inner, max_size=4)),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(_VALUES)
def test_what_is_written_reads_back_equal(value: Any) -> None:
    text = dump_yaml({"value": value})
    read = parse_yaml(text, "f")["value"]
    assert repr(read) == repr(value)  # types and the sign of zero too


@settings(deadline=None, max_examples=200)
@given(_VALUES)
def test_readers_of_yaml_1_1_agree(value: Any) -> None:
    assert repr(reader_of_yaml_1_1.safe_load(dump_yaml({"v": value}))["v"]) == repr(value)


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.sampled_from("ab:-?[]{},&*!|>'\"%@`#\t\n 01.e_\\Uux\r<~=\ufeff\u2028"), max_size=30)
)
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "f")
    except RecipeError as error:
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith("f, line ") or text.strip() == ""


@settings(deadline=None, max_examples=100)
@given(_TEXT.filter(bool), _TEXT.filter(bool))
def test_a_resolved_recipe_loads_to_an_equal_recipe(
    tmp_path_factory: pytest.TempPathFactory, path: str, name: str
) -> None:
    recipe = check_recipe(
        ScoreRecipe,
        {
            "output_dir": path,
            "scorer": {"type": "length", "name": name},
            "data": [{"path": path, "name": name}],
        },
        "test",
    )
    file = tmp_path_factory.getbasetemp() / "resolved.yaml"
    file.write_text(resolve_yaml(recipe), encoding="utf-8", newline="")
    assert load_recipe(ScoreRecipe, file) == recipe


def _schemas(schema: Any) -> Any:
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool", "str"):
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from _schemas(part)


@pytest.mark.parametrize("cls", VERBS)
def test_no_recipe_reads_a_value_as_something_else(cls: type[Strict]) -> None:
    """Every number and boolean of every recipe is strict, and every text has something in it."""
    for key in keys_of(cls):
        # Built when it is first needed, which may be now.
        key.owner.model_rebuild()
    scalars = [s for key in keys_of(cls) for s in _schemas(key.owner.__pydantic_core_schema__)]
    assert scalars
    for schema in scalars:
        assert schema.get("min_length", 0) >= 1 if schema["type"] == "str" else schema["strict"]


MINIMAL = "model: {path: m}\ndata: {train: [{path: p}]}\n"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1_0", "a whole number >= 0 and <= 4294967295, got '1_0'"),
        ("seed=190:20:30", "a whole number >= 0 and <= 4294967295, got '190:20:30'"),
        ("seed='7'", "a whole number >= 0 and <= 4294967295, got '7'"),
        ("seed=1.0", "a whole number >= 0 and <= 4294967295, got 1.0"),
        ("seed=true", "a whole number >= 0 and <= 4294967295, got True"),
        ("seed=4294967296", "a whole number >= 0 and <= 4294967295, got 4294967296"),
        ("train.learning_rate=true", "a number > 0, got True"),
        ("train.learning_rate='1e-5'", "a number > 0, got '1e-5'"),
        ("train.learning_rate=\uff11", "a number > 0, got '\uff11'"),
        ("train.gradient_checkpointing=yes", "true or false, got 'yes'"),
        ("train.gradient_checkpointing=1", "true or false, got 1"),
        ("output_dir=''", "a path, got ''"),
        ("data.train.0.path=''", "text, got ''"),
        ("model.path=1e3", "text, got 1000.0"),
        ("model.chat_template=''", "a path or model or plain, got ''"),
    ],
)
def test_overrides_are_as_strict_as_files(tmp_path: Path, override: str, expected: str) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL + "output_dir: out\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(TuneRecipe, tmp_path / "r.yaml", [override])
    key, _, value = override.partition("=")
    assert str(caught.value) == f"--set {override}: `{key}`: expected {expected}"
    sections = key.split(".")
    nested = "".join("  " * n + f"{part}:\n" for n, part in enumerate(sections[:-1]))
    if sections[0] in ("seed", "output_dir", "train"):
        text = nested + "  " * (len(sections) - 1) + f"{sections[-1]}: {value}\n"
        rest = MINIMAL if sections[0] == "output_dir" else MINIMAL + "output_dir: out\n"
        (tmp_path / "r.yaml").write_text(rest + text)
        with pytest.raises(RecipeError, match=r"r\.yaml, line \d+, column \d+: ") as caught:
            load_recipe(TuneRecipe, tmp_path / "r.yaml")
        assert str(caught.value).endswith(f": `{key}`: expected {expected}")


@pytest.mark.parametrize(
    "override",
    [
        *("data.train.\u0660.limit=1", "data.train.\u00b2.limit=1", "data.train.00.limit=1"),
        *("data.train.-1.limit=1", f"data.train.{'9' * 5000}.limit=1", f"{'x' * 5000}=1"),
        *("a\nb=1", "seed=\udc80", "seed=1\n\n---\n2", "seed=!!int x", "seed=" + 500 * "["),
        *("train={\"a\\nb\": 1}", "loss={type: \"a\\nb\"}"),
    ],
)  # fmt: skip
def test_an_odd_override_is_one_short_line(tmp_path: Path, override: str) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL + "output_dir: out\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(TuneRecipe, tmp_path / "r.yaml", [override])
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_a_key_of_digits_names_a_key_where_keys_are_text(tmp_path: Path) -> None:
    data = "{train: [{path: p, name: '3'}], mixture: {take: {'3': 0.5}}}"
    (tmp_path / "r.yaml").write_text(f"output_dir: o\nmodel: {{path: m}}\ndata: {data}\n")
    recipe = load_recipe(TuneRecipe, tmp_path / "r.yaml", ["data.mixture.take.3=0.25"])
    assert recipe.data.mixture is not None and recipe.data.mixture.take == {"3": 0.25}


@pytest.mark.parametrize("name", ["x" * 300, "a\nb", "x" * 5000, "\udc80"])
def test_a_recipe_of_an_odd_name_is_one_line(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(ScoreRecipe, name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200
