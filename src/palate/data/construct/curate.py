"""Curation steps over staged pairs: one after the other, each over what the one before has left."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from palate.data.construct.blocks import BlockFile, write_block
from palate.data.construct.progress import Bars
from palate.data.construct.quarantine import Quarantine
from palate.data.construct.state import State
from palate.data.curation.base import Block, Changed, Dropped, Step
from palate.data.schema import Preference


class Curation:
    """Runs steps and looks after what is known of each pair.

    Attributes:
        entries: one a step, for data.json.
    """

    def __init__(
        self,
        blocks: Sequence[BlockFile],
        state: State,
        ledgers: Sequence[str],
        quarantine: Quarantine,
        bars: Bars,
        *,
        apply: bool = True,
    ) -> None:
        """Args: `ledgers` are the names of the recipe's sources; without `apply`, what a step would
        drop or change is counted and stays as it is.
        """
        self.blocks = blocks
        self.state = state
        self.ledgers = ledgers
        self.entries: list[dict[str, Any]] = []
        self._quarantine = quarantine
        self._bars = bars
        self._apply = apply

    def run(self, steps: Sequence[Step], recipes: Sequence[dict[str, Any]]) -> None:
        """Judges every pair by every step; steps that need no look ahead share one reading.

        Args:
            recipes: of the steps, for the account.
        """
        names = _told_apart([step.name for step in steps])
        runs = [_Run(steps[k], k, name) for k, name in enumerate(names)]
        k = 0
        while k < len(runs):
            together = [runs[k]]
            while not runs[k].step.passes and k + 1 < len(runs) and not runs[k + 1].step.passes:
                k += 1
                together.append(runs[k])
            self._look(together[0])
            self._judge(together)
            k += 1
        for run, recipe in zip(runs, recipes, strict=True):
            self.entries.append(run.entry(recipe))

    def _look(self, run: _Run) -> None:
        for number in range(run.step.passes):
            of = f" ({number + 1} of {run.step.passes})" if run.step.passes > 1 else ""
            for _, block in self._loaded(f"{run.name}: looking{of}"):
                run.step.look(block)
            run.step.end_of_pass()

    def _judge(self, runs: Sequence[_Run]) -> None:
        what = ", ".join(run.name for run in runs)
        for file, block in self._loaded(what):
            changed: dict[int, Preference] = {}
            for run in runs:
                block = self._judge_block(run, file, block, changed)
            if changed:
                _rewrite(file, changed)

    def _judge_block(
        self, run: _Run, file: BlockFile, block: Block, changed: dict[int, Preference]
    ) -> Block:
        """What the step leaves of a block."""
        kept: list[int] = []
        rows: list[Preference] = []
        judged = zip(block.index, block.rows, run.step.judge(block), strict=True)
        run.before += len(block.rows)
        for place, row, judgement in judged:
            if isinstance(judgement, Dropped):
                run.drop(row.source, judgement.reason)
                if self._apply:
                    self.state.status[place] = self.state.code(run.place, judgement.reason)
                self._quarantine.add(
                    source=self.ledgers[file.ledger],
                    file=file.file,
                    row=row.row,
                    reason=judgement.reason,
                    step=run.name,
                )
                continue
            if isinstance(judgement, Changed):
                run.changed[judgement.note] += 1
                row = judgement.row
                changed[place - file.first] = row
            kept.append(place)
            rows.append(row)
        if not self._apply:
            changed.clear()
            return block
        return Block(first=block.first, index=kept, rows=rows)

    def _loaded(self, what: str) -> Iterator[tuple[BlockFile, Block]]:
        counted = self._bars.over(what, len(self.state), self.blocks, lambda block: block.rows)
        for file in counted:
            kept = np.flatnonzero(self.state.kept_in(file.first, file.rows))
            if len(kept):
                places = kept.tolist()
                rows = file.load(None if len(places) == file.rows else places)
                yield (
                    file,
                    Block(first=file.first, index=[file.first + i for i in places], rows=rows),
                )


class _Run:
    """A step at work.

    Attributes:
        place: among the steps. name: told apart from others of the same kind.
    """

    def __init__(self, step: Step, place: int, name: str) -> None:
        self.step = step
        self.place = place
        self.name = name
        self.before = 0
        self.changed: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._by_source: dict[str, Counter[str]] = defaultdict(Counter)

    def drop(self, source: str, reason: str) -> None:
        self._dropped[reason] += 1
        self._by_source[source][reason] += 1

    def entry(self, recipe: dict[str, Any]) -> dict[str, Any]:
        by_source = sorted(self._by_source.items())
        return {
            "step": self.step.name,
            "name": self.name,
            "recipe": recipe,
            "before": self.before,
            "after": self.before - self._dropped.total(),
            "dropped": dict(self._dropped.most_common()),
            "changed": dict(self.changed.most_common()),
            "by_source": {source: dict(found.most_common()) for source, found in by_source},
            "account": self.step.account(),
        }


def _told_apart(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} {seen[name]}" if names.count(name) > 1 else name)
    return found


def _rewrite(file: BlockFile, changed: dict[int, Preference]) -> None:
    rows = file.load()
    for place, row in changed.items():
        rows[place] = row
    temporary = file.path.with_suffix(".new")
    write_block(temporary, rows)
    os.replace(temporary, file.path)
