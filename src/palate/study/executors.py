"""Where stages run: processes on this machine, as many at once as fit."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from palate.recipes.study import LocalExecutor
from palate.study.commands import PRELOADED, stage_process

LOGS = "logs"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage to run.

    Attributes:
        key: of the stage. cores: it uses. memory_bytes: it is expected to hold; None: not known.
    """

    key: str
    cores: int
    memory_bytes: int | None = None


class Executor(Protocol):
    """Runs stages whose needs are finished, each as `palate stage KEY` does."""

    def has_room(self, job: Job) -> bool:
        """Whether a job can begin now, beside those that run."""
        ...

    def begin(self, job: Job) -> None: ...

    def wait(self) -> dict[str, str | None]:
        """Waits until jobs have ended: key -> None, or why it failed, in a line."""
        ...

    def close(self) -> None:
        """Ends all jobs."""
        ...


@dataclass
class LocalProcesses:
    """Processes on this machine; each has its output in `logs/<key>.log` of the study.

    They are forked from one that has loaded the libraries, which takes longer than a small stage.

    Attributes:
        cores: to share. memory_bytes: to share.
    """

    root: Path
    cores: int
    memory_bytes: int
    _running: dict[str, tuple[Job, BaseProcess]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload(list(PRELOADED))

    def has_room(self, job: Job) -> bool:
        jobs = [running for running, _ in self._running.values()]
        if not jobs:
            return True  # larger than the machine: it may still fit, and nothing else will
        if sum(running.cores for running in jobs) + job.cores > self.cores:
            return False
        memory = [each.memory_bytes for each in (*jobs, job)]
        # What is not known to fit beside others runs by itself.
        return None not in memory and sum(filter(None, memory)) <= self.memory_bytes

    def begin(self, job: Job) -> None:
        log = self.root / LOGS / f"{job.key}.log"
        log.parent.mkdir(exist_ok=True)
        process = self._context.Process(
            target=stage_process,
            args=(str(self.root), job.key, str(log), job.cores),
            name=job.key,
        )
        process.start()
        self._running[job.key] = (job, process)

    def wait(self) -> dict[str, str | None]:
        wait([process.sentinel for _, process in self._running.values()])
        ended: dict[str, str | None] = {}
        for key, (_, process) in list(self._running.items()):
            if not process.is_alive():
                process.join()
                del self._running[key]
                ended[key] = self._failure(key, process.exitcode or 0)
        return ended

    def close(self) -> None:
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.join(timeout=10)
            process.kill()
        self._running.clear()

    def _failure(self, key: str, code: int) -> str | None:
        if code == 0:
            return None
        log = self.root / LOGS / f"{key}.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        lines = text.strip().splitlines()
        ended = f"ended by signal {-code}" if code < 0 else f"exit status {code}"
        return f"{lines[-1].removeprefix('palate: ')} ({ended})" if lines and code > 0 else ended


def stage_command(root: Path, key: str) -> list[str]:
    """The command line of a stage, for other machines."""
    return ["palate", "stage", key, "--study", str(root.resolve())]


def local_processes(recipe: LocalExecutor, root: Path) -> LocalProcesses:
    """The executor of a recipe, with what this machine has."""
    from palate.doctor.machine import machine_memory

    memory = machine_memory()
    there = memory[1] if memory is not None else 0
    if recipe.memory_gb is not None:
        there = int(recipe.memory_gb * 1e9)
    return LocalProcesses(root=root, cores=cores_of(recipe), memory_bytes=there)


def cores_of(recipe: LocalExecutor) -> int:
    """Cores that an executor shares out."""
    return recipe.cores or len(os.sched_getaffinity(0))
