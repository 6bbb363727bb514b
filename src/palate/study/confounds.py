"""What would make a comparison about something else than the choice: refused before a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from palate.errors import RecipeError
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.losses import Strict
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import DataRecipe, DataSource, SftRecipe, TuneRecipe
from palate.recipes.study import (
    COMPARED,
    EVALUATING,
    OF_PAIRS,
    TRAINING,
    Fact,
    MeasureRecipe,
    StudyRecipe,
    Variant,
)
from palate.recipes.tasks import TaskEvalRecipe
from palate.study.cells import variants_of
from palate.study.contents import paths_read, training_sources
from palate.study.documents import split_key, within
from palate.study.graph import StudyStage, choosing, steps_for
from palate.study.plan import Plan
from palate.study.shared_prompts import MOST, shared_prompts
from palate.study.yardsticks import yardstick_problems

_KEYS: dict[Fact, tuple[str, ...]] = {
    "tokenizer": ("model.path", "model.revision"),
    "template": ("model.chat_template", "model.path"),
    "length": ("data.length", "length"),
    "precision": ("model.dtype", "train.optimizer_precision"),
    "reference": ("reference", "model.path"),
    "evaluation": (
        *("data", "prompts", "pairing", "length", "preference", "reward", "judge"),
        *("benchmarks", "robustness", "best_of_n", "runs"),
        *("tasks", "include", "fewshot", "limit", "chat", "run_generated_code"),
    ),
    "decoding": ("sampling",),
}
"""Keys of a step's recipe that each fact comes from: a variant that couples one owns up to it."""

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")
_TEMPLATE_FILES = ("chat_template*", "tokenizer_config.json")


def check_study(plan: Plan) -> None:
    """Refuses a study whose comparisons would not be of its choices alone.

    Raises:
        RecipeError: one line for each confound.
    """
    recipe = plan.graph.recipe
    problems = list(_key_problems(recipe))
    if not problems:
        problems += [
            *_step_problems(plan),
            *_same_runs(plan),
            *_fact_problems(plan),
            *_data_problems(plan),
            *yardstick_problems(plan),
        ]
    if not problems:
        problems += [
            f"{shared.words}: leave them out of what is trained on (curation step `decontaminate`)"
            for shared in shared_prompts(plan)
            if shared.count > MOST * shared.total
        ]
    if problems:
        name = plan.graph.document.name
        raise RecipeError("\n".join(f"{name}: {line}" for line in dict.fromkeys(problems)))


def _key_problems(recipe: StudyRecipe) -> Iterator[str]:
    """Variants that set what is not theirs to set."""
    verbs = {step.name: step.verb for step in recipe.steps}
    for aspect, later in itertools.combinations(recipe.aspects, 2):
        for a, b in itertools.product(aspect.sections, later.sections):
            if within(a, b) or within(b, a):
                inner = a if within(a, b) else b
                yield f"aspects {aspect.name} and {later.name} both vary {inner}"
    for aspect in recipe.aspects:
        for variant in aspect.variants:
            where = f"{aspect.name} {variant.name}"
            for key in variant.set or {}:
                if not any(within(key, section) for section in aspect.sections):
                    yield (
                        f"{where}: sets {key}, outside of what the aspect varies "
                        f"({', '.join(aspect.sections)}): declare it under `coupled`, or leave it"
                    )
                elif verbs.get(split_key(key)[0]) in EVALUATING:
                    yield f"{where}: sets {key}: what runs are measured by is the same for all"
            for key in variant.coupled or {}:
                owners = [
                    owner.name
                    for owner in recipe.aspects
                    if any(within(key, section) for section in owner.sections)
                ]
                if aspect.name in owners:
                    yield f"{where}: couples {key}, which the aspect varies: put it under `set`"
                elif owners:
                    yield f"{where}: couples {key}, which aspect {owners[0]} varies"
    if recipe.tuning is not None:
        yield from _tuning_problems(recipe, verbs)


