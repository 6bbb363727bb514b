"""This tree against an earlier commit of it: a training step, data build and start-up, by turns.

    python benchmarks/vs_commit.py COMMIT [MODEL] [--turns 5] [--pairs 2] [--shape 200/100]
                                   [--rows 100000] [--only dpo reward build start]

COMMIT is checked out beside this tree for the time of the run; each turn runs first the one, then
the other, each in a process of its own and by its own copy of the benchmark scripts:

  dpo, reward  the step of `palate tune` and `palate reward` that vs_trl_dpo.py and vs_trl_reward.py
               time as their side `palate`
  build        `palate data build` of short pairs, whole process (data_build.py's file)
  start        `palate --help`, whole process

A line each: how many times as fast this tree is (medians over all turns; in brackets the least and
the greatest of single turns), and its peak memory over the other's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data_build import write_pairs
from processor import processor
from sides import run_side
from vs_trl_dpo import make_pairs
from vs_trl_reward import starting_model

HERE = Path(__file__).resolve().parent.parent
PARTS = ("dpo", "reward", "build", "start")
RECIPE = """
output_dir: {out}
sources: [{{name: short, path: {data}}}]
seed: 0
"""


def environment_of(tree: Path) -> dict[str, str]:
    """In which a process imports the tree's source."""
    return {**os.environ, "PYTHONPATH": str(tree / "src")}


def run(tree: Path, command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory (bytes) of a command with the tree's source."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment_of(tree)
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            out.seek(0)
            raise SystemExit(f"{' '.join(command)} in {tree} failed:\n{out.read()[-4000:]}")
    return seconds, usage.ru_maxrss * 1024


def step(tree: Path, script: str, model: Path | str, data: Path) -> tuple[float, int]:
    """Median seconds of a timed step, and peak memory, of the side `palate` of a tree's script."""
    reported = run_side(
        str(tree / "benchmarks" / script), "palate", model, "--data", data, "--steps", 3,
        "--dtype", "bfloat16", environment=environment_of(tree),
    )  # fmt: skip
    return statistics.median(reported["seconds"][1:]), reported["peak"]


def parts(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[Path], tuple[float, int]]]:
    """What is timed of a tree, by name."""
    pairs, rows = folder / "pairs.jsonl", folder / "rows.jsonl"
    prompt, response = map(int, args.shape.split("/"))
    if {"dpo", "reward"} & set(args.only):
        if args.model is None:
            from palate.demo.model import packaged_model

            args.model = str(packaged_model(print).path)
        make_pairs(args.model, args.pairs, prompt, response, pairs)
    if "reward" in args.only:
        starting_model(args.model, "bfloat16", folder / "start")
    if "build" in args.only:
        write_pairs(rows, args.rows)
    palate = [sys.executable, "-m", "palate"]

    def build(tree: Path) -> tuple[float, int]:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            recipe = Path(out) / "recipe.yaml"
            recipe.write_text(RECIPE.format(out=Path(out) / "built", data=rows))
            return run(tree, [*palate, "data", "build", str(recipe)])

    every: dict[str, Callable[[Path], tuple[float, int]]] = {
        "dpo": lambda tree: step(tree, "vs_trl_dpo.py", args.model, pairs),
        "reward": lambda tree: step(tree, "vs_trl_reward.py", folder / "start", pairs),
        "build": build,
        "start": lambda tree: run(tree, [*palate, "--help"]),
    }
    return {name: every[name] for name in args.only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--shape", default="200/100", help="tokens of the prompt / of a response")
    parser.add_argument("--rows", type=int, default=100_000, help="that `data build` reads")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        before = folder / "before"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(before), args.commit], check=True)
        try:
            print(processor())
            for name, measure in parts(args, folder).items():
                turns = [(measure(before), measure(HERE)) for _ in range(args.turns)]
                print(line(name, turns, args.commit), flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)


def line(name: str, turns: list[tuple[tuple[float, int], tuple[float, int]]], commit: str) -> str:
    """`dpo: 1.02x as fast as d8aa55f [0.99, 1.05], memory 1.00x`."""
    ratios = [before[0] / now[0] for before, now in turns]
    seconds = [statistics.median(side[i][0] for side in turns) for i in (0, 1)]
    peak = [max(side[i][1] for side in turns) for i in (0, 1)]
    return (
        f"{name}: {seconds[0] / seconds[1]:.2f}x as fast as {commit} "
        f"[{min(ratios):.2f}, {max(ratios):.2f}], memory {peak[1] / peak[0]:.2f}x"
    )


if __name__ == "__main__":
    main()
