"""What the numbers of the demonstration that sees support, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate.demo.vision import pairs as files
from palate.demo.vision.measures import Share, couple_of, share
from palate.demo.vision.presets import BLIND, METHODS, data_file
from palate.store.files import read_jsonl

START = "start"
Right = Mapping[str, Sequence[float]]


def conclude(
    evaluation: Mapping[str, Mapping[str, Any]],
    baselines: Mapping[str, Right],
    policies: Right,
    *,
    root: Path,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Lines for people, and the numbers that they were made from.

    Args:
        evaluation: the reward model's `preference` by the names of held-out sets.
        baselines: baseline -> held-out set -> right about each pair.
        policies: policy -> right about each pair of held-out images.
        root: folder with the data.
    """
    couples = {
        name: [couple_of(row) for row in read_jsonl(data_file(root, name))]
        for name in next(iter(baselines.values()))
    }
    known = {
        name: {
            of: share(np.array(right), couples[of], confidence=confidence, seed=seed)
            for of, right in by_set.items()
        }
        for name, by_set in baselines.items()
    }
    reward = {
        name: Share(value=entry["accuracy"], interval=tuple(entry["accuracy_ci"]))
        for name, title in files.TITLES.items()
        if (entry := evaluation.get(title)) is not None
    }
    right = {name: np.array(values) for name, values in policies.items()}

    def gain(a: str, b: str) -> Share:
        return share(right[a] - right[b], couples[files.HELD_OUT], confidence=confidence, seed=seed)

    shares = {
        name: share(values, couples[files.HELD_OUT], confidence=confidence, seed=seed)
        for name, values in right.items()
    }
    over_start = {method: gain(method, START) for method in METHODS}
    over_blind = {method: gain(method, method + BLIND) for method in METHODS}
    return {
        "confidence": confidence,
        "reward_model": {name: value.document() for name, value in reward.items()},
        "baselines": {
            name: {of: value.document() for of, value in by_set.items()}
            for name, by_set in known.items()
        },
        "policies": {name: value.document() for name, value in shares.items()},
        "minus_start": {name: value.document() for name, value in over_start.items()},
        "minus_blind": {name: value.document() for name, value in over_blind.items()},
        "lines": [
            _reward_line(reward, known, confidence),
            _blind_line(reward, known),
            *(_policy_line(method, shares, over_start, over_blind) for method in METHODS),
        ],
    }


def _reward_line(
    reward: Mapping[str, Share], known: Mapping[str, Mapping[str, Share]], confidence: float
) -> str:
    seen = (files.HELD_OUT, files.UNSEEN_THING, files.UNSEEN_WORDING, files.HELD_OUT_SCENES)
    parts = [f"{files.TITLES[name]} {_shown(reward[name])}" for name in seen if name in reward]
    probes = ", ".join(
        f"{_shown(known[name][files.HELD_OUT])} told {told}"
        for name, told in (("word probe", "the answer's word"), ("answer probe", "all of it"))
    )
    return (
        f"Reward model, share of pairs in the right order ({confidence:.0%} intervals): "
        f"{'; '.join(parts)}. Ridge probes on pooled image features: {probes}."
    )


def _blind_line(reward: Mapping[str, Share], known: Mapping[str, Mapping[str, Share]]) -> str:
    blind, shuffled = reward[files.BLIND], reward[files.SHUFFLED]
    low_high = [value.interval for value in (blind, shuffled)]
    chance = all(low <= 0.5 <= high for low, high in low_high)
    knows = reward[files.HELD_OUT].interval[0] > 0.5
    if not chance:
        verdict = "not chance, so something but the image tells"
    else:
        verdict = "what it knows, it sees" if knows else "chance, as it is with them so far"
    return (
        f"The same without images {_shown(blind)}, with images of other rows {_shown(shuffled)}: "
        f"{verdict}. The longer answer {_shown(known['length'][files.HELD_OUT])}, "
        f"the more usual one {_shown(known['majority'][files.HELD_OUT])}."
    )


def _policy_line(
    method: str,
    shares: Mapping[str, Share],
    over_start: Mapping[str, Share],
    over_blind: Mapping[str, Share],
) -> str:
    name, start, blind = METHODS[method][0], over_start[method], over_blind[method]
    return (
        f"{name} finds the true answer likelier in {_shown(shares[method])} of held-out pairs, the "
        f"model that it began with in {_shown(shares[START])}: {_signed(start)}, {_verdict(start)}."
        f" Trained without the images {_shown(shares[method + BLIND])}: with them "
        f"{_signed(blind)}, {_verdict(blind)}."
    )


def _shown(value: Share) -> str:
    return f"{value.value:.2f} [{value.interval[0]:.2f}, {value.interval[1]:.2f}]"


def _signed(value: Share) -> str:
    return f"{value.value:+.2f} [{value.interval[0]:+.2f}, {value.interval[1]:+.2f}]"


def _verdict(value: Share) -> str:
    low, high = value.interval
    return "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
