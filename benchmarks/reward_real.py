"""Reward models on real pairs: `palate reward` against TRL's RewardTrainer, and against length.

    python benchmarks/reward_real.py ratings|hh TRAIN TEST [--model M] [--out DIR] [--pairs 320]
                                     [--epochs 2] [--seed 0] [--only NAME ...]

TRAIN and TEST are files of the data set (rated answers, or hh-rlhf pairs), split by prompt. Every
variant sees the same pairs as often, in batches of the same size, at the same learning rate (LoRA
1e-4, a head alone 1e-3), linear decay. palate reads the score with a linear and with a two-layer
SiLU head, trained with LoRA and on a frozen backbone; TRL has its linear head, as it trains by
default (float32 weights, bfloat16 autocast). Held-out pairs are scored one variant after another;
intervals are of prompts drawn anew, since pairs of one prompt are not independent. Results stay in
DIR, and a variant that is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from real_pairs import (
    ByPrompt,
    format_baseline,
    length_baseline,
    read_rows,
    text_pairs,
    write_rows,
)

VARIANTS = {
    "palate LoRA linear": {"side": "palate", "lora": True, "layers": 1},
    "palate LoRA 2xSiLU": {"side": "palate", "lora": True, "layers": 2},
    "palate frozen linear": {"side": "palate", "lora": False, "layers": 1},
    "palate frozen 2xSiLU": {"side": "palate", "lora": False, "layers": 2},
    "TRL LoRA linear": {"side": "trl", "lora": True, "layers": 1},
    "TRL frozen linear": {"side": "trl", "lora": False, "layers": 1},
}
LIMITS = {"ratings": (192, 384), "hh": (256, 128)}
RATES = {True: 1e-4, False: 1e-3}
BATCH = 8


def run_palate(args: argparse.Namespace, variant: dict[str, Any]) -> list[tuple[float, float]]:
    from palate import RewardRecipe, train_reward
    from palate.rewards import Group
    from palate.rewards.model import ModelScorer

    folder = args.out / _slug(args.one)
    recipe = {
        "output_dir": str(folder),
        "seed": args.seed,
        "resume": (folder / "recipe.yaml").exists(),
        "model": {"path": args.model, "lora": {"r": 16, "alpha": 32} if variant["lora"] else None},
        "backbone": "trained" if variant["lora"] else "frozen",
        "features_dir": None if variant["lora"] else str(args.out / "features"),
        "head": {"layers": variant["layers"]},
        "data": {
            "train": [{"path": str(args.out / "train.jsonl")}],
            "length": {"max_prompt_tokens": 1024, "max_response_tokens": 1024},
        },
        "train": {
            "batch_size_pairs": BATCH,
            "micro_batch_size_pairs": BATCH // 2,
            "epochs": args.epochs,
            "learning_rate": RATES[variant["lora"]],
            "scheduler": "linear",
            "warmup_steps": 0,
        },
    }
    run = train_reward(RewardRecipe.model_validate(recipe))
    scorer = ModelScorer(run.path / "model")
    rows = read_rows(args.out / "test.jsonl")
    pairs = scorer.score([Group(r["prompt"], (r["chosen"], r["rejected"])) for r in rows])
    # Texts of this data fit the model: every response has a score.
    return [(chosen.value, rejected.value) for chosen, rejected in pairs]


def run_trl(args: argparse.Namespace, variant: dict[str, Any]) -> list[tuple[float, float]]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
    from trl import RewardConfig, RewardTrainer

    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=1, dtype=torch.float32
    )
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if not variant["lora"]:
        model.requires_grad_(False)
        model.score.requires_grad_(True)
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        task_type="SEQ_CLS",
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    rows = read_rows(args.out / "train.jsonl")
    kept = ("prompt", "chosen", "rejected")
    trainer = RewardTrainer(
        model,
        args=RewardConfig(
            output_dir=str(args.out / _slug(args.one)),
            per_device_train_batch_size=BATCH // 2,
            gradient_accumulation_steps=2,
            num_train_epochs=args.epochs,
            learning_rate=RATES[variant["lora"]],
            lr_scheduler_type="linear",
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            max_length=None,
            logging_steps=10,
            report_to=[],
            save_strategy="no",
            seed=args.seed,
        ),
        train_dataset=Dataset.from_list([{k: row[k] for k in kept} for row in rows]),
        processing_class=tokenizer,
        peft_config=lora if variant["lora"] else None,
    )
    trainer.train()
    trained = trainer.model.eval()

    def score(prompt: str, response: str) -> float:
        ids = tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt")
        # As it evaluates itself.
        with torch.no_grad(), torch.autocast(trained.device.type, torch.bfloat16):
            return float(trained(**ids.to(trained.device)).logits[0, 0])

    return [
        (score(row["prompt"], row["chosen"]), score(row["prompt"], row["rejected"]))
        for row in read_rows(args.out / "test.jsonl")
    ]


def prepare(args: argparse.Namespace) -> None:
    """Writes train.jsonl and test.jsonl, once."""
    from transformers import AutoTokenizer

    if (args.out / "test.jsonl").exists():
        return
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompt, response = LIMITS[args.set]
    for name, path, limit, per in (
        ("train", args.train, args.pairs, args.per_prompt),
        ("test", args.test, None, args.per_prompt),
    ):
        rows, left_out = text_pairs(
            path, tokenizer, per_prompt=per, max_prompt=prompt, max_response=response, seed=0
        )
        write_rows(rows, args.out / f"{name}.jsonl", limit=limit)
        used = len(rows) if limit is None else min(limit, len(rows))
        print(f"{name}: {used} of {len(rows)} pairs; left out: {dict(left_out)}")


def report(args: argparse.Namespace) -> None:
    """Accuracy of every variant, and paired differences to TRL's of the same kind and to length."""
    rows = read_rows(args.out / "test.jsonl")
    by_prompt = ByPrompt([row["group"] for row in rows])
    right = {
        "longer response": length_baseline(rows),
        "length and format": format_baseline(read_rows(args.out / "train.jsonl"), rows),
    }
    seconds: dict[str, float] = {}
    for name in VARIANTS:
        file = args.out / f"{_slug(name)}.json"
        if file.exists():
            result = json.loads(file.read_text())
            scores = np.asarray(result["scores"])
            # An equal score is no preference: half right, as a coin would be.
            margin = scores[:, 0] - scores[:, 1]
            right[name] = (margin > 0) + 0.5 * (margin == 0)
            seconds[name] = result["seconds"]
    interval = by_prompt.percent
    print(f"\n{args.set}: {len(rows)} held-out pairs of {by_prompt.prompts} prompts, percent right")
    print(f"{'':22} {'accuracy':>22} {'less length':>22} {'less TRL, same kind':>22} {'s':>6}")
    for name, correct in right.items():
        kind = "LoRA" if "LoRA" in name else "frozen"
        peer = right.get(f"TRL {kind} linear")
        against = (
            ""
            if name not in VARIANTS or peer is None or correct is peer
            else interval(correct - peer)
        )
        baseline = "" if name not in VARIANTS else interval(correct - right["longer response"])
        spent = f"{seconds[name]:6.0f}" if name in seconds else ""
        print(f"{name:22} {interval(correct):>22} {baseline:>22} {against:>22} {spent}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", choices=sorted(LIMITS))
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--model", help="folder or hub name; default: the packaged small model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--per-prompt", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=sorted(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--one", choices=sorted(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out or Path("runs") / f"reward-real-{args.set}"
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    if args.one:
        variant = VARIANTS[args.one]
        start = time.perf_counter()
        scores = (run_trl if variant["side"] == "trl" else run_palate)(args, variant)
        document = {"scores": scores, "seconds": time.perf_counter() - start}
        (args.out / f"{_slug(args.one)}.json").write_text(json.dumps(document))
        return
    prepare(args)
    for name in args.only:
        if (args.out / f"{_slug(name)}.json").exists():
            continue
        print(name, flush=True)
        arguments = [*sys.argv[1:], "--model", args.model, "--out", str(args.out), "--one", name]
        log = args.out / f"{_slug(name)}.log"
        with log.open("w") as file:
            command = [sys.executable, __file__, *arguments]
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(f"{name} failed: {log}")
    report(args)


def _slug(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    main()
