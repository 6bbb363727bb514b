"""Which combinations of variants a study runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from palate.errors import RecipeError
from palate.recipes.study import Aspect, Grid, Halving, OneAtATime, Pairwise, StudyRecipe, Variant


@dataclass(frozen=True)
class Cell:
    """One variant of every aspect.

    Attributes:
        choices: (aspect, variant) names, in the order of the study's aspects.
    """

    choices: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """`tdpo2, hh`: the variants."""
        return ", ".join(variant for _, variant in self.choices)

    def of(self, aspect: str) -> str:
        """Name of its variant of an aspect."""
        return dict(self.choices)[aspect]

    def differs_in(self, cell: Cell) -> list[str]:
        """The aspects whose variants differ."""
        return [aspect for aspect, variant in self.choices if cell.of(aspect) != variant]


@dataclass(frozen=True)
class Settings:
    """What a run has beside its cell and its seed.

    Attributes:
        values: keys that tuning has chosen, or tries. updates: optimizer steps, where a round of
            halving has its own number.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    updates: int | None = None


NO_SETTINGS = Settings()


def cells_of(recipe: StudyRecipe) -> list[Cell]:
    """The cells of a study's design; the one of all baselines is the first.

    Raises:
        RecipeError: more cells asked for than there are.
    """
    baseline = tuple((aspect.name, aspect.base.name) for aspect in recipe.aspects)
    cells = dict.fromkeys([baseline, *_choices(recipe, dict(baseline))])
    return [Cell(choices) for choices in cells]


def _choices(
    recipe: StudyRecipe, baseline: dict[str, str]
) -> Iterator[tuple[tuple[str, str], ...]]:
    aspects = recipe.aspects
    match recipe.design:
        case OneAtATime():
            for aspect in aspects:
                yield from _crossed([aspect], baseline)
        case Pairwise():
            for pair in itertools.combinations(aspects, min(2, len(aspects))):
                yield from _crossed(pair, baseline)
        case Grid() | Halving():
            yield from _crossed(aspects, baseline)
        case drawn:
            grid = list(_crossed(aspects, baseline))
            if drawn.cells > len(grid):
                raise RecipeError(f"design.cells: {drawn.cells}, and the grid has {len(grid)}")
            rest = [choices for choices in grid if dict(choices) != baseline]
            yield from random.Random(f"{recipe.seed}|cells").sample(rest, drawn.cells - 1)


def _crossed(
    aspects: tuple[Aspect, ...] | list[Aspect], baseline: dict[str, str]
) -> Iterator[tuple[tuple[str, str], ...]]:
    names = [[variant.name for variant in aspect.variants] for aspect in aspects]
    for chosen in itertools.product(*names):
        choice = dict(zip([aspect.name for aspect in aspects], chosen, strict=True))
        yield tuple((baseline | choice).items())


def variants_of(recipe: StudyRecipe, cell: Cell) -> list[tuple[Aspect, Variant]]:
    """Each aspect with the variant that a cell has of it."""
    by_name = [{v.name: v for v in aspect.variants} for aspect in recipe.aspects]
    return [
        (aspect, known[cell.of(aspect.name)])
        for aspect, known in zip(recipe.aspects, by_name, strict=True)
    ]


def tuning_trials(recipe: StudyRecipe, cell: Cell) -> list[Settings]:
    """The settings that a cell's trials try, as many for every cell.

    Raises:
        RecipeError: fewer combinations than trials.
    """
    tuning = recipe.tuning
    assert tuning is not None
    keys: dict[str, tuple[Any, ...]] = dict(tuning.keys)
    for _, variant in variants_of(recipe, cell):
        keys |= variant.tune or {}
    names = sorted(keys)
    combinations = list(itertools.product(*(keys[name] for name in names)))
    if len(combinations) < tuning.trials:
        raise RecipeError(
            f"tuning.trials: {tuning.trials}, and {cell.name} has {len(combinations)} combinations "
            "of values"
        )
    # Cells with the same keys and values draw the same.
    drawn = random.Random(f"{recipe.seed}|trials|{names}|{combinations}").sample(
        combinations, tuning.trials
    )
    return [Settings(values=dict(zip(names, values, strict=True))) for values in drawn]
