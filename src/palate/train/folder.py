"""The run folder of a training run: opened, filled and finished by the main process alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from palate.errors import RunError
from palate.recipes import resolve_yaml
from palate.recipes.schema import RunRecipe
from palate.store.files import append_jsonl, read_json, write_json, write_text
from palate.store.folders import clean_folder
from palate.train import checkpoint


class RunFolder:
    """Paths and records of one run.

    Args:
        recipe: of the run.
        writes: whether this process writes (the main one) or only reads.

    Attributes:
        finished: the folder holds the finished run of this very recipe.
        last: newest complete checkpoint to go on from, None to start from the beginning.

    Raises:
        RunError: the folder holds a run, and `resume` is off or the recipe another.
    """

    def __init__(self, recipe: RunRecipe, *, writes: bool = True) -> None:
        self.recipe = recipe
        self.writes = writes
        self.path = recipe.output_dir
        self.step = 0
        self._clock = time.monotonic()
        self._before = 0.0
        self._started = _now()
        status = self._check()
        self.finished = status.get("state") == "finished"
        found = checkpoint.checkpoints(self.checkpoints)
        self.last: Path | None = found[-1][1] if found else None
        if status:
            self._started = status.get("started") or self._started
            self._before = float(status.get("seconds") or 0.0)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def seconds(self) -> float:
        """Spent on the run so far, earlier parts of it included as far as known."""
        return self._before + time.monotonic() - self._clock

    def _check(self) -> dict[str, Any]:
        file = self.path / "recipe.yaml"
        if not file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise RunError(f"{self.path}: is a file; choose another output_dir")
            return {}
        if self._came_to_nothing():
            return {}
        if not self.recipe.resume:
            raise RunError(
                f"{self.path}: holds a run already; set `resume: true` to go on with it, or choose "
                "another output_dir"
            )
        differs = _differences(file, self.recipe)
        if differs:
            raise RunError(
                f"{self.path}: was run with another recipe ({'; '.join(differs[:3])}); resume with "
                "that one, or choose another output_dir"
            )
        status = self.path / "status.json"
        return read_json(status) if status.exists() else {}

    def _came_to_nothing(self) -> bool:
        """Whether a run ended before its first step: put right, it may use the folder again."""
        status = self.path / "status.json"
        if not status.exists() or read_json(status)["state"] not in ("failed", "interrupted"):
            return False
        log = self.path / "metrics.jsonl"
        logged = log.exists() and log.stat().st_size > 0
        return not (logged or self.model.exists() or checkpoint.checkpoints(self.checkpoints))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps status.json true while the block runs, however it ends."""
        if self.writes:
            clean_folder(self.path)
            clean_folder(self.checkpoints)
            write_text(self.path / "recipe.yaml", resolve_yaml(self.recipe))
            self.write_status("running")
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(RunError):  # the error on its way out matters more
                self.write_status(state)
            raise
        self.write_status("finished")

    def write_status(self, state: str) -> None:
        if self.writes:
            done = state != "running"
            document = {
                "state": state,
                "step": self.step,
                "started": self._started,
                "ended": _now() if done else None,
                "seconds": round(self.seconds, 3),
            }
            write_json(self.path / "status.json", document)

    def write_json(self, name: str, document: Any) -> None:
        if self.writes:
            write_json(self.path / name, document)

    def write_quarantine(self, lines: list[dict[str, Any]]) -> None:
        """Writes quarantine.jsonl, one line for every row that was left out."""
        if self.writes:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_text(self.path / "quarantine.jsonl", text)

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl."""
        if self.writes:
            head = {"step": step, "epoch": round(epoch, 6), "split": split, "time": _now()}
            append_jsonl(self.path / "metrics.jsonl", head | dict(values))

    def cut_metrics(self, step: int) -> None:
        """Drops the lines of metrics.jsonl past `step`, which will be written again."""
        file = self.path / "metrics.jsonl"
        if not self.writes or not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):  # the line that the process died in
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        write_text(file, "".join(kept))


def comparable(recipe: RunRecipe) -> dict[str, Any]:
    """What of a recipe must not change between the parts of a run."""
    return recipe.model_dump(mode="json", exclude={"resume", "output_dir"})


def _differences(file: Path, recipe: RunRecipe) -> list[str]:
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    if not isinstance(stored, dict):
        raise RunError(f"{file}: not a recipe")
    then = _flat({k: v for k, v in stored.items() if k not in ("resume", "output_dir")})
    now = _flat(comparable(recipe))
    keys = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
    return [f"{k}: {then.get(k)} then, {now.get(k)} now" for k in keys]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for name, inner in value.items()
            for k, v in _flat(inner, f"{key}.{name}" if key else str(name)).items()
        }
    if isinstance(value, list) and value:
        return {
            k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{key}.{i}").items()
        }
    return {key: value}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
