"""Pairs with images, frozen tower: `palate tune` and `palate reward` against plain loops and TRL.

    python benchmarks/vision_pairs.py [--train dpo reward] [--pairs 2] [--image-tokens 1024]
                                      [--question 20] [--response 150] [--turns 5] [--steps 2]
                                      [--dtype bfloat16] [--lora RANK] [--sides ...]

The sides, by turns in one run, each turn in a process of its own:

  plain loop            on transformers (vision_plain.py): an image through the tower once a step,
                        for chosen, rejected and the reference
  ..., kept             the same with the tower's features computed before the first step
  TRL compact           DPOTrainer with the compact head that it has for Triton devices forced on:
                        the only setting that helps it here. Reference log-probs computed ahead it
                        refuses for images, and padding-free batches it has switched off
  TRL as shipped        DPOTrainer with its vision collator, which repeats the images for chosen and
                        rejected; its reference sees them again
  palate plain          layout plain, features live: of each pair two rows, an image once a step
  palate shared         layout shared, features live: prompt and image once for both responses
  palate                shared, and features kept

TRL's RewardTrainer takes no images, so that reward training has no such side. The model has the
shape of Qwen2.5-VL 3B, widths a quarter (vision_model.py), and random weights; tower and projector
are frozen, all else is trained, or adapters on the language model with `--lora`. Same pairs, dtype,
batch, optimizer (AdamW, constant rate, clipping at 1), frozen reference, starting head; no
checkpointing of activations. Every step sees all pairs. First all sides run a small case in
float32, where their losses must agree. The first step of a turn is not timed.

Reading and processing images is timed for no side: palate keeps the pixels of the latest, the plain
loop makes them ahead, and TRL's collator, which does it anew in every step, runs outside of its
clock; how long it takes is told beside, and so are the images that go through a tower in a step,
and what of the peak a process has before it loads a model.

The last lines are the ratios of pairs per second of both layouts of palate, from the medians over
all turns, with the least and the greatest of single turns, and of peak memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from processor import processor as machine
from sides import (
    TURNS,
    Measured,
    against,
    loss_gap,
    losses_apart,
    must_agree,
    peak_bytes,
    print_losses_table,
    report,
    run_side,
    step_clock,
    take_turns,
    training_log,
)

OURS, SHARED, PLAIN = "palate", "palate shared", "palate plain"
LOOP, KEPT = "plain loop", "plain loop, kept"
COMPACT, SHIPPED = "TRL compact", "TRL as shipped"
REWARD_SIDES = (LOOP, KEPT, PLAIN, SHARED, OURS)
SIDES = (LOOP, KEPT, COMPACT, SHIPPED, PLAIN, SHARED, OURS)
"""In the order of their turns."""
SETTINGS = {PLAIN: ("plain", "live"), SHARED: ("shared", "live"), OURS: ("shared", "cached")}
"""Layout and features of palate's sides."""
AGREE = 2e-4
"""Nats, in float32."""


def run_plain(args: argparse.Namespace) -> None:
    import vision_plain
    from vision_model import TowerPasses

    before, passes = peak_bytes(), TowerPasses()
    (kind,) = args.train
    measures = (vision_plain.dpo if kind == "dpo" else vision_plain.reward)(
        args.model,
        args.data,
        dtype=args.dtype,
        steps=args.steps,
        rate=args.learning_rate,
        lora=args.lora,
        kept=args.side == KEPT,
    )
    images = 0 if args.side == KEPT else passes.images / args.steps
    report(**measures, images=images, before=before)


def run_trl(args: argparse.Namespace) -> None:
    import torch
    import trl.trainer.utils
    from datasets import Dataset, Image, List
    from plain_loop import adapters
    from trl import DPOConfig, DPOTrainer
    from vision_model import TOWER, TowerPasses, load_model, load_processor, read_pairs

    if args.side == COMPACT:
        # Of this module's own import: the kernels that fold a tile still see a CPU.
        trl.trainer.utils._use_triton = lambda device: True
    before, clock, passes = peak_bytes(), step_clock(), TowerPasses()
    rows = read_pairs(args.data)
    for row in rows:
        # Text alone: the collator writes the images' parts itself, and wants no others.
        row["prompt"][0]["content"] = row["prompt"][0]["content"][1]["text"]
        for side in ("chosen", "rejected"):
            row[side][0]["content"] = row[side][0]["content"][0]["text"]
        row["images"] = [str(args.data.parent / name) for name in row["images"]]
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            load_model(args.model, args.dtype),
            None if args.lora else load_model(args.model, args.dtype),
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
            train_dataset=Dataset.from_list(rows).cast_column("images", List(Image())),
            processing_class=load_processor(args.model),
            callbacks=[clock],
            peft_config=adapters(args.lora, exclude=TOWER) if args.lora else None,
        )
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    images = passes.images / args.steps
    report(
        seconds=clock.seconds,
        losses=losses,
        images=images,
        collator=clock.between[1:],
        before=before,
    )


