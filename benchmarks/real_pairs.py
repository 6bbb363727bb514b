"""Pairs of plain text from real data, as both sides of a comparison read them."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""prompt, chosen, rejected: text; `group`: equal for pairs of one prompt."""
ATTACK = "example"


def text_pairs(
    path: Path, tokenizer: Any, *, per_prompt: int, max_prompt: int, max_response: int, seed: int
) -> tuple[list[Row], Counter[str]]:
    """Pairs of a rated file, or of hh-rlhf, and what was left out by reason.

    Of ratings every two answers are a pair whose ratings are more than 0.2 apart (of a range of 1),
    at most `per_prompt` of a prompt, drawn by the seed: as many whose better answer is the longer
    one as the other way round, because in all pairs together length alone is right in four of five.
    Longer texts are left out before that, so that no side of a comparison has to cut them. So is
    the generator `example` of AlpacaEval's results: one and the same attack on the judge in answer
    to every prompt, which wins nearly always, and is short enough to be most pairs' chosen answer.
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
    found = []
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
            if ATTACK in (response.generator for response in pair.responses):
                out["pairs with an attack on the judge"] += 1
                continue
            chosen, rejected = (_text(r.content).rstrip() for r in pair.responses)
            if max(tokens(chosen), tokens(rejected)) > max_response:
                out["pairs with a response too long"] += 1
            else:
                usable.append({"chosen": chosen, "rejected": rejected})
        for pair in _drawn(usable, per_prompt, random.Random(f"{seed}|{number}")):
            found.append({"prompt": _prompt(row.prompt), **pair, "group": number})
    return found, out


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
