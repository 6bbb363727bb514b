"""Weights of pairs by how a text-only reward model fails on them, from a file of its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from palate.data.build import Dataset
from palate.data.items import Item
from palate.errors import DataError, RecipeError, RunError
from palate.losses import shortcut_weights
from palate.recipes.reward import ShortcutRecipe
from palate.store.files import read_jsonl

_Scores = dict[tuple[str, str], dict[int, float | None]]
"""Of (source, id) of a row the score of each response, None where it has none."""


def with_shortcut_weights(data: Dataset, recipe: ShortcutRecipe) -> Dataset:
    """The data with weighted training pairs, and an entry `shortcut` in its report.

    A pair whose two sides have the same text (`data.image_contrast`) needs no score: a model of
    text alone gives both the same. Ties have a weight of 1; held-out pairs are not weighted.

    Raises:
        RecipeError: training pairs that were made of ratings.
        DataError: no file of scores, one of other data, or a pair without a score in it.
    """
    for source in data.report["sources"]:
        if source["split_role"] == "train" and source["scored_by"]:
            raise RecipeError(
                f"`shortcut`: '{source['name']}' holds ratings, and scores are known by the rows "
                "of a file: make pairs of it with `palate data build`, and score those"
            )
    decided = [i for i, item in enumerate(data.train) if not item.pair.tie]
    same = [i for i in decided if _same_text(data.train[i])]
    scored = sorted(set(decided) - set(same))
    margins = dict.fromkeys(same, 0.0)
    margins |= zip(scored, _margins([data.train[i] for i in scored], recipe.scores), strict=True)
    values = torch.tensor([margins[i] for i in decided], dtype=torch.float64)
    weights = shortcut_weights(values, temperature=recipe.temperature)
    train = list(data.train)
    for i, weight in zip(decided, weights.tolist(), strict=True):
        train[i] = dataclasses.replace(train[i], weight=train[i].weight * weight)
    right = (values > 0).double() + 0.5 * (values == 0).double()
    shown = {"min": weights.min, "median": weights.median, "max": weights.max}
    report = {
        "scores": str(recipe.scores),
        "temperature": recipe.temperature,
        "pairs": len(decided),
        "same_text": len(same),
        "ties": len(train) - len(decided),
        "text_accuracy": right.mean().item() if decided else None,
        "weight": {name: of().item() for name, of in shown.items()} if decided else None,
    }
    return dataclasses.replace(data, train=train, report=data.report | {"shortcut": report})


def _same_text(item: Item) -> bool:
    prompts, responses = item.prompts, item.responses
    return prompts[0].ids == prompts[1].ids and responses[0].ids == responses[1].ids


def _margins(items: Sequence[Item], path: Path) -> list[float]:
    """Score of the chosen response less that of the rejected one."""
    scores = _read(path)
    rows = [scores.get((item.source, item.id)) for item in items]
    missing = [item for item, row in zip(items, rows, strict=True) if row is None]
    if missing and len(missing) == len(items):
        there = ", ".join(sorted({source for source, _ in scores})) or "none"
        wanted = ", ".join(sorted({item.source for item in items}))
        raise DataError(
            f"no training pair is in it: it has scores of other data (sources: {there}; here: "
            f"{wanted})",
            file=path,
        )
    if missing:
        raise DataError(
            f"{len(missing)} of {len(items)} training pairs are not in it, the first is "
            f"'{missing[0].id}' of '{missing[0].source}'",
            file=path,
        )
    margins = []
    for item, row in zip(items, rows, strict=True):
        assert row is not None
        if len(row) != 2:
            raise DataError(f"{len(row)} responses of '{item.id}', which is a pair", file=path)
        chosen, rejected = row.get(0), row.get(1)
        if chosen is None or rejected is None:
            raise DataError(f"a response of '{item.id}' has no score", file=path)
        margins.append(chosen - rejected)
    return margins


def _read(path: Path) -> _Scores:
    """The lines that `palate score` writes.

    Raises:
        DataError: they are none.
    """
    scores: _Scores = {}
    try:
        for number, line in enumerate(read_jsonl(path), 1):
            source, name, response, score = _fields(line, path, number)
            responses = scores.setdefault((source, name), {})
            if response in responses:
                raise DataError(f"response {response} of '{name}' twice", file=path, row=number)
            responses[response] = score
    except RunError as error:
        raise DataError(
            f"{error}: `shortcut.scores` takes the scores.jsonl of `palate score`"
        ) from None
    return scores


def _fields(line: Any, path: Path, number: int) -> tuple[str, str, int, float | None]:
    values = line if isinstance(line, dict) else {}
    source, name, response = (values.get(key) for key in ("source", "id", "response"))
    score = values.get("score")
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if (
        not (isinstance(source, str) and isinstance(name, str) and isinstance(response, int))
        or "score" not in values
        or not (score is None or is_number)
    ):
        raise DataError("no line of the scores.jsonl of `palate score`", file=path, row=number)
    return source, name, response, score
