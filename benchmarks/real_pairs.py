"""Pairs of plain text from real data, as both sides of a comparison read them, and what length and
format alone make of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Row = dict[str, Any]
"""prompt, chosen, rejected: text; `group`: equal for pairs of one prompt."""
ATTACKS = ("example", "gpt4_gamed")
"""Generators of AlpacaEval's results that answer nothing: one and the same string that makes the
judge prefer it, whatever was asked; and, nearly always, the first ten characters of an answer."""


def text_pairs(
    path: Path,
    tokenizer: Any,
    *,
    per_prompt: int,
    max_prompt: int,
    max_response: int | None,
    seed: int,
) -> tuple[list[Row], Counter[str]]:
    """Pairs of a rated file, or of hh-rlhf, and what was left out by reason.

    Of ratings every two answers are a pair whose ratings are more than 0.2 apart (of a range of 1),
    at most `per_prompt` of a prompt, drawn by the seed: as many whose better answer is the longer
    one, in characters as written, as the other way round, because in all pairs together length
    alone is right in four of five. Answers of `ATTACKS` are in none: one of them is the best rated
    answer to a quarter of the prompts.

    Args:
        max_prompt: tokens; longer prompts are left out.
        max_response: tokens; pairs with a longer response are left out, so that no side of a
            comparison has to cut them. None: responses are cut later, and pairs balanced before.
    """
    from palate.data.pairing import pairs_of
    from palate.data.stream import read_source
    from palate.recipes.pairing import PairingRecipe
    from palate.recipes.schema import DataSource

    pairing = PairingRecipe(min_gap=0.2, chosen="every", rejected="every")

    @cache
    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    out: Counter[str] = Counter()
    chosen_pairs = []
    for number, row in enumerate(read_source(DataSource(path=str(path)), seed=seed).rows):
        if tokens(_prompt(row.prompt)) > max_prompt:
            out["prompts too long"] += 1
            continue
        pairs = [row] if row.kind == "pair" else pairs_of(row, pairing, seed)
        if isinstance(pairs, str):
            out[pairs] += 1
            continue
        usable = []
        for pair in pairs:
            if not {r.generator for r in pair.responses}.isdisjoint(ATTACKS):
                out["pairs with an attack on the judge"] += 1
                continue
            chosen, rejected = (_text(r.content).rstrip() for r in pair.responses)
            long = max_response is not None and (
                max(tokens(chosen), tokens(rejected)) > max_response
            )
            if long:
                out["pairs with a response too long"] += 1
            else:
                usable.append({"chosen": chosen, "rejected": rejected})
        for pair in _drawn(usable, per_prompt, random.Random(f"{seed}|{number}")):
            chosen_pairs.append({"prompt": _prompt(row.prompt), **pair, "group": number})
    return chosen_pairs, out


def _drawn(pairs: list[Row], most: int, rng: random.Random) -> list[Row]:
    """At most so many pairs; of several, length tells nothing of which side is better."""
    if len(pairs) == 1:
        return pairs
    longer = [pair for pair in pairs if len(pair["chosen"]) > len(pair["rejected"])]
    shorter = [pair for pair in pairs if len(pair["chosen"]) < len(pair["rejected"])]
    each = min(len(longer), len(shorter), most // 2)
    return rng.sample(longer, each) + rng.sample(shorter, each)


def write_rows(rows: list[Row], path: Path, *, limit: int | None = None, seed: int = 0) -> None:
    """JSON lines; with a limit that many of them, drawn by the seed."""
    if limit is not None and limit < len(rows):
        kept = sorted(random.Random(seed).sample(range(len(rows)), limit))
        rows = [rows[i] for i in kept]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def length_baseline(rows: list[Row]) -> npt.NDArray[np.float64]:
    """Whether "the longer one wins" is right in each pair, by characters as written; even: half."""
    longer = np.sign([len(row["chosen"]) - len(row["rejected"]) for row in rows])
    return (longer > 0) + 0.5 * (longer == 0)


def format_baseline(train: list[Row], test: list[Row]) -> npt.NDArray[np.float64]:
    """Whether length and format alone are right in each test pair, after learning from `train`.

    Logistic regression, L2 of weight 1, on differences of signed logarithms of length and of what
    `palate data inspect` counts (list items, headings, bold text ...), chosen less rejected.
    """
    x, y = (_format_differences(rows) for rows in (train, test))
    scale = x.std(axis=0)
    scale[scale == 0] = 1.0
    z, weights = x / scale, np.zeros(x.shape[1])
    for _ in range(25):
        share = 1 / (1 + np.exp(np.clip(z @ weights, -30, 30)))
        curvature = (z * (share * (1 - share))[:, None]).T @ z + np.eye(len(weights))
        weights += np.linalg.solve(curvature, z.T @ share - weights)
    score = y / scale @ weights
    return (score > 0) + 0.5 * (score == 0)


def _format_differences(rows: list[Row]) -> npt.NDArray[np.float64]:
    from palate.data.audit.style import features

    def side(name: str) -> npt.NDArray[np.float64]:
        texts = [row[name] for row in rows]
        return np.asarray([(len(text), *features(text)) for text in texts], dtype=np.float64)

    x = side("chosen") - side("rejected")
    return np.sign(x) * np.log1p(np.abs(x))


class ByPrompt:
    """Intervals (95%) over prompts drawn anew: pairs of one prompt are not independent."""

    def __init__(self, groups: list[Any], *, draws: int = 4000) -> None:
        unique, member = np.unique(np.asarray(groups), return_inverse=True)
        drawn = np.random.default_rng(0).integers(0, len(unique), size=(draws, len(unique)))
        self.prompts = len(unique)
        self._counts = np.stack([np.bincount(row, minlength=len(unique)) for row in drawn])
        self._counts = self._counts[:, member]

    def interval(self, values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
        """The mean of values of all pairs, and its interval."""
        means = (self._counts * values).sum(1) / self._counts.sum(1)
        low, high = np.quantile(means, [0.025, 0.975])
        return float(values.mean()), float(low), float(high)

    def percent(self, values: npt.NDArray[np.float64]) -> str:
        """As text, in points of a hundred."""
        mean, low, high = (100 * x for x in self.interval(values))
        return f"{mean:6.1f} [{low:5.1f}, {high:5.1f}]"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n\n".join(t["content"] for t in content)


def _prompt(content: Any) -> str:
    if isinstance(content, str):
        return content.rstrip() + "\n\n"
    if len(content) == 1:
        return content[0]["content"].rstrip() + "\n\n"
    names = {"user": "Human", "assistant": "Assistant"}
    turns = [f"{names.get(t['role'], t['role'])}: {t['content']}" for t in content]
    return "\n\n".join([*turns, "Assistant: "])
