"""Running: each stage once, whatever stops it; failures leave out what needs them and no more."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from palate.errors import RunError
from palate.store.files import read_json
from palate.store.folders import lock_folder
from palate.study import commands
from palate.study.commands import read_stage, run_stage
from palate.study.executors import Job, LocalProcesses
from palate.study.graph import REFERENCE_CACHE
from palate.study.outcomes import outcomes_of
from palate.study.run import Study, StudyProgress, run_study, stage_states
from study_cases import (
    ACCURACY,
    FakeExecutor,
    algorithm,
    aspect,
    data,
    evaluation_step,
    keys_by_run,
    policy_step,
    recipe,
    study_of,
    tuning,
    validating,
)
from tiny_text import save_tiny

GRID = recipe(design={"type": "grid"})
QUIET = Console(file=io.StringIO())


def run(value: dict[str, Any], **options: Any) -> tuple[StudyProgress, list[str]]:
    """Runs a study without its work: what became of it, and the stages in the order they began."""
    executors: list[FakeExecutor] = []

    def make(study: Study) -> FakeExecutor:
        executors.append(FakeExecutor(study, **options))
        return executors[-1]

    progress = run_study(study_of(value), console=QUIET, make_executor=make)
    assert executors[0].closed
    return progress, executors[0].begun


def results(value: dict[str, Any]) -> dict[str, Any]:
    """Outcomes of every compared run, and the records of all stages without time and memory."""
    study = study_of(value)
    plan = study.plan()
    measure = study.recipe.measures[0]
    outcomes = {
        (run.cell.name, run.seed): outcomes_of(
            study.root / run.stages[measure.step], study.recipe, measure
        )
        for run in plan.compared
    }
    records = {
        key: record
        and (record.key, record.state, record.result.keys() - {commands.MEMORY}, record.folder)
        for key, record in stage_states(study, plan).items()
    }
    return {"outcomes": outcomes, "records": records}


def test_every_stage_is_executed_once_and_never_again() -> None:
    plan = study_of(GRID).plan()
    progress, begun = run(GRID)
    assert sorted(begun) == sorted(plan.stages) and len(begun) == len(set(begun))
    assert progress.executed.keys() == plan.stages.keys()
    assert (progress.reused, progress.failed, progress.complete) == (0, {}, True)
    again, begun = run(GRID)
    assert begun == [] and again.executed == {}
    assert again.reused == len(plan.stages)


def test_executed_is_what_is_distinct_less_what_was_there() -> None:
    small = recipe(aspects=[algorithm()])
    there = run(small)[0].executed.keys()
    plan = study_of(GRID).plan()
    progress, begun = run(GRID)
    assert set(begun) == plan.stages.keys() - there
    assert progress.reused == len(there)


def test_a_changed_variant_runs_its_descendants_alone() -> None:
    run(GRID)
    third = {"name": "c", "set": {"policy.data.train": [{"path": "c.jsonl"}]}}
    value = GRID | {"aspects": [algorithm(), data(third)]}
    plan = study_of(value).plan()
    _, begun = run(value)
    expected = {key for (cell, _, _), key in keys_by_run(plan).items() if cell.endswith("c")}
    expected |= {need for key in expected for need in plan.stages[key].needs}
    assert set(begun) == expected


def test_a_moved_study_is_still_finished() -> None:
    run(GRID)
    shutil.move("out", "elsewhere")
    progress, begun = run(GRID | {"output_dir": "elsewhere"})
    assert begun == [] and progress.complete


def test_a_stage_of_a_moved_study_reads_where_it_is_now(tmp_path: Path) -> None:
    run(GRID)
    key = next(key for key in study_of(GRID).plan().stages if key.startswith("evaluation"))
    before: Any = read_stage(Path("out"), key).recipe
    shutil.move("out", "elsewhere")
    stage: Any = read_stage(tmp_path / "elsewhere", key)
    assert [path.parent for path in before.runs] == [Path("out")]
    assert [path.parent for path in stage.recipe.runs] == [tmp_path / "elsewhere"]
    assert stage.recipe.results_dir == tmp_path / "elsewhere" / "results"
    assert stage.recipe.output_dir == tmp_path / "elsewhere" / key
    assert stage.recipe.data[0].path == "test.jsonl"


@pytest.mark.parametrize("stops", [0, 7, 19])
def test_interrupted_anywhere_it_goes_on_to_the_same_results(stops: int) -> None:
    whole = GRID | {"output_dir": "whole"}
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(GRID, stops=stops)
    lines = Path("out/runs.jsonl").read_text().splitlines()
    assert len(json.loads(lines[-1])["executed"]) == stops
    progress, _ = run(GRID)
    assert progress.reused == stops
    assert results(GRID) == results(whole)


def test_a_failed_stage_leaves_out_what_needs_it_and_is_tried_again() -> None:
    other = evaluation_step("second", runs=[], model={"path": "base"})
    value = GRID | {
        "steps": [policy_step(), evaluation_step(), other],
        "measures": [ACCURACY, ACCURACY | {"name": "base", "step": "second"}],
    }
    stages = study_of(value).plan().stages
    progress, begun = run(value, fails=["policy"])
    policies = {key for key in stages if stages[key].step == "policy"}
    evaluations = {key for key in stages if stages[key].step == "evaluation"}
    assert progress.failed == dict.fromkeys(policies, "no luck")
    assert progress.blocked == {key: stages[key].needs[0] for key in evaluations}
    assert progress.executed.keys() == stages.keys() - policies - evaluations
    assert not progress.complete
    assert not set(begun) & evaluations
    again, begun = run(value)
    assert set(begun) == policies | evaluations
    assert again.complete
    whole = value | {"output_dir": "whole"}
    run(whole)
    assert results(value) == results(whole)


def test_trials_are_followed_by_the_runs_that_they_choose() -> None:
    value = validating(aspects=[algorithm()], tuning=tuning())
    progress, begun = run(value)
    plan = study_of(value).plan()
    assert len(plan.compared) == 4 and plan.later == []
    assert set(begun) == plan.stages.keys()
    assert len(begun) == len(set(begun))
    assert progress.complete


def test_a_failed_trial_ends_the_study_and_not_the_program() -> None:
    value = validating(aspects=[algorithm()], tuning=tuning())
    progress, _ = run(value, fails=["validation"])
    assert len(progress.failed) == 4
    assert study_of(value).plan().compared == []


def test_a_second_runner_is_refused_in_a_line() -> None:
    with lock_folder(Path("out")), pytest.raises(RunError) as caught:
        run(GRID)
    assert str(caught.value) == (
        "out: another process writes to it: wait for it, or choose another output_dir"
    )


def test_a_folder_that_is_a_file() -> None:
    Path("out").write_text("mine")
    with pytest.raises(RunError, match="out: is a file; choose another output_dir"):
        run(GRID)
    assert Path("out").read_text() == "mine"


@pytest.mark.parametrize("place", ["out", ".", "a b/c", "deep/er"])
def test_what_else_is_in_the_folder_stays(place: str) -> None:
    Path(place).mkdir(parents=True, exist_ok=True)
    Path(place, "notes.txt").write_text("mine")
    value = GRID | {"output_dir": place}
    progress, _ = run(value)
    assert progress.complete
    assert Path(place, "notes.txt").read_text() == "mine"
    assert run(value)[1] == []


def test_more_at_once_when_there_is_room() -> None:
    progress, begun = run(GRID, room=3)
    assert progress.complete and len(begun) == len(set(begun))


def test_room_is_of_cores_and_of_memory_that_is_known() -> None:
    executor = LocalProcesses(root=Path("out"), cores=4, memory_bytes=100)
    running: Any = executor._running
    assert executor.has_room(Job(key="huge", cores=9, memory_bytes=900))
    running["a"] = (Job(key="a", cores=2, memory_bytes=60), None)
    assert executor.has_room(Job(key="b", cores=2, memory_bytes=40))
    assert not executor.has_room(Job(key="b", cores=3, memory_bytes=40))
    assert not executor.has_room(Job(key="b", cores=2, memory_bytes=41))
    assert not executor.has_room(Job(key="b", cores=2))


def test_a_stage_whose_need_is_not_finished_is_refused() -> None:
    study = study_of(GRID)
    plan = study.plan()
    study.root.mkdir()
    commands.write_plan(study.root, plan.stages)
    key = next(key for key in plan.stages if key.startswith("evaluation"))
    (need,) = plan.stages[key].needs
    with pytest.raises(RunError) as caught:
        run_stage(study.root, key)
    assert str(caught.value) == f"{key}: needs {need}, which is not finished"


def test_several_at_once_still_wait_for_their_needs() -> None:
    # The executor looks itself whether needs are finished.
    progress, begun = run(GRID, room=8)
    assert progress.complete and len(begun) == len(study_of(GRID).plan().stages)


def test_a_stage_runs_where_its_study_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may start anywhere, and paths of recipes are relative."""
    study = study_of(GRID)
    plan = study.plan()
    study.root.mkdir()
    commands.write_plan(study.root, plan.stages)
    places: list[Path] = []
    monkeypatch.setattr(commands, "_command", lambda verb: lambda _: places.append(Path.cwd()))
    key = next(stage.key for stage in plan.stages.values() if stage.verb == REFERENCE_CACHE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = study.root.resolve()
    monkeypatch.chdir(elsewhere)
    run_stage(root, key)
    assert places == [tmp_path]


# Of processes: work is replaced by what writes a file, or waits.


def fork_work(monkeypatch: pytest.MonkeyPatch, work: Callable[[str, Any], None]) -> None:
    """Stages of processes to come do this in place of their commands."""

    def command(verb: str) -> Callable[[Any], Any]:
        return (lambda recipe: 0) if verb == REFERENCE_CACHE else partial(work, verb)

    monkeypatch.setattr(commands, "_command", command)
    monkeypatch.setattr(commands, "is_finished", lambda folder: (folder / "done").exists())


def forked(study: Study) -> LocalProcesses:
    """Local processes that are forked from this one, its replaced work and all."""
    executor = LocalProcesses(root=study.root, cores=2, memory_bytes=10**9)
    executor._context = multiprocessing.get_context("fork")
    return executor


def write_outcomes(verb: str, recipe: Any) -> None:
    folder = recipe.output_dir
    folder.mkdir(exist_ok=True)
    row = {"policy": "p", "checkpoint": 1, "id": "1", "prompt_id": "1", "source": "test"}
    row["log_ratio_margin"] = 0.0
    (folder / "pairs.jsonl").write_text(json.dumps(row | {"margin": 1.0}) + "\n")
    (folder / "done").write_text("")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")


def slow_policy(verb: str, recipe: Any) -> None:
    """A policy that says that it has begun, and then takes long; half of it is there by then."""
    if verb == "tune":
        recipe.output_dir.mkdir(exist_ok=True)
        (recipe.output_dir / "half").write_text("")
        Path("begun").write_text(str(os.getpid()))
        time.sleep(60)
    write_outcomes(verb, recipe)


@forks
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_runner_leaves_no_process_and_the_next_goes_on(
    how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = recipe(aspects=[algorithm()], seeds=[0])
    fork_work(monkeypatch, slow_policy)
    context: Any = multiprocessing.get_context("fork")

    def runner() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_study(study_of(value), console=QUIET, make_executor=forked)

    process = context.Process(target=runner)
    process.start()
    wait_until(lambda: Path("begun").exists() and Path("begun").read_text() != "")
    os.kill(process.pid, how)
    process.join(20)
    assert not process.is_alive()
    worker = int(Path("begun").read_text())
    wait_until(lambda: not alive(worker), 10)
    states = stage_states(study_of(value), study_of(value).plan())
    assert {record.state for record in states.values() if record} == {"finished"}
    fork_work(monkeypatch, write_outcomes)
    progress = run_study(study_of(value), console=QUIET, make_executor=forked)
    assert progress.complete and progress.reused == sum(map(bool, states.values()))
    whole = value | {"output_dir": "whole"}
    run_study(study_of(whole), console=QUIET, make_executor=forked)
    assert results(value) == results(whole)


@forks
def test_failures_of_processes_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(verb: str, recipe: Any) -> None:
        if verb == "eval":
            return write_outcomes(verb, recipe)
        if recipe.loss.type == "dpo":
            raise RunError("the disk\nis full")
        os.kill(os.getpid(), signal.SIGKILL)

    value = recipe(aspects=[algorithm()], seeds=[0])
    fork_work(monkeypatch, fails)
    # Not what pytest puts in its place, which does not go to the log.
    monkeypatch.setattr(sys, "stderr", os.fdopen(2, "w", closefd=False))
    printed = io.StringIO()
    progress = run_study(
        study_of(value), console=Console(file=printed, width=200), make_executor=forked
    )
    plan = study_of(value).plan()
    dpo, tdpo2 = (run.stages["policy"] for run in plan.compared)
    assert progress.failed == {
        dpo: "the disk is full (exit status 2)",
        tdpo2: "ended by signal 9",
    }
    assert len(progress.blocked) == 2
    assert f"{dpo} failed: the disk is full (exit status 2)" in printed.getvalue()
    states = stage_states(study_of(value), plan)
    assert states[dpo] is not None and states[dpo].state == "failed"
    assert states[tdpo2] is None
    fork_work(monkeypatch, write_outcomes)
    assert run_study(study_of(value), console=QUIET, make_executor=forked).complete


# Of real stages.


@forks
def test_a_killed_policy_goes_on_to_the_same_weights() -> None:
    save_tiny(Path("tiny"))
    train = {"batch_size_pairs": 2, "learning_rate": 0.01, "save_every_steps": 1, "layout": "plain"}
    model = {"path": "tiny", "dtype": "float32", "lora": {"r": 2}}
    reference = {"kind": "adapter_off"}
    value = recipe(
        seeds=[0],
        steps=[policy_step(model=model, train=train, reference=reference), evaluation_step()],
        aspects=[aspect("rate", {"policy.loss.beta": 0.2})],
        budget={"updates": 4},
    )
    weights = {}
    for place in ("out", "whole"):
        study = study_of(value | {"output_dir": place})
        plan = study.plan()
        study.root.mkdir()
        commands.write_plan(study.root, plan.stages)
        key = plan.compared[0].stages["policy"]
        if place == "out":
            kill_at_a_checkpoint(study.root, key)
            assert study.record(plan.stages[key]) is None
        assert run_stage(study.root, key).state == "finished"
        (file,) = (study.root / key / "model").glob("*.safetensors")
        weights[place] = load_file(file)
        assert read_json(study.root / "stages" / f"{key}.json")["state"] == "finished"
    assert weights["out"].keys() == weights["whole"].keys()
    for name, tensor in weights["out"].items():
        assert tensor.equal(weights["whole"][name]), name


def kill_at_a_checkpoint(root: Path, key: str) -> None:
    """Begins a stage in a process, and kills that when it has written a first checkpoint."""
    context: Any = multiprocessing.get_context("fork")
    process = context.Process(target=commands.stage_process, args=(str(root), key, "log", 1))
    process.start()
    wait_until(lambda: any((root / key / "checkpoints").glob("*")) or not process.is_alive())
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL, Path("log").read_text()
