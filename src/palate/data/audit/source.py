"""What an audit knows of one source, or of several together."""

from __future__ import annotations

from typing import Any

import numpy as np

from palate.data.audit import repeats
from palate.data.audit.characters import FAULT_NAMES, NAMES, look_at
from palate.data.audit.examples import Examples
from palate.data.audit.repeats import Repeats, keys
from palate.data.audit.sample import Sample, priorities
from palate.data.audit.seen import Seen
from palate.data.audit.sketches import Ints, Lengths, Margins, separation, share_interval
from palate.data.audit.sketches import Names as NameCounts
from palate.data.audit.traces import PROBLEMS, traces
from palate.data.curation.base import Block

PARTS = ("prompt", "chosen", "rejected")
UNITS = ("characters", "words")
EDGES = (10, 25, 50, 100, 200, 400, 800)
"""Bounds of the groups of pairs by difference in length, in characters: those that the step
`length_balance` has by default."""

_TURNS = 12
_SHOWN_GENERATORS = 40
_SHOWN_TRACES = 12


class SourceAudit:
    """Counters, histograms and samples, in about 4 MB, and digests: 16 bytes a pair, 32 more of one
    with images, and 16 an image."""

    def __init__(self) -> None:
        self.lengths = {(part, unit): Lengths() for part in PARTS for unit in UNITS}
        self.margins = Margins()
        self.generators = NameCounts(2)
        self.found = NameCounts(1, most=200)
        self.repeats = Repeats()
        self.seen = Seen()
        self.sample = Sample()
        self.examples = Examples()
        self.counts: dict[str, Ints] = {
            # pairs, ties, identical sides, chats, pairs with images, more than 1 prompt turn
            "rows": np.zeros(6, dtype=np.int64),
            "turns": np.zeros(_TURNS + 1, dtype=np.int64),
            "images": np.zeros(_TURNS + 1, dtype=np.int64),
            # by group of difference: longer chosen, shorter chosen
            "difference": np.zeros((len(EDGES) + 1, 2), dtype=np.int64),
            # by unit: longer, shorter, equal; of pairs that are no ties
            "longer": np.zeros((len(UNITS), 3), dtype=np.int64),
            "problems": np.zeros(len(PROBLEMS), dtype=np.int64),
            "faults": np.zeros((len(FAULT_NAMES), len(PARTS)), dtype=np.int64),
            "scripts": np.zeros((len(NAMES), len(PARTS)), dtype=np.int64),
            # pairs whose chosen, rejected response is in another script than the prompt
            "scripts_differ": np.zeros(2, dtype=np.int64),
        }

    def add(self, block: Block, seed: int) -> None:
        """Takes in a block of this source's pairs."""
        rows = block.rows
        if not rows:
            return
        ties = np.fromiter((row.tie for row in rows), dtype=np.bool_, count=len(rows))
        found = keys(rows, ties)
        identical = found.responses[0] == found.responses[1]
        self.repeats.add(found)
        self.seen.add(
            rows,
            ties,
            images=found.images,
            of_row=found.image_row,
            questions=found.questions,
            prompts=found.prompts,
            responses=found.responses,
        )
        sizes = self._add_lengths(block, found.words, ties)
        priority = priorities(block.index, seed)
        self.sample.add(priority, found, ties, block.chosen, block.rejected)
        margins = self._add_margins(block)
        self.examples.add(block, priority, sizes, margins)
        self._add_rows(block, ties, identical)
        self._add_traces(block)
        self._add_characters(block)

    def merge(self, other: SourceAudit) -> None:
        """Takes in another source."""
        for name, counts in other.counts.items():
            self.counts[name] += counts
        for key, lengths in other.lengths.items():
            self.lengths[key].merge(lengths)
        self.margins.merge(other.margins)
        self.generators.merge(other.generators)
        self.found.merge(other.found)
        self.repeats.merge(other.repeats)
        self.seen.merge(other.seen)
        self.sample.merge(other.sample)
        self.examples.merge(other.examples)

    def result(self) -> dict[str, Any]:
        """JSON values; see `Audit.result`."""
        pairs, ties, identical, chats, with_images, several = self.counts["rows"].tolist()
        repeated = repeats.summary(self.repeats)
        effective = repeated["prompts"]["distinct"] / pairs if pairs else 1.0
        images = {"pairs": with_images, "by_number": _numbered(self.counts["images"])}
        return {
            "pairs": pairs,
            "ties": ties,
            "identical": identical,
            "chats": chats,
            "several_turns": several,
            "turns": _numbered(self.counts["turns"]),
            **repeated,
            "length": {
                unit: {part: self.lengths[part, unit].summary() for part in PARTS} for unit in UNITS
            },
            "length_label": self._length_label(effective),
            "style": self.sample.summary(),
            "margin": self.margins.summary() | {"missing": pairs - int(self.margins.counts.sum())},
            "template": {
                "problems": _named(PROBLEMS, self.counts["problems"]),
                "found": {name: n for name, (n,) in self.found.items()[:_SHOWN_TRACES]},
            },
            "characters": {
                name: dict(zip(PARTS, counts, strict=True))
                for name, counts in zip(FAULT_NAMES, self.counts["faults"].tolist(), strict=True)
                if any(counts)
            },
            "scripts": self._scripts(),
            "generators": self._generators(effective),
            "images": images | self.seen.summary(),
            "examples": self.examples.found(),
        }

    def _add_lengths(self, block: Block, words: Any, ties: Any) -> Any:
        """Returns [N, 3] characters of each part."""
        parts = (block.prompts, block.chosen, block.rejected)
        characters = np.array([list(map(len, texts)) for texts in parts], dtype=np.int64)
        for u, (unit, sizes) in enumerate(zip(UNITS, (characters, words), strict=True)):
            for part, values in zip(PARTS, sizes, strict=True):
                self.lengths[part, unit].add(values)
            difference = (sizes[1] - sizes[2])[~ties]
            signs = difference > 0, difference < 0, difference == 0
            self.counts["longer"][u] += [int(sign.sum()) for sign in signs]
        difference = (characters[1] - characters[2])[~ties]
        group = np.digitize(np.abs(difference), EDGES)
        for column, sign in enumerate((difference > 0, difference < 0)):
            found = np.bincount(group[sign], minlength=len(EDGES) + 1)
            self.counts["difference"][:, column] += found
        return characters.T

    def _add_margins(self, block: Block) -> Any:
        """Returns [N], NaN where there is none."""
        margins = np.array(
            [np.nan if row.margin is None else row.margin for row in block.rows], dtype=np.float64
        )
        margins[~np.isfinite(margins)] = np.nan
        self.margins.add(margins[~np.isnan(margins)])
        return margins

    def _add_rows(self, block: Block, ties: Any, identical: Any) -> None:
        turns, images, chats, several, with_images = [], [], 0, 0, 0
        for row in block.rows:
            length = 1 if isinstance(row.prompt, str) else len(row.prompt)
            turns.append(min(length, _TURNS))
            chats += row.conversational
            several += length > 1
            if row.has_images:
                with_images += 1
                images.append(min(len(row.all_images), _TURNS))
            if not row.tie:
                for column, response in enumerate(row.responses):
                    if response.generator:
                        self.generators.add(response.generator, column)
        self.counts["rows"] += [
            len(block),
            int(ties.sum()),
            int(identical.sum()),
            chats,
            with_images,
            several,
        ]
        self.counts["turns"] += np.bincount(turns, minlength=_TURNS + 1)
        if images:
            self.counts["images"] += np.bincount(images, minlength=_TURNS + 1)

    def _add_traces(self, block: Block) -> None:
        texts = zip(block.rows, block.prompts, block.chosen, block.rejected, strict=True)
        for row, prompt, chosen, rejected in texts:
            found = dict(traces(row, prompt, chosen, rejected))
            for place, what in found.items():
                self.counts["problems"][place] += 1
                if what:
                    self.found.add(what, 0)

    def _add_characters(self, block: Block) -> None:
        sides = [look_at(texts) for texts in (block.prompts, block.chosen, block.rejected)]
        for part, side in enumerate(sides):
            self.counts["faults"][:, part] += side.faults.sum(axis=0)
            self.counts["scripts"][:, part] += np.bincount(side.script, minlength=len(NAMES))
        prompt = sides[0].script
        for column, side in enumerate(sides[1:]):
            differs = (side.script != prompt) & (side.script > 0) & (prompt > 0)
            self.counts["scripts_differ"][column] += int(differs.sum())

    def _length_label(self, effective: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for u, unit in enumerate(UNITS):
            longer, shorter, equal = self.counts["longer"][u].tolist()
            sides = [self.lengths[part, unit].counts for part in ("chosen", "rejected")]
            area = separation(*sides)
            found[unit] = _label(longer, shorter, effective) | {
                "equal": equal,
                "auc": None if area is None else round(area, 6),
            }
        bounds = zip((1, *EDGES), (*EDGES, None), strict=True)
        groups = zip(bounds, self.counts["difference"].tolist(), strict=True)
        found["characters"]["by_difference"] = [
            {"from": low, "below": high, **_label(longer, shorter, effective)}
            for (low, high), (longer, shorter) in groups
        ]
        return found

    def _scripts(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            part: _named(NAMES, self.counts["scripts"][:, i]) for i, part in enumerate(PARTS)
        }
        chosen, rejected = self.counts["scripts_differ"].tolist()
        return found | {"chosen_differs": chosen, "rejected_differs": rejected}

    def _generators(self, effective: float) -> dict[str, Any]:
        names = []
        for name, (wins, losses) in self.generators.items():
            share = round(wins / (wins + losses), 6)
            ci = share_interval(wins * effective, (wins + losses) * effective)
            entry = {"name": name, "wins": wins, "losses": losses, "share": share, "ci": ci}
            names.append(entry)
        return {
            "names": names[:_SHOWN_GENERATORS],
            "more": len(names[_SHOWN_GENERATORS:]),
            "responses_of_others": int(self.generators.left_out.sum()),
        }


def _label(longer: int, shorter: int, effective: float) -> dict[str, Any]:
    n = longer + shorter
    return {
        "longer": longer,
        "shorter": shorter,
        "share": round(longer / n, 6) if n else None,
        "ci": share_interval(longer * effective, n * effective),
    }


def _named(names: tuple[str, ...], counts: Ints) -> dict[str, int]:
    found = [(name, n) for name, n in zip(names, counts.tolist(), strict=True) if n]
    return dict(sorted(found, key=lambda item: -item[1]))


def _numbered(counts: Ints) -> dict[str, int]:
    """By number, the last of which is that many and more."""
    last = len(counts) - 1
    return {str(i) + "+" * (i == last): n for i, n in enumerate(counts.tolist()) if n}