def run_palate(args: argparse.Namespace) -> None:
    from vision_model import TowerPasses, read_pairs
    from vision_plain import starting_head

    from palate import tune
    from palate.models.model import Model
    from palate.recipes.reward import RewardRecipe
    from palate.recipes.schema import TuneRecipe
    from palate.train import reward, reward_run
    from palate.train.loop import Loop

    before, passes, images = peak_bytes(), TowerPasses(), []
    step, build = Loop.train_step, reward_run.build_reward_model

    def counted(loop: Loop, *given: Any) -> None:
        already = passes.images
        step(loop, *given)
        images.append(passes.images - already)

    def with_the_same_head(recipe: RewardRecipe) -> Model:
        model = build(recipe)
        weight = model.reward_head.head.layers[0].weight
        weight.data.copy_(starting_head(weight.shape[1]))
        return model

    # Before the first step the tower runs for checks, and for what is kept.
    Loop.train_step = counted
    reward_run.build_reward_model = with_the_same_head
    rows = len(read_pairs(args.data))
    layout, features = SETTINGS[args.side]
    lora = {"r": args.lora, "alpha": 2 * args.lora} if args.lora else None
    (kind,) = args.train
    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "output_dir": str(Path(folder) / "run"),
            "model": {
                "path": args.model,
                "dtype": args.dtype,
                "lora": lora,
                "vision": {"features": features},
            },
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
                "layout": layout,
            },
        }
        if kind == "dpo":
            run = tune(TuneRecipe.model_validate(recipe))
        else:
            run = reward(RewardRecipe.model_validate(recipe))
        log = training_log(run.path)
    seconds = [rows / entry["pairs_per_second"] for entry in log]
    losses = [entry["loss"] for entry in log]
    report(seconds=seconds, losses=losses, images=images[-1], before=before)


def compare(args: argparse.Namespace, kind: str, sides: list[str], folder: Path) -> None:
    """All sides of a kind of training; prints a table and the ratios."""
    from vision_model import make_pairs

    data = make_pairs(folder, "pairs", args.pairs, args.image_tokens, args.question, args.response)
    results = take_turns(
        sides, lambda side: run(args, kind, side, data, args.dtype, args.steps), args.turns
    )
    trained = f"LoRA of rank {args.lora}" if args.lora else "language model trained whole"
    shape = f"{kind}, {args.image_tokens} + {args.question} / {args.response}"
    print(
        f"\n{shape}: {args.pairs} pairs a step, an image of {args.image_tokens} tokens, a question "
        f"of {args.question} and responses of {args.response}, {args.dtype}, tower frozen, "
        f"{trained}; median of {args.turns} turns [fastest, slowest]"
    )
    print_losses_table(results, args.pairs)
    print(losses_apart(results, OURS))
    print(image_passes(results))
    libraries = [f"{side} {m.first['before'] / 1e9:.2f}" for side, m in results.items()]
    print(f"GB of the peak that a process has before it loads a model: {', '.join(libraries)}")
    print(machine())
    for ours in (SHARED, OURS):
        for side, measured in results.items():
            if ours in results and side not in (SHARED, OURS):
                print(f"{shape}, {ours} {against(side, measured, results[ours])}")


def image_passes(results: dict[str, Measured]) -> str:
    """Images that go through towers in a step, and the time of TRL's collator."""
    counts = [f"{side} {measured.first['images']:g}" for side, measured in results.items()]
    line = f"images through a tower in a step: {', '.join(counts)}"
    for side, measured in results.items():
        if collator := measured.first.get("collator"):
            line += f"; collator of {side}, not counted: {max(collator):.2f} s a step"
    return line


def check(args: argparse.Namespace, kind: str, sides: list[str], folder: Path) -> None:
    """A small case in float32, in which all sides must compute the same."""
    from vision_model import make_pairs

    data = make_pairs(folder, "small", 2, 36, 8, 12)
    # Of adapters each side draws its own, so that only losses of all weights can be equal.
    whole = argparse.Namespace(**vars(args) | {"lora": 0})
    losses = {side: run(whole, kind, side, data, "float32", 3)["losses"] for side in sides}
    must_agree(losses, OURS, AGREE)
    gap = max(loss_gap(losses, OURS).values(), default=0.0)
    moved = " ".join(f"{loss:.4f}" for loss in losses[OURS])
    print(f"{kind}, float32, 3 steps of a small case ({moved}): all sides agree to {gap:.1g} nats")


def run(
    args: argparse.Namespace, kind: str, side: str, data: Path, dtype: str, steps: int
) -> dict[str, Any]:
    """What a side reports of its steps on the data."""
    return run_side(
        __file__, side, args.model, "--data", data, "--train", kind, "--steps", steps,
        "--learning-rate", args.learning_rate, "--dtype", dtype, "--lora", args.lora,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help=argparse.SUPPRESS)
    kinds = ["dpo", "reward"]
    parser.add_argument("--train", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--image-tokens", type=int, default=1024, help="a square number")
    parser.add_argument("--question", type=int, default=20, help="tokens")
    parser.add_argument("--response", type=int, default=150, help="tokens")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--steps", type=int, default=2, help="of a turn; the first is not timed")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if args.side in SETTINGS:
            run_palate(args)
        else:
            (run_plain if args.side in (LOOP, KEPT) else run_trl)(args)
        return
    if args.steps < 2 or OURS not in args.sides:
        parser.error("a turn needs 2 steps, of which the first is not timed, and --sides palate")
    from vision_model import save_model

    with tempfile.TemporaryDirectory() as folder:
        args.model = str(Path(folder) / "model")
        save_model(Path(args.model))
        for kind in args.train:
            sides = [s for s in args.sides if kind == "dpo" or s in REWARD_SIDES]
            check(args, kind, sides, Path(folder))
            compare(args, kind, sides, Path(folder))


if __name__ == "__main__":
    main()
