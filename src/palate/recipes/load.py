"""From a recipe file and overrides to a typed recipe, and back.

Relative paths in a recipe are relative to the current directory, not to the file.
"""

from __future__ import annotations

import copy
import difflib
import logging
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from palate.errors import RecipeError, in_one_line
from palate.recipes import messages, trl
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.document import Document, apply_override, parse_document, read_document
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.judge import JudgeRecipe
from palate.recipes.keys import is_list, models_in, takes_null
from palate.recipes.losses import Strict
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import DemoRecipe, SftRecipe, TuneRecipe
from palate.recipes.serving import ScoreRecipe, ServeRecipe
from palate.recipes.study import StudyRecipe
from palate.recipes.tasks import TaskEvalRecipe
from palate.recipes.yaml import dump_yaml

Recipe = TypeVar("Recipe", bound=Strict)

VERBS: dict[type[Strict], str] = {
    TuneRecipe: "tune",
    SftRecipe: "sft",
    RewardRecipe: "reward",
    JudgeRecipe: "judge",
    RlRecipe: "rl",
    EvalRecipe: "eval",
    RewardEvalRecipe: "eval reward",
    TaskEvalRecipe: "eval tasks",
    DemoRecipe: "demo",
    DataBuildRecipe: "data build",
    ScoreRecipe: "score",
    ServeRecipe: "serve",
    StudyRecipe: "study",
}
"""Recipe classes and the commands they belong to."""
RECIPES: dict[str, type[Strict]] = {verb: cls for cls, verb in VERBS.items()}

# The longest first: one verb may be the beginning of another.
_HEADER = re.compile(
    rf"# palate ({'|'.join(sorted(map(re.escape, VERBS.values()), key=len, reverse=True))})\b"
)


def load_recipe(
    cls: type[Recipe], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        cls: the class of a verb (`VERBS`).
        path: a YAML file (native or, for tune and sft, TRL-shaped), the name of a shipped recipe,
            or None for overrides on the defaults.
        overrides: `section.key=value` each, the value in YAML; applied in order.

    Raises:
        RecipeError: one line for every key that is wrong, with its file and line.
    """
    return check_document(cls, load_document(cls, path, overrides))


def load_document(
    cls: type[Strict], path: str | Path | None, overrides: Sequence[str] = ()
) -> Document:
    """A recipe as written, overrides applied, not yet checked. See `load_recipe`."""
    document = Document({}) if path is None else _read(path, VERBS[cls])
    if trl.is_trl(document):
        document, notes = trl.to_native(document, VERBS[cls])
        for note in notes:
            logging.getLogger("palate").warning("%s", note)
    for override in overrides:
        apply_override(document, override)
    return document


def check_recipe(cls: type[Recipe], value: dict[str, Any], name: str) -> Recipe:
    """A recipe from plain values, as `load_recipe` checks a file's.

    Args:
        name: of where they come from, for messages.

    Raises:
        RecipeError: one line for every key that is wrong.
    """
    return check_document(cls, Document(copy.deepcopy(value), name=name))


def resolve_yaml(recipe: Strict) -> str:
    """The recipe with every key written out; `load_recipe` reads it back to an equal recipe."""
    return f"# palate {VERBS[type(recipe)]}\n{dump_yaml(recipe.model_dump(mode='json'))}"


def shipped_recipes(verb: str | None = None) -> dict[str, str]:
    """Shipped recipes of a verb (or all): name -> its one-line description."""
    recipes = {}
    for file in sorted(_shipped_folder().iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            recipe_verb, _, text = first.removeprefix("# palate ").partition(": ")
            if verb in (None, recipe_verb):
                recipes[file.name.removesuffix(".yaml")] = text
    return recipes


def _shipped_folder() -> Any:
    return resources.files("palate.recipes").joinpath("shipped")


def _read(path: str | Path, verb: str) -> Document:
    file = Path(path)
    if os.path.exists(file):  # also of a name too long to be one; Path.exists raises
        document = read_document(file)
        text = file.read_text(encoding="utf-8-sig")
    elif str(path) in (known := shipped_recipes()):
        text = _shipped_folder().joinpath(f"{path}.yaml").read_text(encoding="utf-8")
        document = parse_document(text, f"{path} (shipped)")
    else:
        near = difflib.get_close_matches(file.stem, known, n=1, cutoff=0.5)
        hint = f"; did you mean the shipped recipe {near[0]}?" if near else ""
        raise RecipeError(f"no recipe file {in_one_line(path)}{hint}")
    header = _HEADER.match(text)
    if header and header[1] != verb:
        raise RecipeError(
            f"{document.name} is a recipe of `palate {header[1]}`, not `palate {verb}`"
        )
    return document


def check_document(cls: type[Recipe], document: Document) -> Recipe:
    """The recipe of a document; see `load_recipe`."""
    _complete(cls, document.value)
    try:
        return cls.model_validate(document.value)
    except ValidationError as error:
        raise RecipeError("\n".join(messages.lines(error, cls, document))) from None


def _complete(cls: type[Strict], value: dict[str, Any]) -> None:
    for name, info in cls.model_fields.items():
        if not models_in(info.annotation) or is_list(info.annotation) or name not in value:
            continue
        if value[name] is None and not takes_null(info.annotation):
            value[name] = {}  # `train:` with nothing below it
        # A section whose default has a type keeps that type unless the recipe names one.
        default = getattr(info.default, "type", None)
        if isinstance(value[name], dict) and isinstance(default, str):
            value[name] = {"type": default, **value[name]}
