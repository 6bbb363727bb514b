"""Building short pairs: speed against a plain `datasets.map` pass, and memory that stays flat.

    python benchmarks/data_build.py [--pairs 1000000] [--small 100000] [--workers N] [--no-near]

One file of short pairs (JSON lines, three texts of 5 to 30 words) is built by `palate data build`
without curation: read, checked, staged, audited, written as Parquet with digests and report. The
same file is loaded by `datasets` and passed through `map` with a function that changes nothing.
Each is a process of its own, one after the other, with nothing cached before. Rows per second are
of the whole process, its start included; memory is the largest sum of resident memory over a
process and its children, looked at ten times a second.

A second build of a tenth of the rows shows whether memory grows with them, and a third, of all rows
with near-duplicate removal, how many bytes a pair that costs.

The last line is the ratio of rows per second, `palate data build` over `datasets`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PLAIN = """
import sys, datasets
rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
rows = rows.map(lambda row: row, load_from_cache_file=False)
assert len(rows) == int(sys.argv[3])
"""


def write_pairs(path: Path, count: int) -> None:
    """Pairs of random words: short, all different, of uneven lengths."""
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "bdgklmnprst"]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = {"prompt": text(5, 20), "chosen": text(5, 30), "rejected": text(5, 30)}
            file.write(json.dumps(row) + "\n")


@dataclass
class Measured:
    seconds: float
    peak_bytes: int


def measure(command: list[str]) -> Measured:
    """Runs a command; wall time and peak resident memory, children included."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"exit status {status}: {' '.join(command)}")
    return Measured(seconds, peak)


def resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    total, waiting = 0, [pid]
    while waiting:
        process = waiting.pop()
        waiting += parents.get(process, [])
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def build(source: Path, out: Path, workers: int | None, *, near: bool = False) -> Measured:
    recipe = {"output_dir": str(out), "sources": [{"path": str(source)}], "workers": workers}
    if near:
        recipe["curate"] = [{"step": "near_duplicates"}]
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))
    measured = measure([sys.executable, "-m", "palate.cli", "data", "build", str(file)])
    shutil.rmtree(out)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, help="default: a tenth of --pairs")
    parser.add_argument("--workers", type=int, help="default: one a core")
    parser.add_argument("--no-near", action="store_true", help="leave near-duplicates out")
    args = parser.parse_args()
    small = args.small or args.pairs // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, many = folder / "few.jsonl", folder / "many.jsonl"
        write_pairs(few, small)
        write_pairs(many, args.pairs)
        size = many.stat().st_size
        print(f"{args.pairs:,} pairs, {size / args.pairs:.0f} bytes each; {os.cpu_count()} cores")
        cache = [str(many), str(folder / "cache"), str(args.pairs)]
        plain = measure([sys.executable, "-c", PLAIN, *cache])
        shutil.rmtree(folder / "cache")
        ours = build(many, folder / "built", args.workers)
        less = build(few, folder / "built-few", args.workers)
        for label, measured, rows in (
            ("datasets load + map", plain, args.pairs),
            ("palate data build", ours, args.pairs),
            (f"palate data build, {small:,}", less, small),
        ):
            speed, peak = rows / measured.seconds, measured.peak_bytes / 2**20
            print(
                f"{label:32} {measured.seconds:8.1f} s {speed:10,.0f} rows/s {peak:8,.0f} MiB peak"
            )
        growth = ours.peak_bytes / less.peak_bytes
        print(f"peak memory, {args.pairs:,} against {small:,} pairs: {growth:.2f} times")
        if not args.no_near:
            near = build(many, folder / "built-near", args.workers, near=True)
            more = (near.peak_bytes - ours.peak_bytes) / args.pairs
            speed, peak = args.pairs / near.seconds, near.peak_bytes / 2**20
            label = "with near-duplicate removal"
            print(f"{label:32} {near.seconds:8.1f} s {speed:10,.0f} rows/s {peak:8,.0f} MiB peak")
            print(f"near-duplicate removal: {more:.0f} bytes a pair more")
        print(f"{plain.seconds / ours.seconds:.2f}")


if __name__ == "__main__":
    main()
