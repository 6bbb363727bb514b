"""Functions of users as scorers in child processes: those that hang are killed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Span, Traits
from palate.errors import ModelError
from palate.recipes.scorers import FunctionScorer as Recipe
from palate.rewards.function import FunctionScorer, load_function
from palate.rewards.names import name_of
from palate.rewards.processes import Outcome, ProcessPool

TIMEOUT_SECONDS, WORKERS = 10.0, 2
TIMED_OUT = "checks that were ended at their deadline"
CRASHED = "checks whose process ended"
LATE = "its check took longer than {:g} s"


class IsolatedFunction:
    """Scores by a function of a file, in child processes.

    A completion whose call takes too long, or ends its process, has no score, and is counted. An
    error that the function raises ends the run, as it does outside.

    The file is not run in this process.

    Raises:
        ModelError: no such file.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.name = recipe.name or name_of(recipe)
        self.traits = Traits(relative=recipe.relative, modalities=TEXT_AND_IMAGES)
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        if not recipe.file.expanduser().is_file():
            raise ModelError(f"{recipe.path}: no file {recipe.file}")
        self._pool = ProcessPool(
            __name__,
            "load_call",
            (recipe.path,),
            workers=recipe.workers or WORKERS,
            timeout_seconds=recipe.timeout_seconds or TIMEOUT_SECONDS,
            memory_mb=recipe.memory_mb,
        )

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """One call a completion; of a relative function one a group."""
        places: list[tuple[int, list[int]]] = []
        for i, group in enumerate(groups):
            every = list(range(len(group.responses)))
            places += [(i, every)] if self.recipe.relative and every else [(i, [j]) for j in every]
        outcomes = self._pool.map([groups[i].part(js) for i, js in places])
        scores = [[Score(0.0)] * len(group.responses) for group in groups]
        for (i, js), outcome in zip(places, outcomes, strict=True):
            if outcome.problem == "failed":
                raise ModelError(outcome.text)
            if outcome.problem is None:
                given = list(map(_score_of, outcome.value))
            else:
                reason = counted(outcome, self.counts, self._lock, self._pool.timeout_seconds)
                given = [Score(None, reason)] * len(js)
            for j, score in zip(js, given, strict=True):
                scores[i][j] = score
        return scores


def counted(
    outcome: Outcome, counts: Counter[str], lock: threading.Lock, timeout_seconds: float
) -> str:
    """Counts a check that was killed or crashed; the reason why there is no score."""
    late = outcome.problem == "timed out"
    with lock:
        counts[TIMED_OUT if late else CRASHED] += 1
    return LATE.format(timeout_seconds) if late else outcome.text


def load_call(path: str) -> Callable[[Group], Any]:
    """In a child: what scores one group by the function of a file."""
    scorer = FunctionScorer(load_function(path), label=path)

    def call(group: Group) -> list[dict[str, Any]]:
        (scores,) = scorer.score([group])
        return [asdict(score) for score in scores]

    return call


def _score_of(document: dict[str, Any]) -> Score:
    """A score from what a child sent of it."""
    parts = {name: _score_of(part) for name, part in document["parts"].items()}
    spans = tuple(Span(**span) for span in document["spans"])
    return Score(document["value"], document["reason"], document["text"], parts, spans)
