"""Run folders as training and evaluation leave them, with made-up but plausible figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from palate.recipes.yaml import dump_yaml
from palate.store.pictures import Picture
from palate.store.rollouts import RolloutRow, write_rollout
from palate.train.alarms import Alarms
from synthetic_series import FAILURES, series

PICTURE = Picture(
    url="data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////////////"
    "wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AN//Z",
    width=1,
    height=1,
)

BASE = {
    "path": "models/gemma-3-270m",
    "digest": "9f" * 32,
    "dtype": "bfloat16",
    "terms": "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
}
# Final sequence KL of chosen and rejected responses, and how far the frontier gets.
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"loss": {"type": "dpo", "beta": 0.1}, "kl": (9.5, 19.0), "gain": 0.30},
    "tdpo1": {"loss": {"type": "tdpo1", "beta": 0.1}, "kl": (13.0, 9.0), "gain": 0.33},
    "tdpo2": {
        "loss": {"type": "tdpo2", "beta": 0.1, "alpha": 0.5},
        "kl": (3.3, 8.0),
        "gain": 0.36,
    },
}
STEPS, PAIRS_PER_STEP = 120, 8


def training_run(folder: Path, method: str, *, steps: int = STEPS, seed: int = 0) -> Path:
    """A finished `palate tune` run of one of METHODS."""
    settings = METHODS[method]
    rng = np.random.default_rng([seed, *method.encode()])
    folder.mkdir(parents=True)
    recipe = {
        "output_dir": str(folder),
        "seed": 0,
        "model": {"path": BASE["path"], "dtype": "bfloat16", "lora": {"r": 16, "alpha": 32.0}},
        "data": {"train": [{"path": "pairs.jsonl"}], "eval": [{"path": "held_out.jsonl"}]},
        "loss": settings["loss"],
        "train": {"batch_size_pairs": PAIRS_PER_STEP, "learning_rate": 1e-4, "scheduler": "cosine"},
    }
    (folder / "recipe.yaml").write_text("# palate tune\n" + dump_yaml(recipe))
    _json(folder / "data.json", data_record())
    lines = [_metrics(step, steps, "train", settings, rng) for step in range(1, steps + 1)]
    for step in range(steps // 6, steps + 1, max(1, steps // 6)):
        lines.append(_metrics(step, steps, "eval", settings, rng))
    lines.sort(key=lambda line: line["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _json(
        folder / "lineage.json",
        {
            "palate": "0.1.0",
            "code": {"commit": "4f1c2d9a7be0", "dirty": False},
            "verb": "tune",
            "base_model": BASE,
            "tokenizer": {"digest": "ab" * 32, "template": None},
            "data": [
                {"path": "pairs.jsonl", "sha256": "01" * 32},
                {"path": "held_out.jsonl", "sha256": "02" * 32},
            ],
            "reference": {"kind": "adapter_off", "digest": BASE["digest"]},
            "libraries": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
            "seed": 0,
            "device": "cpu",
            "layout": {"used": "shared", "check": {"max_abs_difference": 3.1e-6}, "reason": None},
        },
    )
    _json(
        folder / "status.json",
        {
            "state": "finished",
            "step": steps,
            "started": "2026-01-05T10:00:00+00:00",
            "ended": "2026-01-05T10:05:12+00:00",
            "seconds": 312.4 + 9 * len(method),
        },
    )
    accuracy = 0.6 + settings["gain"] / 4
    _json(
        folder / "evaluation.json",
        {
            "kind": "evaluation",
            "confidence": 0.95,
            "policies": [
                _entry(method, method, steps, folder, settings["loss"])
                | {"preference": {"sentiment": preference(accuracy), "all": preference(accuracy)}}
            ],
            "reference": None,
        },
    )
    return folder


def online_run(
    folder: Path, alarm: str | None = None, *, seed: int = 0, images: bool = False
) -> Path:
    """A finished `palate rl` run, healthy or one that its alarm sounded for."""
    folder.mkdir(parents=True)
    kind = FAILURES[alarm][0] if alarm else "helpful"
    lines = series(alarm, seed, kind, 160)
    algorithm = "ppo" if kind == "ppo" else "grpo"
    recipe = {
        "output_dir": str(folder),
        "model": {"path": "models/SmolLM2-135M-Instruct", "lora": {"r": 16, "alpha": 32.0}},
        "algorithm": {"type": algorithm},
        "kl": {"coefficient": 0.05, "form": "k1", "place": "reward"},
        "rollout": {"batch_size_prompts": 8, "num_generations": 8, "engine": {"type": "local"}},
    }
    (folder / "recipe.yaml").write_text("# palate rl\n" + dump_yaml(recipe))
    for line in lines:
        if line["split"] == "train":
            line |= {"examples": 64 * line["step"], "loss": 0.01, "learning_rate": 1e-5}
            line |= {f"seconds/{name}": 3.0 + i for i, name in enumerate(("generate", "update"))}
            line |= {"clip/low": 0.01, "clip/high": 0.02, "tokens/generated": 2560.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    alarms = [
        record
        for watch in [Alarms()]
        for line in lines
        if line["split"] == "train"
        for record in watch.add(line["step"], {k: v for k, v in line.items() if type(v) is float})
    ]
    (folder / "alarms.jsonl").write_text(
        "".join(json.dumps(record.document()) + "\n" for record in alarms)
    )
    _json(folder / "data.json", {"sources": [], "train": {"examples": 512}})
    _json(folder / "lineage.json", {"verb": "rl", "base_model": BASE, "seed": 0, "device": "cpu"})
    _json(folder / "status.json", {"state": "finished", "step": 160, "seconds": 1130.0})
    rng = np.random.default_rng(seed)
    for rollout in range(20):
        rows = [
            _rollout_row(rollout, prompt, sample, rng, images=images)
            for prompt in range(4)
            for sample in range(4)
        ]
        write_rollout(folder, rows)
    return folder


def _rollout_row(
    rollout: int, prompt: int, sample: int, rng: np.random.Generator, *, images: bool
) -> RolloutRow:
    ids = tuple(int(i) for i in rng.integers(0, 1000, int(rng.integers(8, 48))))
    score = None if (prompt, sample) == (2, 1) else float(rng.normal(rollout / 20, 0.3))
    return RolloutRow(
        rollout=rollout,
        version=rollout,
        prompt=f"p{prompt}",
        source="reviews",
        prompt_text=_OPENINGS[prompt],
        sample=sample,
        text=_ENDINGS[int(rng.integers(len(_ENDINGS)))],
        response_ids=ids,
        finished=bool(rng.random() < 0.7),
        score=score,
        reason="" if score is not None else "the server gave no number",
        parts={} if score is None else {"model": score + 0.1, "brevity": -0.1},
        advantage=None if score is None else score / 2,
        dropped="" if score is not None else "unscored",
        images=(PICTURE,) if images else (),
    )


def evaluation_run(folder: Path, runs: list[Path], *, checkpoints: int = 5) -> Path:
    """A finished `palate eval` run over checkpoints of training runs named after METHODS."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    recipe = {"output_dir": str(folder), "runs": [str(run) for run in runs], "checkpoints": "all"}
    (folder / "recipe.yaml").write_text("# palate eval\n" + dump_yaml(recipe))
    policies, rows = [], []
    for prompt in range(12):
        rows.append(_sample(prompt, "reference", None, 0.12, 0.0, rng))
    for run in runs:
        settings = METHODS[run.name]
        for i in range(1, checkpoints + 1):
            step = STEPS * i // checkpoints
            kl = settings["kl"][1] * (i / checkpoints) ** 1.3
            reward = 0.12 + settings["gain"] * 2 * (1 - math.exp(-kl / settings["kl"][1] * 1.6))
            entry = _entry(f"{run.name}@{step}", run.name, step, run, settings["loss"])
            entry["samples"] = samples(reward, kl, entropy=3.4 - 0.07 * kl)
            accuracy = 0.6 + settings["gain"] / 4 * i / checkpoints
            entry["preference"] = {
                "sentiment": preference(accuracy, 160),
                "hotels": preference(accuracy - 0.07, 80),
                "all": preference(accuracy - 0.02, 240),
            }
            policies.append(entry)
            for prompt in range(12):
                rows.append(_sample(prompt, run.name, step, reward, kl, rng))
    reference = _entry("reference", "reference", None, None, {})
    reference["samples"] = samples(0.12, 0.0, entropy=3.5)
    _json(
        folder / "evaluation.json",
        {
            "kind": "evaluation",
            "confidence": 0.95,
            "policies": policies,
            "reference": reference,
        },
    )
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _json(folder / "data.json", data_record())
    return folder


