"""The alarms of runs of online learning, numbered as they are marked in curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palate.report.reader import Run
from palate.report.style import Style, Styles
from palate.store.records import AlarmRecord


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """An alarm of a run, as it first began.

    Attributes:
        number: in curves and in the list. style: of the run, where there are several.
        times: how often it began. until: the step at which it was over; None while it lasts.
        stops: it ended the run.
    """

    number: int
    run: str
    style: Style | None
    alarm: str
    step: int
    title: str
    seen: str
    advice: str
    times: int
    until: int | None
    stops: bool


def alarms_of(runs: Sequence[Run], styles: Styles) -> list[Alarm]:
    """Each alarm once a run, by run and step."""
    online = [run for run in runs if run.is_online]
    alarms: list[Alarm] = []
    for run in online:
        begun: dict[str, AlarmRecord] = {}
        for record in run.alarms:
            if record.state == "begins":
                begun.setdefault(record.alarm, record)
        for first in begun.values():
            changes = [record for record in run.alarms if record.alarm == first.alarm]
            begins = [record for record in changes if record.state == "begins"]
            alarms.append(
                Alarm(
                    number=len(alarms) + 1,
                    run=run.name,
                    style=styles.by_run[run.name] if len(online) > 1 else None,
                    alarm=first.alarm,
                    step=first.step,
                    title=first.title or first.alarm,
                    seen=first.seen,
                    advice=first.advice,
                    times=len(begins),
                    until=changes[-1].step if changes[-1].state == "ends" else None,
                    stops=any(record.stops for record in begins),
                )
            )
    return alarms
