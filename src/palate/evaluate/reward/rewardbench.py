"""RewardBench 1, arXiv:2403.13787: 2,985 pairs in 23 subsets and four sections, and prior sets.

Data: allenai/reward-bench, split `filtered` (ODC-BY): prompt, chosen, rejected, subset, id. A pair
is right where chosen scores strictly higher. A section is the mean of its subsets' accuracies
weighted by the counts of the public code (rewardbench 0.1.3 and later), where math-prm counts 984
and not its 447 pairs, as much as the code it stands beside. Up to rewardbench 0.1.2 the two xstest
subsets had each other's counts: `by_old_counts` is the score that results made with it have. The
score is the mean of the four sections. With prior sets (four of allenai/preference-test-sets, their
mean) the paper's score weighs each section 2 and the prior sets 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.containers import Record
from palate.data.readers.base import RowError
from palate.data.readers.fields import check_prompt, required, text, turns
from palate.data.schema import Content, Message
from palate.errors import RecipeError
from palate.evaluate.reward.accuracy import weighted_interval
from palate.evaluate.reward.benchmark import Column, Official, Read, read_items
from palate.evaluate.reward.items import BenchmarkItem, Scores, unique
from palate.recipes.schema import DataSource

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Section -> subset -> its pairs."""

WEIGHTS = {name: n for section in SECTIONS.values() for name, n in section.items()} | {
    "math-prm": 984,
}
"""Weight of each subset within its section."""
OLD_WEIGHTS = WEIGHTS | {"xstest-should-refuse": 250, "xstest-should-respond": 154}
"""Those of rewardbench up to 0.1.2."""

PRIOR = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
"""Prior sets: splits of allenai/preference-test-sets."""

_SHAPE = "RewardBench (prompt, chosen, rejected, subset)"


class RewardBench:
    """RewardBench 1.

    Args:
        prior: the prior sets, one source each, named (or with `split`) as in `PRIOR`.
    """

    title = "RewardBench"
    definition = (
        "mean of the four sections; a section is the mean accuracy of its subsets, weighted by "
        "their published counts (math-prm as 984); equal scores are wrong"
    )
    version = 2

    def __init__(self, prior: Sequence[DataSource] = ()) -> None:
        self.prior = tuple(prior)

    def read(self, sources: Sequence[DataSource], seed: int) -> Read:
        """See `Benchmark.read`; rows of the prior sets come last.

        Raises:
            RecipeError: a source of `prior` that is not one of the prior sets.
        """
        core = read_items(sources, lambda _: _parse, seed, _SHAPE)
        if not self.prior:
            return core
        parts = [_read_prior(source, seed) for source in self.prior]
        return Read(
            items=unique([*core.items, *(item for part in parts for item in part.items)]),
            entries=[*core.entries, *(entry for part in parts for entry in part.entries)],
            quarantine=[*core.quarantine, *(line for part in parts for line in part.quarantine)],
        )

    def official(
        self, items: Sequence[BenchmarkItem], scores: Scores, confidence: float
    ) -> Official:
        """Sections, score and, with prior sets, the paper's weighted score."""
        right: dict[str, list[bool]] = {}
        ties: Counter[str] = Counter()
        for item, (chosen, rejected) in zip(items, scores, strict=True):
            right.setdefault(item.source, []).append(chosen > rejected)
            ties[item.source] += chosen == rejected
        columns, notes = [], []
        values: list[float] = []
        by_old_counts: list[float] = []
        for section, subsets in SECTIONS.items():
            present = [name for name in subsets if name in right]
            if missing := [name for name in subsets if name not in right]:
                notes.append(f"{section} lacks {', '.join(missing)}")
            if not present:
                continue
            meansues = [float(np.mean(right[name])) for name in present]
            column = _column(
                section,
                meansues,
                [len(right[name]) for name in present],
                [WEIGHTS[name] for name in present],
                sum(ties[name] for name in present),
                confidence,
            )
            columns.append(column)
            values.append(column.value)
            old = [OLD_WEIGHTS[name] for name in present]
            by_old_counts.append(float(np.average(meansues, weights=old)))
            notes += [
                f"{name} has {len(right[name])} pairs, not {subsets[name]}"
                for name in present
                if len(right[name]) != subsets[name]
            ]
        prior = {name: float(np.mean(right[name])) for name in PRIOR if name in right}
        detail: dict[str, Any] = {
            "subsets": {name: float(np.mean(of_subset)) for name, of_subset in right.items()},
            "prior": prior,
            "with_prior": None,
            "by_old_counts": None,
        }
        whole = len(values) == len(SECTIONS)
        if whole:
            detail["by_old_counts"] = float(np.mean(by_old_counts))
        if prior:
            column = _column(
                "Prior sets",
                list(prior.values()),
                [len(right[name]) for name in prior],
                [1] * len(prior),
                sum(ties[name] for name in prior),
                confidence,
            )
            columns.append(column)
            if len(prior) < len(PRIOR):
                missing = [name for name in PRIOR if name not in prior]
                notes.append(f"the prior sets lack {', '.join(missing)}")
            elif whole:
                detail["with_prior"] = (2 * sum(values) + column.value) / (2 * len(values) + 1)
        return Official(
            value=float(np.mean(values)) if whole else None,
            columns=tuple(columns),
            detail=detail,
            notes=tuple(notes),
        )


def _column(
    name: str,
    shares: Sequence[float],
    counts: Sequence[int],
    weights: Sequence[int],
    ties: int,
    confidence: float,
) -> Column:
    value = float(np.average(shares, weights=weights))
    return Column(
        name=name,
        value=value,
        n=sum(counts),
        ci=weighted_interval(value, counts, weights, confidence),
        of="pairs",
        ties=ties,
    )


def _read_prior(source: DataSource, seed: int) -> Read:
    parse = _prior_parser(prior_name(source))
    return read_items([source], lambda _: parse, seed, "prior set")


def prior_name(source: DataSource) -> str:
    """Which prior set a source is, by its name, its split or its file's name.

    Raises:
        RecipeError: none of them.
    """
    file = Path(source.path).name
    for candidate in (source.name, source.split, file.partition("-")[0], file.partition(".")[0]):
        if candidate in PRIOR:
            return candidate
    raise RecipeError(
        f"{source.path}: not told which of the prior sets {', '.join(PRIOR)} it is: "
        "set its `name` (or `split`) in `prior`"
    )


def _parse(record: Record) -> BenchmarkItem:
    subset = text(required(record, "subset"), "subset")
    if subset not in WEIGHTS:
        raise RowError("subset", "not one of RewardBench")
    return BenchmarkItem(
        id=f"{subset}:{record.value.get('id', record.row)}",
        source=subset,
        prompt=_prompt(required(record, "prompt"), "prompt"),
        responses=tuple(
            text(required(record, name), name, blank=True) for name in ("chosen", "rejected")
        ),
    )


def _prompt(value: Any, field: str) -> Content:
    """Text, which is one turn of the user; or turns."""
    if isinstance(value, str):
        return [Message(role="user", content=text(value, field))]
    chat = turns(value, field)
    check_prompt(chat, field)
    return chat


def _prior_parser(name: str) -> Any:
    def parse(record: Record) -> BenchmarkItem:
        return BenchmarkItem(
            id=f"{name}:{record.row}",
            source=name,
            prompt=_prompt(required(record, "prompt"), "prompt"),
            responses=tuple(
                text(required(record, side), side, blank=True) for side in ("chosen", "rejected")
            ),
        )

    return parse
