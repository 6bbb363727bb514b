"""Logs of online learning as runs leave them, healthy ones and ones that go wrong; made up.

A healthy log is one of seven kinds of run, with noise from line to line that has a memory and now
and then an outlier. A failing one is such a run until its onset; from there on some figures go
where the failure takes them, and so does the gold score of its held-out lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Line = dict[str, Any]
EVERY = 5
"""Lines between two of held-out prompts, which hold `reward/gold`."""
KINDS = ("sentiment", "arithmetic", "helpful", "noisy", "ppo", "server", "sparse")


class Noise:
    """Noise of one figure: part of it stays from line to line, and some lines are outliers."""

    def __init__(self, rng: np.random.Generator, memory: float = 0.4, heavy: bool = False) -> None:
        self.rng, self.memory, self.heavy = rng, memory, heavy
        self.level = 0.0

    def __call__(self) -> float:
        fresh = self.rng.standard_t(3) if self.heavy else self.rng.standard_normal()
        if self.rng.random() < 0.01:
            fresh *= 3
        self.level = self.memory * self.level + (1 - self.memory**2) ** 0.5 * float(fresh)
        return self.level


def _steady(kind: str, rng: np.random.Generator) -> Callable[[float], Line]:
    """The figures of a healthy run after a share of it, without noise."""
    gain, speed = float(rng.uniform(0.2, 0.6)), float(rng.uniform(3, 8))
    base: dict[str, tuple[float, float]] = {
        # start and end
        "reward": (0.1, 0.1 + gain),
        "reward/std": (0.4, 0.35),
        "reward/group_std": (0.35, 0.25),
        "entropy/sampled": (2.2, 1.4),
        "kl/k1": (0.0, 4.0),
        "length/mean": (40.0, 42.0),
        "eos/rate": (0.6, 0.65),
        "groups/zero_variance": (0.02, 0.05),
        "samples/commonest": (0.01, 0.02),
        "grad_norm": (1.0, 0.8),
        "ratio/max": (1.6, 2.0),
        "ratio/first": (0.0, 0.0),
    }
    more: dict[str, dict[str, tuple[float, float]]] = {
        # A base model that never ends within its limit.
        "sentiment": {"eos/rate": (0.0, 0.0), "length/mean": (48.0, 48.0)},
        # Solved in the end: little entropy, most groups right throughout, short answers.
        "arithmetic": {
            "reward": (0.2, 0.9),
            "entropy/sampled": (0.5, 0.11),
            "groups/zero_variance": (0.2, 0.75),
            "samples/commonest": (0.04, 0.08),
            "length/mean": (14.0, 9.0),
            "eos/rate": (0.8, 0.99),
            "reward/accuracy": (0.2, 0.9),
            "reward/format": (0.7, 1.0),
        },
        "helpful": {
            "kl/k1": (0.0, 14.0),
            "length/mean": (80.0, 125.0),
            "eos/rate": (0.8, 0.7),
            "reward/model": (0.1, 0.9),
            "reward/brevity": (-0.3, -0.38),
        },
        "noisy": {"kl/k1": (0.0, 8.0)},
        "ppo": {
            "value/explained_variance": (-2.5, 0.45),
            "value/loss": (0.6, 0.15),
            "grad_norm/value": (3.0, 1.0),
        },
        "server": {"mismatch/kl": (8e-4, 1.6e-3), "staleness": (1.0, 1.0)},
        "sparse": {
            "reward": (0.02, 0.3),
            "groups/zero_variance": (0.87, 0.5),
            "eos/rate": (0.4, 0.6),
        },
    }
    ends = base | more[kind]

    def at(share: float) -> Line:
        risen = 1 - np.exp(-speed * share)
        return {name: float(a + (b - a) * risen) for name, (a, b) in ends.items()}

    return at


def _noisy(line: Line, noises: dict[str, Noise], kind: str) -> Line:
    wide = 2.0 if kind == "noisy" else 1.0
    noisy: Line = {}
    for name, value in line.items():
        z = noises[name]()
        if name in ("eos/rate", "groups/zero_variance", "samples/commonest"):
            sd = wide * (0.08 if name.startswith("groups") else 0.03)
            noisy[name] = float(np.clip(value + sd * z * (0 < value < 1), 0, 1))
        elif name == "ratio/first":
            noisy[name] = value
        elif name.startswith("reward"):
            noisy[name] = value + wide * 0.06 * z
            if name.endswith("std"):
                noisy[name] = abs(noisy[name])
        elif name == "value/explained_variance":
            noisy[name] = value + wide * (0.1 + 0.3 * max(0.0, -value)) * z
        elif name == "kl/k1":
            noisy[name] = value + wide * (0.05 + 0.08 * value) * z
        else:
            spread = 0.5 if name == "mismatch/kl" else wide * 0.06
            noisy[name] = float(value * np.exp(spread * z))
    if noisy["length/mean"] > 48 and kind == "sentiment":
        noisy["length/mean"] = 48.0
    return noisy


def healthy(seed: int, kind: str | None = None, lines: int | None = None) -> list[Line]:
    """A log without a failure; of a kind that goes by the seed."""
    return series(None, seed, kind, lines)


FAILURES: dict[str, tuple[str, dict[str, float], float]] = {
    # Kind of run, where figures go, share of the run that it takes.
    "entropy_collapse": (
        "noisy",
        {
            "entropy/sampled": 0.02,
            "samples/commonest": 0.97,
            "reward": 0.9,
            "reward/group_std": 0.0,
            "groups/zero_variance": 0.8,
            "kl/k1": 40.0,
        },
        0.25,
    ),
    "kl_explosion": ("sentiment", {"kl/k1": 150.0, "reward": 0.9}, 0.2),
    "length_growth": ("helpful", {"length/mean": 240.0, "eos/rate": 0.4, "reward": 0.9}, 0.3),
    "length_collapse": ("helpful", {"length/mean": 11.0, "reward": 0.6}, 0.3),
    "eos_collapse": ("noisy", {"eos/rate": 0.02, "length/mean": 63.0, "reward": 0.5}, 0.25),
    "immediate_eos": ("noisy", {"eos/rate": 1.0, "length/mean": 1.1, "reward": 0.3}, 0.2),
    "value_divergence": (
        "ppo",
        {"value/explained_variance": -6.0, "value/loss": 40.0, "reward": 0.0},
        0.3,
    ),
    "ratio_off": ("ppo", {"ratio/first": 0.4}, 0.01),
    "no_variance": (
        "arithmetic",
        {"groups/zero_variance": 1.0, "reward/group_std": 0.0, "reward": 0.0},
        0.2,
    ),
    "mismatch": ("server", {"mismatch/kl": 0.4, "reward": 0.0}, 0.3),
    "component_conflict": (
        "helpful",
        {"reward/model": 3.0, "reward/brevity": -2.5, "reward": 0.6, "length/mean": 150.0},
        0.4,
    ),
}


def failing(alarm: str, seed: int) -> list[Line]:
    """A log that the alarm should sound for."""
    return series(alarm, seed)


def series(
    alarm: str | None, seed: int, kind: str | None = None, lines: int | None = None
) -> list[Line]:
    """Lines as metrics.jsonl has them."""
    rng = np.random.default_rng([seed, *(alarm or "healthy").encode()])
    kind = FAILURES[alarm][0] if alarm else kind or KINDS[seed % len(KINDS)]
    count = lines or int(rng.integers(60, 240))
    steady = _steady(kind, rng)
    noises = {n: Noise(rng, heavy=kind == "noisy") for n in (*steady(0.0), "reward/gold")}
    onset = float(rng.uniform(0.2, 0.5))
    made = []
    for i in range(count):
        share = i / count
        line = steady(share)
        gold = 0.1 + 0.8 * (line["reward"] - 0.1)
        if alarm is not None and share > onset:
            _, ends, takes = FAILURES[alarm]
            # Failures feed themselves: slow at first, then fast, then there.
            x = 6 * ((share - onset) / takes - 0.5)
            gone = float(1 / (1 + np.exp(-2 * x))) if takes > 0.01 else 1.0
            line |= {n: line[n] * (1 - gone) + end * gone for n, end in ends.items()}
            gold *= 1 - gone
        noisy = _noisy(line, noises, kind)
        at = {"step": i + 1, "epoch": share, "time": "2026-01-05T10:00:00+00:00"}
        made.append(at | {"split": "train"} | noisy)
        if (i + 1) % EVERY == 0:
            made.append(
                at
                | {"split": "eval", "reward": line["reward"]}
                | {"reward/gold": gold + 0.02 * noises["reward/gold"]()}
            )
    return made
