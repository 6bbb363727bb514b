"""What scores, and what serves scores."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palate.doctor.check import Check
from palate.doctor.data import source_check
from palate.doctor.machine import EXTRAS
from palate.doctor.models import model_checks
from palate.errors import PalateError
from palate.recipes import scorers
from palate.recipes.schema import ModelRecipe
from palate.recipes.serving import ServeRecipe


def scoring_checks(recipe: Any) -> Iterator[Check]:
    """What would stop whatever scores or is asked, wherever in a recipe it is named."""
    for _, part in scorers.parts_of(recipe):
        try:
            yield from _part_checks(part)
        except PalateError as error:
            yield Check("scorer", "problem", str(error))


def _part_checks(part: Any) -> Iterator[Check]:
    """Of one scorer, without those that it is made of."""
    from palate.rewards.build import make_scorer, members_of

    if isinstance(part, scorers.EnsembleScorer):
        for source in part.validation:
            yield source_check(source, 0, kinds=("pair", "rated"))
    elif isinstance(part, scorers.MixtureScorer):
        if isinstance(part.zscores, Path) and not part.zscores.is_file():
            yield Check("scorer", "problem", f"`zscores`: no file {part.zscores}")
    elif isinstance(part, scorers.HybridScorer):
        if part.baselines is not None and not part.baselines.is_file():
            yield Check("scorer", "problem", f"`baselines`: no file {part.baselines}")
    elif isinstance(part, scorers.HeadsScorer):
        yield from _part_checks(members_of(part).members[0].scorer)
    elif isinstance(part, scorers.LexiconScorer | scorers.LengthScorer | scorers.RuleScorer):
        yield Check("scorer", "ok", make_scorer(part).name)
    elif isinstance(part, scorers.FunctionScorer):
        if not part.file.is_file():
            yield Check("scorer", "problem", f"{part.path}: no file {part.file}")
        else:
            yield Check("scorer", "note", f"{part.path}: not run")
    elif isinstance(part, scorers.VerifierScorer):
        if importlib.util.find_spec(part.library) is None:
            text = f"task {part.task}: {part.library} is not installed: pip install 'palate[tasks]'"
            yield Check("scorer", "problem", text)
        else:
            yield Check("scorer", "ok", make_scorer(part).name)
    elif isinstance(part, scorers.RemoteScorer):
        make_scorer(part)
        yield Check("scorer", "note", f"{part.url}: not asked")
    elif isinstance(part, scorers.ModelScorer | scorers.ClassifierScorer):
        make_scorer(part)
        yield Check("scorer", "ok", f"{part.path} ({part.type})")
    elif isinstance(part, scorers.LocalChat | scorers.ServerChat):
        yield from chat_checks(part)


def chat_checks(recipe: scorers.LocalChat | scorers.ServerChat) -> Iterator[Check]:
    """What would stop a model from being asked; a server is not."""
    if isinstance(recipe, scorers.LocalChat):
        shared = {"path", "revision", "dtype", "chat_template", "images"}
        settings = recipe.model_dump(include=shared)
        yield from model_checks(ModelRecipe.model_validate(settings), layout="plain")
        return
    from palate.rewards.chat.server import Server

    try:
        Server(recipe)
        yield Check("server", "note", f"{recipe.model} at {recipe.url}: not asked")
    except PalateError as error:
        yield Check("server", "problem", str(error))


def server_checks(recipe: ServeRecipe) -> Iterator[Check]:
    from palate.serve.run import bind, token_of

    missing = [name for name in EXTRAS["serve"] if importlib.util.find_spec(name) is None]
    if missing:
        text = f"not installed ({', '.join(missing)}): pip install 'palate[serve]'"
        yield Check("extra serve", "problem", text)
    try:
        token_of(recipe)
        bind(recipe).close()
    except PalateError as error:
        yield Check("address", "problem", str(error))
        return
    where = f"{recipe.host}:{recipe.port}" if recipe.port else f"{recipe.host}, a free port"
    yield Check("address", "ok", where)
