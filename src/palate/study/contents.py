"""What a recipe reads from the disk, told by content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palate.recipes.construct import BuildSource, DataBuildRecipe
from palate.recipes.losses import Strict
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import DataRecipe, DataSource
from palate.recipes.scorers import FunctionScorer, parts_of
from palate.store.digests import sha256_file, sha256_tree

_READ = ("path", "policy", "reference", "tokenizer")
"""Names of text fields that may be files or folders."""
WRITTEN = ("output_dir", "cache_dir", "features_dir", "results_dir")
"""Names of fields that say where something goes, and nothing of what it is."""


class Contents:
    """Digests of files and folders, each computed once while it stays as it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], str] = {}

    def of(self, path: str) -> str | None:
        """Hex SHA-256 of a file's content, or of a folder's; None where nothing is there."""
        place = Path(path).expanduser()
        if not place.exists():
            return None
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        key = tuple((str(f), s.st_size, s.st_mtime_ns) for f in files if (s := f.stat()))
        if key not in self._known:
            self._known[key] = sha256_file(place) if place.is_file() else sha256_tree([place])
        return self._known[key]


def training_sources(recipe: Strict) -> Iterator[DataSource]:
    """The rows that a recipe trains on, or makes pairs of."""
    data = getattr(recipe, "data", None)
    if isinstance(data, DataRecipe):
        yield from data.train
    if isinstance(recipe, DataBuildRecipe):
        yield from recipe.sources
    if isinstance(recipe, RlRecipe):
        # What is generated is in no file.
        yield from (source for source in recipe.prompts.train if isinstance(source, DataSource))


def paths_read(recipe: Any) -> Iterator[str]:
    """Files, folders and hub names that a recipe, or a part of one, names to be read."""
    for key, part in parts_of(recipe):
        if isinstance(part, DataSource):
            yield part.path
            if isinstance(part, BuildSource) and part.image_root is not None:
                yield str(part.image_root)
        elif isinstance(part, FunctionScorer):
            yield str(part.file)
        elif key not in WRITTEN and (
            isinstance(part, Path)
            or (isinstance(part, str) and key in _READ and ".py:" not in part)
        ):
            yield str(part)
