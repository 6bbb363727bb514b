"""A recipe file as plain values, with the line that every key came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from palate.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""Where a value sits: keys and list indices."""


class _Loader(yaml.SafeLoader):
    """YAML's safe types, but numbers as in YAML 1.2 and no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":float"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 5e-6 as text; everybody means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$"
        r"|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


@dataclass
class Document:
    """Values of a recipe and their origin.

    Attributes:
        value: nested dicts and lists.
        origins: where each key was written: "file.yaml, line 3", or "--set a.b=1".
        name: of the file, for messages about what is missing.
    """

    value: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    name: str = "recipe"

    def origin(self, path: KeyPath) -> str:
        """Where the value at `path`, or the nearest section above it, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.name

    def order(self, path: KeyPath) -> int:
        """Position of `path`, or of the nearest section above it, in the order of writing."""
        known = [place for place, key in enumerate(self.origins) if key == path[: len(key)]]
        return max(known, default=-1)

    def set(self, path: KeyPath, value: Any, origin: str) -> None:
        """Puts `value` at `path`, making sections on the way.

        Raises:
            RecipeError: the path leads through a value that is no section, or past a list's end.
        """
        here: Any = self.value
        for depth, part in enumerate(path[:-1]):
            if isinstance(here, dict):
                if here.get(part) is None:
                    here[part] = {}
                    self.origins[path[: depth + 1]] = origin
                here = here[part]
            else:
                here = _item(here, part, path, origin)
        last = path[-1]
        if isinstance(here, dict):
            here[last] = value
        else:
            _item(here, last, path, origin)
            here[last] = value
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin


def read_document(path: Path) -> Document:
    """Reads a YAML recipe.

    Raises:
        RecipeError: unreadable, not UTF-8, malformed, a key given twice, or no mapping.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: not UTF-8") from None
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """Parses the text of a recipe; `name` is what messages call it. See `read_document`."""
    loader = _loader(text, name)
    try:
        node = loader.get_single_node()
        document = Document({}, name=name)
        if node is None:
            return document
        value = _build(loader, node, (), document, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{name}{line}: not valid YAML: {_flat(error.problem)}") from None
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise RecipeError(f"{name}, line {node.start_mark.line + 1}: a recipe is a mapping of keys")
    document.value = value
    return document


def apply_override(document: Document, override: str) -> None:
    """Applies one `a.b=value`; the value is YAML, list items are numbered from 0.

    Raises:
        RecipeError: no `=`, an empty key or a value that is no YAML.
    """
    key, equals, text = override.partition("=")
    path = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    origin = f"--set {override}"
    if not equals or "" in path:
        raise RecipeError(f"{origin}: write it as section.key=value")
    loader = _loader(text, origin)
    try:
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        problem = _flat(getattr(error, "problem", None) or error)
        raise RecipeError(f"{origin}: the value is not valid YAML: {problem}") from None
    finally:
        loader.dispose()
    document.set(path, value, origin)


def _loader(text: str, name: str) -> _Loader:
    try:
        return _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise RecipeError(
            f"{name}, line {line}: character #x{error.character:04x} is not allowed in YAML"
        ) from None


def _build(
    loader: _Loader,
    node: yaml.Node,
    path: KeyPath,
    document: Document,
    above: tuple[yaml.Node, ...],
) -> Any:
    def place(at: yaml.Node) -> str:
        return f"{document.name}, line {at.start_mark.line + 1}"

    if any(node is outer for outer in above):
        raise RecipeError(f"{place(node)}: an alias stands inside what it refers to")
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise RecipeError(f"{place(key_node)}: merge keys (<<) are not supported")
            key = loader.construct_object(key_node)
            if not isinstance(key, str):
                raise RecipeError(f"{place(key_node)}: key {key!r} is not text")
            inside = (*path, key)
            if key in result:
                raise RecipeError(
                    f"{place(key_node)}: `{dotted(inside)}` is given twice"
                    f" (first: {document.origins[inside]})"
                )
            document.origins[inside] = place(key_node)
            result[key] = _build(loader, value_node, inside, document, above)
        return result
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.origins[(*path, index)] = place(item)
            items.append(_build(loader, item, (*path, index), document, above))
        return items
    return loader.construct_object(node)


def _item(here: Any, part: str | int, path: KeyPath, origin: str) -> Any:
    if not isinstance(here, list):
        raise RecipeError(f"{origin}: `{dotted(path)}` leads through {here!r}, which has no keys")
    if not isinstance(part, int) or part >= len(here):
        raise RecipeError(
            f"{origin}: `{dotted(path)}` goes through a list of {len(here)}; items count from 0"
        )
    return here[part]


def dotted(path: KeyPath) -> str:
    """`("data", "train", 0)` as `data.train.0`."""
    return ".".join(map(str, path))


def _flat(problem: object) -> str:
    return " ".join(str(problem).split())
