"""What can be told of scorers before they are loaded: one that is missing should not be found out
after another one has been asked for hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palate.data.containers import open_records
from palate.errors import ModelError
from palate.models.loading import NO_HUB, hub_is_needed_and_absent
from palate.models.reward_config import CONFIG, check_no_run, read_config
from palate.recipes import scorers as recipes
from palate.rewards.build import make_scorer, members_of

_CONFIGS = ("config.json", "adapter_config.json")


def check_scorers(given: Sequence[recipes.Scorer]) -> None:
    """Looks for the models of scorers and of their members, for the files that ensembles are
    validated on and for the keys of servers; no weights are read and no server is asked.

    Raises:
        ModelError: no model where a recipe says there is one, no key in the environment, or a
            server's address that is none.
        PalateError: an extra that is not installed, or data that is missing.
    """
    for recipe in given:
        _check(recipe)


def _check(recipe: recipes.Scorer) -> None:
    if isinstance(recipe, recipes.HeadsScorer):
        recipe = members_of(recipe)
    if isinstance(recipe, recipes.EnsembleScorer):
        for source in recipe.validation:
            open_records(source)
        check_scorers([member.scorer for member in recipe.members])
    elif isinstance(recipe, recipes.MixtureScorer):
        if isinstance(recipe.zscores, Path) and not recipe.zscores.is_file():
            raise ModelError(f"`zscores`: no file {recipe.zscores}")
        check_scorers([member.scorer for member in recipe.members])
    elif isinstance(recipe, recipes.RuleScorer):
        for source in recipe.answers:
            open_records(source)
    elif isinstance(recipe, recipes.ModelScorer | recipes.ClassifierScorer):
        _model(recipe.path, recipe.revision)
    elif isinstance(recipe, recipes.LexiconScorer | recipes.LengthScorer | recipes.RemoteScorer):
        make_scorer(recipe)
    else:
        _chat(recipe.chat)
        if isinstance(recipe, recipes.CriticScorer):
            _check(recipe.scorer)


def _chat(recipe: recipes.LocalChat | recipes.ServerChat) -> None:
    if isinstance(recipe, recipes.ServerChat):
        from palate.rewards.chat.server import Server

        Server(recipe)
        return
    _model(recipe.path, recipe.revision)
    if isinstance(recipe.chat_template, Path) and not recipe.chat_template.is_file():
        raise ModelError(f"`chat_template`: no file {recipe.chat_template}")


def _model(path: str, revision: str | None) -> None:
    offline = hub_is_needed_and_absent(path)
    folder = Path(path)
    if not folder.exists():
        _hub(path, revision, offline=offline)
    elif (folder / CONFIG).exists():
        kind, spec = read_config(folder)
        if kind not in ("classifier", "backbone"):
            _model(spec.model.path, spec.model.revision)
    else:
        check_no_run(folder)
        if not any((folder / name).exists() for name in _CONFIGS):
            raise ModelError(f"{path}: holds no model: there is no {_CONFIGS[0]}")


def _hub(path: str, revision: str | None, *, offline: bool) -> None:
    """Its configuration, which loading fetches first, too."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(path, _CONFIGS[0], revision=revision, local_files_only=offline)
    except Exception as error:
        reason = NO_HUB if offline else " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: {reason}") from error
