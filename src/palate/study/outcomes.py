"""What a finished evaluation says of each item: the numbers that studies compare."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palate.errors import RunError
from palate.evaluate.task_items import ITEMS, task_items
from palate.recipes.study import OF_PAIRS, MeasureRecipe, StudyRecipe

Outcomes = Mapping[str, float]
"""Item -> outcome. Of samples an item is a prompt, and its outcome their mean."""


def outcomes_of(folder: Path, recipe: StudyRecipe, measure: MeasureRecipe) -> Outcomes:
    """The outcomes of a measure in the folder of a finished evaluation.

    Raises:
        RunError: a file of it is not as evaluations write it, or holds nothing of the measure.
    """
    verb = next(step.verb for step in recipe.steps if step.name == measure.step)
    if verb == "eval tasks":
        pairs = task_items(folder / ITEMS, measure.source)
    elif verb == "eval reward":
        pairs = _of_benchmark(_lines(folder / "scores.jsonl"), measure)
    elif measure.value in OF_PAIRS:
        pairs = _of_pairs(_lines(folder / "pairs.jsonl"), measure)
    else:
        pairs = _of_samples(_lines(folder / "samples.jsonl"), measure)
    sums: dict[str, list[float]] = {}
    for item, value in pairs:
        sums.setdefault(item, []).append(value)
    if not sums:
        what = f"{measure.value} of {measure.source}" if measure.source else measure.value
        raise RunError(f"{folder}: holds no {what}")
    return {item: sum(values) / len(values) for item, values in sums.items()}


def _won(value: float, against: float) -> float:
    return 1.0 if value > against else 0.5 if value == against else 0.0


def mean(outcomes: Outcomes) -> float:
    return sum(outcomes.values()) / len(outcomes)


def _of_pairs(
    rows: Iterator[dict[str, Any]], measure: MeasureRecipe
) -> Iterator[tuple[str, float]]:
    times: Counter[tuple[Any, Any]] = Counter()
    for row in _of_last(list(rows)):
        # Ids of one file are its own; a pair that is there twice is two items.
        name = (row["source"], row["id"])
        times[name] += 1
        if measure.source is not None and row["source"] != measure.source:
            continue
        margin = row["margin" if measure.value == "accuracy" else "log_ratio_margin"]
        if margin is None:
            continue
        value = margin if measure.value == "margin" else _won(margin, 0.0)
        yield f"{name[0]}|{name[1]}|{times[name]}", float(value)


def _of_samples(
    rows: Iterator[dict[str, Any]], measure: MeasureRecipe
) -> Iterator[tuple[str, float]]:
    all_rows = list(rows)
    reference = {
        (row["prompt_id"], row["index"]): row["reward"]
        for row in all_rows
        if row["policy"] == "reference"
    }
    for row in _of_last([row for row in all_rows if row["policy"] != "reference"]):
        value = row["reward" if measure.value == "win_rate" else measure.value]
        if measure.value == "win_rate":
            against = reference.get((row["prompt_id"], row["index"]))
            if against is None or value is None:
                continue
            value = _won(value, against)
        if value is not None:
            yield str(row["prompt_id"]), float(value)


def _of_last(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the only policy's last checkpoint.

    Raises:
        RunError: there are several policies.
    """
    policies = {row["policy"] for row in rows}
    if len(policies) > 1:
        names = ", ".join(sorted(policies))
        raise RunError(f"an evaluation of a study is of one run, and this one is of {names}")
    last = max((row["checkpoint"] or 0 for row in rows), default=0)
    return [row for row in rows if (row["checkpoint"] or 0) == last]


def _of_benchmark(
    rows: Iterator[dict[str, Any]], measure: MeasureRecipe
) -> Iterator[tuple[str, float]]:
    for row in rows:
        if row["benchmark"] is None or row.get("tie"):
            continue
        if measure.source not in (None, row["benchmark"]):
            continue
        (scores,) = row["scores"].values()
        better, worse = scores[: row["correct"]], scores[row["correct"] :]
        won = [float(a is not None and b is not None and a > b) for a in better for b in worse]
        yield f"{row['benchmark']}|{row['source']}|{row['id']}", sum(won) / len(won)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise RunError(f"{path}, line {number}: no JSON") from None
