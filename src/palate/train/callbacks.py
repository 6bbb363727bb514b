"""Observers of a run: the protocol, metrics.jsonl with status.json, and the line people watch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from palate.store.durations import duration
from palate.store.folder import RunFolder

if TYPE_CHECKING:
    from palate.train.loop import Loop

LINE_SECONDS = 10.0
"""Without a terminal: at most one line of training in this many seconds."""

SHOWN = (
    ("loss", "loss", "{:.4f}"),
    ("rewards/accuracies", "acc", "{:.0%}"),
    ("rewards/margins", "margin", "{:+.3f}"),
    ("accuracy", "acc", "{:.0%}"),
    ("margin", "margin", "{:+.3f}"),
    ("kl/chosen", "KL w", "{:.2f}"),
    ("kl/rejected", "KL l", "{:.2f}"),
    ("reward", "reward", "{:.3f}"),
    ("kl/exact", "KL", "{:.2f}"),
    ("kl/k1", "KL", "{:.2f}"),
    ("kl/k3", "KL", "{:.2f}"),
    ("entropy", "entropy", "{:.2f}"),
    ("entropy/sampled", "entropy", "{:.2f}"),
    ("length/mean", "length", "{:.0f}"),
    ("eos/rate", "ended", "{:.0%}"),
)
"""Figures of the line: metric, label, format; of those with one label the first that is logged."""

Split = Literal["train", "eval"]


class Callback:
    """Hooks of a run, each called on every process; override those of interest.

    A callback may set `loop.should_stop`, after which a checkpoint is written and the run ends. One
    with a memory returns it from `state_dict`, in JSON values: it is in every checkpoint, and given
    back on resume. `name` tells callbacks in a checkpoint apart.
    """

    @property
    def name(self) -> str:
        return type(self).__name__

    def on_start(self, loop: Loop) -> None:
        """Before the first step of this process, after resuming."""

    def on_step(self, loop: Loop) -> None:
        """After each optimizer step; `loop.step` counts it."""

    def on_log(self, loop: Loop, split: Split, values: Mapping[str, float]) -> None:
        """For each line of metrics.jsonl: means since the last one, or of an evaluation."""

    def on_save(self, loop: Loop) -> None:
        """After a checkpoint is whole."""

    def on_end(self, loop: Loop) -> None:
        """After the last step, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RunLog(Callback):
    """Writes metrics.jsonl and keeps the step in status.json."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._begun = time.monotonic()
        self._first = 0

    def on_start(self, loop: Loop) -> None:
        self.folder.step = self._first = loop.step
        self._begun = time.monotonic()

    def on_step(self, loop: Loop) -> None:
        self.folder.step = loop.step

    def on_log(self, loop: Loop, split: Split, values: Mapping[str, float]) -> None:
        more = {"seconds_left": self.seconds_left(loop)} if split == "train" else {}
        self.folder.log(split, loop.step, loop.epoch, {**values, **more})

    def on_save(self, loop: Loop) -> None:
        self.folder.write_status("running")

    def seconds_left(self, loop: Loop) -> float:
        """At the mean speed since this process began."""
        done, left = loop.step - self._first, loop.total - loop.step
        return (time.monotonic() - self._begun) / done * left if done else 0.0


class Display(Callback):
    """One line of progress: a live bar on a terminal, a plain line now and then elsewhere.

    Args:
        log: for the time left.
    """

    def __init__(self, log: RunLog, console: Console) -> None:
        self.log = log
        self.console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._printed = 0.0

    def on_start(self, loop: Loop) -> None:
        if self.console.quiet or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            console=self.console,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "", total=loop.total, completed=loop.step, left="", figures=""
        )

    def on_step(self, loop: Loop) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=loop.step)

    def on_log(self, loop: Loop, split: Split, values: Mapping[str, float]) -> None:
        if split == "eval":
            self._print(f"step {loop.step}, held out: {figures(values)}")
            return
        left = f"{duration(self.log.seconds_left(loop))} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=loop.step, left=left, figures=figures(values))
            return
        now = time.monotonic()
        if now - self._printed >= LINE_SECONDS or loop.step == loop.total:
            self._printed = now
            self._print(f"step {loop.step}/{loop.total}, {left}: {figures(values)}")

    def on_end(self, loop: Loop) -> None:
        # Leaves the terminal as it was.
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


class EarlyStop(Callback):
    """Stops after some evaluations without a better loss.

    Args:
        patience: how many in a row.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.waited = 0

    def on_log(self, loop: Loop, split: Split, values: Mapping[str, float]) -> None:
        if split == "train":
            return
        if self.best is None or values["loss"] < self.best:
            self.best, self.waited = values["loss"], 0
            return
        self.waited += 1
        loop.should_stop = loop.should_stop or self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


def figures(values: Mapping[str, float]) -> str:
    """What people watch of a log line; unpaired feedback has its accuracy under another name."""
    if "rewards/accuracies" not in values and "accuracies/logits" in values:
        values = {**values, "rewards/accuracies": values["accuracies/logits"]}
    shown: dict[str, str] = {}
    for name, label, form in SHOWN:
        if name in values:
            shown.setdefault(label, form.format(values[name]))
    return "  ".join(f"{label} {value}" for label, value in shown.items())
