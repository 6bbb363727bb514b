"""Trial steps of a run, in the process that makes them: how long they take and what they hold.

The run is started as far as its first step, and every micro-batch of an epoch is laid out, which
says how many tokens it puts through the model. A few steps are made: some of a handful of tokens,
which fill the optimizer's moments and tell its time; one of the largest micro-batch, which says how
much memory the run needs; and one or more of a mean one, by the clock. The time of a micro-batch
follows its floating-point operations, so that the time of the epoch's mean step comes from those
that were timed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from palate.data.build import Dataset
from palate.data.items import Item, Tokens
from palate.data.layouts import Layout
from palate.errors import in_one_line
from palate.memory import kept_memory, peak_bytes
from palate.models.attention import NAME as ROWS_KERNEL
from palate.models.model import Model
from palate.recipes.load import VERBS, load_recipe
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import DataSource, SftRecipe, TuneRecipe
from palate.store.files import write_json
from palate.store.folder import RunFolder
from palate.store.records import Foresight
from palate.train.foresight import TrainingRecipe
from palate.train.launch import total_steps
from palate.train.loop import Loop
from palate.train.operations import Shape, Volume, shape_of, volume_of
from palate.train.reward_run import RewardRun
from palate.train.run import PolicyRun
from palate.train.sources.offline import micro_batch
from palate.train.training_run import TrainingRun

ROWS = 5000
"""Read of each source: more say nothing new of lengths."""
TIMED_SECONDS, MOST_TIMES = 3.0, 5
"""The mean micro-batch is run until so many seconds are spent on it, at most so often."""
SHORT_TOKENS, SHORT_STEPS = 4, 3
"""The first steps wait for memory: the last of so many tells the time of clipping and optimizer."""
UNLIKE = 1.1
"""Operations of the largest micro-batch over those of a mean one from which its time counts."""


@dataclass(frozen=True)
class Piece:
    """One micro-batch of the run."""

    items: tuple[Item, ...]
    volume: Volume


class Trial(TrainingRun):
    """A run that computes nothing beforehand but what its trial steps need.

    Attributes:
        steps: the micro-batches of the first epoch, as far as the run goes.
        mean, largest: those that are tried. short: a few tokens of an item.
        laying_out: seconds that a step takes for its batches.
    """

    steps: list[list[Piece]]
    mean: Piece
    largest: Piece
    short: Piece
    laying_out: float = 0.0
    surveyed = False

    def prepared(self, model: Model, data: Dataset, layout: Layout) -> list[Item]:
        self.survey(model, data, layout)
        return [*self.mean.items, *self.largest.items, *self.short.items]

    def survey(self, model: Model, data: Dataset, layout: Layout) -> None:
        """Lays out every micro-batch once, and chooses."""
        if self.surveyed:
            return
        self.surveyed = True
        rewards = isinstance(self.recipe, RewardRecipe)
        lay_out = model.collator(layout, keep_last=rewards)
        windows = windows_of_layers(model)
        unpadded = model.device.type == "cpu" and model.config._attn_implementation == ROWS_KERNEL
        frozen = isinstance(self.recipe, RewardRecipe) and self.recipe.backbone == "frozen"

        def piece(slot: Sequence[int]) -> Piece:
            items = tuple(data.train[i] for i in slot)
            if frozen:
                return Piece(items, Volume(items=len(items), tokens=0, targets=0, seen=0.0))
            return Piece(items, volume_of(lay_out(items), windows, unpadded=unpadded))

        start = time.perf_counter()
        self.steps = [
            [piece(slot) for slot in step] for step in self.source(data.train, lay_out).steps(0)
        ]
        if not self.recipe.train.data_workers:
            self.laying_out = (time.perf_counter() - start) / len(self.steps)
        pieces = self.pieces
        mean = min(pieces, key=_distance_from_mean([p.volume for p in pieces]))
        largest = max(pieces, key=lambda p: (p.volume.tokens, p.volume.targets, p.volume.items))
        # What is cached is looked up by its place among the prepared items.
        self.mean = _numbered(mean, 0)
        self.largest = _numbered(largest, len(mean.items))
        short = Piece((_shortened(mean.items[0]),), mean.volume)
        self.short = _numbered(short, len(mean.items) + len(largest.items))

    @property
    def pieces(self) -> list[Piece]:
        return [piece for step in self.steps for piece in step]


class PolicyTrial(Trial, PolicyRun):
    """Of `tune` and `sft`."""


class RewardTrial(Trial, RewardRun):
    """Of `reward`."""


def _numbered(piece: Piece, first: int) -> Piece:
    items = (dataclasses.replace(item, index=first + i) for i, item in enumerate(piece.items))
    return Piece(tuple(items), piece.volume)


def _shortened(item: Item) -> Item:
    """A few tokens of an item's texts."""
    return dataclasses.replace(
        item,
        prompts=tuple(map(_short_text, item.prompts)),
        responses=tuple(map(_short_text, item.responses)),
    )


