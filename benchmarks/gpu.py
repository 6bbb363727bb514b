"""DPO and TDPO2 on one GPU against TRL, its tree packing and a plain loop; five minutes at most.

    python benchmarks/gpu.py [--budget 300] [--models 0.5B 1.5B] [--shapes 2048/256 8192/512]
                             [--pairs N] [--turns 5] [--steps 2] [--peak-tflops X]
    python benchmarks/gpu.py --dry-run       # the plan, without a GPU
    python benchmarks/gpu.py --tiny          # all of the code, on a CPU, at sizes that say nothing

Models are of the shapes of Qwen2.5, with random weights in bfloat16; pairs are random token ids, a
shape is tokens of the prompt / of each response. The sides, by turns in one process:

  plain loop    plain_loop.py: sdpa, which without padding is torch's flash kernel; the head at
                response positions alone
  TRL           DPOTrainer's collator, compact head and loss, without its metrics and its loop; with
                FlashAttention and Liger's layers where they are installed
  TRL tree      the same on the prefix trees that TRL packs for GRPO alone
                (trl/experimental/async_grpo/packing.py), where its kernel can be had
  palate        Palate's loop, shared layout and DPO
  palate TDPO2  the same with exact KLs, which no other side has

First a small case in float32, in which the losses of all sides (TDPO2 apart) must agree. A turn
builds a side anew, takes a step that is not timed and then `--steps` that are. Memory is the most
that torch's allocator held during a turn. Where the budget does not reach for all turns, turns are
left out, never sides, and the table says so. FlexAttention and Triton compile in the first turn of
the first shape, which is in the budget and in no figure.

Tokens a second count each prompt once, on every side, and model-FLOP utilisation is the least work
of a step (floor.py: a prompt once, the head at responses) over what the device could do in its
time: so both compare times, and nobody is paid for work that was not needed.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from gpu_shapes import MODELS, PAIRS, Shape, config_of, parameters, peak_of
from gpu_sides import (
    DPO,
    PLAIN,
    SIDES,
    TDPO2,
    TREE,
    TRL,
    Case,
    flash_attention,
    installed,
    tree_obstacle,
)
from sides import TURNS, Measured, against, losses_apart, must_agree

AGREE = 2e-4
"""Nats, in float32."""


def shapes_of(args: argparse.Namespace) -> list[Shape]:
    return [
        Shape(model, *map(int, shape.split("/")), pairs=args.pairs or PAIRS.get(shape, 2))
        for model in args.models
        for shape in args.shapes
    ]


def sides_of(device: str) -> dict[str, str | None]:
    """All sides, and why one cannot run."""
    return dict.fromkeys(SIDES) | {TREE: tree_obstacle(device)}


# The plan ---------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> None:
    """What would be run, needed and compared, and what is missing here."""
    is_there = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if is_there else "none"
    peak = peak_of(name, args.peak_tflops)
    known = f"{peak / 1e12:.0f} TFLOP/s in bfloat16" if peak else "not known: give --peak-tflops"
    print(f"GPU: {name}; peak {known}" if is_there else "GPU: none here, and one is needed")
    print(f"budget {args.budget:.0f} s: {args.turns} turns of {args.steps} steps and one untimed")
    attention = flash_attention("cuda", torch.bfloat16)[1]
    has_liger = installed("liger_kernel") is not None
    liger = "Liger's layers" if has_liger else "no Liger layers: liger_kernel is not installed"
    words = {
        PLAIN: "transformers, sdpa (torch's flash kernel: rows without padding), bfloat16 logits",
        TRL: f"TRL {installed('trl')}: DPO's collator, compact Triton head and loss; {attention}; "
        f"{liger}",
        TREE: "TRL's TreeRow and tree_attention (flash-attn3 by paths), its head, DPO's loss",
        DPO: "palate's loop; shared rows, FlexAttention over blocks, no padding",
        TDPO2: "the same, with exact KL(ref || policy) of every response token",
    }
    print("\nsides, by turns:")
    for side, why in sides_of("cuda").items():
        print(f"  {side:<13} {words[side]}" + (f"; MISSING here: {why}" if why else ""))
    print("\nequality first: float32, a small case, losses of 3 steps within 2e-4 nats")
    for shape in shapes_of(args):
        layers, embeddings = parameters(config_of(shape.model))
        total = layers + embeddings
        print(
            f"\n{shape}: {total / 1e6:.0f}M weights; {shape.tokens:,} tokens a step; least work "
            f"{shape.flops('dpo') / 1e12:.1f} TFLOP for DPO, {shape.flops('tdpo2') / 1e12:.1f} for "
            f"TDPO2\n  memory thought to be needed, of it {10 * total / 1e9:.1f} GB of weights, "
            "reference, gradients and moments: "
            + ", ".join(f"{side} {shape.memory(side) / 1e9:.0f} GB" for side in SIDES)
        )
        if peak:
            print(f"  at the peak a step of DPO takes {shape.flops('dpo') / peak:.3f} s")


# The runs ---------------------------------------------------------------------------------------


def case_of(shape: Shape, device: torch.device, dtype: torch.dtype, rate: float) -> Case:
    """Seeded weights and ids."""
    from transformers import AutoModelForCausalLM

    config, rng = config_of(shape.model), random.Random(0)
    torch.manual_seed(0)
    with torch.device(device):
        weights = AutoModelForCausalLM.from_config(config, dtype=dtype).state_dict()

    def ids(n: int) -> list[int]:
        return [rng.randrange(3, config.vocab_size) for _ in range(n)]

    pairs = [
        (ids(shape.prompt), ids(shape.response), ids(shape.response)) for _ in range(shape.pairs)
    ]
    # On the host, so that a side's peak is its own.
    weights = {name: value.cpu() for name, value in weights.items()}
    return Case(config, weights, pairs, device, dtype, rate)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def take_turn(side: str, case: Case, steps: int) -> dict[str, Any]:
    """Seconds and losses of a side's steps, the first one not to be counted, and its peak."""
    on_gpu = case.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    measures: dict[str, Any] = {"seconds": [], "losses": []}
    step = SIDES[side](case)
    for _ in range(1 + steps):
        finish(case.device)
        start = time.perf_counter()
        loss = step()
        finish(case.device)
        measures["seconds"].append(time.perf_counter() - start)
        measures["losses"].append(float(loss))
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return measures | {"peak": torch.cuda.max_memory_allocated() if on_gpu else host}


