"""What a stage's command does, in its own process."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palate.errors import PalateError, RunError
from palate.memory import peak_bytes
from palate.recipes.load import RECIPES, check_recipe
from palate.recipes.schema import TuneRecipe
from palate.store.files import read_json, write_json
from palate.store.folder import is_finished
from palate.store.stages import Result, Stage, StageRecord, finished_record, run_stages
from palate.study.graph import REFERENCE_CACHE, StudyStage, ordered

PLAN = "plan.json"
MEMORY = "memory_bytes"
"""Of a stage's result: the most that its process held."""
HERE = "study:"
"""Stands in a plan for the study's folder."""
_COMMANDS = {
    "data build": ("palate.data_verbs", "build_data"),
    "sft": ("palate.train", "sft"),
    "tune": ("palate.train", "tune"),
    "reward": ("palate.train", "reward"),
    "rl": ("palate.train.rl_run", "rl"),
    REFERENCE_CACHE: ("palate.train.run", "fill_reference_cache"),
    "eval": ("palate.evaluate", "evaluate"),
    "eval reward": ("palate.evaluate.reward", "evaluate_rewards"),
    "eval tasks": ("palate.evaluate.tasks", "evaluate_tasks"),
}
"""Verb -> the module and function that run it."""
PRELOADED = (
    *("palate.data_verbs", "palate.train.run", "palate.train.reward_run", "palate.train.rl_run"),
    "palate.evaluate.run",
    *("palate.evaluate.reward.run", "palate.evaluate.tasks", "palate.report"),
)
"""Modules that commands of stages load; none starts threads that a forked process would miss."""


def write_plan(root: Path, stages: dict[str, StudyStage], *, artifacts: str | None = None) -> None:
    """Writes what `palate stage` needs to run any of these stages.

    Args:
        artifacts: where finished stages are kept besides.
    """
    entries = {
        stage.key: {
            "step": stage.step,
            "verb": stage.verb,
            "needs": list(stage.needs),
            "inputs": dict(stage.inputs),
            "recipe": _moved(stage.recipe.model_dump(mode="json"), str(root), HERE),
        }
        for stage in ordered(stages)
    }
    plan = {"stages": entries, "artifacts": artifacts, "directory": os.getcwd()}
    write_json(root / PLAN, plan)


def read_stage(root: Path, key: str) -> StudyStage:
    """A stage of a study's plan.

    Raises:
        RunError: no plan, or no such stage.
    """
    file = root / PLAN
    if not file.exists():
        raise RunError(f"{root}: holds no {PLAN}; `palate study plan RECIPE` writes it")
    entries = read_json(file)["stages"]
    if key not in entries:
        raise RunError(f"{file}: no stage {key}")
    entry: dict[str, Any] = entries[key]
    cls = TuneRecipe if entry["verb"] == REFERENCE_CACHE else RECIPES[entry["verb"]]
    document = _moved(entry["recipe"], HERE, str(root)) | {"output_dir": str(root / key)}
    return StudyStage(
        key=key,
        step=entry["step"],
        verb=entry["verb"],
        recipe=check_recipe(cls, document, f"{file}, {key}"),
        needs=tuple(entry["needs"]),
        inputs=entry["inputs"],
    )


def _moved(value: Any, before: str, after: str) -> Any:
    """A recipe whose paths in the study's folder are in another one: it may have been moved."""
    if isinstance(value, dict):
        return {key: _moved(inner, before, after) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, before, after) for inner in value]
    if isinstance(value, str) and value.startswith(f"{before}/"):
        return f"{after}{value.removeprefix(before)}"
    return value


def as_stage(stage: StudyStage) -> Stage:
    """The stage for `palate.store.stages`: its key covers its needs."""
    return Stage(
        name=stage.key,
        inputs=dict(stage.inputs),
        run=lambda folder, _: _run(stage, folder),
    )


def run_stage(root: Path, key: str) -> StageRecord:
    """Runs one stage of a study in this process; a stage that was interrupted goes on.

    Raises:
        RunError: no such stage, or one that it needs is not finished.
        PalateError: what the command raises.
    """
    from palate.study.artifacts import Artifacts

    root = root.resolve()
    stage = read_stage(root, key)
    plan = read_json(root / PLAN)
    # Paths of recipes are relative to where the study was begun; a job may start elsewhere.
    directory = plan.get("directory")
    if directory is not None and Path(directory).is_dir():
        os.chdir(directory)
    address = plan.get("artifacts")
    artifacts = None if address is None else Artifacts(address)
    _command(stage.verb)  # so that its time is that of its work
    for need in stage.needs:
        needed = read_stage(root, need)
        if artifacts is not None:
            artifacts.fetch(root, needed)
        if finished_record(root, as_stage(needed)) is None:
            raise RunError(f"{key}: needs {need}, which is not finished")
    record = run_stages([as_stage(stage)], root)[key]
    if artifacts is not None:
        artifacts.push(root, stage)
    return record


def _command(verb: str) -> Callable[[Any], Any]:
    """The function that runs a verb's recipe; loads what it needs."""
    module, name = _COMMANDS[verb]
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return function


def _run(stage: StudyStage, folder: Path) -> Result:
    command = _command(stage.verb)
    recipe: Any = stage.recipe
    begun = (folder / "recipe.yaml").exists()
    # The folder of a data set is there when it is complete, and not before.
    finished = begun if stage.verb == "data build" else is_finished(folder)
    if stage.verb == REFERENCE_CACHE:
        command(recipe)
    elif not finished:
        resume = begun or stage.verb == "data build"
        command(recipe.model_copy(update={"resume": resume}))
    return {MEMORY: peak_bytes()}


def stage_process(root: str, key: str, log: str, cores: int) -> None:
    """`palate stage KEY` in a process that was forked for it; its output goes to a file."""
    import torch

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    end_with_parent()
    torch.set_num_threads(cores)
    try:
        run_stage(Path(root), key)
    except PalateError as error:
        print(f"palate: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)


def end_with_parent(seconds: float = 1.0) -> None:
    """Interrupts this process when the one that started it is gone: no orphan goes on working."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
