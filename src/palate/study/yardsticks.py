"""A result is never measured by a scorer that any compared run learned from or was chosen by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from palate.errors import RunError
from palate.recipes import scorers as recipes
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.losses import Strict
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import DataSource
from palate.recipes.study import STEP_PREFIX
from palate.store.digests import sha256_json
from palate.store.files import read_json
from palate.study.contents import training_sources
from palate.study.graph import StudyStage, choosing
from palate.study.plan import Plan

_SCORERS = tuple(get_args(get_args(recipes.Scorer)[0]))
"""Classes of scorers."""


def yardstick_problems(plan: Plan) -> Iterator[str]:
    """One line for each scorer that measures and was learned from, or chose."""
    chooses = choosing(plan.graph.recipe)
    measuring: dict[str, tuple[str, str]] = {}
    learned: dict[str, str] = {}
    for stage in plan.stages.values():
        yardsticks = dict(_yardsticks(plan, stage))
        if stage.step in chooses:
            learned |= dict.fromkeys(yardsticks, f"step {stage.step} chooses settings by it")
        elif yardsticks:
            measuring |= {key: (stage.step, name) for key, name in yardsticks.items()}
        elif isinstance(stage.recipe, DataBuildRecipe):
            for key in scorers_in(plan, stage.recipe):
                learned[key] = f"step {stage.step} makes its data with it"
        elif isinstance(stage.recipe, RlRecipe):
            for key in scorers_in(plan, stage.recipe):
                learned[key] = f"step {stage.step} is rewarded by it"
    for key, (step, name) in measuring.items():
        if key in learned:
            yield f"step {step} measures by {name}, and {learned[key]}: no run is its own yardstick"
    yield from _same_feedback(plan)


def _yardsticks(plan: Plan, stage: StudyStage) -> Iterator[tuple[str, str]]:
    """Key and name of every scorer that an evaluation measures by."""
    for scorer in _measuring(stage.recipe):
        yield from scorers_in(plan, scorer).items()


def _measuring(recipe: Strict) -> list[Any]:
    """The scorers that an evaluation measures by."""
    scorers: list[Any] = []
    if isinstance(recipe, EvalRecipe):
        scorers = [recipe.reward, recipe.judge]
    elif isinstance(recipe, RewardEvalRecipe) and recipe.best_of_n is not None:
        scorers = [recipe.best_of_n.gold]
    return [scorer for scorer in scorers if scorer is not None]


def scorers_in(plan: Plan, recipe: Strict) -> dict[str, str]:
    """Key and name of each scorer in a recipe that scores by itself, not by members."""
    scorers: dict[str, str] = {}
    for _, part in recipes.parts_of(recipe):
        if isinstance(part, _SCORERS) and not isinstance(
            part, recipes.EnsembleScorer | recipes.MixtureScorer | recipes.HybridScorer
        ):
            shown = part.model_dump(mode="json", exclude={"name", "dtype", "device"})
            paths = models_of(part)
            contents = [plan.graph.contents.of(p) or plan.graph.placeless(p) for p in paths]
            # Of a model its weights tell it, however it is used; of others all there is.
            told: Any = contents or shown
            scorers[sha256_json([told])] = f"{part.type} {paths[0]}" if paths else str(part.type)
    return scorers


def _same_feedback(plan: Plan) -> Iterator[str]:
    """Reward models that measure, and that learned from the pairs of a compared run."""
    policies = {
        key: plan.stages[key]
        for run in plan.compared
        for key in run.stages.values()
        if plan.stages[key].verb in ("tune", "sft", "rl")
    }
    for stage in plan.stages.values():
        if stage.step in choosing(plan.graph.recipe):
            continue
        for scorer in _measuring(stage.recipe):
            for path in models_of(scorer):
                learned, name = _learned(plan, path)
                for policy in policies.values():
                    if learned & _sources(plan, policy):
                        yield (
                            f"step {stage.step} measures by {name}, which learned from the pairs "
                            f"that step {policy.step} trains on"
                        )
                        break


def models_of(scorer: Any) -> list[str]:
    """Files, folders and hub names of what a scorer scores with."""
    paths = [part for key, part in recipes.parts_of(scorer) if key == "path" and part is not None]
    return [str(path) for path in paths if not isinstance(path, DataSource)]


def _learned(plan: Plan, path: str) -> tuple[set[str], str]:
    """What a scorer's model was trained on, told by content, and what the model is called."""
    if plan.graph.is_stage(path):
        key = plan.graph.placeless(path).removeprefix(STEP_PREFIX).split("/")[0]
        judge = plan.stages[key]
        return _sources(plan, judge), f"the reward model of step {judge.step}"
    return set(_recorded(Path(path).expanduser())), path


def _recorded(folder: Path, depth: int = 4) -> Iterator[str]:
    """Digests of the data that lineage.json of a run or data set names, and of what those were
    made of."""
    for place in (folder, folder.parent):
        file = place / "lineage.json"
        if not folder.exists() or not file.is_file():
            continue
        with suppress(RunError, TypeError, AttributeError):
            for source in read_json(file).get("data") or []:
                if source.get("sha256"):
                    yield source["sha256"]
                if depth and source.get("path"):
                    yield from _recorded(Path(source["path"]).expanduser(), depth - 1)
        return


def _sources(plan: Plan, stage: StudyStage) -> set[str]:
    """What a stage trains on, told by content; of a data build what it was made of."""
    paths = [source.path for source in training_sources(stage.recipe)]
    sources = {plan.graph.contents.of(path) or path for path in paths}
    for path in paths:
        sources |= set(_recorded(Path(path).expanduser()))
    for need in stage.needs:
        if plan.stages[need].verb == "data build":
            sources |= _sources(plan, plan.stages[need])
    return sources
