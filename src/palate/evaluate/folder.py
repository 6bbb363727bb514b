"""The run folder of an evaluation: opened, filled part by part, and finished."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from palate.errors import RunError
from palate.recipes import load_recipe, resolve_yaml
from palate.recipes.load import VERBS
from palate.recipes.schema import ModelRecipe, RunRecipe
from palate.store.files import read_json, write_json, write_text
from palate.store.folders import lock_folder
from palate.store.versions import __version__, code_version, library_versions

PARTS = "parts"


class Folder:
    """An evaluation's folder, as a context that keeps status.json true.

    Finished parts (one a policy) are files of their own, each written at once.
    """

    def __init__(self, recipe: RunRecipe) -> None:
        self.recipe = recipe
        self.path = recipe.output_dir
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._lineage: dict[str, Any] = {
            "palate": __version__,
            "code": code_version(),
            "verb": VERBS[type(recipe)],
            "base_model": None,
            "models": [],
            "data": [],
            "libraries": library_versions(),
            "seed": recipe.seed,
            "device": platform.machine(),
        }

    @classmethod
    @contextmanager
    def open(cls, recipe: RunRecipe) -> Iterator[Self]:
        """Opens a new folder, or with `resume` one that holds the same evaluation, and keeps it for
        this process alone.

        Raises:
            RunError: the folder holds a run and `resume` is off, a run of another recipe, or
                another process writes to it.
        """
        with lock_folder(recipe.output_dir):
            cls._claim(recipe)
            with cls(recipe) as folder:
                yield folder

    @staticmethod
    def _claim(recipe: RunRecipe) -> None:
        file = recipe.output_dir / "recipe.yaml"
        if file.exists() and not _came_to_nothing(recipe.output_dir):
            if not recipe.resume:
                raise RunError(
                    f"{recipe.output_dir}: holds a run already; set `resume: true` to go on with "
                    "it, or choose another output_dir"
                )
            other = load_recipe(type(recipe), file)
            same = {"resume": False, "output_dir": recipe.output_dir}
            if other.model_copy(update=same) != recipe.model_copy(update=same):
                raise RunError(
                    f"{recipe.output_dir}: holds an evaluation of another recipe; choose another "
                    "output_dir"
                )
        write_text(file, resolve_yaml(recipe))

    def __enter__(self) -> Self:
        self._status("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._status("finished")
        else:
            with suppress(RunError):  # the error on its way out matters more
                self._status("interrupted" if kind is KeyboardInterrupt else "failed")

    def part(self, key: str) -> dict[str, Any] | None:
        """A stored result, or None."""
        file = self.path / PARTS / f"{key}.json"
        if not file.exists():
            return None
        found: dict[str, Any] = read_json(file)
        return found

    def write_part(self, key: str, result: dict[str, Any]) -> dict[str, Any]:
        """Stores a result; returns it as a later run will read it."""
        file = self.path / PARTS / f"{key}.json"
        write_json(file, result)
        found: dict[str, Any] = read_json(file)
        return found

    def record_data(self, document: dict[str, Any], quarantine: list[dict[str, Any]]) -> None:
        """Writes data.json and quarantine.jsonl; the files read go to the lineage."""
        write_json(self.path / "data.json", document)
        lines = [json.dumps(line, ensure_ascii=False) for line in quarantine]
        write_text(self.path / "quarantine.jsonl", "".join(f"{line}\n" for line in lines))
        self.record_sources(document["sources"])

    def record_sources(self, entries: Iterable[dict[str, Any]]) -> None:
        """Adds the files read to the lineage."""
        self._lineage["data"] = [
            {"path": source["path"], "sha256": source.get("sha256")} for source in entries
        ]

    def record_model(self, model: ModelRecipe, digest: str | None, reference: str | None) -> None:
        """Adds a base model to the lineage."""
        entry: dict[str, Any] = {"path": model.path, "digest": digest, "dtype": model.dtype}
        note = Path(model.path) / "palate.json"
        if note.exists():
            entry["terms"] = read_json(note).get("terms")
        entry["reference"] = reference
        self._lineage["models"].append(entry)
        self._lineage["base_model"] = self._lineage["models"][0]

    def record_scorer(self, entry: dict[str, Any]) -> None:
        """Adds a model that scores to the lineage."""
        self._lineage["models"].append(entry)

    def finish(
        self,
        document: dict[str, Any],
        rows: Iterable[dict[str, Any]],
        name: str = "samples.jsonl",
    ) -> None:
        """Writes what the parts add up to, and the rows behind it."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        write_text(self.path / name, "".join(f"{line}\n" for line in lines))
        self.write_lineage()
        write_json(self.path / "evaluation.json", document)

    def write_lineage(self) -> None:
        """Writes lineage.json."""
        write_json(self.path / "lineage.json", self._lineage)

    def _status(self, state: str) -> None:
        done = state != "running"
        write_json(
            self.path / "status.json",
            {
                "state": state,
                "step": 0,
                "started": self._started.isoformat(timespec="seconds"),
                "ended": datetime.now(UTC).isoformat(timespec="seconds") if done else None,
                "seconds": time.monotonic() - self._clock if done else None,
            },
        )


def _came_to_nothing(path: Path) -> bool:
    """Whether a run failed before it kept anything: put right, it may use the folder again."""
    status = path / "status.json"
    if not status.exists() or read_json(status)["state"] not in ("failed", "interrupted"):
        return False
    kept = ("evaluation.json", "summary.json", "journal.jsonl")
    return not (any((path / PARTS).glob("*")) or any((path / name).exists() for name in kept))
