"""Alarms of online learning: a log in, what goes wrong in words out; they may end a run.

    for alarm in alarms_of(lines): print(alarm.step, alarm.title, alarm.seen)

They say what has begun, by figures that are logged anyway; they predict nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from palate.recipes.alarms import AlarmName, AlarmsRecipe, ThresholdsRecipe
from palate.store.folder import RunFolder
from palate.store.records import AlarmRecord
from palate.train.alarm_rules import RULES, is_watched
from palate.train.callbacks import Callback, Split
from palate.train.history import History

if TYPE_CHECKING:
    from palate.train.loop import Loop

QUIET_LINES = 10
"""Lines without it until an alarm is over: a figure near its threshold is no news each time."""


class Alarms:
    """The alarms of one run, line by line of its log.

    An alarm begins once its rule has seen it in `patience` lines in a row, and is over after
    QUIET_LINES without.

    Attributes:
        active: those that have begun and are not over.
    """

    def __init__(
        self, limits: ThresholdsRecipe | None = None, stop_on: Sequence[AlarmName] = ()
    ) -> None:
        self.limits = limits or ThresholdsRecipe()
        self.stop_on = frozenset(stop_on)
        self.history = History()
        self.active: set[AlarmName] = set()
        self._streaks: dict[AlarmName, int] = {}

    def add(self, step: int, line: Mapping[str, float]) -> list[AlarmRecord]:
        """The alarms that begin or end with a training line of the log."""
        self.history.add({name: value for name, value in line.items() if is_watched(name)})
        changed = []
        for name, rule in RULES.items():
            seen = rule.check(self.history, self.limits)
            is_active = name in self.active
            if (seen is not None) is is_active:
                self._streaks.pop(name, None)
                continue
            streak = self._streaks[name] = self._streaks.get(name, 0) + 1
            patience = 1 if rule.at_once else self.limits.patience
            if streak < (QUIET_LINES if seen is None else patience):
                continue
            del self._streaks[name]
            if seen is None:
                self.active.discard(name)
                changed.append(AlarmRecord(step=step, alarm=name, state="ends", title=rule.title))
                continue
            self.active.add(name)
            changed.append(
                AlarmRecord(
                    step=step,
                    alarm=name,
                    state="begins",
                    title=rule.title,
                    seen=seen,
                    advice=rule.advice,
                    stops=name in self.stop_on,
                )
            )
        return changed

    @property
    def should_stop(self) -> bool:
        """Whether an alarm that ends the run is active."""
        return bool(self.active & self.stop_on)

    def state(self) -> dict[str, Any]:
        """In JSON values."""
        return {
            "history": self.history.state(),
            "active": sorted(self.active),
            "streaks": dict(sorted(self._streaks.items())),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.history.restore(state["history"])
        self.active = {name for name in RULES if name in state["active"]}
        self._streaks = {n: state["streaks"][n] for n in RULES if n in state["streaks"]}


def alarms_of(
    lines: Iterable[Mapping[str, Any]], limits: ThresholdsRecipe | None = None
) -> list[AlarmRecord]:
    """The alarms of a recorded log that begin, in their order.

    Args:
        lines: of metrics.jsonl, of training steps; those of held-out prompts are passed over.
    """
    alarms = Alarms(limits)
    begun = []
    for line in lines:
        if line.get("split", "train") == "train":
            numbers = {
                name: float(value)
                for name, value in line.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            begun += [a for a in alarms.add(int(line["step"]), numbers) if a.state == "begins"]
    return begun


class AlarmWatch(Callback):
    """Evaluates the alarms at each line of the log: writes alarms.jsonl, says what begins, and ends
    the run after a checkpoint for those of `stop_on`."""

    def __init__(self, folder: RunFolder, recipe: AlarmsRecipe, console: Console) -> None:
        self.folder = folder
        self.console = console
        self.alarms = Alarms(recipe.thresholds, recipe.stop_on)

    def on_log(self, loop: Loop, split: Split, values: Mapping[str, float]) -> None:
        if split != "train":
            return
        for alarm in self.alarms.add(loop.step, values):
            self.folder.log_alarm(alarm)
            if alarm.state == "begins":
                self.console.print(
                    in_words(alarm), style="bold yellow", highlight=False, soft_wrap=True
                )
        loop.should_stop = loop.should_stop or self.alarms.should_stop

    def state_dict(self) -> dict[str, Any]:
        return self.alarms.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alarms.restore(state)


def in_words(alarm: AlarmRecord) -> str:
    """One line: what happens, the figures, what to do."""
    end = " The run ends after a checkpoint (alarms.stop_on)." if alarm.stops else ""
    return f"step {alarm.step}, alarm: {alarm.title}: {alarm.seen}. {alarm.advice}{end}"
