"""Peak memory and time of TDPO2's loss, forward and backward, at the vocabulary head.

    python benchmarks/token_kl.py [--tokens 2048] [--width 640] [--vocabularies 152064 262144]
                                  [--dtype bfloat16] [--device cpu] [--turns 5]

One run, the same weights, hidden states and targets; the cases by turns, each turn in a process of
its own (so that its peak is its own), which runs the loss twice and times the second:

  full      as the paper's code does it: bf16 logits of policy and reference made float32,
            log_softmax of one, softmax().log() of the other, four distributions alive
  trl       of TRL's streaming parts: its chunked divergence for the KL, its chunked
            log-probabilities for the rest (nothing beside them asked for)
  trl-kl    its chunked divergence alone, forward and backward of the KL
  general   palate's operator with a trained head, live reference
  frozen    palate's operator with a frozen head, cached reference
  ... each of palate's for TDPO2, and for DPO on the same path

First the losses of all TDPO2 cases must agree in float32; in bfloat16 those of full logits and of
TRL's log-probabilities are of rounded logits. TDPO2 against DPO is timed by
itself: both in one process, turn by turn, best of the turns, so that whatever else the machine does
meets both alike.

The last column is the error of the mean per-token KL against float64 logits: rounding the logits to
bf16 before they are subtracted biases it.

Peak memory is what the process gained over weights, hidden states and cache (resident memory on
CPU, allocated on CUDA); gradients of the head count where it is trained. Prints a table and, as
the last lines, the ratios of medians with the least and greatest of single turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from processor import processor
from sides import TURNS, Measured, against, loss_gap, must_agree
from torch import Tensor

from palate.kernels import Head, RefHidden, RefInputs, RefLogps, summarise, token_stats
from palate.testing import token_stats_oracle

BETA, ALPHA = 0.1, 0.5
ORACLE_TOKENS = 128
CASES = (
    "full-tdpo2",
    "trl-tdpo2",
    "trl-kl",
    "general-tdpo2",
    "general-dpo",
    "frozen-tdpo2",
    "frozen-dpo",
)


OURS = "general-tdpo2"
AGREE = 1e-4
"""Nats, in float32."""


def tdpo2(logp: Tensor, ref_logp: Tensor, kl: Tensor | None, sides: Tensor) -> Tensor:
    """Sum over pairs; tokens are [pair, side] blocks, `sides` their sequence (even = chosen)."""
    n = int(sides.max()) + 1

    def total(x: Tensor) -> Tensor:
        return torch.zeros(n, dtype=x.dtype, device=x.device).index_add(0, sides, x)

    m = total(logp - ref_logp)
    u = m[0::2] - m[1::2]
    if kl is not None:
        k = total(kl)
        u = u - ALPHA * (k[1::2] - k[0::2].detach())
    return -torch.nn.functional.logsigmoid(BETA * u).sum()


def full_logits_tdpo2(
    h: Tensor, w: Tensor, h_ref: Tensor, w_ref: Tensor, y: Tensor, sides: Tensor
) -> Tensor:
    """The paper's order of operations on whole [N, V] tensors."""
    logits = (h @ w.T).to(torch.float32)
    with torch.no_grad():
        ref_logits = (h_ref @ w_ref.T).to(torch.float32)
    vocab_logps = logits.log_softmax(-1)
    reference_vocab_ps = ref_logits.softmax(-1)
    reference_vocab_logps = reference_vocab_ps.log()
    kl = (reference_vocab_ps * (reference_vocab_logps - vocab_logps)).sum(-1)
    logp = vocab_logps.gather(-1, y[:, None]).squeeze(-1)
    ref_logp = reference_vocab_logps.gather(-1, y[:, None]).squeeze(-1)
    return tdpo2(logp, ref_logp, kl, sides)


