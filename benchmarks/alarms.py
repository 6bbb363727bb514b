"""What the alarms of online learning are worth: how many failures they see, how often they sound
for nothing, and how long before the gold score falls.

    python benchmarks/alarms.py judge healthy=runs/a healthy=runs/b entropy_collapse=runs/c ...
    python benchmarks/alarms.py judge tests/online/series/*.jsonl [--gold reward/gold]
    python benchmarks/alarms.py record entropy_collapse runs/c tests/online/series

A label is `healthy` or the alarm that should sound. Runs are run folders (their metrics.jsonl), or
files that `record` wrote: the figures that alarms read, under a first line with the label. They
train nothing: the same log gives the same answer.

`judge`: detection and false alarms as shares of runs with 95% Wilson intervals, at the thresholds
of `recipes/alarms.py`. Lead time is the step at which the gold score (of held-out prompts, in the
lines of split `eval`) has lost a quarter of what it had gained, less the step of the first alarm of
the run: above 0 the alarm came first. A gold score that never falls so far gives none.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from palate.intervals import wilson
from palate.store.files import read_jsonl, write_text
from palate.train.alarm_rules import RULES, is_watched
from palate.train.alarms import alarms_of

HEALTHY = "healthy"
LOST = 0.25
"""Share of the gold score's gain whose loss is a fall."""


@dataclass(frozen=True)
class Series:
    """A log and what it is of."""

    name: str
    label: str
    lines: tuple[dict[str, Any], ...]


def read_series(path: Path, label: str | None = None) -> Series:
    """A run folder, or a file of `record`.

    Raises:
        SystemExit: no label, or one that is no alarm.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    lines = list(read_jsonl(file))
    if lines and "label" in lines[0]:
        label = label or lines[0]["label"]
        lines = lines[1:]
    if label is None:
        raise SystemExit(f"{path}: no label; give it as LABEL={path}")
    if label != HEALTHY and label not in RULES:
        raise SystemExit(f"{label}: no alarm; there are {', '.join(RULES)}, and {HEALTHY}")
    return Series(path.stem if path.is_file() else path.name, label, tuple(lines))


def record(label: str, run: Path, folder: Path, made: str) -> Path:
    """Writes the figures of a run that alarms read, and its held-out scores."""
    series = read_series(run, label)
    head = {"label": series.label, "made": made}
    kept = [
        {
            name: value
            for name, value in line.items()
            if name in ("step", "split") or is_watched(name)
        }
        for line in series.lines
    ]
    target = folder / f"{series.label}-{series.name}.jsonl"
    write_text(target, "".join(json.dumps(line) + "\n" for line in (head, *kept)))
    return target


def gold_fall(lines: Sequence[dict[str, Any]], gold: str) -> int | None:
    """The step from which on the gold score has lost a quarter of its gain; None where it never
    gained, or never lost so much for good."""
    points = [(x["step"], x[gold]) for x in lines if x.get("split") == "eval" and gold in x]
    if len(points) < 3:
        return None
    best = max(range(len(points)), key=lambda i: points[i][1])
    gain = points[best][1] - points[0][1]
    below = points[best][1] - LOST * gain
    after = points[best + 1 :]
    if gain <= 0 or not after or after[-1][1] > below:
        return None
    last_above = max((i for i, (_, value) in enumerate(after) if value > below), default=-1)
    return int(after[last_above + 1][0])


def share(hits: int, of: int) -> str:
    low, high = wilson(hits, of)
    return f"{hits}/{of} = {hits / max(of, 1):.1%} [{low:.1%}, {high:.1%}]"


def judge(series: Sequence[Series], gold: str) -> dict[str, Any]:
    """Counts and lead times.

    Returns:
        `healthy`: (runs with an alarm, runs); `false`: alarms of healthy runs by name; `seen`: by
        label (runs with its alarm, runs); `any`: (failing runs with any alarm, runs); `leads`: by
        label the lead times in steps, of runs whose gold score fell.
    """
    of_healthy, false_alarms = [0, 0], Counter[str]()
    seen: dict[str, list[int]] = {}
    any_alarm, leads = [0, 0], dict[str, list[int]]()
    for each in series:
        alarms = alarms_of(each.lines)
        if each.label == HEALTHY:
            of_healthy[0] += bool(alarms)
            of_healthy[1] += 1
            false_alarms.update({alarm.alarm for alarm in alarms})
            continue
        counts = seen.setdefault(each.label, [0, 0])
        counts[0] += any(alarm.alarm == each.label for alarm in alarms)
        counts[1] += 1
        any_alarm[0] += bool(alarms)
        any_alarm[1] += 1
        falls = gold_fall(each.lines, gold)
        if alarms and falls is not None:
            leads.setdefault(each.label, []).append(falls - alarms[0].step)
    return {
        "healthy": tuple(of_healthy),
        "false": dict(false_alarms),
        "seen": {label: tuple(counts) for label, counts in seen.items()},
        "any": tuple(any_alarm),
        "leads": leads,
    }


def show(result: dict[str, Any]) -> None:
    print(f"false alarms, runs: {share(*result['healthy'])}")
    for name, n in sorted(result["false"].items()):
        print(f"  {name}: {n}")
    print(f"failures with any alarm: {share(*result['any'])}")
    for label, counts in sorted(result["seen"].items()):
        leads = result["leads"].get(label, [])
        words = "gold score never fell"
        if leads:
            first = sum(lead > 0 for lead in leads)
            words = (
                f"lead {median(leads):+.0f} steps [{min(leads):+d}, {max(leads):+d}], "
                f"first in {first} of {len(leads)}"
            )
        print(f"  {label}: {share(*counts)}; {words}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    judging = verbs.add_parser("judge")
    judging.add_argument("series", nargs="+", help="PATH of `record`, or LABEL=RUN")
    judging.add_argument("--gold", default="reward/gold", help="figure of held-out lines")
    recording = verbs.add_parser("record")
    recording.add_argument("label")
    recording.add_argument("run", type=Path)
    recording.add_argument("folder", type=Path)
    recording.add_argument("--made", default="recorded", help="recorded or synthetic")
    args = parser.parse_args()
    if args.verb == "record":
        print(record(args.label, args.run, args.folder, args.made))
        return
    series = []
    for text in args.series:
        label, mark, path = text.partition("=")
        series.append(read_series(Path(path), label) if mark else read_series(Path(text)))
    show(judge(series, args.gold))


if __name__ == "__main__":
    main()
