"""Reward model, full fine-tuning: `palate reward` against a plain loop and TRL's RewardTrainer.

    python benchmarks/vs_trl_reward.py [MODEL] [--pairs 4] [--steps 2] [--turns 5]
                                       [--dtype bfloat16] [--shapes 100/400 200/100 800/100]
                                       [--sides ...]

The sides, by turns in one run, each turn in a process of its own: a plain loop on transformers
(plain_loop.py), the same under `torch.compile`, TRL's RewardTrainer as shipped, palate.

Same model, pairs, starting head, dtype, batch, optimizer (AdamW, constant rate, clipping at 1), no
checkpointing of activations. Every step sees all pairs, so that the order in which a side shuffles
does not matter and the losses can be compared step by step. The first step of each turn is not
timed. MODEL is a local folder or hub name; the packaged small model is prepared when MODEL is left
out. A shape is tokens of the prompt / of each response.

First all sides run a small case in float32, where their losses must agree. Scores are those of
transformers on the same weights: equal in float32, and in bfloat16, where all sides round, as far
from float32 as transformers itself. Losses in bfloat16 part for that reason.

The last lines of a shape are the ratios of pairs per second, one an opponent, from the medians over
all turns, with the least and the greatest of single turns; TRL as shipped is the last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from sides import (
    TURNS,
    loss_gap,
    losses_apart,
    must_agree,
    print_losses_table,
    print_ratios,
    report,
    run_side,
    step_clock,
    take_turns,
    training_log,
)
from vs_trl_dpo import make_pairs

OURS = "palate"
COMPILED = "plain loop, compiled"
SIDES = ("plain loop", COMPILED, "TRL as shipped", OURS)
AGREE = 2e-4
"""Nats, in float32."""


def starting_model(path: str, dtype: str, folder: Path) -> None:
    """A classifier with a new head, from which all sides begin."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, dtype=getattr(torch, dtype)
    )
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_plain(args: argparse.Namespace, *, compiled: bool) -> None:
    import plain_loop

    report(
        **plain_loop.reward(
            args.model,
            args.data,
            dtype=args.dtype,
            steps=args.steps,
            rate=args.learning_rate,
            compiled=compiled,
        )
    )


def run_trl(args: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    clock = step_clock()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model,
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=len(rows),
                max_steps=args.steps,
                learning_rate=args.learning_rate,
                lr_scheduler_type="constant",
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                max_length=None,
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[clock],
        )
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    report(seconds=clock.seconds, losses=[float(entry["loss"]) for entry in log])


