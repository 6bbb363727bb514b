"""The audit: pairs go by in blocks, what is worth knowing of them stays."""

from __future__ import annotations

from typing import Any

from palate.data.audit import repeats
from palate.data.audit.sample import SIZE
from palate.data.audit.source import SourceAudit
from palate.data.curation.base import Block
from palate.data.excerpts import storable

MOST_SOURCES = 64
OTHERS = "other sources"


class Audit:
    """Collects, by source, what tells good preference data from bad; see `result`.

    In memory are about 4 MB a source, of at most 64, and 16 bytes a pair (32 more of one with
    images, and 16 an image): no text but a few examples. What it finds does not depend on how pairs
    are cut into blocks, nor on how blocks are shared among audits that are merged; examples and the
    pairs whose style is looked at are drawn by `Block.index` and `seed`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._sources: dict[str, SourceAudit] = {}

    def add(self, block: Block, *, source: str) -> None:
        """Takes in pairs of one source. Of more than 64 sources, the last ones are one together."""
        self._of(source).add(block, self.seed)

    def merge(self, other: Audit) -> None:
        """Takes in what another audit of the same seed has seen, of other pairs.

        Raises:
            ValueError: of another seed.
        """
        if other.seed != self.seed:
            raise ValueError("audits of two seeds have drawn differently")
        for name, source in other._sources.items():
            self._of(name).merge(source)

    def result(self) -> dict[str, Any]:
        """All findings as JSON values.

        `overall` and each of `sources`, by name, have:

          pairs, ties, identical (both responses the same), chats, several_turns, turns (of prompts)
          prompts       distinct, repeated, most (pairs of one prompt), pairs_by_times
          duplicates    pairs (beyond the first of each group), groups, largest
          contradictions  groups and pairs that have both labels
          length        by unit and part: mean, min, max, quantiles, histogram [from, below, number]
          length_label  by unit, of pairs that are no ties: longer, shorter, equal (chosen against
                        rejected), share of longer among unequal ones, its interval, auc (chance
                        that any chosen response is longer than any rejected one), by_difference
          style         of up to 10,000 pairs: features (chosen, rejected: sides that have it; more,
                        less, share: which side has more), openings, together (how often length
                        and style name the chosen response of pairs not fitted to)
          margin        pairs, missing, negative, zero, mean, min, max, histogram
          template      problems (pairs by kind), found (marks by how often)
          characters    faults: texts by part that have some
          scripts       by part: texts by main script; chosen_differs, rejected_differs: pairs whose
                        response is in another script than the prompt
          generators    names: wins and losses
          images        pairs, seen, distinct, repeated, most (times one is seen), by_number (of a
                        pair), prompts (distinct images that are in several prompts), blind (of
                        questions about several images: how far answers go by the question alone)
          examples      of sources alone; long texts cut to a window

        Intervals are 95% Wilson intervals in which the pairs of one prompt count as one observation
        together. `across` tells what sources share.
        """
        overall = SourceAudit()
        for source in self._sources.values():
            overall.merge(source)
        together = overall.result()
        del together["examples"]
        sources = {name: source.result() for name, source in self._sources.items()}
        found = {
            "confidence": 0.95,
            "sample": SIZE,
            "overall": together,
            "sources": sources,
            "across": {
                "shared_prompts": repeats.shared(
                    {n: s.repeats.prompts() for n, s in self._sources.items()}, "prompts"
                ),
                "shared_images": repeats.shared(
                    {n: s.seen.images() for n, s in self._sources.items()}, "images"
                ),
            },
        }
        storable: dict[str, Any] = _storable(found)
        return storable

    def _of(self, name: str) -> SourceAudit:
        if name not in self._sources and len(self._sources) >= MOST_SOURCES:
            name = OTHERS
        return self._sources.setdefault(name, SourceAudit())


def _storable(value: Any) -> Any:
    """All texts in a JSON value as `storable` gives them."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_storable(inner) for inner in value]
    return value
