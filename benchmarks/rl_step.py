"""A step of online learning, from prompts to new weights: `palate rl` against a hand-written loop
and TRL's trainers, by turns in one run.

    python benchmarks/rl_step.py [MODEL] [--algorithms grpo rloo ppo] [--prompts 2] [--group 8]
                                 [--prompt-tokens 200] [--new-tokens 64] [--turns 5] [--lora RANK]

The sides of `grpo` and `rloo`:

  plain loop      on transformers: `generate` of all rows at once with a static cache, one padded
                  forward pass with logits at response positions alone, one update
  TRL at its best the trainer with a static cache, all rows in one micro-batch and no KL
  TRL as shipped  the trainer as it comes, but for lengths and sampling: the same distribution
  palate plain    `palate rl` with the group as plain rows
  palate          `palate rl`

and of `ppo`: palate's PPO with a separate value model against palate's GRPO on as many responses.

Same model, prompts, number of new tokens (none ends before the last), dtype, optimizer (AdamW,
constant rate, clipping at 1), rewards by one Python function, one update a rollout. All sides
sample at temperature 1 from the whole vocabulary. `generate` hands the head a slice of the states,
which torch multiplies by a copy of the whole head for each row: the loop and TRL at its best are
spared that (`contiguous_head`). The first step of a turn is not timed. MODEL is a local folder or
hub name; the packaged Gemma 3 270M where it is left out.

What sides compute cannot be compared number by number, since each draws its own responses; that the
update is the right one is held by the tests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from sides import TURNS, print_ratios, report, run_side, take_turns

OURS = "palate"
PLAIN = "palate plain"
SIDES = ("plain loop", "TRL at its best", "TRL as shipped", PLAIN, OURS)
REWARD = '''
def share_of_e(prompts, completions, **columns):
    """How much of a text is the letter e."""
    return [text.count("e") / max(1, len(text)) for text in completions]
'''


def write_prompts(model: str, count: int, tokens: int, path: Path) -> None:
    """Prompts of random words of one token each, exactly so long."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = random.Random(0)
    words = []
    limit = min(len(tokenizer), 60_000)
    for token in tokenizer.convert_ids_to_tokens(range(limit // 30, limit)):
        word = token.replace("\u0120", " ").replace("\u2581", " ")
        if word[:1] == " " and word[1:].isascii() and word[1:].isalpha():
            words.append(word)
    has_bos = len(tokenizer("")["input_ids"])
    texts = ["".join(rng.sample(words, tokens - has_bos)) for _ in range(count)]
    for text in texts:
        assert len(tokenizer(text)["input_ids"]) == tokens, "words are not single tokens"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def reward_function(folder: Path) -> Any:
    """The function that all sides are rewarded by."""
    (folder / "rewards.py").write_text(REWARD)
    names: dict[str, Any] = {}
    exec(REWARD, names)
    return names["share_of_e"]


def advantages_of(algorithm: str, rewards: Any, group: int) -> Any:
    import torch

    grouped = torch.tensor(rewards).view(-1, group)
    if algorithm == "rloo":
        others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
        return (grouped - others).flatten()
    centred = grouped - grouped.mean(1, keepdim=True)
    return (centred / (grouped.std(1, keepdim=True) + 1e-4)).flatten()


def contiguous_head(model: Any) -> None:
    """Hands the vocabulary head states without gaps: up to a hundred times as fast."""
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def run_loop(args: argparse.Namespace, folder: Path) -> None:
    """A step as one would write it by hand."""
    import torch
    from plain_loop import adapters
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reward = reward_function(folder)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    if args.lora:
        from peft import get_peft_model

        model = get_peft_model(model, adapters(args.lora))
    model.eval()
    contiguous_head(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)
    texts = [json.loads(line)["prompt"] for line in args.data.read_text().splitlines()]
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
    rows = ids.repeat_interleave(args.group, 0)
    seconds = []
    for step in range(args.steps):
        started = time.perf_counter()
        torch.manual_seed(step)
        with torch.no_grad():
            out = model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=args.new_tokens,
                min_new_tokens=args.new_tokens,
                pad_token_id=tokenizer.eos_token_id,
                cache_implementation="static",
                disable_compile=True,
            )
        answers = out[:, rows.shape[1] :]
        scores = reward(prompts=None, completions=tokenizer.batch_decode(answers))
        advantages = advantages_of(args.algorithm, scores, args.group)
        logits = model(
            input_ids=out[:, :-1], use_cache=False, logits_to_keep=answers.shape[1]
        ).logits.float()
        logps = torch.log_softmax(logits, -1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)
        loss = -(advantages[:, None] * logps).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    report(seconds=seconds)


def run_trl(args: argparse.Namespace, folder: Path, *, best: bool) -> None:
    import torch
    from datasets import Dataset
    from plain_loop import adapters
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    class Clock(TrainerCallback):
        """TRL writes responses before a step begins: from one step's end to the next's."""

        def __init__(self) -> None:
            self.marks = [time.perf_counter()]

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append(time.perf_counter())

    clock = Clock()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    grpo = args.algorithm == "grpo"
    kept: dict[str, Any] = {"min_new_tokens": args.new_tokens, "top_k": 0}
    if best:
        # Compilation of it is off in TRL.
        kept |= {"cache_implementation": "static"}
    number = len(rows) * args.group
    options: dict[str, Any] = {"loss_type": "dapo"} if grpo else {}
    config = (GRPOConfig if grpo else RLOOConfig)(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=number if best else args.group,
        gradient_accumulation_steps=1 if best else len(rows),
        num_generations=args.group,
        max_completion_length=args.new_tokens,
        generation_kwargs=kept,
        temperature=1.0,
        beta=0.0,
        max_steps=args.steps,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    trainer = (GRPOTrainer if grpo else RLOOTrainer)(
        AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)),
        reward_funcs=reward_function(folder),
        args=config,
        train_dataset=Dataset.from_list(rows * args.steps),
        processing_class=tokenizer,
        callbacks=[clock],
        peft_config=adapters(args.lora) if args.lora else None,
    )
    if best:
        contiguous_head(trainer.model)
    clock.marks = [time.perf_counter()]
    trainer.train()
    report(seconds=[b - a for a, b in itertools.pairwise(clock.marks)])


