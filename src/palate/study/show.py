"""What the commands of a study print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from palate.store.durations import duration
from palate.study.commands import MEMORY
from palate.study.costs import Costs
from palate.study.graph import ordered
from palate.study.plan import Plan, seconds_apart
from palate.study.run import StudyProgress, build_data, stage_states
from palate.study.study import Study


def plan_lines(study: Study, *, probe: bool, says: Callable[[str], None]) -> Iterator[str]:
    """The stages by step, what is there, what they take, and what is not known yet.

    Args:
        probe: make trials of what is not known to take how long, and build the pairs they read.
        says: told of each trial and build before it begins.
    """
    plan = study.plan()
    if probe and build_data(study, plan, says):
        # The rows may be refused, as prompts that are evaluated too.
        plan = study.plan()
    records = {key: study.record(stage) for key, stage in plan.stages.items()}
    there = {key for key, record in records.items() if record is not None}
    yield (
        f"{_count(len(plan.cells), 'cell')}, {_count(len(plan.runs), 'run')}, "
        f"{_count(len(plan.stages), 'stage')}: {len(there)} finished, "
        f"{len(plan.stages) - len(there)} to run"
    )
    costs = Costs(study.root, probe=probe, says=says)
    asked = _asked(plan)
    seconds = 0.0
    most = 0
    for step in dict.fromkeys(stage.step for stage in ordered(plan.stages)):
        stages = [stage for stage in plan.stages.values() if stage.step == step]
        missing = [stage for stage in stages if stage.key not in there]
        line = f"  {step}: {_count(len(stages), 'stage')}"
        if asked[step] > len(stages):
            line += f" for {_count(asked[step], 'run')}"
        line += f", {len(stages) - len(missing)} finished"
        known = [cost for stage in missing if (cost := costs.of(stage, plan)) is not None]
        if known:
            total = sum(cost.seconds for cost in known)
            # Of stages of one shape the first spends what all share.
            total += max(cost.shared for cost in known)
            memory = max(cost.memory_bytes for cost in known)
            seconds, most = seconds + total, max(most, memory)
            line += f"; about {duration(total)} to run, at most {memory / 1e9:.1f} GB a process"
        yield line
    for line in plan.later:
        yield f"  later: {line}"
    if seconds:
        rest = ", besides what is not predicted" if costs.notes else ""
        yield (
            f"about {duration(seconds)} in all, one stage at a time{rest}; at most "
            f"{most / 1e9:.1f} GB"
        )
    for step, reason in costs.notes.items():
        yield f"not predicted: {step}: {reason}"


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
    plan = study.plan()
    records = [study.record(plan.stages[key]) for key in progress.executed if key in plan.stages]
    most = max((record.result.get(MEMORY, 0) for record in records if record), default=0)
    held = f", at most {most / 1e9:.1f} GB a process" if most else ""
    yield (
        f"{_count(len(progress.executed), 'stage')} run in {duration(progress.wall)}, "
        f"{duration(worked)} of it their own work{held}; {progress.reused} were there"
    )
    seconds = study.seconds(plan)
    together, apart = sum(seconds.values()), seconds_apart(plan, seconds)
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
