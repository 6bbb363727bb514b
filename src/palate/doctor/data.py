"""What a recipe reads, opened as a run would open it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from palate.doctor.check import Check, State
from palate.errors import PalateError
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.judge import JudgeRecipe
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import (
    Benchmark,
    BestOfNRecipe,
    PairsRecipe,
    PublishedBenchmark,
    RewardBenchRecipe,
    RewardEvalRecipe,
)
from palate.recipes.schema import DataSource, RunRecipe, SftRecipe, TuneRecipe
from palate.recipes.serving import ScoreRecipe
from palate.report.words import count

FIRST_ROWS = 200
"""Rows kept of each data source: enough to see its format and its faults."""


def data_checks(recipe: RunRecipe) -> Iterator[Check]:
    """All that a recipe reads: data, benchmarks and candidates."""
    for source in _sources(recipe):
        yield source_check(source, recipe.seed)
    if isinstance(recipe, RewardEvalRecipe):
        for benchmark in recipe.benchmarks:
            if isinstance(benchmark, PublishedBenchmark):
                yield from _benchmark_files(benchmark)
        if recipe.best_of_n is not None:
            yield _candidates_check(recipe.best_of_n, recipe.seed)


def _sources(recipe: RunRecipe) -> tuple[DataSource, ...]:
    """The data of a recipe that is in a format of preference data."""
    if isinstance(recipe, EvalRecipe | ScoreRecipe):
        return recipe.data
    if isinstance(recipe, TuneRecipe | SftRecipe | RewardRecipe | JudgeRecipe):
        return (*recipe.data.train, *recipe.data.eval)
    if isinstance(recipe, DataBuildRecipe):
        return tuple(recipe.sources)
    if isinstance(recipe, RewardEvalRecipe):
        pair_sources = [b.data for b in recipe.benchmarks if isinstance(b, PairsRecipe)]
        return tuple(source for data in pair_sources for source in data)
    return ()


def _benchmark_files(benchmark: Benchmark) -> Iterator[Check]:
    """A benchmark's own files, read as a run would read them where all are here."""
    prior = benchmark.prior if isinstance(benchmark, RewardBenchRecipe) else ()
    sources = (*benchmark.data, *prior)
    absent = [source for source in sources if not Path(source.path).exists()]
    for source in absent:
        looks_local = source.path.startswith((".", "/", "~")) or Path(source.path).suffix
        state: State = "problem" if looks_local else "note"
        what = "no such file" if looks_local else "from the hub, not looked up"
        yield Check("benchmark", state, f"{source.path}: {what}")
    if not absent:
        yield _benchmark_check(benchmark, ", ".join(source.path for source in sources))


def _benchmark_check(benchmark: Benchmark, paths: str) -> Check:
    from palate.data.images import ImageStore
    from palate.evaluate.reward.reading import benchmark_of

    try:
        with TemporaryDirectory() as folder:
            reading = benchmark_of(benchmark, ImageStore(Path(folder))).read(benchmark.data, 0)
    except PalateError as error:
        return Check("benchmark", "problem", str(error))
    text = f"{paths}: {count(len(reading.items), 'prompt')}"
    if not reading.quarantine:
        return Check("benchmark", "ok", text)
    first = reading.quarantine[0]
    text += f", {count(len(reading.quarantine), 'row')} left out; the first: row {first['row']}: "
    return Check("benchmark", "note", text + first["reason"])


def source_check(source: DataSource, seed: int, *, kinds: Collection[str] = ()) -> Check:
    """Reads the beginning of a source.

    Args:
        kinds: of rows, one of which it must have; default: any.
    """
    from palate.data.stream import read_source

    try:
        result = read_source(_beginning(source), seed=seed)
    except PalateError as error:
        return Check("data", "problem", str(error))
    there = sorted({row.kind for row in result.rows})
    text = f"{source.path}: {result.read} rows read as {result.format} ({', '.join(there)})"
    if not result.rows:
        return Check("data", "problem", f"{source.path}: no usable row of {result.read}")
    if kinds and not set(kinds) & set(there):
        return Check("data", "problem", f"{text}: no {' or '.join(kinds)} row among them")
    if result.rejected:
        first = result.rejected[0]
        text += f", {len(result.rejected)} rejected; the first: row {first.row}: {first.reason}"
    return Check("data", "note" if result.rejected else "ok", text)


def _candidates_check(recipe: BestOfNRecipe, seed: int) -> Check:
    from palate.data.images import ImageStore
    from palate.evaluate.reward.candidates import own_gold, read_candidates
    from palate.evaluate.reward.images import EvalImages

    try:
        with TemporaryDirectory() as folder:
            images = EvalImages(root=recipe.image_root, store=ImageStore(Path(folder)))
            sources = [_beginning(source) for source in recipe.candidates]
            candidates = read_candidates(sources, recipe.pairing, seed, images)
        if recipe.gold is None:
            own_gold(candidates)
    except PalateError as error:
        return Check("candidates", "problem", str(error))
    several = sum(len(item.responses) for item in candidates.items)
    paths = ", ".join(source.path for source in recipe.candidates)
    text = f"{paths}: {count(several, 'candidate')} to {count(len(candidates.items), 'prompt')}"
    if candidates.quarantine:
        first, lines = candidates.quarantine[0], count(len(candidates.quarantine), "line")
        text += f", {lines} left out; the first: row {first['row']}: {first['reason']}"
    return Check("candidates", "note" if candidates.quarantine else "ok", text)


def _beginning(source: DataSource) -> DataSource:
    limit = min(source.limit or FIRST_ROWS, FIRST_ROWS)
    return source.model_copy(update={"limit": limit})
