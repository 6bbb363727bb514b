"""Names in `src` say what they hold: no pronoun for a value, no household word for a part."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import palate

SOURCE = Path(palate.__file__).parent
SCRIPTS = ("benchmarks", "examples", "tools")
LATER = ("data/curation", "data/construct", "data/audit")
"""Folders whose names are not held to this yet."""
PLACEHOLDERS = {"found", "own", "one", "said", "mine", "theirs", "other", "both", "thing"}
"""Pronouns and the like: they say that there is a value, not which."""
HOUSEHOLD = ("Desk", "Shelf", "Book", "Booked", "Means", "Known", "Telling", "Own", "Asked", "Work")
"""Words of a class name that say nothing of what it does."""


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that the module names itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            dunder = not isinstance(node, ast.Lambda) and node.name.startswith("__")
            arguments = node.args
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                # `__eq__(self, other)` is Python's own word.
                if not (dunder and argument.arg == "other"):
                    yield argument.lineno, argument.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def words_of_class(name: str) -> list[str]:
    """`_LossBook` -> Loss, Book."""
    words: list[str] = []
    for letter in name.strip("_"):
        if letter.isupper() or not words:
            words.append(letter)
        else:
            words[-1] += letter
    return words


def faults(text: str) -> list[tuple[int, str]]:
    """(line, name) of every placeholder and household word in a module's text."""
    wrong = {
        (line, name)
        for line, name in names(ast.parse(text))
        if name.strip("_") in PLACEHOLDERS
        or (name.strip("_")[:1].isupper() and set(words_of_class(name)) & set(HOUSEHOLD))
    }
    return sorted(wrong)


def faults_below(folder: Path) -> list[str]:
    """`file:line name` of every fault in the modules below a folder."""
    return [
        f"{path.relative_to(folder)}:{line} {name}"
        for path in sorted(folder.rglob("*.py"))
        if not str(path.relative_to(folder)).startswith(LATER)
        for line, name in faults(path.read_text(encoding="utf-8"))
    ]


def test_names_in_src_say_what_they_hold() -> None:
    assert not (wrong := faults_below(SOURCE)), "\n".join(wrong)


def test_names_in_scripts_say_what_they_hold() -> None:
    root = Path(__file__).resolve().parent.parent
    wrong = [f"{folder}/{line}" for folder in SCRIPTS for line in faults_below(root / folder)]
    assert not wrong, "\n".join(wrong)


def test_what_counts() -> None:
    text = (
        "def f(own):\n    found = [one for one in own]\n    return found\nclass ScoreBook: pass\n"
    )
    assert faults(text) == [(1, "own"), (2, "found"), (2, "one"), (4, "ScoreBook")]
    assert faults("class A:\n    def __eq__(self, other): return other is self\n") == []
    assert faults("class Notebook: pass\nrows = [row for row in range(3)]\n") == []
