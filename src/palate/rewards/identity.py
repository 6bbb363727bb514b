"""How scorers are told apart: by the content of all that they read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palate.data.containers import open_records
from palate.data.ledger import digest
from palate.recipes import scorers as recipes
from palate.recipes.schema import DataSource
from palate.store.digests import sha256_file, sha256_tree

VERSION = 6
"""Of stored scores: raised whenever the same scorer would give others."""
_TEXTS = (".json", ".jinja", ".txt", ".model")
"""Endings of what a model's folder holds beside weights: tokenizer, template, configuration."""


def key_of(recipe: recipes.Scorer) -> str:
    """Changes with whatever changes scores: the recipe but for its name, the weights, and what a
    local model reads with (tokenizer, chat template)."""
    document = recipe.model_dump(mode="json")
    paths = sorted(set(_paths(document)))
    parts = {
        "version": VERSION,
        "recipe": _nameless(document),
        "weights": {path: weights_identity(path) for path in paths},
        "texts": {path: _texts_identity(path) for path in paths},
        "files": files_of(recipe),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def weights_identity(path: str | Path, revision: str | None = None) -> str:
    """What changes with the weights: content of a local folder, name and revision of a hub one."""
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{path}@{revision}"
    files = [*folder.glob("*.safetensors"), *folder.glob("*config.json")]
    return sha256_tree(files)


def identities(recipe: recipes.Scorer) -> dict[str, str]:
    """Path -> identity of the weights of every model in a recipe."""
    return {path: weights_identity(path) for path in sorted(set(_paths(recipe.model_dump())))}


def files_of(recipe: recipes.Scorer) -> dict[str, str | None]:
    """Path -> digest of what a scorer reads besides models: data, templates, statistics."""
    if isinstance(recipe, recipes.EnsembleScorer | recipes.MixtureScorer):
        files = _data(recipe.validation if isinstance(recipe, recipes.EnsembleScorer) else ())
        for member in recipe.members:
            files |= files_of(member.scorer)
        if isinstance(recipe, recipes.MixtureScorer) and isinstance(recipe.zscores, Path):
            files[str(recipe.zscores)] = _digest(recipe.zscores)
        return files
    if isinstance(recipe, recipes.RuleScorer):
        return _data(recipe.answers)
    if isinstance(recipe, recipes.JudgeBase | recipes.CriticScorer):
        template = recipe.chat.chat_template if isinstance(recipe.chat, recipes.LocalChat) else None
        return {str(template): _digest(template)} if isinstance(template, Path) else {}
    return {}


def _data(sources: Sequence[DataSource]) -> dict[str, str | None]:
    return {source.path: digest(open_records(source).files) for source in sources}


def _digest(file: Path) -> str | None:
    return sha256_file(file) if file.is_file() else None


def _nameless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nameless(inner) for key, inner in value.items() if key != "name"}
    if isinstance(value, list):
        return [_nameless(inner) for inner in value]
    return value


def _texts_identity(path: str) -> str | None:
    """Content of the files of a model's folder that are no weights; None of a hub name."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    return sha256_tree([file for file in folder.iterdir() if file.suffix in _TEXTS])


def _paths(value: Any) -> list[str]:
    """Paths of models; data has paths of its own, under `validation` and `answers`."""
    if isinstance(value, dict):
        paths = [value[key] for key in ("path", "tokenizer") if isinstance(value.get(key), str)]
        inner = [value[key] for key in value if key not in ("validation", "answers")]
        return paths + [path for item in inner for path in _paths(item)]
    if isinstance(value, (list, tuple)):
        return [path for item in value for path in _paths(item)]
    return []
