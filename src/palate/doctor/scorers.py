"""What scores, and what serves scores."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from palate.doctor.check import Check
from palate.doctor.machine import EXTRAS
from palate.doctor.models import model_checks
from palate.errors import PalateError
from palate.recipes import scorers
from palate.recipes.schema import ModelRecipe
from palate.recipes.serving import ServeRecipe


def scorer_checks(recipe: scorers.Scorer) -> Iterator[Check]:
    """What would stop a scorer from being loaded, its members' and their data included."""
    if isinstance(recipe, scorers.EnsembleScorer):
        from palate.doctor import source_check

        for member in recipe.members:
            yield from scorer_checks(member.scorer)
        for source in recipe.validation:
            yield source_check(source, 0)
        return
    chat = getattr(recipe, "chat", None)
    try:
        if isinstance(recipe, scorers.CriticScorer):
            yield from scorer_checks(recipe.scorer)
        elif isinstance(recipe, scorers.HeadsScorer):
            from palate.rewards.build import members_of

            yield from scorer_checks(members_of(recipe).members[0].scorer)
        elif isinstance(recipe, scorers.LexiconScorer | scorers.LengthScorer):
            from palate.rewards import make_scorer

            yield Check("scorer", "ok", make_scorer(recipe).name)
        elif isinstance(recipe, scorers.ModelScorer | scorers.ClassifierScorer):
            from palate.rewards import make_scorer

            make_scorer(recipe)
            yield Check("scorer", "ok", f"{recipe.path} ({recipe.type})")
    except PalateError as error:
        yield Check("scorer", "problem", str(error))
    if isinstance(chat, scorers.LocalChat):
        own = chat.model_dump(include={"path", "revision", "dtype", "chat_template"})
        yield from model_checks(ModelRecipe.model_validate(own), layout="plain")
    elif isinstance(chat, scorers.ServerChat):
        key = chat.api_key_env
        if key is not None and not os.environ.get(key):
            yield Check("server", "problem", f"the environment variable {key} is not set")
        else:
            yield Check("server", "note", f"{chat.model} at {chat.url}: not asked")


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