def demo(root: Path) -> list[Path]:
    """Three training runs, their evaluation, and a conclusion in the folder of all four."""
    runs = [training_run(root / method, method) for method in METHODS]
    runs.append(evaluation_run(root / "evaluation", runs))
    _json(
        root / "conclusion.json",
        {
            "lines": [
                "All three methods raise the mean sentiment of held-out continuations above the "
                "base model's 0.12: DPO by 0.48 [0.41, 0.55], TDPO2 by 0.57 [0.50, 0.64].",
                "At 8 nats from the reference TDPO2 earns 0.13 [0.04, 0.22] more than DPO.",
                "TDPO1 and DPO cannot be told apart with 256 prompts.",
            ]
        },
    )
    return [root, *runs]


def data_record() -> dict[str, Any]:
    """data.json: 1024 = 960 + 9 + 55 rows for training, 240 for evaluation."""
    train = {
        "name": "sentiment",
        "path": "pairs.jsonl",
        "format": "preference",
        "split_role": "train",
        "sha256": "01" * 32,
        "read": 1024,
        "kept": 960,
        "rejected": {"malformed JSON": 3, "missing field": 6},
        "dropped": {"identical pair": 38, "prompt over the limit": 17},
        "truncated": {"response cut at the limit": 21},
        "quarantine": "quarantine.jsonl",
    }
    held_out = train | {
        "path": "held_out.jsonl",
        "split_role": "eval",
        "sha256": "02" * 32,
        "read": 240,
        "kept": 240,
        "rejected": {},
        "dropped": {},
        "truncated": {},
        "quarantine": None,
    }
    length = {
        "prompt": {"mean": 11.8, "p50": 11, "p95": 19, "max": 31},
        "chosen": {"mean": 47.2, "p50": 48, "p95": 64, "max": 64},
        "rejected": {"mean": 41.9, "p50": 41, "p95": 64, "max": 64},
    }
    tokens = {"prompt": 11328, "chosen": 45312, "rejected": 40224}
    return {
        "sources": [train, held_out],
        "train": {"pairs": 960, "tokens": tokens, "length": length, "longer_is_chosen": 0.71},
        "eval": {"pairs": 240, "tokens": tokens, "length": length, "longer_is_chosen": 0.52},
    }


