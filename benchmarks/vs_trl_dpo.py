"""DPO, full fine-tuning: TRL's DPOTrainer against `palate tune`, in one run.

    python benchmarks/vs_trl_dpo.py MODEL [--pairs 4] [--prompt 200] [--response 100] [--steps 4]
                                    [--dtype bfloat16]

Same model, pairs, dtype, batch, optimizer (AdamW, constant rate), separate frozen
reference, no packing, no checkpointing of activations. Every step sees all pairs, so that the order
in which either side shuffles does not matter and the losses can be compared step by step. Each side
runs in a process of its own, one after the other; the first step is not timed. MODEL is a local
folder or hub name; the packaged small model is prepared when MODEL is left out.

In bfloat16 the losses part after the first update, because TRL rounds logits to bfloat16 and the
two sides' gradients round differently into bfloat16 weights; `--dtype float32` shows that nothing
else differs.

The last line is the ratio of pairs per second.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from sides import report, run_side


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


def run_trl(args: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    clock = Clock()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
        for _ in range(2)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            policy,
            reference,
            args=DPOConfig(
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
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    report(seconds=clock.seconds, losses=losses)


def run_palate(args: argparse.Namespace) -> None:
    from palate import tune
    from palate.recipes.schema import TuneRecipe

    rows = len(args.data.read_text().splitlines())
    with tempfile.TemporaryDirectory() as folder:
        recipe = TuneRecipe.model_validate(
            {
                "output_dir": str(Path(folder) / "run"),
                "model": {"path": args.model, "dtype": args.dtype},
                "data": {"train": [{"path": str(args.data)}]},
                "loss": {"type": args.loss},
                "train": {
                    "batch_size_pairs": rows,
                    "micro_batch_size_pairs": rows,
                    "max_steps": args.steps,
                    "learning_rate": args.learning_rate,
                    "scheduler": "constant",
                    "optimizer_precision": "model",
                },
            }
        )
        result = tune(recipe)
        lines = (result.path / "metrics.jsonl").read_text().splitlines()
    train = [entry for entry in map(json.loads, lines) if entry["split"] == "train"]
    seconds = [rows / entry["pairs_per_second"] for entry in train]
    report(seconds=seconds, losses=[entry["loss"] for entry in train])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--response", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--loss", default="dpo", help="of palate's side")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--side", choices=["trl", "palate"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        (run_trl if args.side == "trl" else run_palate)(args)
        return
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        make_pairs(args.model, args.pairs, args.prompt, args.response, data)
        for side in ("trl", "palate"):
            results[side] = run_side(
                __file__, side, args.model, "--data", data, "--steps", args.steps,
                "--learning-rate", args.learning_rate, "--loss", args.loss, "--dtype", args.dtype,
            )  # fmt: skip
    print(
        f"{args.pairs} pairs a step, prompts of {args.prompt} and responses of {args.response} "
        f"tokens, {args.dtype}, full fine-tuning; median of {args.steps - 1} steps"
    )
    print(f"{'':>8} {'s/step':>8} {'pairs/s':>8} {'peak GB':>8}  losses")
    speed = {}
    for side, r in results.items():
        step = statistics.median(r["seconds"][1:])
        speed[side] = args.pairs / step
        losses = " ".join(f"{x:.5f}" for x in r["losses"])
        print(f"{side:>8} {step:>8.2f} {speed[side]:>8.3f} {r['peak'] / 1e9:>8.2f}  {losses}")
    gap = max(
        abs(a - b)
        for a, b in zip(results["trl"]["losses"], results["palate"]["losses"], strict=True)
    )
    print(f"largest difference of the losses: {gap:.5f}")
    print(f"peak memory, TRL / palate: {results['trl']['peak'] / results['palate']['peak']:.2f}x")
    print(f"{speed['palate'] / speed['trl']:.2f}x")


if __name__ == "__main__":
    main()