def _tuning_problems(recipe: StudyRecipe, verbs: Mapping[str, str]) -> Iterator[str]:
    assert recipe.tuning is not None
    tuned = dict.fromkeys(recipe.tuning.keys, "tuning")
    for aspect in recipe.aspects:
        for variant in aspect.variants:
            where = f"{aspect.name} {variant.name}"
            tuned |= dict.fromkeys(variant.tune or {}, where)
            for key in variant.changes:
                if any(within(key, t) or within(t, key) for t in _tried(recipe, variant)):
                    yield f"{where}: sets {key}, which its tuning trials choose"
    for key, where in tuned.items():
        if verbs.get(split_key(key)[0]) not in TRAINING:
            yield f"{where}: tries {key}, and only steps that train are tuned"


def _tried(recipe: StudyRecipe, variant: Variant) -> list[str]:
    assert recipe.tuning is not None
    # A variant may replace the values that are tried, not set what is tried.
    return [*recipe.tuning.keys, *(variant.tune or {})]


def _fact_problems(plan: Plan) -> Iterator[str]:
    """Runs that differ in what all compared runs share."""
    recipe = plan.graph.recipe
    first = plan.first_runs
    facts = {
        cell: {
            (step, fact): value
            for step, key in run.stages.items()
            for fact, value in facts_of(plan, plan.stages[key]).items()
        }
        for cell, run in first.items()
    }
    for cell, later in itertools.combinations(first, 2):
        for place, value in facts[cell].items():
            if place not in facts[later] or facts[later][place] == value:
                continue
            step, fact = place
            differing = set(cell.differs_in(later))
            variants = [
                (aspect.name, variant)
                for side in (cell, later)
                for aspect, variant in variants_of(recipe, side)
                if aspect.name in differing
            ]
            if not any(_owns_up(variant, step, fact) for _, variant in variants):
                names = ", ".join(dict.fromkeys(f"{a} {v.name}" for a, v in variants))
                yield (
                    f"step {step}: {fact} is not the same for {cell.name} and for {later.name}: "
                    f"name it in `also_changes` of the variant that changes it ({names})"
                )


def _owns_up(variant: Variant, step: str, fact: Fact) -> bool:
    if fact in variant.also_changes:
        return True
    for key in variant.coupled or {}:
        coupled_step, path = split_key(key)
        if coupled_step == step and any(
            within(path, prefix) or within(prefix, path) for prefix in _KEYS[fact]
        ):
            return True
    return False


def facts_of(plan: Plan, stage: StudyStage) -> dict[Fact, Any]:
    """What of a stage must be the same in all compared runs."""
    recipe = stage.recipe
    if isinstance(recipe, TuneRecipe | SftRecipe | RewardRecipe):
        model = recipe.model
        facts: dict[Fact, Any] = {
            "tokenizer": _identity(plan, model.path, model.revision, _TOKENIZER_FILES),
            "template": [
                str(model.chat_template),
                _identity(plan, model.path, model.revision, _TEMPLATE_FILES),
            ],
            "length": recipe.data.length.model_dump(mode="json"),
            "precision": [model.dtype, recipe.train.optimizer_precision],
        }
        if isinstance(recipe, TuneRecipe) and recipe.reference is not None:
            facts["reference"] = recipe.reference.path
        return facts
    if isinstance(recipe, RlRecipe):
        model = recipe.model
        return {
            "tokenizer": _identity(plan, model.path, model.revision, _TOKENIZER_FILES),
            "template": [
                str(model.chat_template),
                _identity(plan, model.path, model.revision, _TEMPLATE_FILES),
            ],
            "length": [
                recipe.length.model_dump(mode="json"),
                recipe.rollout.max_new_tokens,
                recipe.rollout.min_new_tokens,
            ],
            "precision": [model.dtype, recipe.train.optimizer_precision],
            "decoding": [recipe.rollout.temperature, recipe.rollout.top_p],
            "reference": None if recipe.reference is None else recipe.reference.path,
        }
    if isinstance(recipe, EvalRecipe):
        return {
            "evaluation": _with_contents(
                plan,
                stage,
                ("data", "prompts", "pairing", "length", "preference", "reward", "judge"),
            ),
            "decoding": None if recipe.sampling is None else recipe.sampling.model_dump(),
            "reference": _placeless(plan, recipe.reference),
        }
    if isinstance(recipe, RewardEvalRecipe):
        keys = ("benchmarks", "robustness", "look", "best_of_n")
        return {"evaluation": _with_contents(plan, stage, keys)}
    if isinstance(recipe, TaskEvalRecipe):
        asked = ("tasks", "include", "fewshot", "limit", "chat", "run_generated_code")
        return {"evaluation": _with_contents(plan, stage, asked)}
    return {}


