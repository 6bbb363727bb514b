"""What would stop a run, said before it starts: machine, libraries, model, template, data."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from palate.doctor.check import Check, State
from palate.doctor.machine import disk_check, machine_checks
from palate.doctor.models import model_checks, reward_model_checks
from palate.doctor.scorers import scorer_checks, server_checks
from palate.errors import PalateError, RecipeError
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.document import read_document
from palate.recipes.judge import JudgeRecipe
from palate.recipes.load import VERBS, load_recipe, shipped_recipes
from palate.recipes.losses import Strict
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import (
    OwnFormat,
    PairsRecipe,
    RewardEvalRecipe,
)
from palate.recipes.schema import (
    DataSource,
    EvalRecipe,
    ModelRecipe,
    RunRecipe,
    SftRecipe,
    TuneRecipe,
)
from palate.recipes.serving import ScoreRecipe, ServeRecipe

__all__ = ["Check", "examine", "render"]

FIRST_ROWS = 200
"""Rows kept of each data source: enough to see its format and its faults."""


def examine(target: str | None = None) -> list[Check]:
    """Checks this machine and, if given, a recipe, a run folder or a model.

    Args:
        target: recipe file, shipped recipe, run folder, model folder or hub name.
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
        return [*checks, *server_checks(loaded), *scorer_checks(loaded.scorer)]
    assert isinstance(loaded, RunRecipe)
    return checks + list(_run(loaded))


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
    """The recipe class of a file: by its first line, else by its keys."""
    if not path.is_file():
        return TuneRecipe
    first = path.read_bytes().partition(b"\n")[0].decode(errors="replace")
    # The longest first: `eval` is the beginning of `eval reward`.
    for cls, verb in sorted(VERBS.items(), key=lambda item: -len(item[1])):
        if re.match(rf"# palate {verb}\b", first):
            return cls
    try:
        keys = set(read_document(path).value)
    except RecipeError:
        return TuneRecipe  # loading it says what is wrong
    return (
        EvalRecipe
        if keys & (set(EvalRecipe.model_fields) - set(TuneRecipe.model_fields))
        else TuneRecipe
    )


def _run(recipe: RunRecipe) -> Iterator[Check]:
    yield disk_check(recipe.output_dir)
    if (recipe.output_dir / "status.json").exists() and not recipe.resume:
        text = f"{recipe.output_dir} holds a run: choose another, or --set resume=true"
        yield Check("output_dir", "problem", text)
    for source in _sources(recipe):
        yield source_check(source, recipe.seed)
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
        layout = recipe.train.layout if isinstance(recipe, TuneRecipe) else "plain"
        yield from model_checks(recipe.model, layout=layout)
    if isinstance(recipe, RewardRecipe):
        yield from reward_model_checks(recipe)
    if isinstance(recipe, ScoreRecipe):
        yield from scorer_checks(recipe.scorer)
    if isinstance(recipe, RewardEvalRecipe):
        for model in recipe.models:
            yield from scorer_checks(model)
        for benchmark in recipe.benchmarks:
            if isinstance(benchmark, OwnFormat):
                yield from benchmark_files(benchmark)


def _sources(recipe: RunRecipe) -> tuple[DataSource, ...]:
    """The data of a recipe that is in a format of preference data."""
    if isinstance(recipe, EvalRecipe | ScoreRecipe):
        return recipe.data
    if isinstance(recipe, TuneRecipe | SftRecipe | RewardRecipe | JudgeRecipe):
        return (*recipe.data.train, *recipe.data.eval)
    if isinstance(recipe, DataBuildRecipe):
        return tuple(recipe.sources)
    if isinstance(recipe, RewardEvalRecipe):
        own = [b.data for b in recipe.benchmarks if isinstance(b, PairsRecipe)]
        return tuple(source for data in own for source in data)
    return ()


def benchmark_files(benchmark: OwnFormat) -> Iterator[Check]:
    """A benchmark's own files, of which only the public code knows the format."""
    for source in benchmark.data:
        here = Path(source.path).exists()
        looks_local = source.path.startswith((".", "/", "~")) or Path(source.path).suffix
        state: State = "ok" if here else "problem" if looks_local else "note"
        what = "there" if here else "no such file" if looks_local else "from the hub, not looked up"
        yield Check("benchmark", state, f"{source.path}: {what}")


def source_check(source: DataSource, seed: int) -> Check:
    from palate.data.readers import read_source

    limit = min(source.limit or FIRST_ROWS, FIRST_ROWS)
    try:
        result = read_source(source.model_copy(update={"limit": limit}), seed=seed)
    except PalateError as error:
        return Check("data", "problem", str(error))
    kinds = sorted({row.kind for row in result.rows})
    text = f"{source.path}: {result.read} rows read as {result.format} ({', '.join(kinds)})"
    if not result.rows:
        return Check("data", "problem", f"{source.path}: no usable row of {result.read}")
    if result.rejected:
        first = result.rejected[0]
        text += f", {len(result.rejected)} rejected; the first: row {first.row}: {first.reason}"
    return Check("data", "note" if result.rejected else "ok", text)