def run_palate(args: argparse.Namespace, folder: Path, *, layout: str) -> None:
    from palate import RlRecipe, rl

    reward_function(folder)
    rows = len(args.data.read_text().splitlines())
    lora = {"r": args.lora, "alpha": 2 * args.lora} if args.lora else None
    algorithm: dict[str, Any] = {"type": args.algorithm}
    recipe = RlRecipe.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"path": args.model, "dtype": args.dtype, "lora": lora},
            "prompts": {"train": [{"path": str(args.data)}]},
            "reward": {"scorer": {"type": "function", "path": f"{folder}/rewards.py:share_of_e"}},
            "algorithm": algorithm,
            "kl": {"coefficient": 0.0},
            "length": {"max_prompt_tokens": 10_000},
            "rollout": {
                "batch_size_prompts": rows,
                "num_generations": args.group,
                "max_new_tokens": args.new_tokens,
                "min_new_tokens": args.new_tokens - 1,
                "engine": {"type": "local", "batch_size": rows * args.group},
            },
            "train": {
                "max_steps": args.steps,
                "learning_rate": 1e-6,
                "scheduler": "constant",
                "optimizer_precision": "model",
                "micro_batch_tokens": 100_000,
                "layout": layout,
            },
        }
    )
    run = rl(recipe, quiet=True)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    marks = [datetime.fromisoformat(line["time"]) for line in train]
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(marks)]
    phases = {
        phase: [line.get(f"seconds/{phase}", 0.0) for line in train[1:]]
        for phase in ("generate", "score", "prepare", "update")
    }
    # The first step has no line before it; it is not counted.
    report(seconds=[0.0, *gaps], phases=phases)


def run(args: argparse.Namespace, side: str, data: Path, algorithm: str) -> dict[str, Any]:
    """What a side reports of its steps."""
    return run_side(
        __file__, side, args.model, "--data", data, "--steps", args.steps, "--group", args.group,
        "--new-tokens", args.new_tokens, "--dtype", args.dtype, "--lora", args.lora,
        "--algorithm", algorithm,
    )  # fmt: skip


def compare(args: argparse.Namespace, algorithm: str, folder: Path) -> None:
    """All sides of an algorithm."""
    data = folder / "prompts.jsonl"
    write_prompts(args.model, args.prompts, args.prompt_tokens, data)
    shape = f"{algorithm}, {args.prompts} x {args.group} x {args.prompt_tokens}/{args.new_tokens}"
    if algorithm == "ppo":
        sides, ours = ["palate ppo", "palate grpo"], "palate grpo"
    else:
        sides, ours = list(args.sides), OURS
    results = take_turns(
        sides,
        lambda side: run(
            args,
            OURS if algorithm == "ppo" else side,
            data,
            side.split()[-1] if algorithm == "ppo" else algorithm,
        ),
        args.turns,
    )
    trained = f"LoRA of rank {args.lora}" if args.lora else "full fine-tuning"
    print(f"\n{shape}, {args.dtype}, {trained}; median of {args.turns} turns [fastest, slowest]")
    for side, measured in results.items():
        phases = measured.first.get("phases")
        words = (
            ""
            if phases is None
            else ", ".join(
                f"{name} {sum(values) / max(1, len(values)):.2f}" for name, values in phases.items()
            )
        )
        print(f"{side:>18} {measured.spread():>22} s/step {measured.peak / 1e9:>6.2f} GB  {words}")
    print_ratios(shape, results, ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--algorithms", nargs="+", default=["grpo", "rloo", "ppo"])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--steps", type=int, default=3, help="of a turn; the first is not timed")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--algorithm", default="grpo", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model is None:
        from palate.demo.model import packaged_model

        args.model = str(packaged_model(print).path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.side == "plain loop":
            run_loop(args, folder)
        elif args.side in ("TRL at its best", "TRL as shipped"):
            run_trl(args, folder, best=args.side == "TRL at its best")
        elif args.side:
            run_palate(args, folder, layout="plain" if args.side == PLAIN else "auto")
        else:
            for algorithm in args.algorithms:
                compare(args, algorithm, folder)


if __name__ == "__main__":
    main()