def preference(accuracy: float, n: int = 240) -> dict[str, Any]:
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)
    return {
        "n": n,
        "accuracy": accuracy,
        "accuracy_ci": [accuracy - half, accuracy + half],
        "margin": 4 * (accuracy - 0.5),
        "margin_ci": [4 * (accuracy - 0.5) - 0.2, 4 * (accuracy - 0.5) + 0.2],
        "length_baseline": 0.52,
        "ties": 0,
    }


def samples(reward: float, kl: float, entropy: float) -> dict[str, Any]:
    return {
        "n": 256,
        "prompts": 64,
        "reward": reward,
        "reward_ci": [reward - 0.05, reward + 0.05],
        "kl": kl,
        "kl_ci": [kl * 0.93, kl * 1.07],
        "forward_kl": kl * 1.2,
        "forward_kl_ci": [kl * 1.1, kl * 1.3],
        "tokens": 44.1,
        "finished": 0.62,
        "diversity": {
            "entropy": entropy,
            "distinct_1": 0.31,
            "distinct_2": 0.78,
            "self_bleu": 0.21,
            "self_bleu_of": "prompt",
        },
    }


def _entry(
    name: str, label: str, step: int | None, run: Path | None, loss: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "checkpoint": step,
        "run": None if run is None else str(run),
        "loss": loss.get("type"),
        "beta": loss.get("beta"),
    }


