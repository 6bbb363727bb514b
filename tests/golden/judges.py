"""Golden cases of judges and critics that are trained: losses of every stage, and their scores."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import palate
from golden import toys
from golden.preference import LORA
from golden.running import Case, Values, evaluation_of, flat, metrics_of, scores_of
from golden.scorers import JUDGED

TRAIN = {
    "batch_size_pairs": 4,
    "micro_batch_size_pairs": 2,
    "max_steps": 2,
    "optimizer": "sgd",
    "learning_rate": 0.2,
    "scheduler": "constant",
}


def train(
    folder: Path,
    *,
    rows: str = "judged",
    writes: bool = False,
    lora: dict[str, Any] | None = None,
    **more: Any,
) -> Values:
    """Trains a judge or critic stage by stage.

    Args:
        writes: start from a model that writes verdicts. Its logits are large and the log-probs of
            its answers small: those are left out, being rounded more than others.
        more: of the recipe.
    """
    if writes:
        path = toys.save_judge(folder.parent / "words-judge")
    else:
        path = toys.save_model(folder.parent / "words-llama", "llama", words=True)
    document: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {
            "path": str(path),
            "dtype": "float32",
            "chat_template": "plain",
            "lora": lora,
        },
        "data": toys.data(folder.parent, rows, train=4) | {"length": {"max_answer_tokens": 16}},
        "sft": TRAIN,
        **more,
    }
    result = palate.train_judge(palate.JudgeRecipe.model_validate(document), quiet=True)
    values: Values = {}
    for stage in sorted(file.parent for file in result.path.glob("*/metrics.jsonl")):
        values |= metrics_of(stage, f"{stage.name}.") | evaluation_of(stage, f"{stage.name}.")
    stages = json.loads((result.path / "evaluation.json").read_text())["stages"]
    for stage in stages:
        known = {k: v for k, v in stage.items() if k not in ("stage", "model")}
        counted = flat(known, f"judged {stage['stage']}")
        values |= {name: value for name, value in counted.items() if "_ci." not in name}
    if writes:
        values = {k: v for k, v in values.items() if "logps/" not in k}
    return values | scores_of(result.scorer, JUDGED)


def cases() -> dict[str, Case]:
    pairwise, pointwise = {"type": "pairwise"}, {"type": "pointwise", "best": 3}
    thought = {"type": "column", "column": "why"}
    critiques = {"type": "column", "chosen": "for", "rejected": "against"}
    critic = partial(train, judge={"type": "critic"}, texts=critiques)
    preference = {"train": TRAIN | {"learning_rate": 1.0}}
    reasoning = {"reasoning": True}
    return {
        "train_judge/pairwise": partial(train, judge=pairwise),
        "train_judge/pairwise/lora": partial(train, judge=pairwise, lora=LORA),
        "train_judge/both_orders": partial(
            train, judge=pairwise | {"orders": "both", "instructions": "good is right"}
        ),
        "train_judge/reasoning": partial(
            train, judge=pairwise | reasoning, texts=thought, evaluate_after="last"
        ),
        "train_judge/reasoning/preference": partial(
            train,
            writes=True,
            judge=pairwise | reasoning,
            sft=None,
            preference={
                "samples": 8,
                "rounds": 2,
                "loss": {"type": "dpo", "beta": 0.3},
                "train": TRAIN | {"learning_rate": 2.0, "max_grad_norm": 0.2},
            },
        ),
        "train_judge/pointwise": partial(train, judge=pointwise, rows="rated"),
        "train_judge/pointwise/quantile": partial(
            train, judge=pointwise | {"scale": "quantile"}, rows="rated", evaluate_after="last"
        ),
        "train_judge/preference": partial(train, judge=pairwise, preference=preference),
        "train_judge/preference/lora": partial(
            train,
            judge=pairwise,
            sft=None,
            preference={
                "loss": {"type": "rdpo", "label_smoothing": 0.2},
                "train": TRAIN | {"learning_rate": 4.0},
            },
            lora=LORA,
            evaluate_after="last",
        ),
        "train_judge/preference/pointwise": partial(
            train, writes=True, judge=pointwise, rows="rated", sft=None, preference=preference
        ),
        "train_judge/critic/gold": partial(
            critic,
            reward={
                "critiques": "gold",
                "train": TRAIN | {"learning_rate": 0.05, "layout": "shared"},
            },
        ),
        "train_judge/critic/self": partial(
            critic,
            reward={
                "critiques": "self",
                "start": "base",
                "head": {"layers": 2},
                "regularise": {"centring": 0.1},
                "train": TRAIN | {"learning_rate": 0.05, "layout": "shared"},
            },
        ),
    }
