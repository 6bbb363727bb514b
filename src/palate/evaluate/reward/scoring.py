"""Scores of items by any scorer: every response once, kept on disk as they come.

Scores go to a file of lines, each score under a digest of prompt and response, those of a scorer
that compares under a digest of the whole group; a later call, or a later run over the same folder,
asks only for what is not there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.content import content_key
from palate.data.schema import Content
from palate.evaluate.reward.items import Item
from palate.io import append_jsonl
from palate.rewards.base import Scorer, has_images, reads_images, score_groups
from palate.rewards.ensemble import Array, Ensemble
from palate.rewards.rows import GROUP

Progress = Callable[[int, int], None]

NOT_FINITE = "infinite scores"
"""What they are counted as: they are no scores."""


@dataclass(frozen=True)
class _Group:
    """Responses to a prompt that are asked about together.

    Attributes:
        keys: what their scores are kept under: one for each, or for all as a whole.
    """

    prompt: Content
    responses: list[Content]
    keys: list[str]


class ScoreBook:
    """Scores of one scorer, which is loaded when it is first needed.

    Args:
        load: gives the scorer.
        path: file of the lines; None keeps them in memory alone.
        relative: its scores mean something only beside those of the same group.
        chunk: groups scored between two writes.

    Attributes:
        account: what the scorer counted (verdicts that could not be read ...), in all runs.
    """

    def __init__(
        self,
        load: Callable[[], Scorer],
        path: Path | None = None,
        *,
        name: str = "",
        relative: bool = False,
        chunk: int = 256,
    ) -> None:
        self.load = load
        self.path = path
        self.name = name
        self.relative = relative
        self.chunk = chunk
        self.account: Counter[str] = Counter()
        self._scorer: Scorer | None = None
        self._known: dict[str, list[float]] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def scores(self, items: Sequence[Item], progress: Progress | None = None) -> list[list[float]]:
        """One list an item, in the order of its responses; NaN where there is no score."""
        if self.relative:
            names = [_digest(item, item.responses) for item in items]
            missing = {
                name: _Group(item.prompt, list(item.responses), [name])
                for name, item in zip(names, items, strict=True)
                if name not in self._known
            }
            self._ask(list(missing.values()), progress)
            return [list(self._known[name]) for name in names]
        # All responses to a prompt together, each once: items share prompts and responses.
        keys = []
        wanted: dict[bytes, tuple[Content, dict[str, Content]]] = {}
        for item in items:
            prompt = content_key(item.prompt, item.source)
            _, own = wanted.setdefault(prompt, (item.prompt, {}))
            keys.append([_digest(item, [response]) for response in item.responses])
            for key, response in zip(keys[-1], item.responses, strict=True):
                if key not in self._known:
                    own.setdefault(key, response)
        groups = [
            _Group(
                prompt,
                list(own.values())[start : start + GROUP],
                list(own)[start : start + GROUP],
            )
            for prompt, own in wanted.values()
            for start in range(0, len(own), GROUP)
        ]
        self._ask(groups, progress)
        return [[self._known[key][0] for key in own] for own in keys]

    def scorer(self) -> Scorer:
        """The scorer, loaded."""
        if self._scorer is None:
            self._scorer = self.load()
        return self._scorer

    def release(self) -> None:
        """Lets go of the scorer; it is loaded again when it is needed again."""
        self._scorer = None

    def _ask(self, groups: Sequence[_Group], progress: Progress | None) -> None:
        for start in range(0, len(groups), self.chunk):
            part = groups[start : start + self.chunk]
            scorer = self.scorer()
            before = _counted(scorer)
            given = score_groups(scorer, [own.prompt for own in part], [o.responses for o in part])
            counted = _counted(scorer)
            counted.subtract(before)
            # An infinite score orders nothing: beside another its margin is no number.
            counted[NOT_FINITE] += sum(math.isinf(score) for own in given for score in own)
            found = [[math.nan if math.isinf(s) else s for s in own] for own in given]
            kept: dict[str, list[float]] = {}
            for group, own in zip(part, found, strict=True):
                by_key = [own] if self.relative else [[score] for score in own]
                kept.update(zip(group.keys, by_key, strict=True))
            self._store(kept, +counted)
            if progress is not None:
                progress(min(start + self.chunk, len(groups)), len(groups))

    def _store(self, scores: dict[str, list[float]], counted: Counter[str]) -> None:
        self.account += counted
        self._known.update(scores)
        if self.path is None:
            return
        rows = {
            name: [None if math.isnan(score) else score for score in own]
            for name, own in scores.items()
        }
        append_jsonl(self.path, {"scores": rows, "account": dict(counted)})

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            found = {
                name: [math.nan if score is None else float(score) for score in own]
                for name, own in row["scores"].items()
            }
            counted = Counter({str(key): int(n) for key, n in row["account"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # cut off by a kill: its groups are scored again
        self._known.update(found)
        self.account += counted


class Booked:
    """A book as a scorer: what it has scored once it does not score again."""

    def __init__(self, book: ScoreBook) -> None:
        self.book = book
        self.name = book.name
        self.relative = book.relative

    @property
    def reads_images(self) -> bool:
        """Whether the scorer does."""
        return reads_images(self.book.scorer())

    def score(self, prompts: list[Content], responses: list[Content | str]) -> list[float]:
        """As the scorer itself, one response a group."""
        return [one for (one,) in self.score_groups(prompts, [[r] for r in responses])]

    def score_groups(
        self, prompts: list[Content], responses: list[list[Content | str]]
    ) -> list[list[float]]:
        """As the scorer itself."""
        items = [
            Item(id="", source="", prompt=prompt, responses=tuple(group))
            for prompt, group in zip(prompts, responses, strict=True)
        ]
        return self.book.scores(items)


class EnsembleBook:
    """Scores of an ensemble from its members' books, which others may use, too."""

    def __init__(self, ensemble: Ensemble, books: Sequence[ScoreBook], *, name: str = "") -> None:
        self.ensemble = ensemble
        self.books = list(books)
        self.name = name

    def release(self) -> None:
        """Lets go of the members' scorers."""
        for book in self.books:
            book.release()

    @property
    def account(self) -> Counter[str]:
        """What all members counted."""
        total: Counter[str] = Counter()
        for book in self.books:
            total += book.account
        return total

    def member_scores(
        self, items: Sequence[Item], progress: Progress | None = None
    ) -> tuple[Array, list[int]]:
        """[M, N] scores of all responses one after another, and [N] the item of each."""
        sizes = [len(item.responses) for item in items]
        owner = [i for i, size in enumerate(sizes) for _ in range(size)]
        image = [has_images(item.prompt) for item in items]
        rows = np.full((len(self.books), len(owner)), math.nan)
        starts = [0, *np.cumsum(sizes).tolist()]
        for m, (member, book) in enumerate(zip(self.ensemble.members, self.books, strict=True)):
            asked = [i for i, has in enumerate(image) if member.fits(has)]
            for i, own in zip(asked, book.scores([items[i] for i in asked], progress), strict=True):
                rows[m, starts[i] : starts[i + 1]] = own
        return rows, owner

    def scores(self, items: Sequence[Item], progress: Progress | None = None) -> list[list[float]]:
        """As `ScoreBook.scores`."""
        rows, owner = self.member_scores(items, progress)
        image = [has_images(items[i].prompt) for i in owner]
        flat = self.ensemble.combined(rows, image).tolist()
        found: list[list[float]] = [[] for _ in items]
        for i, score in zip(owner, flat, strict=True):
            found[i].append(score)
        return found


Book = ScoreBook | EnsembleBook


def _digest(item: Item, responses: Sequence[Content]) -> str:
    digest = hashlib.sha256(content_key(item.prompt, item.source))
    for response in responses:
        digest.update(content_key(response, item.source))
    return digest.hexdigest()[:32]


def _counted(scorer: Any) -> Counter[str]:
    return Counter(getattr(scorer, "unscored", {})) + Counter(getattr(scorer, "counts", {}))
