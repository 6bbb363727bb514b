"""The recipes of one run: the study's steps with the variants of a cell, a budget and a seed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from palate.errors import RecipeError
from palate.recipes.document import Document, key_path
from palate.recipes.study import SET_BY_STUDY, STEP_PREFIX, TRAINING, StudyRecipe, StudyStep
from palate.study.cells import Cell, Settings, variants_of


def step_documents(
    recipe: StudyRecipe, cell: Cell, settings: Settings, document: Document
) -> dict[str, Document]:
    """Step -> its recipe as written, `step:` links and all; budget and seed are still to come.

    Args:
        document: of the study, for where its keys were written.

    Raises:
        RecipeError: a key of a step that is not there, or that leads through a value.
    """
    documents: dict[str, Document] = {}
    for number, step in enumerate(recipe.steps):
        where = ("steps", number, "recipe")
        origins = {
            path[3:]: origin
            for path, origin in document.origins.items()
            if path[:3] == where and len(path) > 3
        }
        documents[step.name] = Document(
            copy.deepcopy(step.recipe), origins, f"{document.name}, step {step.name}"
        )
    for aspect, variant in variants_of(recipe, cell):
        origin = f"{document.name}, {aspect.name} {variant.name}"
        for key, value in variant.changes.items():
            _set(documents, key, value, origin)
    for key, value in settings.values.items():
        _set(documents, key, value, f"{document.name}, tuning")
    for step in recipe.steps:
        if step.verb in TRAINING:
            _spend(recipe, step, settings, documents[step.name])
    return documents


def _set(documents: Mapping[str, Document], key: str, value: Any, origin: str) -> None:
    step, path = split_key(key)
    if step not in documents:
        raise RecipeError(f"{origin}: `{key}`: no step is named {step}")
    if path in SET_BY_STUDY:
        raise RecipeError(f"{origin}: `{key}` is set by the study: delete the key")
    documents[step].set(key_path(path), copy.deepcopy(value), f"{origin}, step {step}")


def split_key(key: str) -> tuple[str, str]:
    """`policy.loss.beta` as step and the key of its recipe."""
    step, _, path = key.partition(".")
    if not path:
        raise RecipeError(f"`{key}`: write it as step.key")
    return step, path


def _spend(recipe: StudyRecipe, step: StudyStep, settings: Settings, document: Document) -> None:
    """Writes the budget into the recipe of a step that trains."""
    budget = recipe.budget
    updates = settings.updates or (budget.updates if budget else None)
    if updates is not None:
        if (document.value.get("train") or {}).get("max_steps") is not None:
            raise RecipeError(
                f"{document.origin(('train', 'max_steps'))}: `budget.updates` says how many steps "
                f"step {step.name} takes: leave `train.max_steps` out"
            )
        document.set(("train", "max_steps"), updates, "budget.updates")
    total = None if budget is None else budget.pairs or budget.tokens
    if budget is None or total is None:
        return
    key = "pairs" if budget.pairs is not None else "tokens"
    mixture = (document.value.get("data") or {}).get("mixture") or {}
    if "take" in mixture or "total" in mixture:
        raise RecipeError(
            f"{document.origin(('data', 'mixture'))}: `budget.{key}` says how much step "
            f"{step.name} trains on: leave `take` and `total` out of its mixture"
        )
    mixed = {"weights": "equal", **mixture, "total": total, "unit": key}
    document.set(("data", "mixture"), mixed, f"budget.{key}")


def linked_steps(value: Any) -> set[str]:
    """The steps that a recipe's values link to."""
    return {step for text in _texts(value) if (step := linked_step(text)) is not None}


def linked_step(text: str) -> str | None:
    """`step:policy/model` -> policy."""
    if not text.startswith(STEP_PREFIX):
        return None
    return text.removeprefix(STEP_PREFIX).partition("/")[0]


def with_links(value: Any, folders: Mapping[str, str]) -> Any:
    """The value with `step:NAME` replaced by the folder of that step.

    Raises:
        RecipeError: a step that is not there, or comes later.
    """
    if isinstance(value, dict):
        return {key: with_links(inner, folders) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_links(inner, folders) for inner in value]
    if not isinstance(value, str) or (step := linked_step(value)) is None:
        return value
    if step not in folders:
        raise RecipeError(f"`{value}`: no step before this one is named {step}")
    return folders[step] + value.removeprefix(STEP_PREFIX + step)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def within(key: str, section: str) -> bool:
    """Whether a dotted key is a section or below it."""
    return key == section or key.startswith(section + ".")
