"""Checks of scorers before any is loaded, so that a missing one is not noticed only after another
has scored for hours."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palate.data.containers import open_records
from palate.errors import ModelError
from palate.models.loading import NO_HUB, hub_is_needed_and_absent
from palate.models.reward_config import CONFIG, check_no_run, read_config
from palate.recipes import scorers as recipes
from palate.recipes.schema import DataSource
from palate.rewards.build import make_scorer, members_of
from palate.rewards.chat import open_chat
from palate.rewards.checks import NO_EXTRA

_CONFIGS = ("config.json", "adapter_config.json")


def check_scorers(given: Sequence[recipes.Scorer]) -> None:
    """Looks for the models of scorers and of their members, for the files that ensembles are
    validated on and for the keys of servers; no weights are read and no server is asked.

    Raises:
        ModelError: no model where a recipe says there is one, no key in the environment, or
            something else than a server's address.
        PalateError: an extra that is not installed, or data that is missing.
    """
    for recipe in given:
        for key, part in recipes.parts_of(recipe):
            _check(key, part)


def _check(key: str, part: Any) -> None:
    if isinstance(part, DataSource):
        open_records(part)
    elif isinstance(part, Path):
        if not part.is_file():
            raise ModelError(f"`{key}`: no file {part}")
    elif isinstance(part, recipes.FunctionScorer):
        if not part.file.is_file():
            raise ModelError(f"{part.path}: no file {part.file}")
    elif isinstance(part, recipes.VerifierScorer):
        if find_spec(part.library) is None:
            raise ModelError(NO_EXTRA.format(f"task: {part.task}", part.library))
    elif isinstance(part, recipes.HeadsScorer):
        members_of(part)
        _model(part.path, None)
    elif isinstance(part, recipes.ModelScorer | recipes.ClassifierScorer | recipes.LocalChat):
        _model(part.path, part.revision)
    elif isinstance(part, recipes.LexiconScorer | recipes.RemoteScorer):
        make_scorer(part)
    elif isinstance(part, recipes.ServerChat):
        open_chat(part)


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
