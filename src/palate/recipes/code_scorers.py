"""Scorers that run code, as recipes: functions of the user, verifiers of tasks."""

from __future__ import annotations

import ast
import re
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


class VerifierScorer(ScorerBase):
    """Whether a response solves its task, from 0 to 1: checked by a library, in child processes
    that are ended where they take too long (extra `tasks`)."""

    type: Literal["verifier"] = "verifier"
    task: Literal["math", "if", "reasoning_gym"]
    """math: the answer equals the right one (math-verify); if: it keeps the instructions of IFEval
    or IFBench that its prompt gives (if-verifiable); reasoning_gym: the score of the generated
    task's own checker."""
    answer_column: str = "answer"
    """Column of the right answer (math, reasoning_gym)."""
    metadata_column: str = "metadata"
    """Column of the task's metadata, also as JSON (reasoning_gym)."""
    instructions_column: str = "instruction_id_list"
    """Column of the names of the instructions (if)."""
    arguments_column: str = "kwargs"
    """Column of their arguments, an entry each (if)."""
    measure: Literal["binary_strict", "binary_loose", "partial_strict", "partial_loose"] | None = (
        None
    )
    """Binary: 1 where all instructions are kept; partial: the share that is. Loose: also without
    the first or last line, or asterisks. Default: binary_strict. Only with `task: if`."""
    extract: str | None = None
    """A regular expression whose last match (its first group, where it has one) is the answer in a
    response; default: what is between <answer> and </answer>. Only with `task: reasoning_gym`."""
    timeout_seconds: Positive = 10.0
    """Of one check, from when it begins."""
    timed_out: float | None = None
    """Score of a response whose check took longer; default: it has none."""
    workers: Count = 2
    """Child processes."""
    memory_mb: Count = 4096
    """Most memory of a child."""

    @property
    def library(self) -> str:
        """The module that checks."""
        libraries = {"math": "math_verify", "if": "if_verifiable", "reasoning_gym": "reasoning_gym"}
        return libraries[self.task]

    @property
    def column_names(self) -> tuple[str, ...]:
        if self.task == "if":
            return self.instructions_column, self.arguments_column
        metadata = (self.metadata_column,) if self.task == "reasoning_gym" else ()
        return self.answer_column, *metadata

    def problems(self) -> Iterator[tuple[str, str]]:
        readers = {
            "answer_column": ("math", "reasoning_gym"),
            "metadata_column": ("reasoning_gym",),
            "instructions_column": ("if",),
            "arguments_column": ("if",),
            "measure": ("if",),
            "extract": ("reasoning_gym",),
        }
        for key, tasks in readers.items():
            default = type(self).model_fields[key].default
            if self.task not in tasks and getattr(self, key) != default:
                yield key, f"not with `task: {self.task}`"
        try:
            re.compile(self.extract or "")
        except re.error as error:
            yield "extract", f"no regular expression: {error}"
