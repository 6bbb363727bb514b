"""The run folder: opened or refused, filled, and finished; one for every verb that writes one.

recipe.yaml, status.json, data.json, quarantine.jsonl, lineage.json, metrics.jsonl, alarms.jsonl,
evaluation.json, conclusion.json, report.html, model/, checkpoints/, rollouts/, parts/
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from palate.errors import RecipeError, RunError
from palate.recipes import resolve_yaml
from palate.recipes.document import read_document
from palate.recipes.schema import RunRecipe
from palate.store.files import append_jsonl, write_text
from palate.store.folders import clean_folder, lock_folder
from palate.store.records import (
    AlarmRecord,
    Conclusion,
    Data,
    Evaluation,
    Lineage,
    MetricsLine,
    Record,
    Status,
    StepCost,
    read_record,
    write_record,
)
from palate.store.rollouts import FOLDER as ROLLOUTS

RECIPE, METRICS, QUARANTINE, PARTS = "recipe.yaml", "metrics.jsonl", "quarantine.jsonl", "parts"
ALARMS = "alarms.jsonl"
NAMES: dict[type[Record], str] = {
    Data: "data.json",
    Lineage: "lineage.json",
    Status: "status.json",
    Evaluation: "evaluation.json",
    Conclusion: "conclusion.json",
}
"""Records of a run folder and the files that hold them."""

_WORK = (
    *("model", "evaluation.json", "summary.json", "journal.jsonl", "questions", "asked"),
    *("stages", PARTS, ROLLOUTS),
)
"""Where any of these has content, something was computed that another run must not mix with."""

_LEFT = (
    METRICS,
    ALARMS,
    QUARANTINE,
    "samples.jsonl",
    "pairs.jsonl",
    "scores.jsonl",
    "examples.jsonl",
    "judge.yaml",
    "report.html",
)
"""Files that runs write besides, and would write over."""


class RunFolder:
    """Paths and records of one run.

    Args:
        recipe: of the run.
        path: default: the recipe's `output_dir`.
        writes: whether this process writes (of several, the main one) or only reads.

    Attributes:
        finished: the folder holds the finished run of this very recipe.
        step: for status.json.
        models: entries of the models that took part, for lineage.json.
        costs: of a step, for status.json, by their names there.

    Raises:
        RunError: the folder holds a run, and `resume` is off or the recipe another; or what a run
            leaves, without its recipe.
    """

    def __init__(self, recipe: RunRecipe, path: Path | None = None, *, writes: bool = True) -> None:
        self.recipe = recipe
        self.writes = writes
        self.path = path or recipe.output_dir
        self.step = 0
        self.models: list[dict[str, Any]] = []
        self.costs: dict[str, StepCost] = {}
        self._clock = time.monotonic()
        status = self._check()
        self.finished = status.state == "finished"
        self._started = status.started or _now()
        self._before = status.seconds or 0.0

    @classmethod
    @contextmanager
    def open(cls, recipe: RunRecipe, path: Path | None = None) -> Iterator[Self]:
        """A folder that is this process's alone, and whose status.json is true, while the block
        runs.

        Raises:
            RunError: as the class, and where another process writes to it.
        """
        with lock_folder(path or recipe.output_dir):
            folder = cls(recipe, path)
            with folder.running():
                yield folder

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

    @property
    def holds_work(self) -> bool:
        """Whether a run has left anything here that it computed."""
        log = self.path / METRICS
        return (
            any(_has_content(self.path / name) for name in _WORK)
            or (log.exists() and log.stat().st_size > 0)
            or any(self.checkpoints.glob("step-*"))
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps status.json true while the block runs, however it ends."""
        if self.writes:
            clean_folder(self.path)
            clean_folder(self.checkpoints)
            write_text(self.path / RECIPE, resolve_yaml(self.recipe))
            self.write_status("running")
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(RunError):  # the error on its way out matters more
                self.write_status(state)
            raise
        self.write_status("finished")

    # Records ----------------------------------------------------------------------------------

    def write_status(self, state: str) -> None:
        self.write(
            Status(
                state=state,
                step=self.step,
                started=self._started,
                ended=None if state == "running" else _now(),
                seconds=round(self.seconds, 3),
                **self.costs,
            )
        )

    def write(self, record: Record) -> None:
        """Writes a record to the file of its kind."""
        if self.writes:
            name = next(NAMES[kind] for kind in type(record).__mro__ if kind in NAMES)
            write_record(self.path / name, record)

    def write_quarantine(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes quarantine.jsonl, one line for every row that was left out."""
        self.write_lines(QUARANTINE, lines)

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file of one JSON object a line."""
        if self.writes:
            lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
            write_text(self.path / name, "".join(f"{line}\n" for line in lines))

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl."""
        if self.writes:
            head = {"step": step, "epoch": round(epoch, 6), "split": split, "time": _now()}
            append_jsonl(self.path / METRICS, MetricsLine.of(head | dict(values)).document())

    def log_alarm(self, alarm: AlarmRecord) -> None:
        """Appends a line to alarms.jsonl."""
        if self.writes:
            append_jsonl(self.path / ALARMS, alarm.document())

    def cut_metrics(self, step: int) -> None:
        """Drops the lines of metrics.jsonl and alarms.jsonl past `step`, which will be written
        again."""
        for name in (METRICS, ALARMS):
            file = self.path / name
            if not self.writes or not file.exists():
                continue
            kept = []
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):  # the line that the process died in
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            write_text(file, "".join(kept))

    # Opening ----------------------------------------------------------------------------------

    def _check(self) -> Status:
        file = self.path / RECIPE
        if not file.exists():
            if self.path.exists() and not self.path.is_dir():
                raise RunError(f"{self.path}: is a file; choose another output_dir")
            self._refuse_leftovers()
            return Status()
        record = self.path / NAMES[Status]
        status = read_record(record, Status) if record.exists() else Status()
        # Put right, a run that failed before it computed anything may use the folder again.
        if status.state in ("failed", "interrupted") and not self.holds_work:
            return Status()
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
        return status

    def _refuse_leftovers(self) -> None:
        """Refuses a folder that holds files of a run, and not its recipe."""
        names = dict.fromkeys([*_WORK, *NAMES.values(), *_LEFT])
        left = [name for name in names if _has_content(self.path / name)]
        left += [f"checkpoints/{path.name}" for path in sorted(self.checkpoints.glob("step-*"))]
        if left:
            raise RunError(
                f"{self.path}: holds {left[0]} and no {RECIPE} to tell whose it is; choose another "
                f"output_dir, or put the {RECIPE} back"
            )


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds a finished run."""
    record = folder / NAMES[Status]
    return record.exists() and read_record(record, Status).state == "finished"


def comparable(recipe: RunRecipe) -> dict[str, Any]:
    """The part of a recipe that must stay the same when a run is resumed."""
    return recipe.model_dump(mode="json", exclude={"resume", "output_dir"})


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _differences(file: Path, recipe: RunRecipe) -> list[str]:
    try:
        stored = read_document(file).value
    except RecipeError as error:
        raise RunError(str(error)) from error
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
