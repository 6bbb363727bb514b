"""How far a training step is from the least that its products take on this machine.

    python benchmarks/floor.py [MODEL] [--shapes 200/100 100/400 800/100] [--losses dpo tdpo2 reward
                               sft] [--turns 5] [--kernels]

The floor is the work that no arrangement can leave out, at the speed of the machine's own bfloat16
product, measured in the same run: the products of the model's layers for every token once (what
responses begin with is one), twice more for gradients, once for a reference; attention for every
pair of tokens of which one sees the other; and the vocabulary head at response positions, its
logits made again for the gradient. Norms, activations, the optimizer, reading and writing are not
in it: they are the distance.

Each turn is a process of its own that takes one step more than it times. `--kernels` lists what the
time of forward and backward pass goes to instead, by operator.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from processor import processor
from sides import TURNS, report, run_side, training_log
from vs_trl_dpo import make_pairs
from vs_trl_reward import starting_model

HERE = Path(__file__).resolve().parent
LOSSES = ("dpo", "tdpo2", "reward", "sft")
PAIRS = {"200/100": 2, "100/400": 1, "800/100": 1}
"""A step; 2 where a shape is not named."""


def products_a_second(size: int = 2048, times: int = 9) -> float:
    """Multiply-adds a second, twice, of a square bfloat16 product: the best of several."""
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16)
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def work(config: Any, layers: int, loss: str, pairs: int, prompt: int, response: int) -> float:
    """Floating-point operations of a step.

    Args:
        layers: numbers in the weight matrices of the model's layers.
    """
    # The last token of a response predicts nothing; reward models read their score there.
    run = response if loss == "reward" else response - 1
    branches = 1 if loss == "sft" else 2
    tokens = pairs * (prompt + branches * run)
    passes = 3 + (loss in ("dpo", "tdpo2"))
    trunk = 2 * layers * tokens * passes
    kinds = getattr(config, "layer_types", None) or ["full"] * config.num_hidden_layers
    seen = 0
    for kind in kinds:
        window = config.sliding_window if kind == "sliding_attention" else prompt + run
        seen += sum(min(place + 1, window) for place in range(prompt))
        seen += branches * sum(min(prompt + place + 1, window) for place in range(run))
    # Scores and sums forward; backward the scores again, and four products for the gradients.
    forward = 4 * config.num_attention_heads * config.head_dim * seen * pairs
    attention = forward * (passes - 2) + forward * 2.5
    if loss == "reward":
        return trunk + attention
    head = 2 * pairs * branches * response * config.vocab_size * config.hidden_size
    # Logits, again for the gradient, and two products of gradients; the reference's logits, which
    # TDPO2 needs again for the rejected side.
    count = 4 + {"dpo": 1, "tdpo2": 1.5}.get(loss, 0)
    return trunk + attention + count * head


def run_sft(args: argparse.Namespace) -> None:
    from palate import sft
    from palate.recipes.schema import SftRecipe

    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "demonstrations.jsonl"
        wanted = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in wanted))
        recipe = SftRecipe.model_validate(
            {
                "output_dir": str(Path(folder) / "run"),
                "model": {"path": args.model, "dtype": "bfloat16"},
                "data": {
                    "train": [{"path": str(data)}],
                    "length": {"max_prompt_tokens": 10_000, "max_response_tokens": 10_000},
                },
                "train": {
                    "batch_size_pairs": len(rows),
                    "micro_batch_size_pairs": len(rows),
                    "max_steps": 2,
                    "scheduler": "constant",
                    "optimizer_precision": "model",
                },
            }
        )
        train = training_log(sft(recipe).path)
    report(seconds=[len(rows) / entry["pairs_per_second"] for entry in train])


def seconds_of(loss: str, model: str, start: Path, data: Path) -> float:
    """A step of palate, as the other benchmarks time it."""
    if loss == "reward":
        results = run_side(
            str(HERE / "vs_trl_reward.py"), "palate", start, "--data", data, "--steps", 2
        )
    elif loss == "sft":
        results = run_side(__file__, "sft", model, "--data", data)
    else:
        results = run_side(
            str(HERE / "vs_trl_dpo.py"), "palate", model, "--data", data, "--steps", 2,
            "--loss", loss,
        )  # fmt: skip
    return statistics.median(results["seconds"][1:])


def list_kernels(model: str, data: Path) -> None:
    """Operators by their share of a DPO step without its optimizer."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoTokenizer

    from palate.data.items import Item, PairLabel
    from palate.data.layouts import collate
    from palate.kernels import RefHidden
    from palate.models.loading import load_policy
    from palate.models.model import Ask
    from palate.recipes.schema import ModelRecipe

    policy, reference = (load_policy(ModelRecipe(path=model)) for _ in range(2))
    reference.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(model)
    items = []
    for row in map(json.loads, data.read_text().splitlines()):
        prompt, *sides = (
            tokenizer(row[key], add_special_tokens=key == "prompt")["input_ids"]
            for key in ("prompt", "chosen", "rejected")
        )
        items.append(Item.of(prompt, *sides, label=PairLabel()))
    batch = collate(items, layout="shared", pad_id=0)

    def step() -> None:
        with torch.no_grad():
            hidden = reference.hidden(batch)
        given = RefHidden(hidden=hidden, head=reference.heads["lm"].weights(reference.backbone))
        stats = policy(batch, Ask(), reference=given).token_stats
        (stats.logp * torch.linspace(-1, 1, len(stats.logp))).sum().backward()
        policy.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    averages = profiler.key_averages()
    total = sum(entry.self_cpu_time_total for entry in averages)
    for entry in sorted(averages, key=lambda entry: -entry.self_cpu_time_total)[:15]:
        print(f"{entry.self_cpu_time_total / total:6.1%}  {entry.key} ({entry.count})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--shapes", nargs="+", default=list(PAIRS))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--kernels", action="store_true", help="operators by share instead")
    parser.add_argument("--side", choices=["sft"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_sft(args)
        return
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(args.model)
    config = model.config.get_text_config()
    vocabulary = (model.get_input_embeddings(), model.get_output_embeddings())
    kept = {id(p) for module in vocabulary for p in module.parameters()}
    layers = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in kept)
    del model
    print(processor())
    with tempfile.TemporaryDirectory() as folder:
        data, start = Path(folder) / "pairs.jsonl", Path(folder) / "start"
        starting_model(args.model, "bfloat16", start)
        for shape in args.shapes:
            prompt, response = map(int, shape.split("/"))
            pairs = PAIRS.get(shape, 2)
            make_pairs(args.model, pairs, prompt, response, data)
            if args.kernels:
                print(f"{shape}, dpo, {pairs} pairs:")
                list_kernels(args.model, data)
                continue
            for loss in args.losses:
                ratios = []
                for _ in range(args.turns):
                    speed = products_a_second()
                    least = work(config, layers, loss, pairs, prompt, response) / speed
                    ratios.append(seconds_of(loss, args.model, start, data) / least)
                print(
                    f"{shape}, {loss}, {pairs} pairs: {statistics.median(ratios):.2f} times the "
                    f"floor [{min(ratios):.2f}, {max(ratios):.2f}], which is {least:.2f} s at "
                    f"{speed / 1e9:.0f} GFLOP/s"
                )


if __name__ == "__main__":
    main()