def _identity(plan: Plan, path: str, revision: str | None, patterns: Sequence[str]) -> Any:
    """Of a model's files of these names: their content; of a hub model its name."""
    folder = Path(path)
    if plan.graph.is_stage(path):
        # The step that made the model is compared itself.
        return "a step's"
    if not folder.is_dir():
        return [path, revision]
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return [(file.name, plan.graph.contents.of(str(file))) for file in files if file.is_file()]


def _with_contents(plan: Plan, stage: StudyStage, keys: Sequence[str]) -> Any:
    shown = stage.inputs["recipe"]
    read = {path for key in keys for path in paths_read(getattr(stage.recipe, key))}
    contents = {p: d for p, d in stage.inputs["contents"].items() if p in read}
    return [{key: shown.get(key) for key in keys}, contents]


def _placeless(plan: Plan, path: str | None) -> str | None:
    return "a step's" if path is not None and plan.graph.is_stage(path) else path


def _data_problems(plan: Plan) -> Iterator[str]:
    """Training data of other sizes; evaluation data that come with a run, or are trained on."""
    recipe = plan.graph.recipe
    trained: dict[tuple[str, int], set[str]] = {}
    for run in plan.compared:
        for step, key in run.stages.items():
            data = _training_data(plan, plan.stages[key])
            trained.setdefault((step, run.seed), set()).add(repr(data))
    varied = [step for (step, _), data in trained.items() if len(data) > 1]
    if varied and recipe.budget is None:
        yield (
            f"step {varied[0]} trains on other data from variant to variant: set `budget`, so that "
            "amount and content are not one choice, or `budget: {unmatched: true}`"
        )
    for stage in plan.stages.values():
        if isinstance(stage.recipe, EvalRecipe) and not (stage.recipe.data or stage.recipe.prompts):
            yield (
                f"step {stage.step} has no `data`: it would take each run's own held-out pairs, "
                "and they are not the same"
            )
    yield from _overlap_problems(plan)


def _training_data(plan: Plan, stage: StudyStage) -> Any:
    """What a step trains on: its own files, the rows of other steps, how pairs are made of them."""
    if isinstance(stage.recipe, RlRecipe):
        return stage.inputs["recipe"]["prompts"]["train"]
    if not isinstance(getattr(stage.recipe, "data", None), DataRecipe):
        return None
    shown = stage.inputs["recipe"]["data"]
    sources = [_rows(plan, source) for source in training_sources(stage.recipe)]
    made = [shown[key] for key in ("pairing", "mixture", "image_contrast")]
    return [sources, [s["limit"] for s in shown["train"]], *made]


def _overlap_problems(plan: Plan) -> Iterator[str]:
    """Evaluation files that are also trained on, or that also choose settings."""
    recipe = plan.graph.recipe
    trained: dict[_Rows, str] = {}
    chosen: dict[_Rows, str] = {}
    measured: dict[_Rows, tuple[str, str]] = {}
    for stage in plan.stages.values():
        for source in training_sources(stage.recipe):
            trained[_rows(plan, source)] = stage.step
        for source in _evaluation_sources(stage.recipe):
            if stage.step in choosing(recipe):
                chosen[_rows(plan, source)] = stage.step
            else:
                measured[_rows(plan, source)] = (stage.step, source.path)
    for rows, (step, path) in measured.items():
        if rows in trained:
            yield f"step {step} measures on {path}, which step {trained[rows]} trains on"
        if rows in chosen:
            yield f"step {step} measures on {path}, by which step {chosen[rows]} chooses settings"


