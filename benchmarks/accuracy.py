"""How exact bfloat16 runs are: the vocabulary head, whole models, and a hundred training steps.

    python benchmarks/accuracy.py head [--tokens 256] [--vocabulary 65536]
    python benchmarks/accuracy.py model RATINGS [MODEL] [--pairs 8]
    python benchmarks/accuracy.py training RATINGS [MODEL] [--steps 100]

`head`: log-probs, both KLs and entropy of the compiled head and of torch's path, from the same
bfloat16 states and weights, against float64 on full logits, for logits of several ranges: the
largest error of a token, and the mean error with its sign, which is the bias that a sum over a
response collects.

`model`: log-probs of real answers by a model in bfloat16 against the same weights in float32, by
the code that computes them: a plain loop (plain_loop.py: logits and cross-entropy in bfloat16),
transformers with its logits made float32, palate's plain and its shared layout.

`training`: DPO on real pairs by `palate tune`, with compiled kernels, with torch's operators, and
with torch's operators on one thread, which rounds otherwise. The first two should differ as the
last two do.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from processor import processor
from sides import report, run_side, training_log

RANGES = ("1", "5", "20", "100", "rising", "excluded")
"""Standard deviation of the logits, or: rising by 200 nats along the vocabulary; every third word
has a bias of -inf, in policy and reference alike."""
STATISTICS = ("logp", "kl", "reverse_kl", "entropy")
COMPILED, TORCH, OTHERWISE = "compiled", "torch", "torch, one thread"


def head_problem(kind: str, tokens: int, vocabulary: int, width: int = 640) -> dict[str, Any]:
    from palate.kernels import Head, RefHidden

    g = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    size = float(kind) if kind.isdigit() else 5.0
    hidden = drawn(tokens, width)
    near = hidden + 0.1 * drawn(tokens, width)
    weight = drawn(vocabulary, width) * size / width**0.5
    bias = None
    if kind == "rising":
        bias = torch.linspace(0, 200, vocabulary)
    if kind == "excluded":
        bias = torch.zeros(vocabulary)
        bias[::3] = -torch.inf
    head = Head(weight=weight.bfloat16(), bias=None if bias is None else bias.bfloat16())
    return {
        "hidden": hidden.bfloat16(),
        "head": head,
        "targets": torch.randint(vocabulary // 3, (tokens,), generator=g) * 3 + 1,
        "reference": RefHidden(hidden=near.bfloat16(), head=head),
        "kl": True,
        "reverse_kl": True,
        "entropy": True,
    }


def run_head(args: argparse.Namespace) -> None:
    from palate.kernels import token_stats
    from palate.testing import token_stats_oracle

    errors: dict[str, Any] = {}
    for kind in RANGES:
        problem = head_problem(kind, args.tokens, args.vocabulary)
        stats, right = token_stats(**problem), token_stats_oracle(**problem)
        for name in STATISTICS:
            off = getattr(stats, name).double() - getattr(right, name)
            errors[f"{kind}|{name}"] = [float(off.abs().max()), float(off.mean())]
    report(errors=errors)


def compare_heads(args: argparse.Namespace) -> None:
    print(processor())
    options = ("--tokens", args.tokens, "--vocabulary", args.vocabulary)
    for side, switch in ((COMPILED, "1"), (TORCH, "0")):
        environment = os.environ | {"PALATE_COMPILED": switch}
        errors = run_side(__file__, side, "head", *options, environment=environment)["errors"]
        print(f"\n{side}: largest error of a token, and mean error, in nats")
        print(f"{'logits':>10}" + "".join(f"{name:>22}" for name in STATISTICS))
        for kind in RANGES:
            cells = (errors[f"{kind}|{name}"] for name in STATISTICS)
            print(
                f"{kind:>10}" + "".join(f"{worst:>11.1e} {mean:>+10.1e}" for worst, mean in cells)
            )


def real_items(args: argparse.Namespace) -> list[Any]:
    from real_pairs import text_pairs
    from transformers import AutoTokenizer

    from palate.data.items import Item, PairLabel

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    rows, _ = text_pairs(
        args.ratings, tokenizer, per_prompt=2, max_prompt=256, max_response=400, seed=0
    )
    items = []
    for row in rows[: args.pairs]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        sides = (
            tokenizer(row[side], add_special_tokens=False)["input_ids"]
            for side in ("chosen", "rejected")
        )
        items.append(Item.of(tuple(prompt), *map(tuple, sides), label=PairLabel()))
    return items


@torch.no_grad()
def compare_models(args: argparse.Namespace) -> None:
    import torch.nn.functional as F

    from palate.data.layouts import collate
    from palate.models.attention import torchs_own
    from palate.models.compiled import own_layers
    from palate.models.loading import load_policy
    from palate.models.model import Ask
    from palate.recipes.schema import ModelRecipe

    items = real_items(args)
    sequences = [sequence for item in items for sequence in item.sequences]

    def alone(policy: Any, *, narrow: bool) -> torch.Tensor:
        """Of every response token, each row alone, by transformers' own code."""
        parts = []
        with torchs_own(policy.base), own_layers(policy.base):
            for prompt, response in sequences:
                ids = torch.tensor([(*prompt.ids, *response.ids)])
                states = policy.base.base_model(input_ids=ids, use_cache=False).last_hidden_state
                states = states[0, len(prompt) - 1 : -1]
                logits = F.linear(states, policy.base.get_output_embeddings().weight)
                logits = logits if narrow else logits.float()
                targets = torch.tensor(response.ids)
                parts.append(-F.cross_entropy(logits, targets, reduction="none").double())
        return torch.cat(parts)

    def ours(policy: Any, layout: Any) -> torch.Tensor:
        batches = [collate([item], layout=layout, pad_id=0) for item in items]
        return torch.cat([policy(b, Ask()).token_stats.logp.double() for b in batches])

    exact = load_policy(ModelRecipe(path=args.model, dtype="float32")).eval()
    right = alone(exact, narrow=False)
    assert float((ours(exact, "shared") - right).abs().max()) < 1e-3
    policy = load_policy(ModelRecipe(path=args.model)).eval()
    sides = {
        "plain loop, all in bfloat16": alone(policy, narrow=True),
        "transformers, logits made float32": alone(policy, narrow=False),
        "palate, plain": ours(policy, "plain"),
        "palate, shared": ours(policy, "shared"),
    }
    lengths = [len(response) for _, response in sequences]
    print(processor())
    print(f"{len(sequences)} answers, {len(right)} tokens; log-probs in bfloat16 less float32's:")
    for side, values in sides.items():
        off = values - right
        sums = torch.stack([part.sum() for part in off.split(lengths)])
        print(
            f"{side:>34}: a token {float(off.abs().mean()):.4f} on average, bias "
            f"{float(off.mean()):+.5f}; an answer {float(sums.abs().mean()):.3f}"
        )


