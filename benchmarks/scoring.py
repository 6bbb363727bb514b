"""Rewards of real answers: `palate.rewards` against a sorted, batched loop on transformers.

    python benchmarks/scoring.py RATINGS [MODEL] [--prompts 16] [--answers 6 1] [--turns 5]

RATINGS is a file of ratings (alpaca_eval_ratings/test.jsonl.gz). The loop is what a careful user
writes: `AutoModelForSequenceClassification` in bfloat16 with sdpa, all texts tokenised at once,
sorted by length, padded to the longest of their batch, under `torch.inference_mode`; each turn
runs batches of 1, 2, 4, 8 and 16. The ratio is against the fastest of them in that turn, which a
user finds by trying; what each of the sizes takes is told besides. palate has `ModelScorer` as it
is, by `score`, from the same folder. Loading is not timed on either side; tokenising is. The model
is the packaged small one, with a new head, when MODEL is left out.

Scores are compared first: in float32, where they must agree, and in bfloat16 with float32's.
With several answers to a prompt palate runs the prompt once; with 1 nothing is shared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from processor import processor
from sides import TURNS, against, report, run_side, take_turns
from vs_trl_reward import starting_model

OURS = "palate"
LOOP = "transformers loop"
BATCHES = (1, 2, 4, 8, 16)
AGREE = 2e-4
"""Of a score, in float32."""


def read_answers(path: Path, prompts: int, answers: int) -> list[dict[str, Any]]:
    """`prompt` and `responses`, the first of each that are not too long for a classifier's eye."""
    from palate.data.stream import read_source
    from palate.recipes.schema import DataSource

    groups: list[dict[str, Any]] = []
    for row in read_source(DataSource(path=str(path)), seed=0).rows:
        texts = [_text(response.content) for response in row.responses]
        texts = [text for text in dict.fromkeys(texts) if text.strip()][:answers]
        if len(texts) == answers:
            groups.append({"prompt": _text(row.prompt) + "\n\n", "responses": texts})
        if len(groups) == prompts:
            return groups
    raise SystemExit(f"{path}: {len(groups)} prompts with {answers} answers, not {prompts}")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(message["content"] for message in content)


def run_loop(args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype)
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    groups = json.loads(args.data.read_text())
    texts = [g["prompt"] + response for g in groups for response in g["responses"]]

    @torch.inference_mode()
    def score(size: int) -> list[float]:
        rows = tokenizer(texts)["input_ids"]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            batch = tokenizer.pad(
                {"input_ids": [rows[i] for i in chunk]}, padding_side="right", return_tensors="pt"
            )
            values = model(**batch, use_cache=False).logits[:, 0].float().tolist()
            for i, value in zip(chunk, values, strict=True):
                scores[i] = value
        return scores

    score(BATCHES[-1])
    seconds = {}
    for size in BATCHES:
        start = time.perf_counter()
        scores = score(size)
        seconds[str(size)] = time.perf_counter() - start
    report(seconds=[0.0, min(seconds.values())], scores=scores, by_size=seconds)


def run_palate(args: argparse.Namespace) -> None:
    from palate.data.scorer import Group
    from palate.memory import kept_memory
    from palate.rewards.model import ModelScorer

    groups = [Group(g["prompt"], tuple(g["responses"])) for g in json.loads(args.data.read_text())]
    scorer = ModelScorer(args.model, dtype=args.dtype)
    with kept_memory():
        scorer.score(groups)
        start = time.perf_counter()
        scores = [score.value for group in scorer.score(groups) for score in group]
        report(seconds=[0.0, time.perf_counter() - start], scores=scores)


def run(args: argparse.Namespace, side: str, data: Path, dtype: str) -> dict[str, Any]:
    return run_side(__file__, side, "-", args.model, "--data", data, "--dtype", dtype)


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    return float(max(abs(x - y) for x, y in zip(a["scores"], b["scores"], strict=True)))


def compare(args: argparse.Namespace, answers: int, folder: Path) -> None:
    prompts = args.prompts if answers > 1 else 3 * args.prompts
    data = folder / "answers.json"
    data.write_text(json.dumps(read_answers(args.ratings, prompts, answers)))
    exact = {side: run(args, side, data, "float32") for side in (LOOP, OURS)}
    if (gap := apart(exact[LOOP], exact[OURS])) > AGREE:
        raise SystemExit(f"scores differ by {gap:.2g} in float32")
    results = take_turns((LOOP, OURS), lambda side: run(args, side, data, "bfloat16"), args.turns)
    n = prompts * answers
    print(f"\n{prompts} prompts, {answers} answers each, bfloat16; median of {args.turns} turns")
    print(f"scores of both sides agree to {gap:.1g} in float32; bfloat16 is off by, at most:")
    for side, measured in results.items():
        off = apart(measured.first, exact[LOOP])
        print(
            f"{side:>20} {measured.spread()} s, {n / measured.median:.1f} answers/s, "
            f"{measured.peak / 1e9:.2f} GB, off by {off:.3f}"
        )
    sizes = results[LOOP].first["by_size"]
    print(
        f"{LOOP}, first turn, by the size of its batches: "
        + ", ".join(
            f"{size}: {seconds:.2f} s ({seconds / results[OURS].median:.2f}x)"
            for size, seconds in sizes.items()
        )
    )
    print(processor())
    print(f"{answers} to a prompt, {against(LOOP, results[LOOP], results[OURS], 'answers/s')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ratings", type=Path)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompts", type=int, default=16, help="three times as many of 1 answer")
    parser.add_argument("--answers", type=int, nargs="+", default=[6, 1])
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=[LOOP, OURS], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {LOOP: run_loop, OURS: run_palate}[args.side](args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            from palate.demo.model import packaged_model

            start = Path(folder) / "start"
            starting_model(str(packaged_model(print).path), "float32", start)
            args.model = str(start)
        for answers in args.answers:
            compare(args, answers, Path(folder))


if __name__ == "__main__":
    main()
