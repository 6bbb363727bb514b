"""`palate study run`: the stages that are missing, until the study is complete or cannot go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console

from palate.errors import PalateError, RunError
from palate.recipes.curation import LogRatioScores
from palate.recipes.load import resolve_yaml
from palate.recipes.scorers import parts_of
from palate.recipes.study import RayExecutor
from palate.store.durations import duration
from palate.store.files import append_jsonl, write_text
from palate.store.folders import lock_folder
from palate.store.stages import StageRecord, run_stages
from palate.study.artifacts import Artifacts
from palate.study.commands import as_stage, write_plan
from palate.study.costs import Costs
from palate.study.executors import Executor, Job, cores_of, local_processes
from palate.study.expectations import note_expectations
from palate.study.graph import StudyStage, ordered
from palate.study.plan import Plan
from palate.study.study import Study
from palate.study.yardsticks import scorers_in

RECIPE, RUNS = "study.yaml", "runs.jsonl"


@dataclass
class StudyProgress:
    """What became of the stages of one call of `run_study`.

    Attributes:
        executed: key -> seconds of work. failed: key -> why. blocked: key -> the failed stage.
        wall: seconds of the call.
    """

    executed: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    wall: float = 0.0

    @property
    def complete(self) -> bool:
        return not self.failed


def run_study(
    study: Study,
    *,
    console: Console | None = None,
    make_executor: Callable[[Study], Executor] | None = None,
) -> StudyProgress:
    """Runs what is missing of a study; what failed before is tried again.

    A stage that fails leaves out those that need it, and nothing else.

    Raises:
        RecipeError: the study is wrong or confounded; nothing was run.
        RunError: another process runs it.
    """
    console = console or Console(stderr=True)
    begun, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    plan = study.plan()
    progress = StudyProgress()
    with lock_folder(study.root):
        write_text(study.root / RECIPE, resolve_yaml(study.recipe))
        note_expectations(study, plan)
        executor = make_executor(study) if make_executor else _executor(study)
        try:
            while True:
                _run_plan(study, plan, executor, progress, console)
                later = study.plan()
                if later.stages.keys() == plan.stages.keys():
                    break
                plan = later
        finally:
            executor.close()
            progress.wall = time.monotonic() - begun
            append_jsonl(
                study.root / RUNS,
                {
                    "started": started,
                    "seconds": round(progress.wall, 3),
                    "executed": progress.executed,
                    "failed": progress.failed,
                },
            )
    progress.reused = len(plan.stages) - len(progress.executed) - len(progress.failed)
    return progress


def build_data(study: Study, plan: Plan, says: Callable[[str], None]) -> bool:
    """Builds the pairs that trials of costs read, as the stages that they are: `run` finds them.

    Builds that wait for another stage, or that run a model, are left to `run`; one that fails as
    well, which tells it.

    Args:
        says: told of each build before it begins.

    Returns:
        Whether something was built.
    """
    missing = [
        stage
        for stage in ordered(plan.stages)
        if stage.verb == "data build"
        and not study.finished(stage)
        and not scorers_in(plan, stage.recipe)
        and not any(isinstance(part, LogRatioScores) for _, part in parts_of(stage.recipe))
    ]
    if not missing:
        return False
    with lock_folder(study.root):
        for stage in missing:
            if all(study.finished(plan.stages[need]) for need in stage.needs):
                says(f"building {stage.key}, whose pairs trials read")
                with suppress(PalateError):
                    run_stages([as_stage(stage)], study.root)
    return True


def _executor(study: Study) -> Executor:
    chosen = study.recipe.executor
    if isinstance(chosen, RayExecutor):
        from palate.study.ray import RayJobs

        return RayJobs(chosen, study.root)
    return local_processes(chosen, study.root)


def _run_plan(
    study: Study, plan: Plan, executor: Executor, progress: StudyProgress, console: Console
) -> None:
    """Runs the stages of a plan, each when those that it needs are finished."""
    address = study.recipe.artifacts
    write_plan(study.root, plan.stages, artifacts=address)
    artifacts = None if address is None else Artifacts(address)
    if artifacts is not None:
        for stage in ordered(plan.stages):
            artifacts.fetch(study.root, stage)
    going = _Going(study, plan, executor, progress, console)
    while going.begin():
        for key, failure in executor.wait().items():
            if artifacts is not None:
                artifacts.fetch(study.root, plan.stages[key])
            going.ended(key, failure)


class _Going:
    """The stages of a plan while they are run: those that wait, those that run, those that are
    done."""

    def __init__(
        self,
        study: Study,
        plan: Plan,
        executor: Executor,
        progress: StudyProgress,
        console: Console,
    ) -> None:
        self.study, self.plan, self.executor = study, plan, executor
        self.progress, self.console = progress, console
        self.done = {stage.key for stage in plan.stages.values() if study.finished(stage)}
        self.running: set[str] = set()
        self.waiting = [s for s in ordered(plan.stages) if s.key not in self.done]
        # Of former trials: a run does not wait for new ones.
        self.costs = Costs(study.root, probe=False)

    def begin(self) -> bool:
        """Begins what can begin; whether anything runs."""
        left: list[StudyStage] = []
        for stage in self.waiting:
            if self._blocked(stage):
                continue
            job = _job(self.study, self.plan, stage, self.costs)
            ready = all(need in self.done for need in stage.needs)
            if ready and self.executor.has_room(job):
                number = len(self.done) + len(self.running) + 1
                head = f"[bold]{number}/{len(self.plan.stages)} {stage.key}[/bold]"
                self.console.print(head, highlight=False)
                self.executor.begin(job)
                self.running.add(stage.key)
            else:
                left.append(stage)
        self.waiting = left
        return bool(self.running)

    def _blocked(self, stage: StudyStage) -> bool:
        """Whether it has failed, or needs one that has."""
        failed, blocked = self.progress.failed, self.progress.blocked
        lacking = [need for need in stage.needs if need in failed or need in blocked]
        if lacking:
            blocked[stage.key] = blocked.get(lacking[0], lacking[0])
        return bool(lacking) or stage.key in failed

    def ended(self, key: str, failure: str | None) -> None:
        """Notes what became of a stage."""
        self.running.discard(key)
        record = self.study.record(self.plan.stages[key])
        if record is None:
            reason = self.progress.failed[key] = failure or "left no result"
            self.console.print(f"  {key} failed: {reason}", highlight=False, markup=False)
        else:
            self.done.add(key)
            self.progress.executed[key] = record.seconds
            self.console.print(f"  {key}: {duration(record.seconds)}", highlight=False)


def _job(study: Study, plan: Plan, stage: StudyStage, costs: Costs) -> Job:
    executor = study.recipe.executor
    if isinstance(executor, RayExecutor):
        return Job(key=stage.key, cores=executor.cores_per_stage)
    cores = executor.cores_per_stage or cores_of(executor)
    cost = costs.of(stage, plan)
    return Job(key=stage.key, cores=cores, memory_bytes=None if cost is None else cost.memory_bytes)


def stage_states(study: Study, plan: Plan) -> Mapping[str, StageRecord | None]:
    """Key -> the record of each stage of a plan as it is on the disk; None where there is none."""
    from palate.store.records import read_record
    from palate.store.stages import FOLDER

    states: dict[str, StageRecord | None] = {}
    for stage in ordered(plan.stages):
        file = study.root / FOLDER / f"{stage.key}.json"
        try:
            states[stage.key] = read_record(file, StageRecord) if file.exists() else None
        except RunError:
            states[stage.key] = None
    return states
