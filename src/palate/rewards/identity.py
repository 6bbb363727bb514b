"""How scorers are told apart: by the content of all that they read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from palate.data.containers import open_records
from palate.data.ledger import digest
from palate.recipes import scorers as recipes
from palate.recipes.schema import DataSource
from palate.store.digests import sha256_file, sha256_tree

VERSION = 7
"""Of stored scores: raised whenever the same scorer would give others."""
_TEXTS = (".json", ".jinja", ".txt", ".model")
"""Endings of what a model's folder holds beside weights: tokenizer, template, configuration."""


def key_of(recipe: recipes.Scorer) -> str:
    """Changes with whatever changes scores: the recipe but for its name, the weights, and what a
    local model reads with (tokenizer, chat template)."""
    document = recipe.model_dump(mode="json")
    paths = _paths(recipe)
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
    return {path: weights_identity(path) for path in _paths(recipe)}


def files_of(recipe: recipes.Scorer) -> dict[str, str | None]:
    """Path -> digest of what a scorer reads besides models: data, templates, statistics."""
    files: dict[str, str | None] = {}
    for _, part in recipes.parts_of(recipe):
        if isinstance(part, DataSource):
            files[part.path] = digest(open_records(part).files)
        elif isinstance(part, recipes.FunctionScorer):
            files[str(part.file)] = _digest(part.file)
        elif isinstance(part, Path):
            files[str(part)] = _digest(part)
    return files


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


def _paths(recipe: recipes.Scorer) -> list[str]:
    """Paths of models and tokenizers, each once."""
    return sorted(
        path
        for path in {
            getattr(part, key, None)
            for _, part in recipes.parts_of(recipe)
            for key in ("path", "tokenizer")
            if not isinstance(part, recipes.FunctionScorer | DataSource)
        }
        if isinstance(path, str)
    )
