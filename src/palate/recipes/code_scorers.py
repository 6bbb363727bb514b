"""Scorers that run code, as recipes: functions of the user."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from palate.recipes.losses import Positive
from palate.recipes.plain_scorers import ScorerBase
from palate.recipes.schema import Count

NOT_COLUMNS = frozenset(
    ("self", "prompts", "completions", "completion_ids", "log_extra", "log_metric", "trainer_state")
)
"""Arguments of a reward function that are no columns of the data."""


class FunctionScorer(ScorerBase):
    """A Python function, with the arguments of TRL's `reward_funcs`. Its file is run: name only
    files that you have read."""

    type: Literal["function"] = "function"
    path: str
    """The file and the function in it: rewards.py:has_answer. It is called as
    f(prompts=..., completions=..., completion_ids=..., **columns), plain or async, and gives one
    number a completion, or None for one that it does not judge."""
    columns: tuple[str, ...] = ()
    """Columns of the data that it reads, where data files are scored; default: those among the
    names of its arguments. In online learning it gets all columns of the prompts."""
    relative: bool = False
    """It compares the completions of one prompt: all of them are in one call."""
    isolated: bool = False
    """Run it in processes of its own, one completion a call (of a relative one all of a prompt),
    which are ended where they take too long."""
    timeout_seconds: Positive | None = None
    """Of one call, from when it begins; default: 10. Only with `isolated`."""
    workers: Count | None = None
    """Processes; default: 2. Only with `isolated`."""
    memory_mb: Count | None = None
    """Most memory of a process; default: no limit. Only with `isolated`."""

    @property
    def file(self) -> Path:
        return Path(self.path.rpartition(":")[0])

    @property
    def function(self) -> str:
        return self.path.rpartition(":")[2]

    @property
    def column_names(self) -> tuple[str, ...]:
        """`columns`, or the names of the function's arguments. The file is read, not run."""
        return self.columns or _arguments(self.file, self.function)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.path.rpartition(":")[0].endswith(".py") or not self.function.isidentifier():
            yield "path", "write a Python file and a function in it: rewards.py:has_answer"
        if not self.isolated:
            for key in ("timeout_seconds", "workers", "memory_mb"):
                if getattr(self, key) is not None:
                    yield key, "only with `isolated`"


def _arguments(file: Path, function: str) -> tuple[str, ...]:
    """Names of a function's arguments that are columns; none where the file cannot be read, which
    loading it says."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function:
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            return tuple(a.arg for a in given if a.arg not in NOT_COLUMNS)
    return ()