def _short_text(tokens: Tokens) -> Tokens:
    seen = {i for image in tokens.images for i in range(image.start, image.start + image.length)}
    ids = tuple(token for i, token in enumerate(tokens.ids) if i not in seen)
    return Tokens(ids[:SHORT_TOKENS])


def _distance_from_mean(volumes: Sequence[Volume]) -> Callable[[Piece], float]:
    """How far a micro-batch is from the mean one, in shares of it."""
    names = ("tokens", "targets", "seen", "items")
    means = {name: statistics.fmean(getattr(volume, name) for volume in volumes) for name in names}

    def distance(piece: Piece) -> float:
        return math.fsum((getattr(piece.volume, n) / m - 1) ** 2 for n, m in means.items() if m)

    return distance


def windows_of_layers(model: Model) -> list[int | None]:
    """The window of each layer, in tokens; None: all are seen."""
    config = model.config.get_text_config()
    windows = model.backbone.windows
    depth = int(getattr(config, "num_hidden_layers", 1))
    kinds = getattr(config, "layer_types", None) or [""] * depth
    return [windows.get(kind, windows.get("")) for kind in kinds]


# Steps by the clock -------------------------------------------------------------------------------


class StepClock:
    """Makes steps of a loop, and says how long each part of them took."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._marks: list[float] = []
        backward = loop.accelerator.backward

        def timed(*arguments: Any, **options: Any) -> None:
            backward(*arguments, **options)
            self._marks.append(_now())

        loop.accelerator.backward = timed

    def step(self, pieces: Sequence[Piece]) -> tuple[list[float], float]:
        """Seconds of each micro-batch, and of what comes after them: clipping, optimizer."""
        batches = [micro_batch(piece.items, self.loop.job.collate) for piece in pieces]
        self._marks = [_now()]
        self.loop.train_step(batches)
        end = _now()
        each = [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return each, end - self._marks[-1]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of micro-batches by their operations: a line through those that were timed.

    Attributes:
        operations, seconds_of_mean: of the mean micro-batch. slope: seconds an operation more.
        fixed: seconds of a step beside its micro-batches.
    """

    operations: float
    seconds_of_mean: float
    slope: float
    fixed: float

    def seconds(self, operations: float) -> float:
        return self.seconds_of_mean + self.slope * (operations - self.operations)


def timed(loop: Loop, trial: Trial, shape: Shape) -> Timings:
    """Makes the trial steps."""
    clock = StepClock(loop)
    mean, largest = trial.mean, trial.largest
    # With several micro-batches the later ones run beside the gradients of those before.
    several = max(map(len, trial.steps)) > 1
    for _ in range(SHORT_STEPS):
        _, fixed = clock.step([trial.short])
    # The first one waits for memory, too.
    parts, _ = clock.step([mean, largest] if several else [largest])
    seconds_of_largest = parts[-1]
    seconds: list[float] = []
    steps = 0
    while steps < MOST_TIMES and sum(seconds) < TIMED_SECONDS:
        parts, _ = clock.step([mean, mean] if several else [mean])
        seconds += parts
        steps += 1
    of_mean = statistics.median(seconds)
    operations = sum(mean.volume.operations(shape).values())
    slope = of_mean / operations if operations else 0.0
    more = sum(largest.volume.operations(shape).values())
    if more > UNLIKE * operations:
        steepness = (seconds_of_largest - of_mean) / (more - operations)
        slope = min(max(steepness, 0.0), slope)
    return Timings(
        operations=operations,
        seconds_of_mean=of_mean,
        slope=slope,
        fixed=fixed + trial.laying_out,
    )