def run_training(args: argparse.Namespace) -> None:
    from palate import tune
    from palate.recipes.schema import TuneRecipe

    with tempfile.TemporaryDirectory() as folder:
        recipe = TuneRecipe.model_validate(
            {
                "output_dir": str(Path(folder) / "run"),
                "model": {"path": args.model},
                "data": {"train": [{"path": str(args.data)}]},
                "loss": {"type": "tdpo2"},
                "train": {
                    "batch_size_pairs": 2,
                    "micro_batch_size_pairs": 2,
                    "max_steps": args.steps,
                    "learning_rate": 2e-6,
                },
            }
        )
        log = training_log(tune(recipe, quiet=True).path)
    report(loss=[line["loss"] for line in log], margin=[line["rewards/margins"] for line in log])


def compare_training(args: argparse.Namespace) -> None:
    from real_pairs import text_pairs, write_rows
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    rows, _ = text_pairs(
        args.ratings, tokenizer, per_prompt=2, max_prompt=64, max_response=64, seed=0
    )
    rows = [{k: v for k, v in row.items() if k != "group"} for row in rows]
    switches = {
        COMPILED: {"PALATE_COMPILED": "1"},
        TORCH: {"PALATE_COMPILED": "0"},
        OTHERWISE: {"PALATE_COMPILED": "0", "OMP_NUM_THREADS": "1"},
    }
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        write_rows(rows, data, limit=2 * args.steps)
        runs = {
            side: run_side(
                __file__, side, "training", "-", args.model, "--data", data,
                "--steps", args.steps, environment=os.environ | switch,
            )
            for side, switch in switches.items()
        }  # fmt: skip
    print(processor())
    print(f"TDPO2 on {min(len(rows), 2 * args.steps)} real pairs, {args.steps} steps of 2 pairs")
    for side, run in runs.items():
        last = run["loss"][-20:]
        print(f"{side:>18}: mean loss of the last {len(last)} steps {sum(last) / len(last):.4f}")
    for a, b in ((COMPILED, TORCH), (TORCH, OTHERWISE)):
        for name in ("loss", "margin"):
            gaps = [x - y for x, y in zip(runs[a][name], runs[b][name], strict=True)]
            size = sum(map(abs, gaps)) / len(gaps)
            print(
                f"{name} of a step, {a} less {b}: {size:.4f} on average, {max(map(abs, gaps)):.4f} "
                f"at most, mean {sum(gaps) / len(gaps):+.5f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["head", "model", "training"])
    parser.add_argument("ratings", nargs="?", type=Path)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=65_536)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"head": run_head, "training": run_training}[args.what](args)
        return
    if args.what == "head":
        compare_heads(args)
        return
    if args.ratings is None:
        parser.error(f"{args.what} needs a file of ratings")
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    {"model": compare_models, "training": compare_training}[args.what](args)


if __name__ == "__main__":
    main()