def make(
    args: argparse.Namespace, case: str
) -> tuple[Callable[[], Tensor], list[Tensor], Callable[[], float]]:
    """(loss function, leaves, error of the mean KL) of one case."""
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    n, v, d = args.tokens, args.vocabulary, args.width
    w = (torch.randn(v, d) * (6 / d**0.5)).to(device, dtype)
    h_ref = torch.randn(n, d).to(device, dtype)
    h = (h_ref + 0.05 * torch.randn(n, d).to(device, dtype)).detach().requires_grad_()
    y = torch.randint(v, (n,), device=device)
    sides = (torch.arange(n, device=device) * 4).div(n, rounding_mode="floor")

    def oracle() -> float:
        k = slice(0, ORACLE_TOKENS)
        ref = RefHidden(hidden=h_ref[k], head=Head(weight=w))
        stats = token_stats_oracle(
            hidden=h[k].detach(), head=Head(weight=w), targets=y[k], reference=ref, kl=True
        )
        assert stats.kl is not None
        return float(stats.kl.mean())

    if case == "full-tdpo2":
        trained = w.clone().requires_grad_()

        def full_error() -> float:
            k = slice(0, ORACLE_TOKENS)
            p = (h_ref[k] @ w.T).float().softmax(-1)
            q = (h[k] @ w.T).float().log_softmax(-1)
            return float((p * (p.log() - q)).sum(-1).double().mean() - oracle())

        return lambda: full_logits_tdpo2(h, trained, h_ref, w, y, sides), [h, trained], full_error
    if case.startswith("trl"):
        return trl_case(case, h, w, h_ref, y, sides, oracle)
    kl = case.endswith("tdpo2")
    reference: RefInputs
    if case.startswith("general"):
        head, leaves = Head(weight=w.clone().requires_grad_()), [h]
        leaves.append(head.weight)
        reference = RefHidden(hidden=h_ref, head=Head(weight=w))
    else:
        head, leaves = Head(weight=w), [h]
        summary = summarise(hidden=h_ref, head=head, targets=y)
        reference = summary if kl else RefLogps(logp=summary.logp)

    def loss() -> Tensor:
        stats = token_stats(hidden=h, head=head, targets=y, reference=reference, kl=kl)
        assert stats.ref_logp is not None
        return tdpo2(stats.logp, stats.ref_logp, stats.kl, sides)

    def error() -> float:
        with torch.no_grad():
            stats = token_stats(hidden=h, head=head, targets=y, reference=reference, kl=kl)
        if stats.kl is None:
            return 0.0
        return float(stats.kl[:ORACLE_TOKENS].double().mean() - oracle())

    return loss, leaves, error


def trl_case(
    case: str,
    h: Tensor,
    w: Tensor,
    h_ref: Tensor,
    y: Tensor,
    sides: Tensor,
    oracle: Callable[[], float],
) -> tuple[Callable[[], Tensor], list[Tensor], Callable[[], float]]:
    """As `make`, of TRL's streaming functions; `trl-kl` has the loss's KL term alone."""
    from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    trained = w.clone().requires_grad_()

    def divergence(hidden: Tensor, head: Tensor) -> Tensor:
        # beta 0: KL of teacher and student, the forward KL of TDPO.
        kl, _ = ChunkedDivergenceFunction.apply(hidden, head, None, h_ref, w, None, 0.0)
        return kl

    def log_probs(hidden: Tensor, head: Tensor) -> Tensor:
        outputs: tuple[str, ...] = ()
        log_prob_and_more = ChunkedLogProbFunction.apply(
            hidden, head, None, y, 1.0, VOCAB_CHUNK_SIZE, None, 1.0, outputs
        )
        return log_prob_and_more[0]

    def loss() -> Tensor:
        kl = divergence(h, trained)
        if case == "trl-kl":
            return kl.sum()
        with torch.no_grad():
            ref_logp = log_probs(h_ref, w)
        return tdpo2(log_probs(h, trained), ref_logp, kl, sides)

    def error() -> float:
        with torch.no_grad():
            kl = divergence(h.detach(), w)
        return float(kl[:ORACLE_TOKENS].double().mean() - oracle())

    return loss, [h, trained], error


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


