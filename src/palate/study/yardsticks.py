"""A result is never measured by a scorer that any compared run learned from or was chosen by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from palate.recipes import scorers as recipes
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.losses import Strict
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.schema import DataSource
from palate.store.digests import sha256_json
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
    for key, (step, name) in measuring.items():
        if key in learned:
            yield f"step {step} measures by {name}, and {learned[key]}: no run is its own yardstick"
    yield from _same_feedback(plan, measuring)


def _yardsticks(plan: Plan, stage: StudyStage) -> Iterator[tuple[str, str]]:
    """Key and name of every scorer that an evaluation measures by."""
    recipe = stage.recipe
    scorer: Any = None
    if isinstance(recipe, EvalRecipe):
        scorer = recipe.reward
    elif isinstance(recipe, RewardEvalRecipe) and recipe.best_of_n is not None:
        scorer = recipe.best_of_n.gold
    if scorer is not None:
        yield from scorers_in(plan, scorer).items()


def scorers_in(plan: Plan, recipe: Strict) -> dict[str, str]:
    """Key and name of each scorer in a recipe that scores by itself, not by members."""
    scorers: dict[str, str] = {}
    for _, part in recipes.parts_of(recipe):
        if isinstance(part, _SCORERS) and not isinstance(
            part, recipes.EnsembleScorer | recipes.MixtureScorer
        ):
            shown = part.model_dump(mode="json", exclude={"name", "dtype", "device"})
            paths = [p for key, p in recipes.parts_of(part) if key == "path" and p is not None]
            contents = [
                plan.graph.contents.of(str(path)) or plan.graph.placeless(str(path))
                for path in paths
                if not isinstance(path, DataSource)
            ]
            # Of a model its weights tell it, however it is used; of others all there is.
            told: Any = contents or shown
            scorers[sha256_json([told])] = f"{part.type} {paths[0]}" if paths else str(part.type)
    return scorers


def _same_feedback(plan: Plan, measuring: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Reward models that measure, and that learned from the pairs of a compared run."""
    for stage in plan.stages.values():
        recipe = stage.recipe
        if not isinstance(recipe, EvalRecipe) or recipe.reward is None:
            continue
        for need in stage.needs:
            judge = plan.stages[need]
            if judge.verb != "reward":
                continue
            for run in plan.compared:
                for key in run.stages.values():
                    policy = plan.stages[key]
                    if policy.verb not in ("tune", "sft"):
                        continue
                    if _sources(plan, judge) & _sources(plan, policy):
                        yield (
                            f"step {stage.step} measures by the reward model of step {judge.step}, "
                            f"which learned from the pairs that step {policy.step} trains on"
                        )
                        return


def _sources(plan: Plan, stage: StudyStage) -> set[str]:
    """What a stage trains on, told by content; of a data build what it was made of."""
    paths = [source.path for source in training_sources(stage.recipe)]
    sources = {plan.graph.contents.of(path) or path for path in paths}
    for need in stage.needs:
        if plan.stages[need].verb == "data build":
            sources |= _sources(plan, plan.stages[need])
    return sources
