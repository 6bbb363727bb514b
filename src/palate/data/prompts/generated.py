"""Generated tasks as rows of prompts, each with its answer in a column."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

from palate.data.ledger import Role
from palate.data.prompts.tasks import TASKS, Task
from palate.data.schema import Preference
from palate.data.stream import ReadResult
from palate.errors import RecipeError, in_one_line
from palate.recipes.prompts import GeneratedSource

_TRIES = 20
"""How many tasks are drawn, at most, for each different one that is asked for."""


def generate(source: GeneratedSource, *, seed: int, role: Role) -> ReadResult:
    """The tasks of a source, all different. A larger size begins with those of a smaller one.

    Each row has the columns `answer` and `task`, those of reasoning-gym also `entry`, which its
    verifier reads, and no `answer` where the task has several right ones.

    Args:
        seed: of the run; where the source has none, tasks are drawn with it, others for `train`
            than for `eval`.

    Raises:
        RecipeError: no such task or parameter, fewer different tasks than asked for, or the extra
            `tasks` is missing.
    """
    if source.seed is None:
        digest = hashlib.blake2b(f"{seed}|prompts|{role}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "big")
    else:
        seed = source.seed
    draws = _reasoning_gym if source.library == "reasoning_gym" else _palate
    rows: dict[str, Preference] = {}
    for question, columns in draws(source, seed):
        if question in rows:
            continue
        name = source.name or source.task
        rows[question] = Preference(
            id=f"{name}:{len(rows) + 1}",
            source=name,
            kind="prompt",
            prompt=question,
            responses=(),
            row=len(rows) + 1,
            extra={"task": source.task, **columns},
        )
        if len(rows) == source.size:
            break
    if len(rows) < source.size:
        raise RecipeError(
            f"`size`: {source.task} has given {len(rows)} different tasks of these parameters, not "
            f"{source.size}: ask for fewer, or for longer ones"
        )
    return ReadResult(
        rows=list(rows.values()),
        format="generated",
        why=f"{source.library}, seed {seed}",
        read=len(rows),
        available=len(rows),
        rejected=[],
        left_out=[],
        files=[],
    )


_Drawn = Iterator[tuple[str, dict[str, Any]]]
"""Question and columns of one task after another."""


def _palate(source: GeneratedSource, seed: int) -> _Drawn:
    task = TASKS.get(source.task)
    if task is None:
        raise _unknown(source.task, list(TASKS), "library: reasoning_gym has others")
    _check_parameters(task, source)
    for i in range(source.size * _TRIES):
        question, answer = _drawn(task, random.Random(f"{seed}|{source.task}|{i}"), source)
        yield question, {"answer": answer}


def _drawn(task: Callable[..., Task], draw: random.Random, source: GeneratedSource) -> Task:
    try:
        return task(draw, **(source.parameters or {}))
    except ValueError as error:
        raise RecipeError(f"`parameters` of {source.task}: {error}") from None


def _check_parameters(task: Callable[..., Task], source: GeneratedSource) -> None:
    known = [name for name in inspect.signature(task).parameters if name != "draw"]
    for name, value in (source.parameters or {}).items():
        if name not in known:
            raise RecipeError(
                f"`parameters.{name}`: {source.task} has none of this name; it has "
                f"{', '.join(known)}"
            )
        if isinstance(value, bool) or not isinstance(value, int):
            shown = in_one_line(repr(value), 40)
            raise RecipeError(f"`parameters.{name}`: expected a whole number, got {shown}")


def _reasoning_gym(source: GeneratedSource, seed: int) -> _Drawn:
    try:
        # Through importlib: the package is an extra, which no type checker need have.
        library = importlib.import_module("reasoning_gym")
        known = list(importlib.import_module("reasoning_gym.factory").DATASETS)
    except ImportError:
        raise RecipeError(
            "`library: reasoning_gym` needs the extra `tasks`: pip install 'palate[tasks]'"
        ) from None
    if source.task not in known:
        raise _unknown(source.task, known, "")
    try:
        # Task i is of seed + i whatever the size: a few seeds later nearly all would come again.
        entries = library.create_dataset(
            source.task, seed=seed, size=source.size * _TRIES, **(source.parameters or {})
        )
        for i in range(len(entries)):
            entry = entries[i]
            answer = entry.get("answer")
            columns = {"entry": entry} | ({} if answer is None else {"answer": str(answer)})
            yield str(entry["question"]), columns
    # Its settings are checked by assertions, and its makers raise what they like.
    except Exception as error:
        raise RecipeError(
            f"`parameters` of {source.task}: reasoning-gym refuses: {in_one_line(error, 200)}"
        ) from error


def _unknown(task: str, known: list[str], more: str) -> RecipeError:
    near = difflib.get_close_matches(task, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    if not near or len(known) < 10:
        hint += f"there are {', '.join(sorted(known))}"
    return RecipeError(f"`task`: no task '{task}'; {hint}{f'; {more}' if more else ''}".strip())
