"""DPO, full fine-tuning: `palate tune` against a plain loop and against TRL's DPOTrainer.

    python benchmarks/vs_trl_dpo.py [MODEL] [--pairs 2] [--shapes 200/100 100/400] [--turns 5]
                                    [--steps 2] [--dtype bfloat16] [--lora RANK] [--sides ...]
    python benchmarks/vs_trl_dpo.py --ratings FILE --pairs 8 --micro 4

The sides, by turns in one run, each turn in a process of its own:

  plain loop      forty lines on transformers (plain_loop.py): logits at response positions alone
  ..., compiled   the same with `torch.compile`, whose own minutes are not counted
  TRL compact     DPOTrainer with the compact head that it has for Triton devices forced on: an
                  internal switch, which scores response positions alone; its products stay float32
  TRL as shipped  DPOTrainer, which on CPUs scores the prompt's positions too
  palate          `palate tune`

Same model, pairs, dtype, batch, optimizer (AdamW, constant rate, clipping at 1), separate frozen
reference, no packing, no checkpointing of activations. Every step sees all pairs, so that the order
in which a side shuffles does not matter and the losses can be compared step by step. First all
sides run a small case in float32, where their losses must agree; in bfloat16 they part after the
first update, because logits and gradients round differently. The first step of a turn is not timed.
MODEL is a local folder or hub name; the packaged small model is prepared when MODEL is left out.
A shape is tokens of the prompt / of each response. With `--ratings` (alpaca_eval_ratings) the pairs
are real ones, of all lengths, in micro-batches of `--micro`: TRL in its own order, the plain loop
and palate with like lengths together.

The last lines of a shape are the ratios of pairs per second, one an opponent, from the medians over
all turns, with the least and the greatest of single turns; TRL as shipped is the last.
"""

from __future__ import annotations

import argparse
import json
import random
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

OURS = "palate"
COMPILED = "plain loop, compiled"
SIDES = ("plain loop", COMPILED, "TRL compact", "TRL as shipped", OURS)
"""In the order of their turns; ratios are told in it too."""
AGREE = 2e-4
"""Nats, in float32."""


def make_pairs(model: str, count: int, prompt: int, response: int, path: Path) -> None:
    """Pairs of random dictionary words whose token counts are exact: one token a word."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = random.Random(0)
    limit = min(len(tokenizer), 60_000)
    words = []
    for token in tokenizer.convert_ids_to_tokens(range(limit // 30, limit)):
        word = token.replace("\u0120", " ").replace("\u2581", " ")
        if word[:1] == " " and word[1:].isascii() and word[1:].isalpha():
            words.append(word)

    def text(n: int) -> str:
        return "".join(rng.sample(words, n))

    # The beginning-of-text token counts in the prompt, the end-of-text one in the response.
    has_bos = len(tokenizer("")["input_ids"]) > 0
    rows = [
        {
            "prompt": text(prompt - has_bos),
            "chosen": text(response - 1),
            "rejected": text(response - 1),
        }
        for _ in range(count)
    ]
    for row in rows:
        ids = tokenizer(row["prompt"] + row["chosen"])["input_ids"]
        if len(ids) != prompt + response - 1:
            raise SystemExit(f"{model}: words are not single tokens ({len(ids)} tokens)")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def real_pairs(ratings: Path, model: str, count: int, path: Path) -> str:
    """Rated answers as they come, up to 512 tokens; how long they are, in words."""
    from real_pairs import read_rows, text_pairs, write_rows
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rows, _ = text_pairs(ratings, tokenizer, per_prompt=2, max_prompt=256, max_response=512, seed=0)
    write_rows([{k: v for k, v in row.items() if k != "group"} for row in rows], path, limit=count)

    def tokens(*names: str) -> str:
        texts = [row[name] for row in read_rows(path) for name in names]
        lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
        return f"{min(lengths)} to {max(lengths)}"

    return f"prompts of {tokens('prompt')} and responses of {tokens('chosen', 'rejected')} tokens"


def run_plain(args: argparse.Namespace, *, compiled: bool) -> None:
    import plain_loop

    report(
        **plain_loop.dpo(
            args.model,
            args.data,
            dtype=args.dtype,
            steps=args.steps,
            rate=args.learning_rate,
            compiled=compiled,
            lora=args.lora,
            micro=args.micro,
        )
    )


def run_trl(args: argparse.Namespace, *, compact: bool) -> None:
    import torch
    import trl.trainer.utils
    from datasets import Dataset
    from plain_loop import adapters
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    if compact:
        # Of this module's own import: the kernels that fold a tile still see a CPU.
        trl.trainer.utils._use_triton = lambda device: True
    clock = step_clock()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))

    policy, reference = loaded(), None if args.lora else loaded()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            policy,
            reference,
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=args.micro or len(rows),
                gradient_accumulation_steps=len(rows) // (args.micro or len(rows)),
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
            peft_config=adapters(args.lora) if args.lora else None,
        )
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    report(seconds=clock.seconds, losses=losses)


def run_palate(args: argparse.Namespace) -> None:
    from palate import tune
    from palate.recipes.schema import TuneRecipe

    rows = len(args.data.read_text().splitlines())
    lora = {"r": args.lora, "alpha": 2 * args.lora} if args.lora else None
    with tempfile.TemporaryDirectory() as folder:
        recipe = TuneRecipe.model_validate(
            {
                "output_dir": str(Path(folder) / "run"),
                "model": {"path": args.model, "dtype": args.dtype, "lora": lora},
                "data": {
                    "train": [{"path": str(args.data)}],
                    "length": {"max_prompt_tokens": 10_000, "max_response_tokens": 10_000},
                },
                "loss": {"type": args.loss},
                "train": {
                    "batch_size_pairs": rows,
                    "micro_batch_size_pairs": args.micro or rows,
                    "max_steps": args.steps,
                    "learning_rate": args.learning_rate,
                    "scheduler": "constant",
                    "optimizer_precision": "model",
                },
            }
        )
        train = training_log(tune(recipe).path)
    seconds = [rows / entry["pairs_per_second"] for entry in train]
    report(seconds=seconds, losses=[entry["loss"] for entry in train])


FIXED = "weights of policy and reference, gradients and two moments"


def fixed_bytes(model: str, dtype: str) -> int:
    """What no side can do without, in the dtype of the run."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    weights: int = sum(p.numel() * p.element_size() for p in loaded.parameters())
    return 5 * weights


