"""Work in stages: each is done once, and a run that was stopped goes on with what is missing.

A stage has a key, the digest of everything that its result depends on: its name and version, its
inputs, this code's version, and the keys of the stages it needs. What it gave is recorded below the
folder of the run, in `stages/<name>.json`; a stage whose record has its key is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console

from palate.errors import RunError
from palate.store.digests import sha256_json
from palate.store.durations import duration
from palate.store.folders import clean_folder, whole_folder
from palate.store.records import Record, read_record, write_record
from palate.store.versions import __version__

FOLDER = "stages"
Result = dict[str, Any]
Results = Mapping[str, Result]
"""What finished stages gave, by name, as it is read from their records."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of work.

    Attributes:
        name: of its record and of its folder, `<run>/<name>`.
        inputs: everything the result depends on beside the stages it needs, as JSON.
        run: does the work; told its folder and the results of finished stages. What it returns is
            recorded, as JSON.
        needs: names of the stages that must be finished first.
        version: raised whenever the same inputs would give another result.
        title: what to tell the user when it begins; nothing is told of a stage without.
        whole: the folder is filled under another name and put in its place in one step. Otherwise
            `run` is given the folder as it is, which may hold half of its own work to go on with.
        always: it is run each time, and not recorded: cheap, or of effect beyond its folder.
        seconds: it takes on two cores, where known.
    """

    name: str
    run: Callable[[Path, Results], Result | None]
    inputs: Any = None
    needs: tuple[str, ...] = ()
    version: int = 1
    title: str = ""
    whole: bool = False
    always: bool = False
    seconds: float | None = None


class StageRecord(Record):
    """What became of a stage.

    Attributes:
        state: finished; failed, by an error; skipped, because a stage that it needs is not there.
        folder: it left one behind.
    """

    name: str
    key: str
    state: Literal["finished", "failed", "skipped"]
    started: str | None = None
    seconds: float = 0.0
    folder: bool = False
    result: Result = Field(default_factory=dict)
    error: str | None = None


def keys_of(stages: Sequence[Stage]) -> dict[str, str]:
    """Name -> key, in an order in which each stage stands after those that it needs.

    Raises:
        ValueError: two stages of one name, or one that needs a stage that is not there.
        graphlib.CycleError: stages that need each other.
    """
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) < len(stages):
        raise ValueError(f"stages of one name: {[stage.name for stage in stages]}")
    keys: dict[str, str] = {}
    order = TopologicalSorter({stage.name: stage.needs for stage in stages})
    order.prepare()
    places = {name: place for place, name in enumerate(by_name)}
    while order.is_active():
        ready = order.get_ready()
        if unknown := set(ready) - by_name.keys():
            raise ValueError(f"no stage of the name {', '.join(sorted(unknown))}")
        for name in sorted(ready, key=places.__getitem__):
            stage = by_name[name]
            keys[name] = sha256_json(
                {
                    "name": name,
                    "version": stage.version,
                    "palate": __version__,
                    "inputs": stage.inputs,
                    "needs": {need: keys[need] for need in sorted(stage.needs)},
                }
            )[:32]
        order.done(*ready)
    return keys


def finished_record(root: Path, stage: Stage) -> StageRecord | None:
    """The record of a stage without needs that is finished below `root`; None where it is not."""
    return _finished(root, stage, keys_of([stage])[stage.name])


def run_stages(
    stages: Sequence[Stage],
    root: Path,
    *,
    console: Console | None = None,
    keep_going: bool = False,
) -> dict[str, StageRecord]:
    """Runs stages in the order of their needs, those that are finished already left out.

    Args:
        root: folder of the run; the stages' folders and records are below it.
        console: of the lines that say which stage begins, and how long the rest will take.
        keep_going: after an error go on with the stages that do not need the one that failed.

    Returns:
        Name -> what became of the stage.

    Raises:
        Exception: what a stage raised, unless `keep_going`.
    """
    keys = keys_of(stages)
    by_name = {stage.name: stage for stage in stages}
    clean_folder(root)
    records: dict[str, StageRecord] = {}
    progress = _Progress([by_name[name] for name in keys], console)
    for name, key in keys.items():
        stage = by_name[name]
        lacking = [need for need in stage.needs if records[need].state != "finished"]
        if lacking:
            error = f"needs {', '.join(lacking)}"
            records[name] = StageRecord(name=name, key=key, state="skipped", error=error)
            continue
        known = None if stage.always else _finished(root, stage, key)
        with progress.stage(stage, known is not None):
            records[name] = known or _run(stage, key, root, records, keep_going)
    return records


def _finished(root: Path, stage: Stage, key: str) -> StageRecord | None:
    """The record of a stage that need not be run."""
    file = root / FOLDER / f"{stage.name}.json"
    if not file.exists():
        return None
    record = read_record(file, StageRecord)
    there = (root / stage.name).exists() or not record.folder
    return record if (record.key, record.state) == (key, "finished") and there else None


def _run(
    stage: Stage, key: str, root: Path, records: Mapping[str, StageRecord], keep_going: bool
) -> StageRecord:
    results = {name: record.result for name, record in records.items()}
    folder, file = root / stage.name, root / FOLDER / f"{stage.name}.json"
    begun, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")

    def record(state: Literal["finished", "failed"], **more: Any) -> StageRecord:
        seconds = round(time.monotonic() - begun, 3)
        made = StageRecord(
            name=stage.name, key=key, state=state, started=started, seconds=seconds, **more
        )
        if not stage.always:
            write_record(file, made)
        # As a later run will read it.
        return StageRecord.of(made.document())

    try:
        if stage.whole:
            with whole_folder(folder) as temporary:
                result = stage.run(temporary, results)
        else:
            result = stage.run(folder, results)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        if keep_going:
            return record("failed", error=line)
        with suppress(RunError):  # the error on its way out matters more
            record("failed", error=line)
        raise
    return record("finished", result=result or {}, folder=folder.exists())


class _Progress:
    """Says which stage begins and how long the rest will take."""

    def __init__(self, stages: Sequence[Stage], console: Console | None) -> None:
        self.console = console
        self.left = [stage for stage in stages if stage.title]
        self.total = len(self.left)
        self.took = 0.0
        self.expected = 0.0

    @contextmanager
    def stage(self, stage: Stage, finished: bool) -> Iterator[None]:
        if stage.title and self.console is not None:
            number = self.total - len(self.left) + 1
            line = f"[bold]{number}/{self.total} {stage.title}[/bold]{self._time_left()}"
            self.console.print(line, highlight=False)
            if finished:
                self.console.print("  finished before", highlight=False)
        begun = time.monotonic()
        yield
        took = time.monotonic() - begun
        self.left = [later for later in self.left if later is not stage]
        # What a former run has finished takes no time and says nothing of this machine.
        if stage.seconds is not None and took > 0.2 * stage.seconds:
            self.took += took
            self.expected += stage.seconds

    def _time_left(self) -> str:
        known = [stage.seconds for stage in self.left if stage.seconds is not None]
        if len(known) < len(self.left):
            return ""
        scale = self.took / self.expected if self.expected else 1.0
        return f" (about {duration(sum(known) * scale)} left)"
