"""How often policies find the true answer likelier, and what baselines know of the same pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.layouts import Layout
from palate.demo.vision.baselines import (
    ProbePair,
    length_baseline,
    majority_baseline,
    ridge_probe,
    telling_word,
)
from palate.errors import DataError
from palate.evaluate.statistics import bootstrap_rows, percentile_interval
from palate.intervals import Interval
from palate.recipes.losses import Cpo
from palate.recipes.schema import DataRecipe, LengthRecipe, ModelRecipe
from palate.store.files import read_jsonl

RESAMPLES = 4000
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share or a difference of shares, with its interval."""

    value: float
    interval: Interval

    def document(self) -> dict[str, Any]:
        return {"value": self.value, "ci": list(self.interval)}


def share(right: Array, couples: Sequence[str], *, confidence: float, seed: int) -> Share:
    """Mean of what was right (1), wrong (0) or undecided (0.5), and its bootstrap interval.

    Args:
        right: [n], or of a difference [n] in -1..1. couples: [n] what twins share; twins are drawn
            together.
    """
    numbers = {couple: i for i, couple in enumerate(dict.fromkeys(couples))}
    groups = np.array([numbers[couple] for couple in couples])
    sums, sizes = np.bincount(groups, weights=right), np.bincount(groups)
    rows = bootstrap_rows(len(sums), resamples=RESAMPLES, seed=seed)
    draws = sums[rows].sum(1) / sizes[rows].sum(1)
    return Share(value=float(right.mean()), interval=percentile_interval(draws, confidence))


def couple_of(row: Mapping[str, Any]) -> str:
    """What a row shares with its twin: its id without its end, which names the image."""
    return str(row["id"]).rpartition("-")[0]


def likelier_answers(
    model: str, adapters: Mapping[str, Path | None], file: Path
) -> dict[str, Array]:
    """Whether each policy finds the true answer of each pair likelier: 1, 0, or 0.5 of a tie.

    Args:
        model: folder of the policies' base. adapters: name -> folder of a policy's adapters; None:
            the base itself. file: of pairs.

    Returns:
        Name -> [n], in the order of the file.
    """
    from palate.data.build import build
    from palate.data.encode import Encoder
    from palate.evaluate.preference import score_pairs
    from palate.models.limits import padding_id
    from palate.models.loading import load_policy, load_tokenizer, load_trained
    from palate.models.pictures import open_pictures
    from palate.models.verdicts import exact_layout
    from palate.recipes.images import ImagesRecipe
    from palate.recipes.schema import DataSource

    recipe = ModelRecipe(path=model)
    right: dict[str, Array] = {}
    layout: Layout | None = None
    for name, folder in adapters.items():
        policy = load_policy(recipe) if folder is None else load_trained(folder, recipe)
        policy.requires_grad_(False)
        # Of all policies, which are of one architecture.
        layout = layout or exact_layout(policy)
        tokenizer = load_tokenizer(recipe)
        pictures = open_pictures(policy, recipe, tokenizer, None, ImagesRecipe())
        data = DataRecipe(train=(DataSource(path=str(file)),), length=LengthRecipe())
        encoder = Encoder(tokenizer, recipe.chat_template, data.length, pictures)
        pairs = build(data, encoder, kind="pair", seed=0).train
        scores = score_pairs(
            policy,
            pairs,
            # Its reward is the answer's log-probability, without a reference.
            loss=Cpo(),
            reference=None,
            batch_size=16,
            layout=layout,
            pad_id=padding_id(tokenizer, policy.base),
        )
        margins = np.array([score.margin for score in scores])
        if len(margins) != (rows := sum(1 for _ in read_jsonl(file))):
            raise DataError(f"{file}: {rows - len(margins)} of {rows} pairs cannot be used")
        right[name] = (np.sign(margins) + 1) / 2
    return right


def baseline_answers(
    train: Sequence[ProbePair], pairs: Mapping[str, Sequence[ProbePair]], names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Baseline -> held-out set -> whether it is right about each pair.

    Args:
        pairs: by set. names: of the sets to test on.
    """
    tests = {name: pairs[name] for name in names}
    return {
        "length": {n: length_baseline(p).tolist() for n, p in tests.items()},
        "majority": {n: majority_baseline(train, p).tolist() for n, p in tests.items()},
        "word probe": {n: ridge_probe(train, p, telling_word).tolist() for n, p in tests.items()},
        "answer probe": {n: ridge_probe(train, p).tolist() for n, p in tests.items()},
    }