class Peak:
    """Peak bytes gained inside a `with` block."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return self
        self.start, self.top, self.done = resident(), resident(), threading.Event()

        def watch() -> None:
            while not self.done.wait(0.005):
                self.top = max(self.top, resident())

        self.thread = threading.Thread(target=watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self.start
            return
        self.done.set()
        self.thread.join()
        self.bytes = max(self.top, resident()) - self.start


def run_case(args: argparse.Namespace) -> None:
    loss, leaves, error = make(args, args.case)
    times, value = [], 0.0
    # The first one is of memory that has never been touched, and is not timed.
    peak = Peak(args.device)
    for repeat in range(2):
        for leaf in leaves:
            leaf.grad = None
        if args.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        if repeat == 0:
            with peak:
                out = loss()
                out.backward()
        else:
            out = loss()
            out.backward()
            if args.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        value = float(out.detach())
    result = {"seconds": times, "bytes": peak.bytes, "loss": value}
    if args.error:
        result["error"] = error()
    print(json.dumps(result))


def race(args: argparse.Namespace) -> None:
    """Times TDPO2 and DPO on one path by turns."""
    entrants = [make(args, f"{args.race}-{name}")[:2] for name in ("tdpo2", "dpo")]
    times: list[list[float]] = [[], []]
    for _ in range(args.turns + 1):
        for (loss, leaves), seconds in zip(entrants, times, strict=True):
            for leaf in leaves:
                leaf.grad = None
            if args.device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            loss().backward()
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    tdpo2_best, dpo_best = (min(seconds[1:]) for seconds in times)
    print(json.dumps({"ratio": tdpo2_best / dpo_best}))


def run_child(args: argparse.Namespace, vocabulary: int, *more: str) -> dict[str, Any]:
    out = subprocess.run(
        [sys.executable, __file__, "--vocabulary", str(vocabulary),
         "--tokens", str(args.tokens), "--width", str(args.width), "--dtype", args.dtype,
         "--device", args.device, "--turns", str(args.turns), *more],
        capture_output=True, text=True,
    )  # fmt: skip
    if out.returncode:
        raise SystemExit(f"{' '.join(more)} at {vocabulary} failed:\n{out.stderr}")
    result: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[152_064, 262_144])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--race", choices=("general", "frozen"), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--error", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        run_case(args)
        return
    if args.race:
        race(args)
        return
    print(f"{args.tokens} response tokens, width {args.width}, {args.dtype}, {args.device}")
    check(args)
    for vocabulary in args.vocabularies:
        compare(args, vocabulary)


def check(args: argparse.Namespace) -> None:
    """A small case in float32, in which all cases of TDPO2 must compute the same loss."""
    small = argparse.Namespace(**vars(args) | {"tokens": 64, "width": 64, "dtype": "float32"})
    losses = {
        case: [run_child(small, 4096, "--case", case)["loss"]]
        for case in CASES
        if case.endswith("tdpo2")
    }
    must_agree(losses, OURS, AGREE)
    gap = max(loss_gap(losses, OURS).values())
    print(f"float32, a small case: all losses of TDPO2 agree to {gap:.1g} nats")


def compare(args: argparse.Namespace, vocabulary: int) -> None:
    """Runs all cases by turns at one vocabulary; prints the table and the ratios."""
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for turn in range(args.turns):
        for case in CASES:
            error = ["--error"] if turn == 0 else []
            runs[case].append(run_child(args, vocabulary, "--case", case, *error))
            print(f"  turn {turn + 1} of {args.turns}, {case}", file=sys.stderr)
    results = {
        case: Measured(
            tuple(turn["seconds"][0] for turn in turns),
            max(turn["bytes"] for turn in turns),
            turns[0],
        )
        for case, turns in runs.items()
    }
    print(
        f"\n{'vocabulary':>10} {'case':>14} {'seconds':>22} {'peak MB':>9} {'loss':>12} "
        f"{'KL error':>10}"
    )
    for case, r in results.items():
        print(
            f"{vocabulary:>10} {case:>14} {r.spread(3):>22} {r.peak / 1e6:>9.0f} "
            f"{r.first['loss']:>12.5f} {r.first['error']:>10.1e}"
        )
    print(processor())
    ours = results[OURS]
    for name, case in (
        ("TRL's streaming parts for the same loss", "trl-tdpo2"),
        ("TRL's streaming divergence, its KL alone", "trl-kl"),
        ("full logits", "full-tdpo2"),
    ):
        print(f"V={vocabulary}, {against(name, results[case], ours, 'the speed')}")
    for name, path in (("trained head", "general"), ("frozen head, cached reference", "frozen")):
        ratio = run_child(args, vocabulary, "--race", path)["ratio"]
        print(f"V={vocabulary}, TDPO2 / DPO, {name}: {ratio:.2f}x the time")


if __name__ == "__main__":
    main()
