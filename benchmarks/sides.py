"""What benchmarks that compare sides share: a process for each turn of a side, medians, ratios."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processor import processor

_MARK = "RESULT "
TURNS = 5
"""Fewer say little of how far a figure moves."""


def report(**measures: Any) -> None:
    """Hands what a side measured, and its peak memory in bytes, to `run_side`."""
    print(_MARK + json.dumps({**measures, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step_clock() -> Any:
    """A callback of transformers' trainers: `seconds` of every step, and `between`, those before
    each, in which it was prepared."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.between: list[float] = []
            self.end = time.perf_counter()

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()
            self.between.append(self.start - self.end)

        def on_step_end(self, *_: object, **__: object) -> None:
            self.end = time.perf_counter()
            self.seconds.append(self.end - self.start)

    return Clock()


def run_side(
    script: str, side: str, *arguments: Any, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What `script --side SIDE` reports, from a process of its own; ends this one if it fails.

    Args:
        environment: of that process; default: this one's.
    """
    command = [sys.executable, script, *map(str, arguments), "--side", side]
    out = subprocess.run(command, capture_output=True, text=True, env=environment)
    results = [line for line in out.stdout.splitlines() if line.startswith(_MARK)]
    if out.returncode or not results:
        raise SystemExit(f"{side} failed:\n{out.stdout[-2000:]}\n{out.stderr[-4000:]}")
    return dict(json.loads(results[0].removeprefix(_MARK)))


def training_log(run: Path) -> list[dict[str, Any]]:
    """The lines that a run of palate logged of its training steps."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


@dataclass(frozen=True)
class Measured:
    """One side over all turns.

    Attributes:
        seconds: of a step, the median of each turn, in order. peak: the most of any turn, bytes.
        first: all that it reported in its first turn.
    """

    seconds: tuple[float, ...]
    peak: float
    first: dict[str, Any]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def spread(self, places: int = 2) -> str:
        """Median, fastest and slowest turn."""
        low, high = min(self.seconds), max(self.seconds)
        return f"{self.median:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def take_turns(
    sides: Sequence[str], run: Callable[[str], dict[str, Any]], turns: int
) -> dict[str, Measured]:
    """Runs the sides one after another, `turns` times: what else goes on falls on all of them.

    Args:
        run: gives what a side reports: `seconds` of its steps, the first not counted, and `peak`.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(turns):
        for side in sides:
            runs[side].append(run(side))
            last = statistics.median(runs[side][-1]["seconds"][1:])
            print(f"  turn {turn + 1} of {turns}, {side}: {last:.2f} s", file=sys.stderr)
    return {
        side: Measured(
            tuple(statistics.median(turn["seconds"][1:]) for turn in turns_of_side),
            max(turn["peak"] for turn in turns_of_side),
            turns_of_side[0],
        )
        for side, turns_of_side in runs.items()
    }


def against(name: str, opponent: Measured, ours: Measured, unit: str = "pairs/s") -> str:
    """`against plain loop: 1.31x pairs/s [1.25, 1.38], 1.2x less memory`.

    The ratio is of the medians, and in brackets the least and greatest of single turns.
    """
    turns = [a / b for a, b in zip(opponent.seconds, ours.seconds, strict=True)]
    memory = opponent.peak / ours.peak
    word = f"{memory:.2f}x less memory" if memory >= 1 else f"{1 / memory:.2f}x more memory"
    return (
        f"against {name}: {opponent.median / ours.median:.2f}x {unit} "
        f"[{min(turns):.2f}, {max(turns):.2f}], {word}"
    )


def loss_gap(results: dict[str, Sequence[float]], ours: str) -> dict[str, float]:
    """The largest difference of each side's losses from those of `ours`, step by step."""
    return {
        side: max(abs(a - b) for a, b in zip(losses, results[ours], strict=True))
        for side, losses in results.items()
        if side != ours
    }


def must_agree(results: dict[str, Sequence[float]], ours: str, tolerance: float) -> None:
    """Ends the benchmark where a side does not compute the same: then a ratio says nothing."""
    for side, gap in loss_gap(results, ours).items():
        if not gap <= tolerance:
            raise SystemExit(
                f"{side} and {ours} do not compute the same: losses differ by {gap:.2g}, more than "
                f"{tolerance:g} in float32: {list(results[side])} and {list(results[ours])}"
            )


def print_losses_table(results: dict[str, Measured], pairs: int) -> None:
    """A line a side: seconds of a step, pairs a second, peak memory, and its losses."""
    print(f"{'':>20} {'s/step':>22} {'pairs/s':>8} {'peak GB':>8}  losses")
    for side, measured in results.items():
        losses = " ".join(f"{x:.5f}" for x in measured.first["losses"])
        print(
            f"{side:>20} {measured.spread():>22} {pairs / measured.median:>8.3f} "
            f"{measured.peak / 1e9:>8.2f}  {losses}"
        )


def losses_apart(results: dict[str, Measured], ours: str) -> str:
    """How far each side's losses are from those of `ours`, in words."""
    gaps = loss_gap({side: measured.first["losses"] for side, measured in results.items()}, ours)
    apart = ", ".join(f"{side} {gap:.4f}" for side, gap in gaps.items())
    return f"largest difference of the losses from palate's: {apart}"


def print_ratios(shape: str, results: dict[str, Measured], ours: str) -> None:
    """The processor, and a line an opponent."""
    print(processor())
    for side, measured in results.items():
        if side != ours:
            print(f"{shape}, {against(side, measured, results[ours])}")
