"""How the time and memory of a step grow with the length of responses and with the vocabulary.

    python benchmarks/growth.py [--lengths 64 256 1024 4096] [--turns 5]

Lengths: forward and backward pass of TDPO2's statistics, policy and reference, on 8,192 response
tokens as pairs of equal length, prompts a quarter as long as a response. The model is four layers
of Gemma 3 at the size of 270M with 32,768 words, random weights, bfloat16. Attention, whose work
grows with the square of a length, is timed within and told apart; the rest should be flat. Memory
is the peak of one pair of that length, above what the process held before.

Vocabularies: the head alone, 256 tokens, forward and backward with KL; time a token and 1,000 words
should be flat.

Every point of a turn is a process of its own; turns go round all points.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from processor import processor
from sides import TURNS, report, run_side

TOKENS = 8192
"""Response tokens of a step."""
VOCABULARIES = (32_768, 65_536, 131_072, 262_144)


def tiny_gemma() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from palate.models.attention import use_rows
    from palate.models.compiled import use_compiled
    from palate.models.model import Model

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=32_768, hidden_size=640, intermediate_size=2048, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256,
        sliding_window=512, max_position_embeddings=32_768,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).bfloat16()
    use_rows(model)
    use_compiled(model)
    return Model.policy(model)


def run_length(length: int, pairs: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    from palate.data.items import Item, PairLabel
    from palate.data.layouts import collate
    from palate.kernels import RefHidden
    from palate.memory import kept_memory
    from palate.models.model import Ask

    policy, reference = tiny_gemma(), tiny_gemma().requires_grad_(False)
    g = torch.Generator().manual_seed(0)

    def drawn(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 32_768, (n,), generator=g).tolist())

    items = [
        Item.of(drawn(length // 4), drawn(length), drawn(length), label=PairLabel())
        for _ in range(pairs)
    ]
    batch = collate(items, layout="shared", pad_id=0)

    def step() -> None:
        with torch.no_grad():
            hidden = reference.hidden(batch)
        given = RefHidden(hidden=hidden, head=reference.vocabulary_head())
        stats = policy(batch, Ask(kl=True), reference=given).token_stats
        assert stats.kl is not None
        (stats.logp * torch.linspace(-1, 1, len(stats.logp)) + stats.kl).sum().backward()
        policy.zero_grad()

    with kept_memory():
        before = _resident()
        step()
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
    averages = profiler.key_averages()
    share = sum(e.self_cpu_time_total for e in averages if "_Attention" in e.key) / sum(
        e.self_cpu_time_total for e in averages
    )
    report(seconds=seconds, attention=share * seconds, before=before)


def run_vocabulary(words: int) -> None:
    from palate.kernels import Head, RefHidden, token_stats

    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 640, generator=g).bfloat16().requires_grad_()
    weight = (0.05 * torch.randn(words, 640, generator=g)).bfloat16().requires_grad_()
    targets = torch.randint(words, (256,), generator=g)
    given = RefHidden(hidden=hidden.detach() * 1.1, head=Head(weight=weight.detach() * 0.9))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        stats = token_stats(
            hidden=hidden, head=Head(weight=weight), targets=targets, reference=given, kl=True
        )
        assert stats.kl is not None
        (stats.logp + stats.kl).sum().backward()
        seconds.append(time.perf_counter() - start)
        hidden.grad = weight.grad = None
    report(seconds=min(seconds[1:]))


def _resident() -> int:
    """Bytes in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        kind, size = args.side.split()
        run_length(int(size), args.pairs) if kind == "length" else run_vocabulary(int(size))
        return
    print(processor())
    lengths: dict[int, list[dict[str, Any]]] = {length: [] for length in args.lengths}
    words: dict[int, list[float]] = {size: [] for size in VOCABULARIES}
    for _ in range(args.turns):
        for length, runs in lengths.items():
            pairs = TOKENS // (2 * length)
            runs.append(run_side(__file__, f"length {length}", "--pairs", pairs))
        for size, seconds in words.items():
            seconds.append(run_side(__file__, f"words {size}")["seconds"])
    print(f"{TOKENS} response tokens a step, median of {args.turns} turns")
    tokens = TOKENS * 9 / 8
    rest: list[float] = []
    for length, runs in lengths.items():
        whole = statistics.median(run["seconds"] for run in runs)
        rest.append(statistics.median(run["seconds"] - run["attention"] for run in runs))
        single = run_side(__file__, f"length {length}", "--pairs", 1)
        activations = (single["peak"] - single["before"]) / 1e6
        print(
            f"responses of {length:>4}: {1e3 * whole / tokens:.3f} ms a token, "
            f"{1e3 * rest[-1] / tokens:.3f} beside attention; one pair takes {activations:.0f} MB, "
            f"{1e3 * activations / (9 / 4 * length):.0f} KB a token"
        )
    print(f"beside attention: slowest over fastest {max(rest) / min(rest):.2f}")
    flat = [statistics.median(seconds) / size for size, seconds in words.items()]
    for size, value in zip(words, flat, strict=True):
        print(f"{size:>7} words: {1e6 * 1e3 * value / 256:.1f} us a token and 1,000 words")
    print(f"a word: slowest over fastest {max(flat) / min(flat):.2f}")


if __name__ == "__main__":
    main()
