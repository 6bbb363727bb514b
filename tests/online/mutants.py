"""A module of Palate with one piece of its source changed: would the tests notice?"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType


def mutated(module: ModuleType, before: str, after: str) -> ModuleType:
    """The module with every `before` of its source replaced; the real one stays as it is.

    Raises:
        AssertionError: the source has no such text: the mutant would be no mutant.
    """
    assert module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert before in source, f"{module.__name__} has no {before!r}"
    changed = ModuleType(module.__name__)
    changed.__file__ = module.__file__
    exec(compile(source.replace(before, after), module.__file__, "exec"), changed.__dict__)
    return changed
