"""The run folder of an evaluation: opened, filled part by part, and finished."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import palate
from palate.errors import RunError
from palate.io import read_json, write_json, write_text
from palate.recipes import load_recipe, resolve_yaml
from palate.recipes.schema import EvalRecipe, ModelRecipe

LIBRARIES = ("torch", "transformers", "peft", "datasets", "scipy", "sacrebleu")
PARTS = "parts"


class Folder:
    """An evaluation's folder, as a context that keeps status.json true.

    Finished parts (one a policy) are files of their own, each written at once.
    """

    def __init__(self, recipe: EvalRecipe) -> None:
        self.recipe = recipe
        self.path = recipe.output_dir
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._lineage: dict[str, Any] = {
            "palate": palate.__version__,
            "code": code_version(),
            "verb": "eval",
            "base_model": None,
            "models": [],
            "data": [],
            "libraries": library_versions(),
            "seed": recipe.seed,
            "device": platform.machine(),
        }

    @classmethod
    def open(cls, recipe: EvalRecipe) -> Self:
        """Opens a new folder, or with `resume` one that holds the same evaluation.

        Raises:
            RunError: the folder holds a run and `resume` is off, or a run of another recipe.
        """
        file = recipe.output_dir / "recipe.yaml"
        if file.exists():
            if not recipe.resume:
                raise RunError(
                    f"{recipe.output_dir}: holds a run already; set `resume: true` to go on with "
                    "it, or choose another output_dir"
                )
            other = load_recipe(EvalRecipe, file)
            same = {"resume": False, "output_dir": recipe.output_dir}
            if other.model_copy(update=same) != recipe.model_copy(update=same):
                raise RunError(
                    f"{recipe.output_dir}: holds an evaluation of another recipe; choose another "
                    "output_dir"
                )
        write_text(file, resolve_yaml(recipe))
        return cls(recipe)

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
        self._lineage["data"] = [
            {"path": source["path"], "sha256": source.get("sha256")}
            for source in document["sources"]
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

    def finish(self, document: dict[str, Any], samples: Iterable[dict[str, Any]]) -> None:
        """Writes what the parts add up to."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in samples]
        write_text(self.path / "samples.jsonl", "".join(f"{line}\n" for line in lines))
        write_json(self.path / "lineage.json", self._lineage)
        write_json(self.path / "evaluation.json", document)

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


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def code_version() -> dict[str, Any]:
    """Commit of the source tree, and whether it has changes; None outside a checkout."""
    here = Path(palate.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Another project's checkout may hold this one's installed files.
    if not (here.parent.parent / ".git").exists():
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
