"""Policies on real pairs: DPO, TDPO1 and TDPO2 against what length and format alone name.

    python benchmarks/policy_real.py ratings|hh TRAIN TEST [--model M] [--out DIR] [--pairs 184]
                                     [--per-prompt 2] [--only LOSS ...] [--full] [--seed 0]

TRAIN and TEST are files of the data set (rated answers, or hh-rlhf pairs), split by prompt. Of
ratings as many pairs of a prompt have the longer answer chosen as the shorter one, and pairs with
an attack on the judge for an answer (`real_pairs.ATTACKS`) are left out. Prompts beyond the limit
are left out too; responses are cut to it in training and evaluation, while the baselines see them
whole: "the longer one wins", and length and format as a logistic regression learns them from the
training pairs. How many held-out pairs the cut makes equally long is said.

One epoch of LoRA (r 16, 1e-4), or of all weights with `--full` (8 steps, 5e-6), in batches of 8,
accuracy by the implicit reward of the loss. Intervals are of prompts drawn anew. Results stay in
DIR: a loss that is there is not trained again, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from processor import processor
from real_pairs import (
    ByPrompt,
    format_baseline,
    length_baseline,
    read_rows,
    text_pairs,
    write_rows,
)

LOSSES = ("dpo", "tdpo1", "tdpo2")
LIMITS = {"ratings": (128, 128), "hh": (192, 96)}
"""Tokens of a prompt and of a response."""
BATCH = 8


def recipe_of(args: argparse.Namespace) -> dict[str, Any]:
    prompt, response = LIMITS[args.set]
    train: dict[str, Any] = {
        "batch_size_pairs": BATCH,
        "micro_batch_size_pairs": BATCH // 2,
        "learning_rate": 1e-4,
        "warmup_steps": 5,
        "save_every_steps": 6,
    }
    if args.full:
        train |= {"max_steps": 8, "learning_rate": 5e-6, "warmup_steps": 2}
    folder = args.out / args.one
    return {
        "output_dir": str(folder),
        "seed": args.seed,
        "resume": (folder / "recipe.yaml").exists(),
        "model": {"path": args.model, "lora": None if args.full else {"r": 16}},
        "data": {
            "train": [{"path": str(args.out / "train.jsonl")}],
            "length": {"max_prompt_tokens": 2 * prompt, "max_response_tokens": response},
        },
        "loss": {"type": args.one, "beta": 0.1},
        "reference": {"kind": "cache"},
        "train": train,
    }


def run(args: argparse.Namespace) -> None:
    """Trains one loss and writes what it makes of every held-out pair."""
    from palate import TuneRecipe, tune
    from palate.evaluate import evaluate
    from palate.recipes.evaluation import EvalRecipe

    recipe = recipe_of(args)
    run = tune(TuneRecipe.model_validate(recipe))
    folder = args.out / f"{args.one}-held-out"
    measured = EvalRecipe.model_validate(
        {
            "output_dir": str(folder),
            "resume": (folder / "recipe.yaml").exists(),
            "runs": [str(run.path)],
            "data": [{"path": str(args.out / "test.jsonl")}],
            "length": recipe["data"]["length"],
        }
    )
    evaluate(measured)
    scores = map(json.loads, (folder / "pairs.jsonl").read_text().splitlines())
    document = {
        "scores": [
            {"row": int(score["id"].rpartition(":")[2]) - 1, "margin": score["margin"],
             "cut_even": score["cut_even"]}
            for score in scores
        ],
    }  # fmt: skip
    (args.out / f"{args.one}.json").write_text(json.dumps(document))


def prepare(args: argparse.Namespace) -> None:
    """Writes train.jsonl and test.jsonl, once."""
    from transformers import AutoTokenizer

    if (args.out / "test.jsonl").exists():
        return
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for name, path, limit in (("train", args.train, args.pairs), ("test", args.test, args.held)):
        rows, left_out = text_pairs(
            path,
            tokenizer,
            per_prompt=args.per_prompt,
            max_prompt=LIMITS[args.set][0],
            max_response=None,
            seed=0,
        )
        write_rows(rows, args.out / f"{name}.jsonl", limit=limit)
        used = len(rows) if limit is None else min(limit, len(rows))
        print(f"{name}: {used} of {len(rows)} pairs; left out: {dict(left_out)}")


def report(args: argparse.Namespace) -> None:
    """Accuracy of every loss and of both baselines, and paired differences, on the same pairs."""
    train, rows = (read_rows(args.out / f"{name}.jsonl") for name in ("train", "test"))
    results = {
        loss: json.loads(file.read_text())
        for loss in LOSSES
        if (file := args.out / f"{loss}.json").exists()
    }
    # A pair that is one and the same once cut has no token to be told by: it is in none.
    kept = [score["row"] for score in next(iter(results.values()))["scores"]]
    rows = [rows[i] for i in kept]
    by_prompt = ByPrompt([row["group"] for row in rows])
    baselines = {
        "the longer one": length_baseline(rows),
        "length and format": format_baseline(train, rows),
    }
    even = sum(score["cut_even"] for score in next(iter(results.values()))["scores"])
    print(
        f"\n{args.set}: {len(rows)} held-out pairs of {by_prompt.prompts} prompts, percent right; "
        f"{even} pairs have responses of one length once cut to {LIMITS[args.set][1]} tokens"
    )
    print(f"{'':20} {'accuracy':>22} {'less the longer one':>22} {'less both':>22}")
    for name, values in baselines.items():
        print(f"{name:20} {by_prompt.percent(values):>22}")
    for loss, result in results.items():
        margin = np.asarray([score["margin"] for score in result["scores"]])
        right = (margin > 0) + 0.5 * (margin == 0)
        less = [by_prompt.percent(right - values) for values in baselines.values()]
        print(f"{loss:20} {by_prompt.percent(right):>22} {less[0]:>22} {less[1]:>22}")
    print(processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", choices=sorted(LIMITS))
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--model", help="folder or hub name; default: the packaged small model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=184, help="for training")
    parser.add_argument("--held", type=int, help="held-out pairs at most; default: all")
    parser.add_argument("--per-prompt", type=int, default=2)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--one", choices=LOSSES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out or Path("runs") / f"policy-real-{args.set}{'-full' if args.full else ''}"
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    if args.one:
        run(args)
        return
    prepare(args)
    for loss in args.only:
        if (args.out / f"{loss}.json").exists():
            continue
        print(loss, flush=True)
        log = args.out / f"{loss}.log"
        command = [sys.executable, __file__, *sys.argv[1:], "--model", args.model]
        with log.open("w") as file:
            command += ["--out", str(args.out), "--one", loss]
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(f"{loss} failed: {log}")
    report(args)


if __name__ == "__main__":
    main()
