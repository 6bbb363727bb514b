"""What reward models are evaluated on: prompts with responses of which some are better."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.content import content_key
from palate.data.schema import Content
from palate.data.scorer import Group, Score
from palate.rewards.texts import response_text
from palate.store.names import unique_names

Array = npt.NDArray[np.float64]
Scores = Sequence[Sequence[float]]
"""One list an item: the scores of its responses, NaN where there is none."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkItem:
    """A prompt whose first `correct` responses are better than its other ones.

    Attributes:
        id: unique in its benchmark. source: subset, domain or data set.
        margin: how much better, where the data says; None where it does not.
        tie: the annotator saw no difference: the order means nothing.
        unit: items of one unit are not independent of each other, whatever their prompts are; None
            where the prompt alone says so.
        columns: of the row, for scorers that read them.
    """

    id: str
    source: str
    prompt: Content
    responses: tuple[Content, ...]
    correct: int = 1
    margin: float | None = None
    tie: bool = False
    unit: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Every correct response of an item against every other one; P of them in all.

    Attributes:
        item: [P] index of the item.
        group: [P] index of the unit (see `units_of`), mostly of the prompt; items may share one.
        source: [P] names.
        margin: [P] score of the correct response less that of the other; NaN where one has none.
        longer: [P] characters of the correct response less those of the other.
        stated: [P] the data's own margin; NaN where there is none.
    """

    item: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    source: npt.NDArray[np.object_]
    margin: Array
    longer: Array
    stated: Array

    def __len__(self) -> int:
        return len(self.item)

    def where(self, mask: npt.NDArray[np.bool_]) -> Comparisons:
        """Those for which `mask` is True."""
        return Comparisons(
            item=self.item[mask],
            group=self.group[mask],
            source=self.source[mask],
            margin=self.margin[mask],
            longer=self.longer[mask],
            stated=self.stated[mask],
        )


def as_groups(items: Sequence[BenchmarkItem]) -> list[Group]:
    """The items as a scorer takes them."""
    return [Group(item.prompt, item.responses, item.source, item.columns) for item in items]


def values_of(scored: Sequence[Sequence[Score]]) -> list[list[float]]:
    """What was scored as numbers to compute with, NaN where there is none."""
    return [[np.nan if s.value is None else s.value for s in scores] for scores in scored]


def compare(items: Sequence[BenchmarkItem], scores: Scores) -> Comparisons:
    """All comparisons of the items but those that the annotator called ties."""
    rows: list[tuple[int, int, str, float, int, float]] = []
    units = units_of(items)
    for number, (item, values) in enumerate(zip(items, scores, strict=True)):
        if item.tie:
            continue
        sizes = [len(response_text(response)) for response in item.responses]
        stated = np.nan if item.margin is None else item.margin
        for i in range(item.correct):
            for j in range(item.correct, len(item.responses)):
                margin, longer = values[i] - values[j], sizes[i] - sizes[j]
                rows.append((number, units[number], item.source, margin, longer, stated))
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * 6
    return Comparisons(
        item=np.asarray(columns[0], dtype=np.int64),
        group=np.asarray(columns[1], dtype=np.int64),
        source=np.asarray(columns[2], dtype=object),
        margin=np.asarray(columns[3], dtype=np.float64),
        longer=np.asarray(columns[4], dtype=np.float64),
        stated=np.asarray(columns[5], dtype=np.float64),
    )


def units_of(items: Sequence[BenchmarkItem]) -> list[int]:
    """Of each item the number of its unit, counted from 0 as they come: items of one prompt, images
    included, or of one `unit` are together."""
    return joined(
        [
            [("prompt", content_key(item.prompt, item.source))]
            + ([] if item.unit is None else [("unit", item.unit)])
            for item in items
        ]
    )


def joined(keys: Sequence[Sequence[Hashable]]) -> list[int]:
    """Of each entry the number of its group: entries are together that share a key, or that others
    join so. Groups are counted from 0 as they come."""
    first: dict[Hashable, int] = {}
    parent = list(range(len(keys)))

    def root(entry: int) -> int:
        while parent[entry] != entry:
            parent[entry] = parent[parent[entry]]
            entry = parent[entry]
        return entry

    for entry, of_entry in enumerate(keys):
        for key in of_entry:
            a, b = sorted((root(first.setdefault(key, entry)), root(entry)))
            parent[b] = a
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(entry), len(numbers)) for entry in range(len(keys))]


def prompt_ids(items: Sequence[BenchmarkItem]) -> list[str]:
    """Of each item the id of the first one of its unit."""
    first: dict[int, str] = {}
    return [
        first.setdefault(unit, item.id) for unit, item in zip(units_of(items), items, strict=True)
    ]


def unique(items: Sequence[BenchmarkItem]) -> list[BenchmarkItem]:
    """The items; those whose id an earlier one has get a number behind it."""
    ids = unique_names((item.id for item in items), "{}#{}")
    return [dataclasses.replace(item, id=name) for item, name in zip(items, ids, strict=True)]


def digest_items(items: Sequence[BenchmarkItem]) -> str:
    """Changes with anything that scores or results depend on."""
    digest = hashlib.sha256()
    for item in items:
        head = f"{item.id}|{item.source}|{item.correct}|{item.margin}|{item.tie}"
        if item.unit is not None:
            head += f"|{item.unit}"
        digest.update(head.encode("utf-8", "surrogatepass"))
        for content in (item.prompt, *item.responses):
            digest.update(content_key(content, item.source))
    return digest.hexdigest()