def _metrics(
    step: int, steps: int, split: str, settings: dict[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    t = step / steps
    noise = 1.0 if split == "train" else 0.15
    chosen, rejected = (
        end * t**1.2 * (1 + 0.25 * noise * rng.standard_normal()) for end in settings["kl"]
    )
    line = {
        "loss": 0.693 - 0.3 * t + 0.06 * noise * rng.standard_normal(),
        "rewards/chosen": -0.4 * t + 0.1 * noise * rng.standard_normal(),
        "rewards/rejected": -1.4 * t + 0.1 * noise * rng.standard_normal(),
        "rewards/accuracies": float(np.clip(0.5 + 0.24 * t + 0.13 * noise * rng.normal(), 0, 1)),
        "rewards/margins": t + 0.2 * noise * rng.standard_normal(),
        "logps/chosen": -150 - 4 * t + 6 * noise * rng.standard_normal(),
        "logps/rejected": -140 - 14 * t + 6 * noise * rng.standard_normal(),
        "displacement/chosen": -4 * t + 0.8 * noise * rng.standard_normal(),
        "displacement/fraction": float(np.clip(0.84 * t + 0.1 * noise * rng.normal(), 0, 1)),
        "kl/chosen": chosen,
        "kl/rejected": rejected,
        "kl/margin": chosen - rejected,
        "length/chosen": 47 + 3 * noise * rng.standard_normal(),
        "length/rejected": 42 + 3 * noise * rng.standard_normal(),
    }
    if split == "train":
        line |= {
            "learning_rate": 1e-4 * 0.5 * (1 + math.cos(math.pi * t)),
            "grad_norm": 2 + abs(rng.standard_normal()),
            "pairs_per_second": 3.1 + 0.1 * rng.standard_normal(),
            "tokens_per_second": 310.0,
            "seconds_left": 300 * (1 - t),
        }
    at = {"step": step, "epoch": t, "split": split, "time": "2026-01-05T10:00:00+00:00"}
    return at | {"examples": step * PAIRS_PER_STEP} | line


_OPENINGS = (
    "The second film in the series opens with",
    "We waited forty minutes for a table and then",
    "What struck me first about the acting was",
    "The hotel lies ten minutes from the station and",
)
_ENDINGS = (
    " a slow shot of the harbour, and from there it never loses its grip. The cast is warm and "
    "funny, and the ending earns every tear it asks for.",
    " the waiter forgot us twice. The soup was cold, the bread was stale, and nobody seemed to "
    "care. I would not go back.",
    " how calm everything felt. I enjoyed it more than I expected to, and my sister loved it.",
)


def _sample(
    prompt: int, policy: str, step: int | None, reward: float, kl: float, rng: np.random.Generator
) -> dict[str, Any]:
    return {
        "prompt_id": f"p{prompt}",
        "index": 0,
        "prompt": _OPENINGS[prompt % len(_OPENINGS)],
        "policy": policy,
        "checkpoint": step,
        "response": _ENDINGS[int(rng.integers(len(_ENDINGS)))],
        "reward": float(np.clip(reward + 0.4 * rng.standard_normal(), -1, 1)),
        "kl": max(0.0, kl * (1 + 0.2 * float(rng.standard_normal()))),
        "forward_kl": kl,
        "tokens": int(rng.integers(20, 64)),
    }


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
