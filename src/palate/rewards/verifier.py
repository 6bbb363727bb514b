"""Verifiers: whether a response solves its task, checked by a library in child processes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits, regrouped
from palate.recipes.scorers import VerifierScorer as Recipe
from palate.rewards import checks
from palate.rewards.columns import NO_COLUMN, structure_of, text_of
from palate.rewards.isolated import LATE, counted
from palate.rewards.names import name_of
from palate.rewards.processes import Outcome, ProcessPool
from palate.rewards.texts import prompt_text, response_text

FAILED = "checks that failed"


class Verifier:
    """Scores of 0 to 1 by a task's own check.

    A check that takes too long is ended: its response has the recipe's `timed_out` for a score, or
    none, and is counted, apart from wrong answers. One that fails, or ends its process, gives none.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.name = name_of(recipe)
        self.traits = Traits(independent=True, modalities=TEXT_AND_IMAGES)
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        factory, settings = _check_of(recipe)
        self._pool = ProcessPool(
            checks.__name__,
            factory,
            settings,
            workers=recipe.workers,
            timeout_seconds=recipe.timeout_seconds,
            memory_mb=recipe.memory_mb,
        )

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """One check a response, as many at once as there are workers.

        Raises:
            ModelError: the library is not installed.
        """
        scores: list[Score] = []
        tasks: list[dict[str, Any]] = []
        places: list[int] = []
        for group in groups:
            task = self._task(group)
            for response in group.responses:
                if isinstance(task, str):
                    scores.append(Score(None, task))
                    continue
                places.append(len(scores))
                tasks.append({**task, "response": response_text(response)})
                scores.append(Score(0.0))
        for place, outcome in zip(places, self._pool.map(tasks), strict=True):
            scores[place] = self._score(outcome)
        return regrouped(scores, groups)

    def _task(self, group: Group) -> dict[str, Any] | str:
        """What responses to a prompt are checked against; or why they cannot be."""
        recipe = self.recipe
        task: dict[str, Any] = {"prompt": prompt_text(group.prompt)}
        if recipe.task == "if":
            names = structure_of(group, recipe.instructions_column)
            if not isinstance(names, Sequence) or isinstance(names, str) or not names:
                return NO_COLUMN.format(recipe.instructions_column)
            given = structure_of(group, recipe.arguments_column) or [{}] * len(names)
            if len(given) != len(names):
                return f"not one entry of {recipe.arguments_column} for each instruction"
            arguments = [{} if entry is None else dict(entry) for entry in given]
            return {**task, "instructions": list(names), "arguments": arguments}
        answer = text_of(group, recipe.answer_column)
        if answer is None:
            return NO_COLUMN.format(recipe.answer_column)
        task["answer"] = answer
        if recipe.task == "reasoning_gym":
            metadata = structure_of(group, recipe.metadata_column)
            if not isinstance(metadata, Mapping):
                return NO_COLUMN.format(recipe.metadata_column)
            task["metadata"] = dict(metadata)
        return task

    def _score(self, outcome: Outcome) -> Score:
        if outcome.problem == "failed":
            with self._lock:
                self.counts[FAILED] += 1
            return Score(None, f"its check failed: {outcome.text}")
        if outcome.problem is not None:
            seconds = self.recipe.timeout_seconds
            reason = counted(outcome, self.counts, self._lock, seconds)
            if self.recipe.timed_out is not None and outcome.problem == "timed out":
                return Score(self.recipe.timed_out, text=LATE.format(seconds))
            return Score(None, reason)
        value, reason, parts = outcome.value
        named = {name: Score.of(part) for name, part in parts.items()}
        if value is None:
            return Score(None, reason, parts=named)
        return Score.of(value, parts=named)


def _check_of(recipe: Recipe) -> tuple[str, tuple[Any, ...]]:
    """The factory of the task's check, and its settings."""
    if recipe.task == "math":
        return "math_check", ()
    if recipe.task == "if":
        return "instruction_check", (recipe.measure or "binary_strict",)
    return "reasoning_check", (recipe.extract or r"(?s)<answer>(.*?)</answer>",)
