"""Many responses to one prompt, for best-of-n: rated data, or the samples of an evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palate.data.containers import Record, Rejection, named, open_records, source_name
from palate.data.images import ImageError
from palate.data.ledger import Ledger, digest
from palate.data.pairing import OWN_PROMPTS
from palate.data.readers import RowError
from palate.data.readers.fields import finite
from palate.data.scores import scores_of
from palate.data.stream import drawn, parsed, read_source
from palate.errors import DataError, RecipeError
from palate.evaluate.reward.benchmark import REPEATED, quarantined
from palate.evaluate.reward.images import EvalImages, SourceImages
from palate.evaluate.reward.items import BenchmarkItem, unique
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource

SAMPLE_FIELDS = frozenset(("prompt_id", "index", "prompt", "policy", "response"))
_GROUP = ("policy", "checkpoint", "prompt_id")
TOO_FEW = "fewer than two candidates"
NOT_RATED = "one response: nothing to choose from"


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Prompts with their candidates.

    Attributes:
        items: one a prompt (of samples: one a prompt and policy); `correct` means nothing here.
        gold: of each candidate by the data itself; NaN where it has none.
        entries: one a source, for data.json. quarantine: lines of quarantine.jsonl.
    """

    items: list[BenchmarkItem]
    gold: list[list[float]]
    entries: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """One line of samples.jsonl.

    Attributes:
        group: policy, checkpoint, id of the prompt and the prompt: those of one group compete.
        reward: NaN where there is none.
    """

    record: Record
    group: tuple[str, ...]
    index: Any
    response: str
    reward: float


def read_candidates(
    sources: Sequence[DataSource],
    pairing: PairingRecipe | None,
    seed: int,
    images: EvalImages | None = None,
    columns: Sequence[str] = (),
) -> Candidates:
    """Reads the candidates of all sources.

    Args:
        images: where the images of rows lie.
        columns: of rated data that items keep.

    Raises:
        DataError: unreadable, or without a prompt that has two.
    """
    parts = []
    for source in named(sources):
        if _is_samples(source):
            parts.append(_samples(source, seed))
        else:
            own_images = (images or EvalImages()).of(source)
            parts.append(_rated(source, pairing, seed, own_images, columns))
    items = unique([item for part in parts for item in part.items])
    if not items:
        lines = [line for part in parts for line in part.quarantine]
        why = "; row {row}: {reason}".format(**lines[0]) if lines else ""
        raise DataError(f"{sources[0].path}: no prompt with two candidates{why}")
    return Candidates(
        items=items,
        gold=[values for part in parts for values in part.gold],
        entries=[entry for part in parts for entry in part.entries],
        quarantine=[line for part in parts for line in part.quarantine],
    )


def own_gold(candidates: Candidates) -> list[list[float]]:
    """The gold scores that the data itself gives.

    Raises:
        RecipeError: it gives none.
    """
    if all(math.isnan(value) for of_item in candidates.gold for value in of_item):
        raise RecipeError(
            "`best_of_n.gold`: the candidates have no rating of their own: name a scorer"
        )
    return candidates.gold


def _is_samples(source: DataSource) -> bool:
    if source.format is not None:
        return False
    records = open_records(source)
    first = records.fetch([0])[0] if len(records) else None
    return isinstance(first, Record) and set(first.value) >= SAMPLE_FIELDS


def _rated(
    source: DataSource,
    pairing: PairingRecipe | None,
    seed: int,
    images: SourceImages,
    columns: Sequence[str],
) -> Candidates:
    result = read_source(source, seed=seed, keep=columns)
    ledger = Ledger(name=source.name or "", path=source.path, role="eval", result=result)
    items, gold = [], []
    for row in result.rows:
        if len(row.responses) < 2 or row.kind not in ("rated", "answers"):
            ledger.drop(row.row, NOT_RATED)
            continue
        if row.has_own_prompts:
            ledger.drop(row.row, OWN_PROMPTS)
            continue
        if row.has_images:
            try:
                row = images.located(row)
            except ImageError as error:
                ledger.drop(row.row, f"image: {error.reason}")
                continue
        scores: Sequence[float | None] = [None] * len(row.responses)
        if row.kind == "rated":
            by, scores = scores_of(row.responses, pairing or PairingRecipe())
            ledger.scored_by[by] += 1
        ledger.keep(1, ())
        items.append(
            BenchmarkItem(
                id=row.id,
                source=row.source,
                prompt=row.prompt,
                responses=tuple(response.content for response in row.responses),
                columns={name: (row.extra or {}).get(name) for name in columns},
            )
        )
        gold.append([math.nan if score is None else score for score in scores])
    return Candidates(
        items=items, gold=gold, entries=[ledger.entry()], quarantine=ledger.quarantine
    )


def _samples(source: DataSource, seed: int) -> Candidates:
    records = open_records(source)
    name = source_name(source)
    rejected: list[Rejection] = list(records.damage)
    groups: dict[tuple[str, ...], list[_Sample]] = {}
    seen: set[tuple[Any, ...]] = set()
    for record in records.fetch(range(len(records))):
        sample = parsed(_sample, record)
        if isinstance(sample, Rejection):
            rejected.append(sample)
        elif (known := (sample.group, sample.index, sample.response)) in seen:
            rejected.append(_rejection(sample.record, REPEATED))
        else:
            seen.add(known)
            groups.setdefault(sample.group, []).append(sample)
    few = [group[0] for group in groups.values() if len(group) < 2]
    whole = [group for group in groups.values() if len(group) > 1]
    left = 0
    if source.limit is not None and len(whole) > source.limit:
        left = sum(map(len, whole))
        whole = [whole[i] for i in drawn(len(whole), source.limit, seed, name)]
        left -= sum(map(len, whole))
    counts = Counter(item.counted_as for item in rejected)
    lines = rejected + [_rejection(sample.record, TOO_FEW) for sample in few]
    entry = {
        "name": name,
        "path": source.path,
        "format": "samples of palate eval",
        "split_role": "candidates",
        "sha256": digest(records.files),
        "read": len(records) + len(records.damage),
        "kept": sum(map(len, whole)),
        "rejected": dict(sorted(counts.items())),
        "dropped": {TOO_FEW: len(few)} if few else {},
        "not_selected": left,
        "truncated": {},
    }
    return Candidates(
        items=[_item(group, name) for group in whole],
        gold=[[sample.reward for sample in group] for group in whole],
        entries=[entry],
        quarantine=[quarantined(name, item) for item in lines],
    )


def _item(group: Sequence[_Sample], source: str) -> BenchmarkItem:
    policy, checkpoint, prompt_id, prompt = group[0].group
    made_by = f"{policy}@{checkpoint}" if checkpoint else policy
    return BenchmarkItem(
        id=f"{made_by}|{prompt_id}",
        source=f"{source}: {made_by}" if made_by else source,
        prompt=prompt,
        responses=tuple(sample.response for sample in group),
    )


def _sample(record: Record) -> _Sample:
    value = record.value
    if not isinstance(value.get("prompt"), str) or not isinstance(value.get("response"), str):
        raise RowError(None, "no text in prompt or response")
    reward = value.get("reward")
    if reward is not None:
        reward = finite(reward, "reward")
    names = ("" if value.get(key) is None else str(value[key]) for key in _GROUP)
    return _Sample(
        record=record,
        # An id may be given to another prompt, too: by another run.
        group=(*names, value["prompt"]),
        index=value.get("index"),
        response=value["response"],
        reward=math.nan if reward is None else reward,
    )


def _rejection(record: Record, reason: str) -> Rejection:
    return Rejection(file=record.file, row=record.row, field=None, reason=reason)
