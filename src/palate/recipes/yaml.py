"""YAML in and out: the loader and the dumper of the whole library.

Scalars are read by the core schema of YAML 1.2.2 (10.3.2), in ASCII digits alone. What readers of
YAML 1.1 and 1.2 would read as different numbers (010), what no number of the machine holds, tags
beyond the core schema, merge keys, repeated keys, deep nesting and aliases that multiply are
refused, each by one line. The dumper quotes whatever a reader of either version could take for
anything but text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from palate.errors import RecipeError, in_one_line

if TYPE_CHECKING:  # ruamel.yaml takes a while to import, and help texts need none of it
    from ruamel.yaml import YAML

KeyPath = tuple[str | int, ...]
"""Where a value sits: keys and list indices."""

MAX_DEPTH = 50
MAX_VALUES = 100_000
"""Values of one document, what an alias stands for counted each time."""

_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_OCTAL_OR_DECIMAL = re.compile(r"[-+]?0[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
}
# Text that no version of YAML reads as anything else: words and paths, but not these words.
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\./)[A-Za-z0-9_./-]*")
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def parse_yaml(
    text: str, name: str, origins: dict[KeyPath, str] | None = None, *, positions: bool = True
) -> Any:
    """The value of a YAML document: dicts with text as keys, lists, text, numbers, booleans, None.

    Args:
        text: one document; empty text is None.
        name: what messages call it.
        origins: filled with where each key and list item is written, in the order of writing:
            "name, line 3, column 5".
        positions: False where `text` is short and `name` shows it: messages then name no line.

    Raises:
        RecipeError: one line that says what cannot be read, and where.
    """
    return _Reader(text, name, {} if origins is None else origins, positions).value()


def dump_yaml(value: Any) -> str:
    """YAML of plain values (what `parse_yaml` returns), which reads back to an equal value."""
    stream = io.StringIO()
    _writer().dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


class _Reader:
    """One document, from the parser's events. Aliases are read again from where they point."""

    def __init__(self, text: str, name: str, origins: dict[KeyPath, str], positions: bool) -> None:
        self.name, self.origins, self.positions = name, origins, positions
        self.n_values = 0
        self.events: list[Any] = []
        self.targets: dict[int, int] = {}  # from the place of an alias among the events
        self._parse(text)

    def value(self) -> Any:
        return self._value(0, (), ())[0] if self.events else None

    def place(self, mark: Any) -> str:
        if not self.positions:
            return self.name
        return f"{self.name}, line {mark.line + 1}, column {mark.column + 1}"

    def fail(self, mark: Any, problem: str) -> RecipeError:
        return RecipeError(f"{self.place(mark)}: {problem}")

    def _parse(self, text: str) -> None:
        """Fills `events`, of the only document, without its start and end."""
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
        from ruamel.yaml.reader import ReaderError

        if wrong := re.search("[\x00\ud800-\udfff]", text):
            raise self._unreadable(text, wrong.start(), ord(wrong[0]))
        depth = 0
        anchors: dict[str, int] = {}
        try:
            for event in YAML(typ="safe", pure=True).parse(text):
                kind = type(event).__name__
                if kind == "DocumentStartEvent" and self.events:
                    raise self.fail(event.start_mark, "more than one YAML document")
                if kind.startswith(("Stream", "Document")):
                    continue
                depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
                if depth > MAX_DEPTH:
                    raise self.fail(event.start_mark, _TOO_DEEP)
                if kind == "AliasEvent":
                    if event.anchor not in anchors:
                        raise self.fail(
                            event.start_mark,
                            f"no value above is marked &{in_one_line(event.anchor)}",
                        )
                    self.targets[len(self.events)] = anchors[event.anchor]
                elif getattr(event, "anchor", None):
                    anchors[event.anchor] = len(self.events)
                self.events.append(event)
        except ReaderError as error:
            raise self._unreadable(text, error.position, error.character) from None
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            value = "" if self.positions else "the value is "
            problem = f"{value}not valid YAML: {in_one_line(error.problem or error.context)}"
            raise (
                self.fail(mark, problem) if mark else RecipeError(f"{self.name}: {problem}")
            ) from None
        except (YAMLError, ValueError, OverflowError) as error:
            if isinstance(error, RecipeError):
                raise
            # Escapes such as "\UFFFFFFFF" end in Python's own errors.
            problem = f"not valid YAML: {in_one_line(error)}"
            if not self.events:
                raise RecipeError(f"{self.name}: {problem}") from None
            raise self.fail(self.events[-1].end_mark, f"after here: {problem}") from None

    def _unreadable(self, text: str, position: int, character: Any) -> RecipeError:
        before = text[:position]
        line, column = before.count("\n") + 1, position - before.rfind("\n")
        where = f"{self.name}, line {line}, column {column}" if self.positions else self.name
        code = character if isinstance(character, int) else ord(character)
        return RecipeError(f"{where}: character #x{code:04x} is not allowed in YAML")

    def _value(self, start: int, path: KeyPath, above: tuple[int, ...]) -> tuple[Any, int]:
        """The value whose events begin at `start`, and where the next one begins."""
        event = self.events[start]
        kind = type(event).__name__
        self.n_values += 1
        if self.n_values > MAX_VALUES:
            raise self.fail(event.start_mark, f"more than {MAX_VALUES} values, aliases written out")
        if kind == "AliasEvent":
            target = self.targets[start]
            if target in above:
                raise self.fail(event.start_mark, "an alias stands inside what it refers to")
            return self._value(target, path, above)[0], start + 1
        if kind == "ScalarEvent":
            return self._scalar(event), start + 1
        if len(above) == MAX_DEPTH:  # by way of aliases
            raise self.fail(event.start_mark, _TOO_DEEP)
        expected = "map" if kind == "MappingStartEvent" else "seq"
        if event.tag not in (None, "!", _TAG + expected):
            raise self.fail(event.start_mark, _no_tag(event.tag))
        read = self._mapping if expected == "map" else self._sequence
        return read(start + 1, path, (*above, start))

    def _mapping(
        self, at: int, path: KeyPath, above: tuple[int, ...]
    ) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}
        while type(self.events[at]).__name__ != "MappingEndEvent":
            key_event = self.events[at]
            mark = key_event.start_mark
            is_plain = type(key_event).__name__ == "ScalarEvent" and key_event.implicit[0]
            if is_plain and key_event.value == "<<":
                raise self.fail(mark, "merge keys (<<) are not supported")
            key, at = self._value(at, path, above)
            if not isinstance(key, str):
                raise self.fail(mark, f"key {in_one_line(repr(key))} is not text")
            inside = (*path, key)
            if key in result:
                first = self.origins[inside]
                raise self.fail(mark, f"`{dotted(inside)}` is given twice (first: {first})")
            self.origins[inside] = self.place(mark)
            result[key], at = self._value(at, inside, above)
        return result, at + 1

    def _sequence(self, at: int, path: KeyPath, above: tuple[int, ...]) -> tuple[list[Any], int]:
        result: list[Any] = []
        while type(self.events[at]).__name__ != "SequenceEndEvent":
            inside = (*path, len(result))
            self.origins[inside] = self.place(self.events[at].start_mark)
            value, at = self._value(at, inside, above)
            result.append(value)
        return result, at + 1

    def _scalar(self, event: Any) -> Any:
        text, tag = event.value, event.tag
        if wrong := re.search("[\x00\ud800-\udfff]", text):  # by escapes
            raise self.fail(event.start_mark, f"text holds the character #x{ord(wrong[0]):04x}")
        if tag is None:
            return self._plain(event) if event.implicit[0] else text
        if tag in ("!", _TAG + "str"):
            return text
        types = _TYPES.get(tag.removeprefix(_TAG)) if tag.startswith(_TAG) else None
        if types is None:
            raise self.fail(event.start_mark, _no_tag(tag))
        value = self._plain(event)
        if type(value) not in types:
            name = tag.removeprefix(_TAG)
            raise self.fail(event.start_mark, f"{in_one_line(repr(text))} is no !!{name}")
        return float(value) if tag == _TAG + "float" else value

    def _plain(self, event: Any) -> Any:
        """What an unquoted scalar is in the core schema."""
        text = event.value
        if text in _WORDS:
            return _WORDS[text]
        if _OCTAL_OR_DECIMAL.fullmatch(text):
            raise self.fail(
                event.start_mark,
                f"{in_one_line(text)} is octal to some and decimal to others: write it without the"
                " leading 0, or in quotes if it is text",
            )
        if _INT.fullmatch(text):
            # Beyond 4,300 digits Python converts nothing; beyond 20 no value is in range.
            bases = {"0x": 16, "0o": 8}
            value = int(text, bases.get(text[:2], 10)) if len(text) < 100 else 2**64
            if not -(2**63) <= value < 2**63:
                problem = f"{in_one_line(text)} is beyond 64 bits: no number here is so large"
                raise self.fail(event.start_mark, problem)
            return value
        if _FLOAT.fullmatch(text):
            number = float(text)
            mantissa = re.split("[eE]", text)[0]
            if number in (float("inf"), float("-inf")) or (
                not number and re.search("[1-9]", mantissa)
            ):
                problem = f"{in_one_line(text)} is beyond the range of floating-point numbers"
                raise self.fail(event.start_mark, problem)
            return number
        if _NOT_FINITE.fullmatch(text):
            return float(text.replace(".", ""))
        return text


def _no_tag(tag: str) -> str:
    return f"tag {in_one_line(tag.replace(_TAG, '!!'))} is not supported"


def dotted(path: KeyPath) -> str:
    """`("data", "train", 0)` as `data.train.0`, in one line of bounded length."""
    return in_one_line(".".join(map(str, path)))


def _writer() -> YAML:
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(representer: Any, value: str) -> Any:
        plain = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED
        return representer.represent_scalar(_TAG + "str", value, style="" if plain else '"')

    def number(representer: Any, value: float) -> Any:
        digits = repr(value) if value == value and abs(value) != float("inf") else ""
        if "e" in digits and "." not in digits:
            # Readers of YAML 1.1 take 1e-06 for text.
            digits = digits.replace("e", ".0e")
        name = {float("inf"): ".inf", float("-inf"): "-.inf"}.get(value, ".nan")
        return representer.represent_scalar(_TAG + "float", digits or name)

    def section(representer: Any, value: dict[str, Any]) -> Any:
        return representer.represent_mapping(_TAG + "map", list(value.items()))  # as they stand

    representers: dict[type, Callable[[Any, Any], Any]] = {str: text, float: number, dict: section}
    for kind, function in representers.items():
        Representer.add_representer(kind, function)
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 100
    return yaml
