"""What the commands of a study print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from palate.store.durations import duration
from palate.study.plan import Plan, all_stages
from palate.study.run import StudyProgress, stage_states
from palate.study.study import Study


def plan_lines(study: Study) -> Iterator[str]:
    """The stages by step, what is there, what is shared, and what is not known yet."""
    plan = study.plan()
    records = {key: study.record(stage) for key, stage in plan.stages.items()}
    there = {key for key, record in records.items() if record is not None}
    yield (
        f"{_count(len(plan.cells), 'cell')}, {_count(len(plan.runs), 'run')}, "
        f"{_count(len(plan.stages), 'stage')}: {len(there)} finished, "
        f"{len(plan.stages) - len(there)} to run"
    )
    total: Counter[str] = Counter(stage.step for stage in plan.stages.values())
    reused: Counter[str] = Counter(plan.stages[key].step for key in there)
    asked = _asked(plan)
    for step, n in total.items():
        shared = f", for {_count(asked[step], 'run')}" if asked[step] > n else ""
        yield f"  {step}: {_count(n, 'stage')}{shared}, {reused[step]} finished"
    for line in plan.later:
        yield f"  later: {line}"


def _asked(plan: Plan) -> Counter[str]:
    """Step -> how many runs use a stage of it."""
    return Counter(step for run in plan.runs for step in run.stages)


def status_lines(study: Study) -> Iterator[str]:
    """A line a stage."""
    plan = study.plan()
    for key, record in stage_states(study, plan).items():
        if record is None:
            yield f"{'to run':>9}  {key}"
        elif record.state == "failed":
            yield f"{'failed':>9}  {key}: {record.error}"
        else:
            yield f"{record.state:>9}  {key}  {duration(record.seconds)}"
    for line in plan.later:
        yield f"{'later':>9}  {line}"


def progress_lines(study: Study, progress: StudyProgress) -> Iterator[str]:
    """What a call of `run` did, and what its sharing saved."""
    worked = sum(progress.executed.values())
    yield (
        f"{_count(len(progress.executed), 'stage')} run in {duration(progress.wall)}, "
        f"{duration(worked)} of it their own work; {progress.reused} were there"
    )
    plan = study.plan()
    seconds = {key: r.seconds for key, stage in plan.stages.items() if (r := study.record(stage))}
    together = sum(seconds.values())
    apart = sum(seconds.get(key, 0.0) for run in plan.runs for key in all_stages(plan, run))
    if apart > together > 0:
        yield (
            f"each run by itself would have taken {duration(apart)} of work, "
            f"{apart / together:.1f} times as much as all stages together ({duration(together)})"
        )
    for key, reason in progress.failed.items():
        yield f"failed: {key}: {reason}"
    for key, need in progress.blocked.items():
        yield f"left out: {key}: needs {need}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