def check(sides: Sequence[str], device: torch.device) -> None:
    """A small case in float32, in which all that train DPO must compute the same."""
    shape = Shape("tiny", prompt=40, response=24, pairs=3)
    case = case_of(shape, device, torch.float32, rate=1e-3)
    # FlashAttention has no float32.
    able = [side for side in sides if side != TDPO2 and (side != TREE or device.type == "cpu")]
    losses = {side: take_turn(side, case, 2)["losses"] for side in able}
    must_agree(losses, DPO, AGREE)
    moved = losses[DPO][0] - losses[DPO][-1]
    if not moved > 100 * AGREE:
        raise SystemExit(f"the small case does not train: losses {losses[DPO]} say nothing")
    print(f"float32, 3 steps of a small case: {', '.join(able)} agree within {AGREE:g} nats")
    if TREE in sides and TREE not in able:
        print(f"{TREE}: its kernel has no float32; see its losses in the tables")


def measure(
    shape: Shape, case: Case, sides: Sequence[str], args: argparse.Namespace, until: float
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Turns while there is time for a whole one; at least the first. And what did not fit."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    for turn in range(args.turns):
        started = time.monotonic()
        for side in sides:
            if side in failed:
                continue
            try:
                turns[side].append(take_turn(side, case, args.steps))
            except torch.OutOfMemoryError:
                failed[side] = "did not fit the GPU's memory"
                continue
            except Exception as error:
                # Palate says it in words of its own.
                if not isinstance(error.__cause__, torch.OutOfMemoryError):
                    raise
                failed[side] = "did not fit the GPU's memory"
                continue
            last = statistics.median(turns[side][-1]["seconds"][1:])
            print(f"  {shape}, turn {turn + 1}, {side}: {last:.3f} s", file=sys.stderr)
        # The first turn compiles, and tells too much of what another takes.
        took = time.monotonic() - started
        if turn + 1 < args.turns and time.monotonic() + took * (0.6 if turn == 0 else 1) > until:
            break
    results = {
        side: Measured(
            tuple(statistics.median(run["seconds"][1:]) for run in runs),
            max(run["peak"] for run in runs),
            runs[0],
        )
        for side, runs in turns.items()
        if runs and side not in failed
    }
    return results, failed


def table(
    shape: Shape, results: dict[str, Measured], peak: float | None, args: argparse.Namespace
) -> Iterator[str]:
    """The lines of a shape."""
    done = len(next(iter(results.values())).seconds)
    short = (
        f"; the budget left out {args.turns - done} of {args.turns}" if done < args.turns else ""
    )
    yield f"\n{shape}; median of {done} turns [fastest, slowest]{short}"
    yield f"{'':>14} {'s/step':>22} {'tokens/s':>10} {'MFU':>6} {'peak GB':>8}  losses"
    for side, measured in results.items():
        flops = shape.flops("tdpo2" if side == TDPO2 else "dpo")
        used = f"{flops / measured.median / peak:.1%}" if peak else "-"
        losses = " ".join(f"{x:.4f}" for x in measured.first["losses"])
        yield (
            f"{side:>14} {measured.spread(3):>22} {shape.tokens / measured.median:>10,.0f} "
            f"{used:>6} {measured.peak / 1e9:>8.2f}  {losses}"
        )
    if DPO in results:
        yield losses_apart(results, DPO)
        for side, measured in results.items():
            if side != DPO:
                yield f"{shape}, {against(side, measured, results[DPO], unit='tokens/s')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["0.5B", "1.5B"])
    parser.add_argument("--shapes", nargs="+", default=["2048/256", "8192/512"])
    parser.add_argument("--pairs", type=int, help="of a step, at every shape")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument(
        "--steps", type=int, default=2, help="timed in a turn, beside an untimed one"
    )
    parser.add_argument("--budget", type=float, default=300.0, help="seconds, of all")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, in bfloat16")
    parser.add_argument("--dry-run", action="store_true", help="print the plan; needs no GPU")
    parser.add_argument("--tiny", action="store_true", help="run all of the code on the CPU")
    args = parser.parse_args()
    # Its tree packing calls itself experimental, at every import.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if args.tiny:
        args.models, args.shapes = ["tiny"], ["40/24", "24/40"]
    if args.dry_run:
        plan(args)
        return
    if not (args.tiny or torch.cuda.is_available()):
        print("no GPU here: --dry-run prints the plan, --tiny runs the code", file=sys.stderr)
        raise SystemExit(2)
    deadline = time.monotonic() + args.budget
    device = torch.device("cpu" if args.tiny else "cuda")
    name = "CPU" if args.tiny else torch.cuda.get_device_name()
    peak = peak_of(name, args.peak_tflops)
    sides = sides_of("cuda")
    if args.tiny:
        # Its kernel is replaced by the same sums in torch.
        sides[TREE] = None
    print(f"{name}; torch {torch.__version__}; TRL {installed('trl')}")
    for side, why in sides.items():
        if why:
            print(f"{side} is left out: {why}")
    able = [side for side, why in sides.items() if why is None]
    check(able, device)
    shapes = shapes_of(args)
    for i, shape in enumerate(shapes):
        now = time.monotonic()
        until = now + max(0.0, deadline - now) / (len(shapes) - i)
        dtype = torch.float32 if args.tiny else torch.bfloat16
        case = case_of(shape, device, dtype, rate=1e-5)
        results, failed = measure(shape, case, able, args, until)
        if results:
            print("\n".join(table(shape, results, peak, args)))
        for side, why in failed.items():
            print(f"{side}: {why}; thought to need {shape.memory(side) / 1e9:.0f} GB")
    late = time.monotonic() - deadline
    print(f"\n{args.budget + late:.0f} s" + (" (beyond the budget)" if late > 0 else ""))


if __name__ == "__main__":
    main()
