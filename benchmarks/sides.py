"""What benchmarks that compare sides share: a process for each side, and what it measured."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

_MARK = "RESULT "


def report(**found: Any) -> None:
    """Hands what a side measured, and its peak memory in bytes, to `run_side`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(_MARK + json.dumps({**found, "peak": peak}))


def run_side(script: str, side: str, *arguments: Any) -> dict[str, Any]:
    """What `script --side SIDE` reports, from a process of its own; ends this one if it fails."""
    command = [sys.executable, script, *map(str, arguments), "--side", side]
    out = subprocess.run(command, capture_output=True, text=True)
    found = [line for line in out.stdout.splitlines() if line.startswith(_MARK)]
    if out.returncode or not found:
        raise SystemExit(f"{side} failed:\n{out.stdout[-2000:]}\n{out.stderr[-4000:]}")
    return dict(json.loads(found[0].removeprefix(_MARK)))
