"""Checks in child processes, which are killed where they take too long.

A process does one check at a time, so that whoever hangs, crashes or fills the memory takes nobody
else along. A deadline begins when the check does: what waits for a free process, or for one to
start, is not late. No signal is used in this process, so that any thread may ask. POSIX.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from palate.errors import ModelError
from palate.rewards import process_main

START_SECONDS = 180.0
"""For a process to load what it checks with."""
_HEAD = struct.Struct("!Q")

Problem = Literal["timed out", "crashed", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one check.

    Attributes:
        value: what it returned, by way of JSON; None where there is a problem.
        problem: why it returned nothing: it was killed at its deadline, its process ended, or it
            raised an error.
        text: the problem in words.
    """

    value: Any = None
    problem: Problem | None = None
    text: str = ""


class ProcessPool:
    """Processes that each hold what `factory(*settings)` of a module made, and call it.

    Args:
        module, factory: imported by name in the children. settings: pickled to them.
        workers: processes; each starts when it is first needed.
        timeout_seconds: of one check.
        memory_mb: of one process's address space; None is no limit.
    """

    def __init__(
        self,
        module: str,
        factory: str,
        settings: Sequence[Any] = (),
        *,
        workers: int,
        timeout_seconds: float,
        memory_mb: int | None = None,
    ) -> None:
        self.workers = workers
        self.timeout_seconds = timeout_seconds
        self._setup = {
            "path": list(sys.path),
            "module": module,
            "factory": factory,
            "settings": tuple(settings),
            "memory_mb": memory_mb,
            # Backstop for a child whose parent was killed: of its own threads' time, not the
            # clock's, so far beyond the deadline.
            "cpu_seconds": (timeout_seconds + 10) * (os.cpu_count() or 1),
        }
        # Slots: a process, or None where one is to be started.
        self._slots: SimpleQueue[_Process | None] = SimpleQueue()
        for _ in range(workers):
            self._slots.put(None)
        self._running: set[_Process] = set()
        self._finalizer = weakref.finalize(self, _stop, self._running)

    def map(self, tasks: Sequence[Any]) -> list[Outcome]:
        """The outcomes of checks, in their order, as many under way as there are processes.

        Raises:
            ModelError: the factory fails in the child.
        """
        if not tasks:
            return []
        with ThreadPoolExecutor(max_workers=min(self.workers, len(tasks))) as threads:
            return list(threads.map(self._check, tasks))

    def close(self) -> None:
        """Ends the processes; those needed later start anew."""
        _stop(self._running)

    def _check(self, task: Any) -> Outcome:
        process = self._slots.get()
        try:
            if process is None or not process.is_running:
                process = self._started()
            outcome = process.check(task, self.timeout_seconds)
            if outcome.problem in ("timed out", "crashed"):
                self._running.discard(process)
                process = None
            return outcome
        except ModelError:
            process = None
            raise
        finally:
            self._slots.put(process)

    def _started(self) -> _Process:
        process = _Process(self._setup)
        self._running.add(process)
        ready = process.receive(START_SECONDS)
        if ready.problem is not None:
            process.kill()
            self._running.discard(process)
            failed = ready.problem == "failed"
            raise ModelError(
                ready.text if failed else f"a process for checks does not start: {ready.text}"
            )
        return process


class _Process:
    """One child."""

    def __init__(self, setup: dict[str, Any]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(Path(process_main.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # What it starts itself is killed with it.
            start_new_session=True,
        )
        self._send(setup)

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def check(self, task: Any, timeout_seconds: float) -> Outcome:
        """The outcome of one check; unless it returned or failed the process is gone."""
        if not self._send(task):
            self.kill()
            return self._crashed()
        outcome = self.receive(timeout_seconds)
        if outcome.problem in ("timed out", "crashed"):
            self.kill()
        return outcome

    def receive(self, seconds: float) -> Outcome:
        """The next answer, waiting at most so long."""
        deadline = time.monotonic() + seconds
        head = self._read(_HEAD.size, deadline)
        if isinstance(head, bytes):
            body = self._read(_HEAD.unpack(head)[0], deadline)
            if isinstance(body, bytes):
                kind, value = json.loads(body)
                if kind == "failed":
                    return Outcome(problem="failed", text=value)
                return Outcome(value=value)
            head = body
        if head == "timed out":
            return Outcome(problem="timed out", text=f"no answer within {seconds:g} s")
        return self._crashed()

    def kill(self) -> None:
        """Ends it and whatever it has started, at once."""
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was still to be written has no reader
                stream.close()

    def _crashed(self) -> Outcome:
        try:
            code = self._child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return Outcome(problem="crashed", text="its process closed its output")
        how = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return Outcome(problem="crashed", text=f"its process ended ({how})")

    def _send(self, message: Any) -> bool:
        stream = self._child.stdin
        assert stream is not None
        try:
            pickle.dump(message, stream)
            stream.flush()
        except BrokenPipeError:
            return False
        return True

    def _read(self, size: int, deadline: float) -> bytes | Literal["timed out", "ended"]:
        stream = self._child.stdout
        assert stream is not None
        content = bytearray()
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        while len(content) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return "timed out"
            piece = os.read(stream.fileno(), size - len(content))
            if not piece:
                return "ended"
            content += piece
        return bytes(content)


def _stop(running: set[_Process]) -> None:
    for process in list(running):
        process.kill()
    running.clear()
