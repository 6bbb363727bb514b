"""What a study has to do: its runs, as far as they are known, and the stages that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from palate.recipes.study import Halving, MeasureRecipe, StudyRecipe
from palate.study.cells import NO_SETTINGS, Cell, Settings, cells_of, tuning_trials
from palate.study.graph import Graph, NotYet, Run, StudyStage, compared_steps, steps_for
from palate.study.outcomes import mean, outcomes_of

Finished = Callable[[StudyStage], bool]


@dataclass
class Plan:
    """Runs and stages of a study.

    Attributes:
        runs: those that are known; a run to come may hang on results of these.
        later: what is not known yet, in words.
        chosen: cell -> the settings that its trials have chosen.
        cells: that are compared; none while rounds of halving go on.
    """

    graph: Graph
    runs: list[Run] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    chosen: dict[Cell, Settings] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)

    @property
    def stages(self) -> dict[str, StudyStage]:
        return self.graph.stages

    @property
    def compared(self) -> list[Run]:
        return [run for run in self.runs if run.purpose == "compared"]

    @property
    def first_runs(self) -> dict[Cell, Run]:
        """The first compared run of each cell."""
        first: dict[Cell, Run] = {}
        for run in self.compared:
            first.setdefault(run.cell, run)
        return first


def make_plan(graph: Graph, finished: Finished) -> Plan:
    """The runs that can be known now.

    Args:
        graph: of the study, still empty.
        finished: whether a stage has its result, which decides what comes after trials and rounds.

    Raises:
        RecipeError: a step's recipe is wrong under some variant.
    """
    recipe = graph.recipe
    plan = Plan(graph)
    plan.cells = cells_of(recipe)
    if isinstance(recipe.design, Halving):
        plan.cells = _halved(plan, recipe.design, plan.cells, finished)
    steps = compared_steps(recipe)
    waiting = 0
    for cell in plan.cells:
        settings = _tuned(plan, cell, finished)
        if settings is None:
            waiting += 1
            continue
        for seed in recipe.seeds:
            try:
                plan.runs.append(plan.graph.add(cell, seed, steps=steps, settings=settings))
            except NotYet as reason:
                plan.later.append(f"{cell.name}, seed {seed}: {reason}")
    if waiting:
        plan.later.append(
            f"{waiting * len(recipe.seeds)} runs of {waiting} cells, with what their trials choose"
        )
    return plan


def _tuned(plan: Plan, cell: Cell, finished: Finished) -> Settings | None:
    """The settings of a cell's compared runs; None while its trials are not finished."""
    recipe = plan.graph.recipe
    if recipe.tuning is None:
        return NO_SETTINGS
    measure = measure_named(recipe, recipe.tuning.measure)
    try:
        trials = [
            plan.graph.add(
                cell,
                recipe.tuning.seed,
                steps=steps_for(recipe, [measure.step]),
                settings=settings,
                purpose="trial",
            )
            for settings in tuning_trials(recipe, cell)
        ]
    except NotYet:
        return None
    plan.runs += trials
    values = _values(plan, trials, measure, finished)
    if values is None:
        return None
    best = max(range(len(trials)), key=lambda i: values[i])
    plan.chosen[cell] = trials[best].settings
    return trials[best].settings


def _halved(plan: Plan, design: Halving, cells: list[Cell], finished: Finished) -> list[Cell]:
    """The cells that are left after all rounds; none while they go on."""
    recipe = plan.graph.recipe
    assert recipe.budget is not None and recipe.budget.updates is not None
    measure = measure_named(recipe, design.measure)
    updates = design.first_updates
    while updates < recipe.budget.updates and len(cells) > 1:
        runs = [
            plan.graph.add(
                cell,
                design.seed,
                steps=steps_for(recipe, [measure.step]),
                settings=Settings(updates=updates),
                purpose="round",
            )
            for cell in cells
        ]
        plan.runs += runs
        values = _values(plan, runs, measure, finished)
        if values is None:
            left = _kept(design, cells)
            plan.later.append(f"rounds and runs of the best {left} cells after {updates} updates")
            return []
        order = sorted(range(len(cells)), key=lambda i: -values[i])
        cells = [cells[i] for i in sorted(order[: _kept(design, cells)])]
        updates = math.ceil(updates / design.keep)
    return cells


def _kept(design: Halving, cells: Sequence[Cell]) -> int:
    """How many go on; a share that rounds up to all of them would keep the worst for ever."""
    return min(math.ceil(design.keep * len(cells)), max(1, len(cells) - 1))


def _values(
    plan: Plan, runs: Sequence[Run], measure: MeasureRecipe, finished: Finished
) -> list[float] | None:
    """The measure of each run, higher being better; None where one is not there yet."""
    stages = [plan.stages[run.stages[measure.step]] for run in runs]
    if not all(map(finished, stages)):
        return None
    sign = -1.0 if measure.better == "lower" else 1.0
    recipe = plan.graph.recipe
    return [
        sign * mean(outcomes_of(plan.graph.root / stage.key, recipe, measure)) for stage in stages
    ]


def measure_named(recipe: StudyRecipe, name: str) -> MeasureRecipe:
    """A measure of a study by its name."""
    return next(measure for measure in recipe.measures if measure.name == name)


def all_stages(plan: Plan, run: Run) -> set[str]:
    """Keys of a run's stages and of all that they need."""
    keys: set[str] = set()
    waiting = list(run.stages.values())
    while waiting:
        key = waiting.pop()
        if key not in keys:
            keys.add(key)
            waiting += plan.stages[key].needs
    return keys


def seconds_apart(plan: Plan, seconds: Mapping[str, float]) -> float:
    """What runs would have taken one by one, had none used what another made.

    Args:
        seconds: key -> seconds of the finished stages.
    """
    return sum(seconds.get(key, 0.0) for run in plan.runs for key in all_stages(plan, run))
