"""A TRL recipe being read key by key into a native one: what is taken, put, refused."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from palate.errors import RecipeError, in_one_line
from palate.recipes.document import Document, key_path
from palate.recipes.keys import join
from palate.recipes.trl_table import BOOLEAN, BY_KEY, Row

MARK = "model_name_or_path"
"""The key that makes a recipe TRL-shaped."""

# What YAML 1.1, in which TRL reads its files, takes for true and false.
_WORDS_OF_1_1 = {
    **{case(word): True for word in ("yes", "on") for case in (str, str.title, str.upper)},
    **{case(word): False for word in ("no", "off") for case in (str, str.title, str.upper)},
}

NATIVE_SECTIONS = (
    *("model", "data", "loss", "train", "reference", "token_weights"),
    *("head", "regularise", "ensemble"),
)


class TrlKeys:
    """Both documents, and the keys that are still to be looked at.

    Attributes:
        source: the TRL recipe. native: what it becomes.
        notes: lines on what differs from TRL. problems: (key, why it is refused).
    """

    def __init__(self, document: Document, verb: str) -> None:
        value = {key: _as_in_1_1(key, value) for key, value in document.value.items()}
        self.source = replace(document, value=value)
        self.verb = verb
        self.native = Document({}, name=document.name)
        self.notes: list[str] = []
        self.problems: list[tuple[str, str]] = []
        self.left = set(document.value)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key; null counts as left out, as in TRL."""
        self.left.discard(key)
        value = self.source.value.get(key)
        return default if value is None else value

    def has(self, key: str) -> bool:
        return self.source.value.get(key) is not None

    def number(self, key: str, default: float) -> float:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, f"expected a number, got {in_one_line(repr(value))}")
            return default
        return value

    def choice(self, key: str, known: dict[str, Any], default: str) -> Any:
        value = self.take(key, default)
        if not isinstance(value, str) or value not in known:
            self.refuse(key, f"{in_one_line(repr(value))} is not offered; {join(list(known))}")
            return known[default]
        return known[value]

    def refuse(self, key: str, reason: str) -> None:
        self.problems.append((key, reason))

    def note(self, key: str, text: str) -> None:
        """Says how a key, given or left out, differs from TRL."""
        self.notes.append(f"{self.origin(key)}: {text}")

    def put(self, path: str, value: Any, key: str) -> None:
        """Sets a native key, whose origin is the line of the TRL key (or the key's default)."""
        self.native.set(key_path(path), value, self.origin(key))

    def trace(self, path: str, key: str) -> None:
        """Says that the native `path`, set with its section, came from another TRL key."""
        self.native.origins[key_path(path)] = self.origin(key)

    def origin(self, key: str) -> str:
        """The line of a TRL key, or that it is its default."""
        if key in self.source.value:
            return self.source.origin((key,))
        return f"{self.source.name}: TRL's default of {key}"

    def check_keys(self) -> None:
        for key, value in self.source.value.items():
            row = BY_KEY.get(key)
            if row is None:
                self.left.discard(key)
                self.refuse(key, self._unknown(key))
            elif row.kind == "refused":
                self.left.discard(key)
                self.refuse(key, row.becomes)
            elif not row.belongs_to(self.verb):
                self.left.discard(key)
                verbs = join([f"`palate {verb}`" for verb in (row.verb or "").split(", ")], "and")
                self.refuse(key, f"belongs to {verbs}")
            elif row.kind == "fixed":
                self.left.discard(key)
                self._check_fixed(row, value)
            elif key in BOOLEAN and not isinstance(value, bool | None):
                self.left.discard(key)
                self.refuse(key, f"expected true or false, got {in_one_line(repr(value), 60)}")

    def _unknown(self, key: str) -> str:
        if key in NATIVE_SECTIONS:
            return f"is a native section; it cannot stand beside TRL's {MARK} (write `model.path`)"
        near = difflib.get_close_matches(key, BY_KEY, n=1, cutoff=0.6)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"unknown TRL key{hint}"

    def _check_fixed(self, row: Row, value: Any) -> None:
        if value is None or any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in row.accepted
        ):
            return
        self.refuse(row.key, f"{in_one_line(repr(value))}: {row.becomes}")

    def finish(self) -> Document:
        """The native document, or the lines of all keys that could not be mapped."""
        for key in sorted(self.left):
            self.refuse(key, f"has no use here: {BY_KEY[key].becomes}")
        if self.problems:
            order = list(self.source.value)
            self.problems.sort(key=lambda p: order.index(p[0]) if p[0] in order else len(order))
            raise RecipeError(
                "\n".join(
                    dict.fromkeys(
                        f"{self.source.origin((key,))}: `{in_one_line(key)}`: {reason}"
                        for key, reason in self.problems
                    )
                )
            )
        return self.native


def _as_in_1_1(key: str, value: Any) -> Any:
    """The value of a key, true or false where YAML 1.1 says so."""
    return _WORDS_OF_1_1.get(value, value) if key in BOOLEAN and isinstance(value, str) else value