_Rows = tuple[str, str | None, str | None]


def _rows(plan: Plan, source: DataSource) -> _Rows:
    """Which rows a source reads: content of its files, subset, split."""
    if plan.graph.is_stage(source.path):
        # It is not there yet, or it is: the same in the end.
        return (plan.graph.placeless(source.path), source.subset, source.split)
    digest = plan.graph.contents.of(source.path)
    # A file is one split, whatever it is called.
    split = None if Path(source.path).is_file() else source.split
    return (digest or source.path, source.subset, split)


def _evaluation_sources(recipe: Strict) -> Iterator[DataSource]:
    if isinstance(recipe, EvalRecipe):
        yield from recipe.data
        yield from (source for source in recipe.prompts if isinstance(source, DataSource))
    if isinstance(recipe, RewardEvalRecipe):
        for benchmark in recipe.benchmarks:
            yield from benchmark.data


def _step_problems(plan: Plan) -> Iterator[str]:
    """Steps that nothing uses, and numbers that no step makes."""
    recipe = plan.graph.recipe
    used = {step.name for step in steps_for(recipe, [m.step for m in recipe.measures])}
    for step in recipe.steps:
        if step.name not in used:
            yield f"step {step.name}: no measure and no step that is measured uses it: delete it"
    main = recipe.measures[0]
    if main.step in choosing(recipe):
        yield (
            f"measures: {main.name}, the main measure, is of step {main.step}, which chooses: "
            "measure and choose by different steps, on different data"
        )
    for measure in recipe.measures:
        for stage in plan.stages.values():
            if stage.step == measure.step and (lacking := _lacking(measure, stage.recipe)):
                yield f"measure {measure.name}: no {measure.value} of step {stage.step}: {lacking}"


def _same_runs(plan: Plan) -> Iterator[str]:
    """Variants whose runs are those of their baseline, wherever the two meet."""
    runs = plan.first_runs
    for aspect in plan.graph.recipe.aspects:
        for variant in aspect.variants:
            met = [
                runs[cell].stages == runs[base].stages
                for cell, base in itertools.permutations(runs, 2)
                if cell.of(aspect.name) == variant.name != aspect.base.name
                and base.of(aspect.name) == aspect.base.name
                and cell.differs_in(base) == [aspect.name]
            ]
            if met and all(met):
                yield (
                    f"{aspect.name} {variant.name}: changes nothing that is measured: its runs are "
                    f"those of {aspect.base.name}"
                )


def _lacking(measure: MeasureRecipe, recipe: Strict) -> str | None:
    """What an evaluation lacks to make a number of each run; None where nothing."""
    if isinstance(recipe, RewardEvalRecipe):
        if measure.value == "best_of_n" and recipe.best_of_n is None:
            return "give `best_of_n`"
        if measure.value == "accuracy" and not recipe.benchmarks:
            return "give `benchmarks`"
        if len(recipe.models) > 1:
            return "of one model: it evaluates several"
    if isinstance(recipe, EvalRecipe):
        if len(recipe.runs) + (recipe.model is not None) > 1:
            return "of one run: it evaluates several"
        if measure.value in OF_PAIRS:
            return None if recipe.preference else "set `preference`"
        if recipe.sampling is None:
            return "set `sampling`"
        if measure.value in ("reward", "best_of_n") and recipe.reward is None:
            return "set `reward`"
        if measure.value in ("best_of_n", "self_bleu") and recipe.sampling.samples_per_prompt < 2:
            return "set `sampling.samples_per_prompt` to 2 or more"
        if measure.value in COMPARED:
            if recipe.reward is None and recipe.judge is None:
                return "set `judge` or `reward`"
            if not recipe.runs and recipe.reference is None:
                return "set `reference`"
    return None
