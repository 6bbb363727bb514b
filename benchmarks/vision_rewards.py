"""Reward models that see: heads, text pairs and paradigms, on the pairs of `palate demo --vision`.

    python benchmarks/vision_rewards.py DEMO [--parts frozen lora text paradigms] [--out DIR]
                                        [--pairs 400] [--text PAIRS.jsonl]

DEMO is the folder that the demonstration has filled (`runs/demo/vision`): the aligned model and
the pairs, of which nothing but the image tells the better answer. Parts:

  frozen     heads on states that are computed once: linear, 2 layers with SiLU, with tanh, of
             equal width; 20 seeds, the rate of each chosen on a fifth of the training pairs
  lora       the same heads with adapters, 3 seeds
  text       image pairs alone; text pairs added; in the place of half of them; 3 seeds
  paradigms  generative (says 1 or 2, both orders) and critic (critiques of what the image shows,
             short or in full; its own, or given) on the same pairs as `lora`, 1 seed

Every finished cell is kept in --out, so that a run that was stopped goes on. Accuracy is on three
held-out sets: images, things (colours with shapes) and wordings that training has not seen.
Intervals are over pairs of twins and seeds, both drawn anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "2 layers, SiLU": {"layers": 2, "activation": "silu"},
    "2 layers, tanh": {"layers": 2, "activation": "tanh"},
}
RATES = (3e-4, 1e-3, 3e-3)
HELD_OUT = ("heldout", "unseen-things", "unseen-wordings")
LENGTH = {"max_prompt_tokens": 256, "max_response_tokens": 64}
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


def cells(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is to be run: name, seed, and what is special of it."""
    if "frozen" in args.parts:
        for head in HEADS:
            for rate in RATES:
                for seed in range(3):
                    yield {"part": "tuning", "name": head, "rate": rate, "seed": seed}
        for head in HEADS:
            yield from ({"part": "frozen", "name": head, "seed": seed} for seed in range(20))
    if "lora" in args.parts:
        for head in HEADS:
            yield from ({"part": "lora", "name": head, "seed": seed} for seed in range(3))
    if "text" in args.parts:
        for name in ("images alone", "text pairs added", "text pairs for half of them"):
            yield from ({"part": "text", "name": name, "seed": seed} for seed in range(3))
    if "paradigms" in args.parts:
        for name in ("generative", "critic, short", "critic, in full"):
            yield {"part": "paradigms", "name": name, "seed": 0}


