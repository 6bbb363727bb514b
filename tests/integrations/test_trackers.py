"""Trackers that a run reports to, offline: what they stored is what metrics.jsonl says.

`make integrations` installs them; without them these tests are skipped. TensorBoard, which comes
with the extra `dev`, has its test beside the others of a run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Stored = dict[tuple[int, str], float]
"""(step, name as `train/loss`) -> value."""

RUN = """\
import sys
from pathlib import Path
from palate.train import tune
from tiny_runs import tiny_recipe

folder, tracker = Path(sys.argv[1]), sys.argv[2]
tune(tiny_recipe(folder, report_to=(tracker,), max_steps=3, eval_every_steps=2), quiet=True)
"""


def records_of(file: Path) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, and in them pieces of records."""
    data, at, record = file.read_bytes(), 7, b""  # seven bytes say what file it is
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no piece begins in the last bytes of a block
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def stored_by_wandb(folder: Path) -> Stored:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    values: Stored = {}
    for data in records_of(file):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            step = items.get("_step", record.history.step.num)
            values |= {(step, name): v for name, v in items.items() if not name.startswith("_")}
    return values


def stored_by_trackio(folder: Path) -> Stored:
    with sqlite3.connect(folder / "trackio" / "run.db") as database:
        rows = database.execute("select step, metrics from metrics").fetchall()
    return {(step, name): value for step, text in rows for name, value in json.loads(text).items()}


@pytest.mark.parametrize(
    ("tracker", "stored"), [("wandb", stored_by_wandb), ("trackio", stored_by_trackio)]
)
def test_a_tracker_stores_what_the_run_logs(
    tracker: str, stored: Callable[[Path], Stored], tmp_path: Path
) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed: `make integrations`")
    offline = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), tracker],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    logged = {
        (line["step"], f"{line['split']}/{name}"): value
        for line in lines
        for name, value in line.items()
        if name not in ("step", "split")
    }
    values = stored(tmp_path)
    shared = logged.keys() & values.keys()
    assert {(1, "train/loss"), (3, "train/loss"), (2, "eval/loss")} <= shared
    assert {key: values[key] for key in shared} == pytest.approx({k: logged[k] for k in shared})
    assert {name for _, name in values} <= {name for _, name in logged}
