"""How long a LoRA run takes to its first step, against a bare script; and `palate --help`.

    python benchmarks/start_up.py [MODEL] [--turns 5] [--parts]

By turns, each turn of a side a process of its own, the clock running from before it is started:

  bare    imports torch, transformers and peft, loads the same model and tokenizer, adds the same
          adapters, makes one DPO step of the same pairs
  palate  `palate tune` with the verdict of the start check kept, as in any run but the first

Both say when their first step begins and when it is done, by the clock, and how much time the
processor gave them until it begins, which depends less on what else the machine does. Then
`palate --help` against an interpreter that imports what the command stands on, typer and rich.
Medians, with the least and the greatest. MODEL is a local folder; the packaged small model is
prepared when it is left out. `--parts` lists what palate's time goes to instead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processor import processor
from sides import TURNS, report, run_side
from vs_trl_dpo import make_pairs

SIDES = ("bare", "palate")
LORA = {"r": 16, "alpha": 32}
PAIRS, PROMPT, RESPONSE = 2, 30, 20
MOMENTS = {
    "begun": "start of the first step",
    "done": "end of it",
    "busy": "processor time to its start, of all threads",
}
HELP = (
    ("import typer, rich", [sys.executable, "-c", "import typer, rich"]),
    ("palate --help", [sys.executable, "-m", "palate", "--help"]),
)


def run_bare(args: argparse.Namespace) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    adapters = LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules="all-linear")
    model: Any = get_peft_model(base, adapters)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    begun, busy = time.time() - args.start, time.process_time()
    texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in rows]
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])

    def logps() -> Any:
        logits = model(input_ids=ids, logits_to_keep=RESPONSE).logits[:, :-1].float()
        targets = ids[:, 1 - RESPONSE :, None]
        return logits.log_softmax(-1).gather(-1, targets)[..., 0].sum(-1)

    with torch.no_grad(), model.disable_adapter():
        reference = logps()
    chosen, rejected = (logps() - reference).split(len(rows))
    loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    report(begun=begun, done=time.time() - args.start, busy=busy)


def run_palate(args: argparse.Namespace) -> None:
    sys.argv = ["palate", "tune", str(args.recipe)]
    from palate.cli import main
    from palate.train import loop

    step = loop.Loop.train_step

    def timed(self: Any, batches: Any) -> None:
        begun, busy = time.time() - args.start, time.process_time()
        step(self, batches)
        report(begun=begun, done=time.time() - args.start, busy=busy)

    loop.Loop.train_step = timed  # type: ignore[method-assign]
    main()


def write_recipe(model: str, data: Path, folder: Path) -> Path:
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"path": model, "lora": LORA},
        "data": {"train": [{"path": str(data)}]},
        "loss": {"type": "dpo"},
        "train": {"max_steps": 1, "batch_size_pairs": PAIRS, "micro_batch_size_pairs": PAIRS},
    }
    file = folder / "recipe.yaml"
    file.write_text("# palate tune\n" + json.dumps(recipe))
    return file


def turn(side: str, model: str, data: Path, folder: Path) -> dict[str, Any]:
    """One process of a side."""
    # Its folder holds no run; verdicts are kept beside it.
    subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
    return run_side(
        __file__, side, model, "--data", data, "--recipe", folder / "recipe.yaml",
        "--start", repr(time.time()),
    )  # fmt: skip


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):5.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]"


def clocked(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def list_parts(run: Callable[[], None]) -> None:
    """Functions by the time spent in them and below."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.enable()
    try:
        run()
    except SystemExit:
        pass
    finally:
        profile.disable()
        pstats.Stats(profile).sort_stats("cumulative").print_stats(150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return run_bare(args) if args.side == "bare" else run_palate(args)
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    print(processor())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "pairs.jsonl"
        make_pairs(args.model, PAIRS, PROMPT, RESPONSE, data)
        args.recipe = write_recipe(args.model, data, folder)
        if args.parts:
            return list_parts(lambda: run_palate(args))
        turn("palate", args.model, data, folder)  # leaves the verdict, and compiled kernels
        times: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(args.turns):
            for side in SIDES:
                times[side].append(turn(side, args.model, data, folder))
        for moment, words in MOMENTS.items():
            ours, bare = ([t[moment] for t in times[side]] for side in ("palate", "bare"))
            ratio = statistics.median(ours) / statistics.median(bare)
            print(f"{words}: palate {spread(ours)}, bare {spread(bare)}: {ratio:.2f} times")
    helps: dict[str, list[float]] = {name: [] for name, _ in HELP}
    for _ in range(args.turns):
        for name, command in HELP:
            helps[name].append(clocked(command))
    bare, ours = helps.values()
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"palate --help {spread(ours)}, import typer, rich {spread(bare)}: {ratio:.2f} times")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
