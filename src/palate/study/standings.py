"""Ratings of all cells of a study at once, from what a scorer or judge says of their samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.errors import PalateError
from palate.evaluate.win_rate import beaten
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.study import COMPARED, GAINS, MeasureRecipe
from palate.study.contrasts import OutcomeTable
from palate.study.outcomes import Rows, samples_of
from palate.study.ratings import ELO, rate

REFERENCE = "reference"


@dataclass
class _Games:
    """Outcomes of one sample against another, a line each."""

    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def add(self, first: str, second: str, score: float | None, prompt: str) -> None:
        if score is not None:
            self.first.append(first)
            self.second.append(second)
            self.scores.append(score)
            self.prompts.append(prompt)


def rating_entries(
    sheet: OutcomeTable, measures: Sequence[MeasureRecipe]
) -> Iterator[dict[str, Any]]:
    """For each evaluation whose samples a scorer or judge compares: Elo points above the reference.

    By a judge each sample has met the reference's alone; by rewards every two samples of a prompt,
    of one seed, meet. Intervals are over prompts, of these trained models.
    """
    steps = dict.fromkeys(m.step for m in measures if m.value in (*GAINS, *COMPARED))
    for step in steps:
        recipes = [s.recipe for s in sheet.plan.stages.values() if s.step == step]
        by_judge = any(isinstance(r, EvalRecipe) and r.judge is not None for r in recipes)
        entry = {"step": step, "by": "judge" if by_judge else "reward"}
        games = _games(sheet, step, by_judge=by_judge)
        if games.scores:
            yield entry | _rated(games, sheet)


def _rated(games: _Games, sheet: OutcomeTable) -> dict[str, Any]:
    confidence = sheet.study.recipe.statistics.confidence
    try:
        ratings = rate(
            games.first, games.second, games.scores, items=games.prompts, confidence=confidence
        )
    except PalateError as error:
        return {"why": str(error)}
    rows = []
    for cell in sheet.plan.cells:
        if cell.name in ratings.names:
            value, (low, high) = ratings.difference(cell.name, REFERENCE)
            rows.append(
                {
                    "cell": dict(cell.choices),
                    "points": ELO * value,
                    "interval": (ELO * low, ELO * high),
                }
            )
    return {
        "rows": sorted(rows, key=lambda row: -row["points"]),
        "outcomes": ratings.outcomes,
        "ties": sum(score == 0.5 for score in games.scores),
        "prompts": len(set(games.prompts)),
        "confidence": ratings.confidence,
        "regularised": ratings.regularised,
    }


def _games(sheet: OutcomeTable, step: str, *, by_judge: bool) -> _Games:
    games = _Games()
    for seed in sheet.study.recipe.seeds:
        samples: dict[str, Rows] = {}
        for cell in sheet.plan.cells:
            if (folder := sheet.folder(cell, seed, step)) is not None:
                samples[cell.name], samples[REFERENCE] = samples_of(folder)
        if by_judge:
            for name, rows in samples.items():
                for row in rows if name != REFERENCE else ():
                    games.add(name, REFERENCE, _decided(row.get("won")), str(row["prompt_id"]))
            continue
        rewards = {
            name: {(str(row["prompt_id"]), row["index"]): row["reward"] for row in rows}
            for name, rows in samples.items()
        }
        for a, b in itertools.combinations(rewards, 2):
            # In the order of the file: that of a set changes from process to process.
            for place in (place for place in rewards[a] if place in rewards[b]):
                (score,) = beaten([rewards[a][place]], [rewards[b][place]])
                games.add(a, b, score, place[0])
    return games


def _decided(won: float | None) -> float | None:
    """A win, a tie or a loss, of a judge's probability."""
    return None if won is None else 1.0 if won > 0.5 else 0.5 if won == 0.5 else 0.0
