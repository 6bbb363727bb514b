"""What would stop a run, said before it starts: machine, libraries, model, template, data."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from palate.doctor.check import Check
from palate.doctor.data import data_checks
from palate.doctor.machine import disk_check, machine_checks
from palate.doctor.models import model_checks, reward_model_checks
from palate.doctor.scorers import scoring_checks, server_checks
from palate.doctor.steps import step_checks
from palate.errors import PalateError, RecipeError
from palate.recipes import trl
from palate.recipes.document import read_document
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.judge import JudgeRecipe
from palate.recipes.load import VERBS, load_recipe, shipped_recipes
from palate.recipes.losses import Strict
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import (
    ModelRecipe,
    RunRecipe,
    SftRecipe,
    TuneRecipe,
)
from palate.recipes.serving import ScoreRecipe, ServeRecipe
from palate.recipes.study import StudyRecipe
from palate.store.folder import RunFolder

__all__ = ["Check", "examine", "render"]


def examine(target: str | None = None, *, probe: bool = False) -> list[Check]:
    """Checks this machine and, if given, a recipe, a run folder or a model.

    Args:
        target: recipe file, shipped recipe, run folder, model folder or hub name.
        probe: make a few steps of a recipe that trains, to say what a step takes.
    """
    checks = list(machine_checks())
    if target is None:
        return [*checks, disk_check(Path())]
    recipe = _recipe_of(target)
    if recipe is None:
        return checks + list(model_checks(ModelRecipe(path=target), layout="auto"))
    try:
        loaded = load_recipe(*recipe)
    except RecipeError as error:
        return checks + [Check("recipe", "problem", line) for line in str(error).splitlines()]
    checks.append(Check("recipe", "ok", f"{recipe[1]} (palate {VERBS[recipe[0]]})"))
    if isinstance(loaded, ServeRecipe):
        return [*checks, *server_checks(loaded), *scoring_checks(loaded)]
    if isinstance(loaded, StudyRecipe):
        text = "its steps, what they take, and its comparisons: palate study plan"
        return [*checks, disk_check(loaded.output_dir), Check("study", "note", text)]
    assert isinstance(loaded, RunRecipe)
    checks += _run(loaded)
    if isinstance(loaded, TuneRecipe | SftRecipe | RewardRecipe):
        stopped = any(check.state == "problem" for check in checks)
        reason = "see the problems above" if stopped else None if probe else "no steps were tried"
        checks += step_checks(loaded, reason)
    return checks


def render(checks: Sequence[Check]) -> Table:
    """The table that `palate doctor` prints."""
    marks = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("problem", "bold red")}
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in checks:
        mark, style = marks[check.state]
        table.add_row(Text(mark, style=style), Text(check.name, style="bold"), Text(check.text))
    return table


def _recipe_of(target: str) -> tuple[type[Strict], str] | None:
    """Class and path of the recipe that `target` names; None when it names a model."""
    path = Path(target)
    for cls, verb in VERBS.items():
        if not path.exists() and target in shipped_recipes(verb):
            return cls, target
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    elif path.is_dir() or (not path.is_file() and path.suffix not in (".yaml", ".yml")):
        return None
    return class_of(path), str(path)


def class_of(path: Path) -> type[Strict]:
    """The recipe class of a file: by its first line, else the one that knows most of its keys."""
    if not path.is_file():
        return TuneRecipe
    first = path.read_bytes().partition(b"\n")[0].decode(errors="replace")
    # The longest first: `eval` is the beginning of `eval reward`.
    for cls, verb in sorted(VERBS.items(), key=lambda item: -len(item[1])):
        if re.match(rf"# palate {verb}\b", first):
            return cls
    try:
        document = read_document(path)
    except RecipeError:
        return TuneRecipe  # loading it says what is wrong
    if trl.is_trl(document):
        return TuneRecipe
    keys = set(document.value)

    def unfit(cls: type[Strict]) -> tuple[int, bool]:
        # A scorer alone, as `palate judge` writes it, is served; with data it scores.
        return len(keys - set(cls.model_fields)), cls is ScoreRecipe and "data" not in keys

    return min(VERBS, key=unfit)


def _run(recipe: RunRecipe) -> Iterator[Check]:
    yield disk_check(recipe.output_dir)
    try:
        RunFolder(recipe, writes=False)
    except PalateError as error:
        yield Check("output_dir", "problem", str(error))
    yield from data_checks(recipe)
    if isinstance(recipe, EvalRecipe):
        for run in recipe.runs:
            complete = (run / "recipe.yaml").is_file()
            yield Check(
                "run",
                "ok" if complete else "problem",
                f"{run}{'' if complete else ': no run folder'}",
            )
        if recipe.model is not None:
            yield from model_checks(recipe.model, layout="plain")
    if isinstance(recipe, JudgeRecipe):
        yield from model_checks(recipe.model, layout="plain")
    if isinstance(recipe, TuneRecipe | SftRecipe | RewardRecipe):
        for tracker in recipe.train.report_to:
            if importlib.util.find_spec(tracker) is None:
                yield Check("report_to", "problem", f"{tracker} is not installed")
    if isinstance(recipe, TuneRecipe | SftRecipe):
        yield from model_checks(
            recipe.model,
            layout=recipe.train.layout,
            length=recipe.data.length,
            beside=recipe.output_dir,
        )
    if isinstance(recipe, RewardRecipe):
        yield from reward_model_checks(recipe)
    yield from scoring_checks(recipe)