# The whole ----------------------------------------------------------------------------------------


def measure(recipe: TrainingRecipe) -> Foresight:
    """Makes trial steps of a run in this process, of whose memory the peak is told.

    Writes verdicts on the layout, and the states of a reference or of a frozen backbone that the
    trial needs, where the run will look for them; nothing else.

    Raises:
        PalateError: as the run.
    """
    data = recipe.data.model_copy(
        update={
            "train": tuple(map(_beginning, recipe.data.train)),
            "eval": tuple(map(_beginning, recipe.data.eval)),
        }
    )
    train = recipe.train.model_copy(update={"report_to": ()})
    trial_recipe: Any = recipe.model_copy(update={"train": train, "data": data})
    with tempfile.TemporaryDirectory(prefix="palate-trial-") as folder, kept_memory():
        run_folder = RunFolder(trial_recipe, Path(folder) / "run", writes=False)
        begun = _now()
        trial = _trial_of(trial_recipe)
        start = trial.start(run_folder)
        start_seconds = _now() - begun
        job = start.job
        trial.survey(job.model, start.data, job.layout)
        loop = Loop(job, train, seed=recipe.seed)
        shape = shape_of(loop)
        timings = timed(loop, trial, shape)
    foresight = _foresight(
        recipe, trial, timings, shape, layout=job.layout, drawn=_is_drawn(start.data)
    )
    return foresight.model_copy(
        update={
            "start_seconds": start_seconds,
            "total_steps": total_steps(train, trial.plan, len(start.data.train)),
            "train_items": len(start.data.train),
            "eval_items": len(start.data.eval),
        }
    )


def _beginning(source: DataSource) -> DataSource:
    return source.model_copy(update={"limit": min(source.limit or ROWS, ROWS)})


def _is_drawn(data: Dataset) -> bool:
    """Whether a source may hold more rows than were read."""
    return any(entry["read"] >= ROWS for entry in data.report["sources"])


def _trial_of(recipe: TrainingRecipe) -> Trial:
    if isinstance(recipe, RewardRecipe):
        return RewardTrial(recipe, quiet=True)
    return PolicyTrial(recipe, recipe.loss if isinstance(recipe, TuneRecipe) else None, quiet=True)


def _foresight(
    recipe: TuneRecipe | SftRecipe | RewardRecipe,
    trial: Trial,
    timings: Timings,
    shape: Shape,
    *,
    layout: Layout,
    drawn: bool,
) -> Foresight:
    pieces, n = trial.pieces, len(trial.steps)
    parts = [piece.volume.operations(shape) for piece in pieces]
    operations = {name: math.fsum(part[name] for part in parts) / n for name in parts[0]}
    seconds = math.fsum(timings.seconds(sum(part.values())) for part in parts) / n
    volumes = [piece.volume for piece in pieces]
    return Foresight(
        seconds=seconds + timings.fixed,
        memory_bytes=peak_bytes(),
        layout=layout,
        items=sum(volume.items for volume in volumes) / n,
        micro_batches=len(pieces) / n,
        tokens=statistics.fmean(volume.tokens for volume in volumes),
        most_tokens=max(volume.tokens for volume in volumes),
        rows=ROWS if drawn else None,
        operations=operations,
        fixed_seconds=timings.fixed,
    )


def main() -> None:
    """The process that makes trial steps; its arguments: verb, recipe, file of the answer."""
    verb, file, answer = sys.argv[1:]
    cls = next(cls for cls, name in VERBS.items() if name == verb)
    recipe: Any = load_recipe(cls, file)
    try:
        document = measure(recipe).document()
    except Exception as error:
        document = {"error": in_one_line(error, 200)}
    write_json(Path(answer), document)
