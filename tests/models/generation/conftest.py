"""A tiny model's folder, a server of it, and engines that are closed in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from palate.models.generation.server import ServerEngine
from palate.models.model import Model
from palate.recipes.rl_engines import ServerEngine as Recipe
from policy_server import NAME, Served, serving
from server_cases import Make, policy
from tiny_text import save_tiny, tiny_tokenizer


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def server(folder: Path) -> Iterator[Served]:
    with serving(folder) as served:
        yield served


@pytest.fixture
def engine(folder: Path, tmp_path: Path) -> Iterator[Make]:
    made: list[ServerEngine] = []

    def make(*servers: Served, policy_model: Model | None = None, **keys: Any) -> ServerEngine:
        given = {"urls": [s.url for s in servers], "model": NAME, "timeout_seconds": 20} | keys
        recipe = Recipe.model_validate(given)
        own = policy_model or policy(folder)
        made.append(ServerEngine(recipe, tiny_tokenizer(), own, folder=tmp_path / "run"))
        return made[-1]

    yield make
    for own in made:
        own.close()
