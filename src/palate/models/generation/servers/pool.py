"""Questions shared out over several servers, those of a server that fails to the others."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from palate.errors import PalateError
from palate.store.http import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, ServerError

Node = TypeVar("Node")
Job = TypeVar("Job")
Result = TypeVar("Result")


class AskAgain(Exception):
    """A question that may be asked again, there or elsewhere.

    Args:
        problem: in words, with the server's address.
        broken: the server could not be reached, whatever the question.
        wait: seconds that the server asks to be left alone.
    """

    def __init__(self, problem: str, *, broken: bool = False, wait: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.broken = broken
        self.wait = wait


@dataclass
class _Line:
    """One server's standing.

    Attributes:
        failures: in a row; those of questions that were under way at once count as one.
        period: how many such failures there have been: what was asked before one of them and fails
            after it is part of it.
        free_at: time.monotonic() from which it is asked again.
        lost: why it is asked no more.
    """

    failures: int = 0
    period: int = 0
    free_at: float = 0.0
    lost: str | None = None


@dataclass
class _Run(Generic[Job, Result]):
    """What is left of one call."""

    jobs: deque[tuple[int, Job]]
    under_way: int = 0
    failed: Counter[int] = field(default_factory=Counter)
    results: SimpleQueue[tuple[Job, Result] | None] = field(default_factory=SimpleQueue)
    error: BaseException | None = None
    lines: list[_Line] = field(default_factory=list)


class Pool(Generic[Node]):
    """Servers that are asked at once.

    Each takes the next question as soon as it has answered one, so that fast ones answer more. A
    question that fails goes to whichever server is free next; a server that fails is left alone for
    a while, twice as long each time, and asked no more after `retries` such times in a row. A
    question that fails more than `retries` times at servers that can be reached ends the run: the
    fault is its own.

    Args:
        concurrency: questions under way at once, at each.
    """

    def __init__(self, nodes: Sequence[Node], *, concurrency: int, retries: int) -> None:
        self.nodes = tuple(nodes)
        self._concurrency = concurrency
        self._retries = retries
        self._changed = threading.Condition()

    def run(
        self, jobs: Iterable[Job], ask: Callable[[Node, Job], Result]
    ) -> Iterator[list[tuple[Job, Result]]]:
        """Answers as they come, those that are there at once together, each once.

        An error ends it after the answers to all that was under way.

        Args:
            ask: raises `AskAgain` where the question may be asked again. Called in threads.

        Raises:
            ServerError: all servers are lost, or a question fails everywhere.
            PalateError: of `ask`.
        """
        run: _Run[Job, Result] = _Run(jobs=deque(enumerate(jobs)))
        run.lines = [_Line() for _ in self.nodes]
        count = len(run.jobs)
        if not count:
            return
        # Few questions are spread evenly, too.
        each = min(self._concurrency, -(-count // len(self.nodes)))
        threads = [
            threading.Thread(target=self._work, args=(run, node, line, ask), daemon=True)
            for node, line in zip(self.nodes, run.lines, strict=True)
            for _ in range(each)
        ]
        for thread in threads:
            thread.start()
        try:
            while True:
                answers = _drained(run.results)
                if answers is None:
                    break
                yield answers
        finally:
            with self._changed:
                run.jobs.clear()
                self._changed.notify_all()
        if run.error is not None:
            raise run.error

    def _work(
        self, run: _Run[Job, Result], node: Node, line: _Line, ask: Callable[[Node, Job], Result]
    ) -> None:
        while (taken := self._take(run, line)) is not None:
            number, job, period = taken
            try:
                result = ask(node, job)
            except AskAgain as again:
                with self._changed:
                    run.jobs.appendleft((number, job))
                    self._note(run, line, number, period, again)
                    self._done(run)
            except BaseException as error:
                with self._changed:
                    self._stop(run, error)
                    self._done(run)
            else:
                with self._changed:
                    line.failures = 0
                    run.results.put((job, result))
                    self._done(run)

    def _take(self, run: _Run[Job, Result], line: _Line) -> tuple[int, Job, int] | None:
        """The next question, once the server may be asked; None where there is none any more."""
        with self._changed:
            while line.lost is None and (run.jobs or run.under_way):
                wait = line.free_at - time.monotonic()
                if run.jobs and wait <= 0:
                    number, job = run.jobs.popleft()
                    run.under_way += 1
                    return number, job, line.period
                self._changed.wait(wait if wait > 0 and run.jobs else None)
        return None

    def _done(self, run: _Run[Job, Result]) -> None:
        run.under_way -= 1
        if not run.under_way and not run.jobs:
            run.results.put(None)
        self._changed.notify_all()

    def _note(
        self, run: _Run[Job, Result], line: _Line, number: int, period: int, again: AskAgain
    ) -> None:
        if not again.broken:
            run.failed[number] += 1
            if run.failed[number] > self._retries:
                self._stop(run, ServerError(again.problem))
        if period == line.period:
            line.period += 1
            line.failures += 1
            pause = min(FIRST_WAIT_SECONDS * 2 ** (line.failures - 1), LONGEST_WAIT_SECONDS)
            line.free_at = time.monotonic() + (pause if again.wait is None else again.wait)
            if line.failures > self._retries:
                line.lost = again.problem
        if all(each.lost is not None for each in run.lines):
            others = len(run.lines) - 1
            more = f" (and {others} more)" if others else ""
            self._stop(run, ServerError(f"{again.problem}{more}: no server is left"))

    @staticmethod
    def _stop(run: _Run[Job, Result], error: BaseException) -> None:
        if run.error is None or not isinstance(error, PalateError):
            run.error = error
        run.jobs.clear()


class Gate:
    """Lets questions through, and while it is closed none, once those under way are answered."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._closed = False

    @contextmanager
    def open(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            self._changed.wait_for(lambda: not self._under_way)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


def _drained(
    results: SimpleQueue[tuple[Job, Result] | None],
) -> list[tuple[Job, Result]] | None:
    """What is there, at least one; None at the end."""
    answers = []
    item = results.get()
    while item is not None:
        answers.append(item)
        try:
            item = results.get_nowait()
        except Empty:
            return answers
    if answers:
        results.put(None)
        return answers
    return None
