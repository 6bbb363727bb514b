"""Rated continuations: the base model continues openings, the lexicon rates what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from palate.data.scorer import Group, Scorer
from palate.demo.openings import Opening, Split, openings
from palate.demo.presets import SAMPLES_PER_BATCH, Preset
from palate.evaluate.progress import task
from palate.evaluate.sample import sample
from palate.models.model import Model
from palate.rewards import Lexicon
from palate.store.files import write_text

OPENINGS_PER_SHARD = 32
"""Openings whose continuations are written at once: what an interruption can cost."""


def write_feedback(
    folder: Path,
    preset: Preset,
    *,
    load: Callable[[], tuple[Model, Any]],
    encode: Callable[[Any, str], tuple[int, ...]],
    seed: int,
    console: Console,
    candidates: int | None = None,
) -> None:
    """Writes `train.jsonl` and `heldout.jsonl` of rated rows, going on from shards that are there.

    Args:
        load: gives policy and tokenizer; called only when something is missing.
        encode: tokenizer and prompt text to ids.
        candidates: continuations of each held-out opening, to choose the best among: equal and
            empty ones are kept. Default: as many as of the others, for pairs.
    """
    wanted: list[tuple[Split, int]] = [
        ("train", preset.train_openings),
        ("heldout", preset.heldout_openings),
    ]
    samples = {"train": preset.samples, "heldout": candidates or preset.samples}
    missing: list[tuple[Path, Split, list[Opening]]] = []
    plan: dict[Split, list[Path]] = {}
    for split, count in wanted:
        chosen = openings(split, count)
        for start in range(0, len(chosen), OPENINGS_PER_SHARD):
            shard = folder / "shards" / f"{split}-{start // OPENINGS_PER_SHARD:03d}.jsonl"
            plan.setdefault(split, []).append(shard)
            if not shard.exists():
                missing.append((shard, split, chosen[start : start + OPENINGS_PER_SHARD]))
    if missing:
        policy, tokenizer = load()
        reward = Lexicon()
        total = sum(len(part) * samples[split] for _, split, part in missing)
        with task("  continuations", total, console) as progress:
            for shard, split, part in missing:
                rows = _rated(
                    part,
                    [encode(tokenizer, o.text) for o in part],
                    policy=policy,
                    tokenizer=tokenizer,
                    reward=reward,
                    samples=samples[split],
                    new_tokens=preset.new_tokens,
                    for_pairs=split == "train" or candidates is None,
                    seed=seed,
                    advance=progress.advance,
                )
                write_text(shard, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    for split, shards in plan.items():
        file = folder / f"{split}.jsonl"
        text = "".join(shard.read_text(encoding="utf-8") for shard in shards)
        # Written again it would have a new time, and pass for changed data.
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)


def _rated(
    part: Sequence[Opening],
    ids: Sequence[tuple[int, ...]],
    *,
    policy: Model,
    tokenizer: Any,
    reward: Scorer,
    samples: int,
    new_tokens: int,
    for_pairs: bool,
    seed: int,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    drawn = sample(
        policy,
        tokenizer,
        ids,
        samples_per_prompt=samples,
        max_new_tokens=new_tokens,
        batch_size=SAMPLES_PER_BATCH,
        seed=seed,
        on_batch=lambda batch: advance(len(batch)),
    )
    scores = reward.score([Group(part[d.prompt].text, (d.text,)) for d in drawn])
    rows = []
    for i, opening in enumerate(part):
        completions: list[dict[str, Any]] = []
        for d, (score,) in zip(drawn, scores, strict=True):
            # The same words twice, or none, are no second opinion.
            seen = {c["text"] for c in completions}
            if d.prompt == i and (not for_pairs or (d.text.strip() and d.text not in seen)):
                completions.append({"text": d.text, "rating": score.value})
        if len(completions) > 1:
            row = {"id": opening.id, "prompt": opening.text, "completions": completions}
            rows.append(row)
    return rows