def compare(args: argparse.Namespace, shape: str, folder: Path) -> None:
    """All sides at one shape; prints a table and the ratios."""
    data = folder / "pairs.jsonl"
    if args.ratings:
        lengths = real_pairs(args.ratings, args.model, args.pairs, data)
        lengths += f", micro-batches of {args.micro or args.pairs}"
    else:
        prompt, response = map(int, shape.split("/"))
        make_pairs(args.model, args.pairs, prompt, response, data)
        lengths = f"prompts of {prompt} and responses of {response} tokens"
    results = take_turns(
        args.sides, lambda side: run(args, side, data, args.dtype, args.steps), args.turns
    )
    trained = f"LoRA of rank {args.lora}" if args.lora else "full fine-tuning"
    print(
        f"\n{shape}: {args.pairs} pairs a step, {lengths}, {args.dtype}, {trained}; median of "
        f"{args.turns} turns [fastest, slowest]"
    )
    print_losses_table(results, args.pairs)
    if not args.lora:
        print(f"{fixed_bytes(args.model, args.dtype) / 1e9:.2f} GB of each side are {FIXED}")
    print(losses_apart(results, OURS))
    print_ratios(shape, results, OURS)


def check(args: argparse.Namespace, folder: Path) -> None:
    """A small case in float32, in which all sides must compute the same."""
    data = folder / "small.jsonl"
    make_pairs(args.model, 2, 24, 12, data)
    # Of adapters each side draws its own, so that only losses of all weights can be equal.
    whole = argparse.Namespace(**vars(args) | {"lora": 0, "micro": 0})
    losses = {side: run(whole, side, data, "float32", 3)["losses"] for side in args.sides}
    must_agree(losses, OURS, AGREE)
    gap = max(loss_gap(losses, OURS).values(), default=0.0)
    print(f"float32, 3 steps of a small case: losses of all sides agree to {gap:.1g} nats")


def run(args: argparse.Namespace, side: str, data: Path, dtype: str, steps: int) -> dict[str, Any]:
    """What a side reports of its steps on the data."""
    return run_side(
        __file__, side, args.model, "--data", data, "--steps", steps,
        "--learning-rate", args.learning_rate, "--loss", args.loss, "--dtype", dtype,
        "--lora", args.lora, "--micro", args.micro,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", default=["200/100", "100/400"])
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--steps", type=int, default=2, help="of a turn; the first is not timed")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights")
    parser.add_argument("--loss", default="dpo", help="of palate's side; others are DPO")
    parser.add_argument("--ratings", type=Path, help="real pairs of this file in place of shapes")
    parser.add_argument("--micro", type=int, default=0, help="pairs of a micro-batch; 0: all")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {
            "plain loop": partial(run_plain, compiled=False),
            COMPILED: partial(run_plain, compiled=True),
            "TRL compact": partial(run_trl, compact=True),
            "TRL as shipped": partial(run_trl, compact=False),
            OURS: run_palate,
        }[args.side](args)
        return
    if args.micro and args.pairs % args.micro:
        parser.error("--pairs is no multiple of --micro")
    if args.steps < 2 or OURS not in args.sides:
        parser.error("a turn needs 2 steps, of which the first is not timed, and --sides palate")
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    with tempfile.TemporaryDirectory() as folder:
        if args.loss == "dpo":
            check(args, Path(folder))
        for shape in ["real pairs"] if args.ratings else args.shapes:
            compare(args, shape, Path(folder))


if __name__ == "__main__":
    main()