def slug(cell: dict[str, Any]) -> str:
    rate = f"-{cell['rate']:g}" if "rate" in cell else ""
    name = cell["name"].replace(",", "").replace(" ", "-")
    return f"{cell['part']}-{name}{rate}-{cell['seed']}"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def run_reward(args: argparse.Namespace, cell: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Trains a reward model; keeps the margins of every held-out pair, by source."""
    from palate import RewardRecipe
    from palate.train.reward_run import RewardRun

    margins: dict[str, dict[str, float]] = {}

    class Kept(RewardRun):
        def _evaluation(self, loop: Any, start: Any) -> dict[str, Any] | None:
            for item in self._scored(loop.job, loop.job.eval):
                (margin,) = item["margins"]
                margins.setdefault(item["source"], {})[item["id"]] = margin
            return super()._evaluation(loop, start)

    folder = args.out / slug(cell)
    values = {"output_dir": str(folder), "seed": cell["seed"], **recipe}
    values["resume"] = (folder / "recipe.yaml").exists()
    Kept(RewardRecipe.model_validate(values), quiet=True).execute()
    (args.out / f"{slug(cell)}.json").write_text(json.dumps(margins))
    shutil.rmtree(folder)


def head_of(cell: dict[str, Any]) -> dict[str, Any]:
    return HEADS.get(cell["name"], {})


def best_rate(args: argparse.Namespace, head: str) -> float:
    """The rate with the highest accuracy on the tuning pairs, over seeds."""
    found: dict[float, list[float]] = {}
    for rate in RATES:
        for seed in range(3):
            cell = {"part": "tuning", "name": head, "rate": rate, "seed": seed}
            kept = json.loads((args.out / f"{slug(cell)}.json").read_text())
            values = [margin for source in kept.values() for margin in source.values()]
            found.setdefault(rate, []).append(float(np.mean(np.asarray(values) > 0)))
    return max(RATES, key=lambda rate: np.mean(found[rate]))


def run_cell(args: argparse.Namespace, cell: dict[str, Any]) -> None:
    data = args.demo / "data"
    held_out = [{"path": str(data / f"{name}.jsonl"), "name": name} for name in HELD_OUT]
    train: list[dict[str, Any]] = [{"path": str(data / "train.jsonl"), "limit": args.pairs}]
    loop = {"batch_size_pairs": 8, "micro_batch_size_pairs": 8, "warmup_fraction": 0.05}
    if cell["part"] in ("tuning", "frozen"):
        tuning = cell["part"] == "tuning"
        rate = cell["rate"] if tuning else best_rate(args, cell["name"])
        sources = {"train": [{"path": str(data / "train.jsonl")}], "length": LENGTH}
        sources |= {"eval_fraction": 0.2} if tuning else {"eval": held_out}
        recipe = {
            "model": {"path": str(args.demo / "aligned")},
            "backbone": "frozen",
            "features_dir": str(args.out / "features"),
            "head": head_of(cell),
            "data": sources,
            "train": loop | {"epochs": 6, "learning_rate": rate},
        }
        return run_reward(args, cell, recipe)
    model = {"path": str(args.demo / "aligned"), "lora": {}, "vision": {"projector": "trained"}}
    if cell["part"] == "paradigms":
        return run_judge(args, cell, held_out[0], model)
    if cell["part"] == "text" and cell["name"] != "images alone":
        half = args.pairs // 2
        if cell["name"] == "text pairs for half of them":
            train[0]["limit"] = half
        train.append({"path": str(args.text), "limit": half})
    recipe = {
        "model": model,
        "head": head_of(cell),
        "data": {"train": train, "eval": held_out, "length": LENGTH},
        "train": loop | {"learning_rate": 5e-4, "epochs": 1},
    }
    return run_reward(args, cell, recipe)


def with_critiques(args: argparse.Namespace, name: str, full: bool) -> Path:
    """The rows with a critique of each response, from what their images show.

    A picture's colour and shape are told by the true answers to the questions about it.
    """
    files = [args.demo / f"data/{file}.jsonl" for file in ("train", *HELD_OUT)]
    every = [row for file in files for row in lines(file)]
    known: dict[str, list[str | None]] = {}
    for row in every:
        if "captions" in row["id"]:
            continue
        text = row["chosen"][0]["content"].lower()
        things = known.setdefault(row["images"][0], [None, None])
        if " no " in f" {text}" or "not" in text:
            continue
        for place, words in enumerate((COLOURS, SHAPES)):
            named = [word for word in words if word in text]
            things[place] = named[0] if named else things[place]
    rows = []
    for row in lines(args.demo / f"data/{name}.jsonl")[: args.pairs]:
        colour, shape = known[row["images"][0]]
        thing = " ".join(filter(None, [colour, shape])) or "something else"
        question = next(p["text"] for p in row["prompt"][0]["content"] if p["type"] == "text")
        told = {}
        for side, verdict in (("chosen", "right"), ("rejected", "wrong")):
            answer = row[side][0]["content"]
            told[f"{side}_reason"] = (
                f'The image shows {thing}. Asked "{question}", the answer "{answer}" is {verdict}.'
                if full
                else f"It shows {thing}: {verdict}."
            )
        rows.append(row | told)
    # Beside the rows' own files, where paths of images start.
    return write(args.demo / f"data/{name}-critiques-{'full' if full else 'short'}.jsonl", rows)


def run_judge(
    args: argparse.Namespace, cell: dict[str, Any], held_out: dict[str, Any], model: dict[str, Any]
) -> None:
    from palate.recipes.judge import JudgeRecipe
    from palate.train.judge import train_judge

    folder = args.out / slug(cell)
    stage = {"batch_size_pairs": 8, "micro_batch_size_pairs": 8, "learning_rate": 5e-4}
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "model": model,
        "data": {"max_eval_rows": 200, "length": {"max_question_tokens": 512}},
        "sft": stage,
        "resume": (folder / "recipe.yaml").exists(),
    }
    if cell["name"] == "generative":
        values["judge"] = {"type": "pairwise", "orders": "both"}
        values["data"] |= {
            "train": [{"path": str(args.demo / "data/train.jsonl"), "limit": args.pairs}],
            "eval": [held_out],
        }
    else:
        full = cell["name"] == "critic, in full"
        train, eval_ = (with_critiques(args, name, full) for name in ("train", "heldout"))
        values["judge"] = {"type": "critic"}
        values["texts"] = {
            "type": "column",
            "chosen": "chosen_reason",
            "rejected": "rejected_reason",
        }
        values["data"] |= {"train": [{"path": str(train)}], "eval": [{"path": str(eval_)}]}
        values["reward"] = {"critiques": "gold", "train": stage}
    result = train_judge(JudgeRecipe.model_validate(values))
    (args.out / f"{slug(cell)}.json").write_text(json.dumps(result.evaluation))
    shutil.rmtree(folder)


def report(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    print(f"{'':44} " + " ".join(f"{name:>26}" for name in HELD_OUT) + "  between seeds")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells(args):
        file = args.out / f"{slug(cell)}.json"
        if file.exists() and cell["part"] in ("frozen", "lora", "text"):
            groups.setdefault((cell["part"], cell["name"]), []).append(json.loads(file.read_text()))
    for (part, name), kept in groups.items():
        shown, spread = [], 0.0
        for source in HELD_OUT:
            right = np.asarray(
                [[m > 0 for m in of_seed[source].values()] for of_seed in kept], float
            )
            n = right.shape[1] // 2
            # Twins stand one behind the other, and are drawn together.
            twins = right[:, : 2 * n].reshape(len(kept), n, 2).mean(-1)
            drawn = [
                twins[np.ix_(rng.integers(0, len(kept), len(kept)), rng.integers(0, n, n))].mean()
                for _ in range(2000)
            ]
            low, high = 100 * np.quantile(drawn, [0.025, 0.975])
            shown.append(f"{100 * right.mean():.1f} [{low:.1f}, {high:.1f}]")
            if source == HELD_OUT[0] and len(kept) > 1:
                spread = 100 * float(right.mean(1).std(ddof=1))
        label = f"{part}: {name} ({len(kept)} seeds)"
        print(f"{label:44} " + " ".join(f"{text:>26}" for text in shown) + f"  {spread:.1f}")
    for cell in cells(args):
        file = args.out / f"{slug(cell)}.json"
        if cell["part"] == "paradigms" and file.exists():
            print(
                f"paradigms: {cell['name']}: {json.dumps(_numbers(json.loads(file.read_text())))}"
            )


def _numbers(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each stage of a judge what was measured, without what is long."""
    return [
        {k: v for k, v in stage.items() if isinstance(v, (int, float, str))} for stage in stages
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--parts", nargs="+", default=["frozen", "lora", "text", "paradigms"])
    parser.add_argument("--out", type=Path, default=Path("runs/vision-rewards"))
    parser.add_argument(
        "--pairs", type=int, default=400, help="of training, where weights are trained"
    )
    parser.add_argument("--text", type=Path, help="pairs of text, for the part `text`")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.demo, args.out = args.demo.absolute(), args.out.absolute()
    if "text" in args.parts and args.text is None:
        parser.error("the part `text` needs --text PAIRS.jsonl")
    if args.one:
        return run_cell(args, json.loads(args.one))
    args.out.mkdir(parents=True, exist_ok=True)
    for cell in cells(args):
        if (args.out / f"{slug(cell)}.json").exists():
            continue
        print(slug(cell), flush=True)
        with (args.out / f"{slug(cell)}.log").open("w") as file:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps(cell)]
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                print(f"  failed: {file.name}", flush=True)
    report(args)


if __name__ == "__main__":
    main()
