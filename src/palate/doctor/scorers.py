"""What scores, and what serves scores."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from palate.doctor.check import Check
from palate.doctor.data import source_check
from palate.doctor.machine import EXTRAS
from palate.doctor.models import model_checks
from palate.errors import PalateError
from palate.recipes import scorers
from palate.recipes.schema import ModelRecipe
from palate.recipes.serving import ServeRecipe


def scorer_checks(recipe: scorers.ScorerBase) -> Iterator[Check]:
    """What would stop a scorer from being loaded, its members' and their data included."""
    if isinstance(recipe, scorers.EnsembleScorer):
        for member in recipe.members:
            yield from scorer_checks(member.scorer)
        for source in recipe.validation:
            yield source_check(source, 0, kinds=("pair", "rated"))
        return
    if isinstance(recipe, scorers.MixtureScorer):
        for term in recipe.members:
            yield from scorer_checks(term.scorer)
        if isinstance(recipe.zscores, Path) and not recipe.zscores.is_file():
            yield Check("scorer", "problem", f"`zscores`: no file {recipe.zscores}")
        return
    try:
        if isinstance(recipe, scorers.CriticScorer):
            yield from scorer_checks(recipe.scorer)
        elif isinstance(recipe, scorers.HeadsScorer):
            from palate.rewards.build import members_of

            yield from scorer_checks(members_of(recipe).members[0].scorer)
        elif isinstance(recipe, scorers.LexiconScorer | scorers.LengthScorer | scorers.RuleScorer):
            from palate.rewards import make_scorer

            yield Check("scorer", "ok", make_scorer(recipe).name)
        elif isinstance(recipe, scorers.RemoteScorer):
            from palate.rewards import make_scorer

            make_scorer(recipe)
            yield Check("scorer", "note", f"{recipe.url}: not asked")
        elif isinstance(recipe, scorers.ModelScorer | scorers.ClassifierScorer):
            from palate.rewards import make_scorer

            make_scorer(recipe)
            yield Check("scorer", "ok", f"{recipe.path} ({recipe.type})")
    except PalateError as error:
        yield Check("scorer", "problem", str(error))
    if isinstance(recipe, scorers.JudgeBase | scorers.CriticScorer):
        yield from chat_checks(recipe.chat)


def chat_checks(recipe: scorers.LocalChat | scorers.ServerChat) -> Iterator[Check]:
    """What would stop a model from being asked; a server is not."""
    if isinstance(recipe, scorers.LocalChat):
        own = recipe.model_dump(include={"path", "revision", "dtype", "chat_template"})
        yield from model_checks(ModelRecipe.model_validate(own), layout="plain")
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
