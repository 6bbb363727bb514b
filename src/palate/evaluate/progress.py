"""Progress with the time left: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from palate.store.durations import duration

LINE_SECONDS = 15.0
"""Without a terminal: at most one line of a task in this many seconds."""


class Task:
    """One counted piece of work."""

    def __init__(self, console: Console, text: str, total: int, bar: Progress | None) -> None:
        self.console = console
        self.text = text
        self.total = total
        self.bar = bar
        self.id = None if bar is None else bar.add_task(text, total=total)
        self.start = self.printed = time.monotonic()
        self.done = 0

    def __call__(self, done: int, total: int | None = None) -> None:
        """Says that `done` of `total` are done."""
        self.done = done
        self.total = self.total if total is None else total
        if self.bar is not None and self.id is not None:
            self.bar.update(self.id, completed=done, total=self.total)
            return
        now = time.monotonic()
        if done and done < self.total and now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = (now - self.start) / done * (self.total - done)
            self.console.print(
                f"{self.text}: {done}/{self.total}, {duration(left)} left", highlight=False
            )

    def advance(self, steps: int = 1) -> None:
        self(self.done + steps)


@contextmanager
def task(text: str, total: int, console: Console | None = None) -> Iterator[Task]:
    """A task shown while the block runs; its bar goes away when it ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Task(console, text, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Task(console, text, total, bar)