def run_palate(args: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import load_file

    from palate.models.model import Model
    from palate.recipes.reward import RewardRecipe
    from palate.train import reward, reward_run

    rows = len(args.data.read_text().splitlines())
    build = reward_run.build_reward_model

    def with_the_same_head(recipe: RewardRecipe) -> Model:
        model = build(recipe)
        score = load_file(Path(args.model) / "model.safetensors")["score.weight"]
        with torch.no_grad():
            model.reward_head.head.layers[0].weight.copy_(score)
        return model

    reward_run.build_reward_model = with_the_same_head
    with tempfile.TemporaryDirectory() as folder:
        recipe = RewardRecipe.model_validate(
            {
                "output_dir": str(Path(folder) / "run"),
                "model": {"path": args.model, "dtype": args.dtype},
                "data": {
                    "train": [{"path": str(args.data)}],
                    "length": {"max_prompt_tokens": 10_000, "max_response_tokens": 10_000},
                },
                "train": {
                    "batch_size_pairs": rows,
                    "micro_batch_size_pairs": rows,
                    "eval_batch_size_pairs": rows,
                    "max_steps": args.steps,
                    "learning_rate": args.learning_rate,
                    "scheduler": "constant",
                    "optimizer_precision": "model",
                    "layout": args.layout,
                },
            }
        )
        log = training_log(reward(recipe).path)
    seconds = [rows / entry["pairs_per_second"] for entry in log]
    report(seconds=seconds, losses=[entry["loss"] for entry in log])


def run_scores(args: argparse.Namespace) -> None:
    """Scores of the starting weights by transformers in float32, and how far others are off."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from palate.data.items import Item
    from palate.data.layouts import collate
    from palate.models.check import layout_check
    from palate.models.model import Ask
    from palate.models.reward_files import load_reward_model

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    items, texts = [], []
    for row in map(json.loads, args.data.read_text().splitlines()):
        prompt = tokenizer(row["prompt"])["input_ids"]
        both_texts = [
            row["prompt"] + row[side] + tokenizer.eos_token for side in ("chosen", "rejected")
        ]
        texts += both_texts
        tails = [tuple(tokenizer(text)["input_ids"][len(prompt) :]) for text in both_texts]
        items.append(Item.of(tuple(prompt), *tails))

    @torch.no_grad()
    def transformers_scores(dtype: str) -> torch.Tensor:
        model = AutoModelForSequenceClassification.from_pretrained(
            args.model, dtype=getattr(torch, dtype)
        ).eval()
        inputs = (tokenizer(text, return_tensors="pt") for text in texts)
        return torch.tensor([float(model(**text).logits[0, 0]) for text in inputs])

    @torch.no_grad()
    def palate_scores(dtype: str) -> torch.Tensor:
        model = load_reward_model(args.model, dtype=dtype)
        layout = args.layout
        if layout == "auto":
            layout = "shared" if layout_check(model).ok else "plain"
        batch = collate(items, layout=layout, pad_id=0, keep_last=True)
        return model(batch, Ask(heads=("reward",))).rewards

    exact = transformers_scores("float32")
    off = {
        "palate, float32": palate_scores("float32") - exact,
        f"transformers, {args.dtype}": transformers_scores(args.dtype) - exact,
        f"palate, {args.dtype}": palate_scores(args.dtype) - exact,
    }
    distances = {name: float(values.square().mean().sqrt()) for name, values in off.items()}
    report(off=distances, deviation=float(exact.std()))


def compare(args: argparse.Namespace, shape: str, folder: Path) -> None:
    """Runs all sides at one shape; prints a table and the ratios."""
    prompt, response = map(int, shape.split("/"))
    data = folder / "pairs.jsonl"
    make_pairs(args.model, args.pairs, prompt, response, data)
    start = folder / "start"
    if not start.exists():
        starting_model(args.model, args.dtype, start)
    scores = run(args, "scores", start, data, args.dtype, args.steps)
    results = take_turns(
        args.sides, lambda side: run(args, side, start, data, args.dtype, args.steps), args.turns
    )
    print(
        f"\n{shape}: {args.pairs} pairs a step, prompts of {prompt} and responses of {response} "
        f"tokens, {args.dtype}, full fine-tuning; median of {args.turns} turns [fastest, slowest]"
    )
    print_losses_table(results, args.pairs)
    off = "; ".join(f"{name} {value:.2g}" for name, value in scores["off"].items())
    print(
        f"scores of the same weights, root mean square distance from transformers in float32: {off}"
        f" (deviation of the scores {scores['deviation']:.2g}); "
        f"{losses_apart(results, OURS)}"
    )
    print_ratios(shape, results, OURS)


def check(args: argparse.Namespace, folder: Path) -> None:
    """A small case in float32, in which all sides must compute the same."""
    data, start = folder / "small.jsonl", folder / "start-float32"
    make_pairs(args.model, 2, 24, 12, data)
    starting_model(args.model, "float32", start)
    losses = {side: run(args, side, start, data, "float32", 3)["losses"] for side in args.sides}
    must_agree(losses, OURS, AGREE)
    gap = max(loss_gap(losses, OURS).values())
    print(f"float32, 3 steps of a small case: losses of all sides agree to {gap:.1g} nats")


def run(
    args: argparse.Namespace, side: str, start: Path, data: Path, dtype: str, steps: int
) -> dict[str, Any]:
    """What a side reports of its steps on the data, from the starting weights."""
    return run_side(
        __file__, side, start, "--data", data, "--steps", steps,
        "--learning-rate", args.learning_rate, "--dtype", dtype, "--layout", args.layout,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--shapes", nargs="+", default=["100/400", "200/100", "800/100"])
    parser.add_argument("--steps", type=int, default=2, help="of a turn; the first is not timed")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--layout", default="auto", help="of palate's side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=[*SIDES, "scores"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {
            "plain loop": partial(run_plain, compiled=False),
            COMPILED: partial(run_plain, compiled=True),
            "TRL as shipped": run_trl,
            OURS: run_palate,
            "scores": run_scores,
        }[args.side](args)
        return
    if args.steps < 2 or OURS not in args.sides:
        parser.error("a turn needs 2 steps, of which the first is not timed, and --sides palate")
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    with tempfile.TemporaryDirectory() as folder:
        check(args, Path(folder))
        for shape in args.shapes:
            compare(args, shape, Path(folder))


if __name__ == "__main__":
    main()
