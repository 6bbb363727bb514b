"""Rollouts: palate's engine against transformers' `generate`, by turns in one run.

    python benchmarks/rollout.py                       # shapes of SmolLM2-135M and Gemma 3 270M
    python benchmarks/rollout.py --model FOLDER        # a model of yours

Groups of 8 responses to prompts of 200 random tokens, 64 new tokens each, bfloat16, temperature 1,
the whole distribution; no response ends before the last token, so that all sides write as many.
`generate` runs all rows at once, as fast as it goes on a CPU, with its dynamic and with its static
cache; its own drawing (softmax and multinomial) is torch's. Without a folder weights are random: of
how fast a model writes they say as much as trained ones.

What is drawn is checked first: the log-probabilities that the engine recorded against those of the
model's own forward pass over prompt and response.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from processor import processor
from sides import against, report, run_side, take_turns

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "LlamaConfig",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "gemma-3-270m": (
        "Gemma3TextConfig",
        {
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 32768,
        },
    ),
}
SIDES = ("generate", "generate static", "palate")
SIZES = ("prompts", "group", "prompt_tokens", "new_tokens", "batch", "layers", "threads", "times")
NATS = 0.05
"""How far recorded log-probabilities may be from the forward pass, on average a token."""


class Bytes:
    """What the engine asks of a tokenizer, of random tokens."""

    pad_token_id = 0
    eos_token_id = 2

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(map(str, ids))


def made(model: str, options: argparse.Namespace) -> Any:
    """The model of a side, in evaluation mode."""
    import transformers

    torch.manual_seed(0)
    if model not in SHAPES:
        return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    name, keys = SHAPES[model]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if options.layers:
        keys = keys | {"num_hidden_layers": options.layers}
    config = getattr(transformers, name)(**keys, **ids)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def prompts_of(model: Any, options: argparse.Namespace) -> torch.Tensor:
    """[prompts, tokens] ids."""
    generator = torch.Generator().manual_seed(1)
    size = model.get_input_embeddings().num_embeddings
    shape = options.prompts, options.prompt_tokens
    return torch.randint(3, size, shape, generator=generator)


def generated(model: Any, options: argparse.Namespace, cache: str | None) -> list[float]:
    """Seconds of `generate` on all rows at once."""
    ids = prompts_of(model, options).repeat_interleave(options.group, dim=0)
    chosen = {} if cache is None else {"cache_implementation": cache, "disable_compile": True}
    seconds = []
    for turn in range(options.times + 1):
        torch.manual_seed(turn)
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=options.new_tokens,
                min_new_tokens=options.new_tokens,
                pad_token_id=0,
                **chosen,
            )
        seconds.append(time.perf_counter() - start)
        assert out.shape[1] == options.prompt_tokens + options.new_tokens
    return seconds


def written(model: Any, options: argparse.Namespace) -> tuple[list[float], float]:
    """Seconds of palate's engine, and how far its log-probabilities are from a forward pass."""
    from palate.data.items import Tokens
    from palate.models.attention import use_rows
    from palate.models.compiled import use_compiled
    from palate.models.generation.engine import Sampling
    from palate.models.generation.local import LocalEngine
    from palate.models.model import Model

    use_rows(model)
    use_compiled(model)
    engine = LocalEngine(
        Model.policy(model), Bytes(), batch_size=options.batch or options.prompts * options.group
    )
    prompts = [Tokens(tuple(row)) for row in prompts_of(model, options).tolist()]
    seconds = []
    for turn in range(options.times + 1):
        sampling = Sampling(
            max_new_tokens=options.new_tokens,
            min_new_tokens=options.new_tokens,
            samples_per_prompt=options.group,
            seed=turn,
        )
        start = time.perf_counter()
        completions = engine.write(prompts, sampling)
        seconds.append(time.perf_counter() - start)
    first = completions[0]
    ids = torch.tensor([first.prompt_ids + first.response_ids])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, options.prompt_tokens - 1 : -1].float()
    logits[:-1, 2] = -torch.inf  # no end before the last token
    logits[-1, 2] = -torch.inf
    right = logits.log_softmax(-1).gather(1, torch.tensor(first.response_ids)[:, None])[:, 0]
    return seconds, float((torch.tensor(first.logps) - right).abs().mean())


def one_side(side: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    model = made(options.model, options)
    if side == "palate":
        seconds, off = written(model, options)
        if not off < NATS:
            raise SystemExit(f"recorded log-probabilities are off by {off:.3f} nats a token")
        report(seconds=seconds, off=off)
        return
    seconds = generated(model, options, "static" if side == "generate static" else None)
    report(seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", help=f"folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=0, help="rows at once; default: all")
    parser.add_argument("--layers", type=int, default=0, help="of a shape, fewer for a small run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=1, help="measured rollouts a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=SIDES)
    options = parser.parse_args()
    models = options.model or list(SHAPES)
    if options.side:
        (options.model,) = models
        one_side(options.side, options)
        return
    told = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in SIZES]
    tokens = options.prompts * options.group * options.new_tokens
    for model in models:

        def run(side: str, given: tuple[str, ...] = ("--model", model, *told)) -> dict[str, Any]:
            return run_side(__file__, side, *given)

        results = take_turns(SIDES, run, options.turns)
        print(f"{'':>20} {'s/rollout':>22} {'tokens/s':>8} {'peak GB':>8}")
        for side, measured in results.items():
            print(
                f"{side:>20} {measured.spread():>22} {tokens / measured.median:>8.1f} "
                f"{measured.peak / 1e9:>8.2f}"
            )
        shape = (
            f"{model}, {options.prompts} x {options.group} x "
            f"{options.prompt_tokens} / {options.new_tokens}"
        )
        off = results["palate"].first["off"]
        print(f"log-probabilities as sampled and by a forward pass: {off:.4f} nats a token apart")
        print(processor())
        for side in SIDES[:-1]:
            print(f"{shape}, {against(side, results[side], results['palate'], 'tokens/s')}")


if __name__ == "__main__":
    main()
