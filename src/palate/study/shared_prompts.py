"""Evaluation prompts that are trained on, whatever files they stand in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.errors import PalateError, RunError
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.losses import Strict
from palate.recipes.prompts import PromptSource
from palate.recipes.reward_eval import PairsRecipe, RewardEvalRecipe
from palate.recipes.schema import DataSource
from palate.store.digests import sha256_json
from palate.store.files import read_json, write_json
from palate.study.contents import training_sources
from palate.study.graph import REFERENCE_CACHE
from palate.study.plan import Plan

KEPT = "prompts.json"
MOST = 0.01
"""Share of the evaluation prompts that may be trained on; more are refused, fewer are told."""


@dataclass(frozen=True, kw_only=True)
class SharedPrompts:
    """Of the prompts of an evaluation's source, how many a step trains on.

    Attributes:
        measured, trained: names of the steps. path: of the evaluation's source.
        count: shared prompts. total: prompts of the evaluation's source.
    """

    measured: str
    trained: str
    path: str
    count: int
    total: int

    @property
    def words(self) -> str:
        """What was found, in a clause."""
        return (
            f"step {self.trained} trains on {self.count} of the {self.total} prompts of "
            f"{self.path}, which step {self.measured} measures on"
        )


def shared_prompts(plan: Plan) -> list[SharedPrompts]:
    """Prompts that are trained on and measured on, of the files that are there.

    Files are read once; what came of it is kept in the study's folder under their content.
    """
    root = plan.graph.root
    known: dict[str, list[int]] = {}
    with suppress(RunError):
        known = read_json(root / KEPT) if (root / KEPT).is_file() else {}
    before = dict(known)
    reader = _Prompts()
    entries: dict[SharedPrompts, None] = {}
    trained = list(_trained(plan))
    for measured, source in _measured(plan):
        for step, training in trained:
            key = _key(plan, source, training)
            if key is None:
                continue
            if key not in known:
                prompts = reader.of(source)
                known[key] = [len(prompts & reader.of(training)), len(prompts)]
            count, total = known[key]
            if count:
                entry = SharedPrompts(
                    measured=measured, trained=step, path=source.path, count=count, total=total
                )
                entries[entry] = None
    # A plan alone leaves no folder behind.
    if known != before and root.is_dir():
        write_json(root / KEPT, known)
    return list(entries)


def _trained(plan: Plan) -> Iterator[tuple[str, DataSource]]:
    seen: set[Any] = set()
    for stage in plan.stages.values():
        if stage.verb in ("data build", REFERENCE_CACHE):
            continue
        for source in training_sources(stage.recipe):
            if (stage.step, source) not in seen:
                seen.add((stage.step, source))
                yield stage.step, source


def _measured(plan: Plan) -> Iterator[tuple[str, DataSource]]:
    seen: set[Any] = set()
    for stage in plan.stages.values():
        for source in _sources(stage.recipe):
            if (stage.step, source) not in seen:
                seen.add((stage.step, source))
                yield stage.step, source


def _sources(recipe: Strict) -> Iterator[DataSource]:
    if isinstance(recipe, EvalRecipe):
        yield from recipe.data
        yield from (source for source in recipe.prompts if isinstance(source, DataSource))
    if isinstance(recipe, RewardEvalRecipe):
        for benchmark in recipe.benchmarks:
            if isinstance(benchmark, PairsRecipe):
                yield from benchmark.data


def _key(plan: Plan, *sources: DataSource) -> str | None:
    """Of what two sources hold; None where one is not on this machine."""
    parts = []
    for source in sources:
        if not Path(source.path).expanduser().exists():
            return None
        shown = source.model_dump(mode="json", exclude={"path", "name", "limit"})
        parts.append([plan.graph.contents.of(source.path), shown])
    return sha256_json(parts)[:24]


class _Prompts:
    """Keys of the prompts of sources, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[int]] = {}

    def of(self, source: DataSource) -> frozenset[int]:
        from palate.data.content import prompt_key
        from palate.data.prompts.files import read_file
        from palate.data.stream import read_source

        # A limit draws by the seed: all rows may come.
        whole = source.model_copy(update={"limit": None})
        key = sha256_json(whole.model_dump(mode="json"))
        if key not in self._known:
            try:
                read = (
                    read_file(whole, seed=0)
                    if isinstance(whole, PromptSource)
                    else read_source(whole, seed=0)
                )
                rows = read.rows
                self._known[key] = frozenset(prompt_key(row.prompt, 0) for row in rows)
            except PalateError:
                # The step that reads it says what is wrong with it.
                self._known[key] = frozenset()
        return self._known[key]
