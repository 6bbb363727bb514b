"""The stages of a study: each once, whatever runs share it, under a key of all it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.errors import RecipeError
from palate.recipes.document import Document
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.load import RECIPES, check_document
from palate.recipes.losses import Strict
from palate.recipes.schema import DataRecipe, TuneRecipe
from palate.recipes.study import STEP_PREFIX, TRAINING, StudyRecipe, StudyStep
from palate.store.digests import sha256_json
from palate.store.versions import __version__
from palate.study.cells import NO_SETTINGS, Cell, Settings
from palate.study.contents import WRITTEN, Contents, paths_read
from palate.study.documents import linked_steps, step_documents, with_links

if TYPE_CHECKING:
    from palate.train.objectives.base import Objective

VERSION = 1
"""Of stages: raised whenever the same inputs would give another result."""
REFERENCE_CACHE = "reference cache"
RESULTS = "results"
"""Folder of what evaluations share."""


@dataclass(frozen=True, kw_only=True)
class StudyStage:
    """One command that a study runs.

    Attributes:
        key: of its record and folder, `<step>-<digest>`.
        step: of the study it is for; a reference cache is for the step that reads it.
        verb: the command, or `reference cache`.
        recipe: of the command, links resolved, its output_dir the stage's folder.
        needs: keys of the stages whose folders it reads.
        inputs: everything its result depends on, as JSON.
    """

    key: str
    step: str
    verb: str
    recipe: Strict
    needs: tuple[str, ...]
    inputs: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A cell with a seed: what it needs of the graph.

    Attributes:
        purpose: compared; or `trial`, to choose settings for its cell; or `round`, of halving.
        stages: step -> key.
    """

    cell: Cell
    seed: int
    settings: Settings
    purpose: str
    stages: Mapping[str, str]


class NotYet(Exception):
    """Why a run's stages cannot be told before others are finished."""


@dataclass
class Graph:
    """Stages by key.

    Attributes:
        step_seconds: what an optimizer step of a stage takes, for budgets in seconds; raises NotYet
            where it cannot be told yet.
    """

    recipe: StudyRecipe
    document: Document
    step_seconds: Callable[[StudyStage], float]
    contents: Contents
    stages: dict[str, StudyStage] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.recipe.output_dir

    def add(
        self,
        cell: Cell,
        seed: int,
        *,
        steps: Sequence[StudyStep],
        settings: Settings = NO_SETTINGS,
        purpose: str = "compared",
    ) -> Run:
        """Adds the stages of a run, those that are there already left as they are.

        Args:
            steps: of the study, in their order, with all that they link to.

        Raises:
            RecipeError: a step's recipe is wrong.
            NotYet: a stage hangs on others that are not finished; what can be told is added.
        """
        documents = step_documents(self.recipe, cell, settings, self.document)
        keys: dict[str, str] = {}
        for step in steps:
            stage = self._stage(step, documents[step.name], seed, keys)
            self.stages.setdefault(stage.key, stage)
            keys[step.name] = stage.key
        return Run(cell=cell, seed=seed, settings=settings, purpose=purpose, stages=keys)

    def _stage(
        self, step: StudyStep, document: Document, seed: int, keys: Mapping[str, str]
    ) -> StudyStage:
        folders = {name: str(self.root / key) for name, key in keys.items()}
        needs = [keys[name] for name in sorted(linked_steps(document.value)) if name in keys]
        try:
            document.value = with_links(document.value, folders)
        except RecipeError as error:
            raise RecipeError(f"{document.name}: {error}") from None
        if self._seeded(step):
            document.set(("seed",), seed, "seeds")
        # The folder is named by the key, which is not known yet.
        document.set(("output_dir",), str(self.root / step.name), "the study")
        recipe = check_document(RECIPES[step.verb], document)
        budget = self.recipe.budget
        if budget is not None and budget.seconds is not None and step.verb in TRAINING:
            stage = self._made(step.name, step.verb, recipe, needs, self._inputs(recipe))
            updates = max(1, int(budget.seconds / self.step_seconds(stage)))
            document.set(("train", "max_steps"), updates, "budget.seconds")
            recipe = check_document(RECIPES[step.verb], document)
        if isinstance(recipe, TuneRecipe) and recipe.reference and recipe.reference.kind == "cache":
            cache = self._reference_cache(step, recipe, needs)
            self.stages.setdefault(cache.key, cache)
            needs.append(cache.key)
        if isinstance(recipe, EvalRecipe) and recipe.results_dir is None:
            # Of the reference, and of a policy that several evaluations look at, once.
            recipe = recipe.model_copy(update={"results_dir": self.root / RESULTS})
        return self._made(step.name, step.verb, recipe, needs, self._inputs(recipe))

    @staticmethod
    def _seeded(step: StudyStep) -> bool:
        return step.seeds == "vary" or (step.seeds is None and step.verb in TRAINING)

    def _inputs(self, recipe: Strict) -> dict[str, Any]:
        """A recipe and the content of what it reads, without the place of the study."""
        shown = recipe.model_dump(mode="json", exclude={"output_dir", "resume"})
        read = {path for path in paths_read(recipe) if not self.is_stage(path)}
        contents = {path: self.contents.of(path) for path in sorted(read)}
        return {"recipe": self.placeless(shown), "contents": contents}

    def _reference_cache(
        self, step: StudyStep, recipe: TuneRecipe, needs: Sequence[str]
    ) -> StudyStage:
        """The cache that a run reads, keyed by what the cache depends on alone."""
        inputs = self._inputs(recipe)
        shown = inputs["recipe"]
        inputs["recipe"] = {key: shown[key] for key in ("model", "data", "reference")}
        inputs["layout"] = recipe.train.layout
        objective = _objective(recipe)
        inputs["kl"] = objective.ask().needs_kl
        inputs["items"] = objective.kind
        # Of unpaired items each prompt is also asked about with a response drawn for another.
        draws = _draws(recipe.data) or objective.kind == "unpaired"
        inputs["seed"] = recipe.seed if draws else None
        return self._made(f"{step.name}-reference", REFERENCE_CACHE, recipe, needs, inputs)

    def _made(
        self,
        name: str,
        verb: str,
        recipe: Strict,
        needs: Sequence[str],
        inputs: dict[str, Any],
    ) -> StudyStage:
        depends = {
            **inputs,
            "verb": verb,
            "needs": sorted(needs),
            "version": VERSION,
            "palate": __version__,
        }
        key = f"{name}-{sha256_json(depends)[:12]}"
        placed = recipe.model_copy(update={"output_dir": self.root / key, "resume": False})
        return StudyStage(
            key=key, step=name, verb=verb, recipe=placed, needs=tuple(needs), inputs=depends
        )

    def is_stage(self, path: str) -> bool:
        """Whether a path is the folder of a stage, or in it."""
        return self._in_stage(path) is not None

    def _in_stage(self, path: str) -> str | None:
        """`KEY/FILE` of a path in the folder of a stage. The study's folder may hold other things,
        data among them, which are told by their content."""
        try:
            inner = Path(path).relative_to(self.root)
        except ValueError:
            return None
        return inner.as_posix() if inner.parts and inner.parts[0] in self.stages else None

    def placeless(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: self.placeless(inner) for key, inner in value.items() if key not in WRITTEN
            }
        if isinstance(value, list):
            return [self.placeless(inner) for inner in value]
        if isinstance(value, str) and (inner := self._in_stage(value)) is not None:
            return STEP_PREFIX + inner
        return value


def steps_for(recipe: StudyRecipe, names: Sequence[str]) -> list[StudyStep]:
    """Steps of these names and all that they link to, under any variant, in the study's order."""
    links: dict[str, set[str]] = {step.name: linked_steps(step.recipe) for step in recipe.steps}
    tried = list(recipe.tuning.keys.items()) if recipe.tuning else []
    for aspect in recipe.aspects:
        for variant in aspect.variants:
            for key, value in variant.changes.items():
                links.setdefault(key.partition(".")[0], set()).update(linked_steps(value))
            tried += (variant.tune or {}).items()
    for key, values in tried:
        links.setdefault(key.partition(".")[0], set()).update(linked_steps(values))
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += links.get(name, ())
    return [step for step in recipe.steps if step.name in wanted]


def compared_steps(recipe: StudyRecipe) -> list[StudyStep]:
    """The steps of a compared run: all but those that only help to choose settings."""
    return steps_for(recipe, [m.step for m in recipe.measures if m.step not in choosing(recipe)])


def choosing(recipe: StudyRecipe) -> set[str]:
    """Evaluation steps that choose settings or survivors, and that no comparison may use."""
    parts = (recipe.tuning, recipe.design)
    measures = {measure.name: measure.step for measure in recipe.measures}
    return {measures[name] for part in parts if (name := getattr(part, "measure", None))}


def _objective(recipe: TuneRecipe) -> Objective:
    from palate.train.objectives import objective_of

    return objective_of(
        recipe.loss, token_weights=recipe.token_weights, extra=recipe.train.extra_metrics
    )


def _draws(data: DataRecipe) -> bool:
    """Whether which items there are depends on the seed."""
    return (
        data.mixture is not None
        or data.pairing is not None
        or data.image_contrast is not None
        or any(source.limit is not None for source in (*data.train, *data.eval))
    )


def ordered(stages: Mapping[str, StudyStage]) -> Iterator[StudyStage]:
    """Stages, each after those that it needs."""
    from graphlib import TopologicalSorter

    order = TopologicalSorter({key: stage.needs for key, stage in stages.items()})
    yield from (stages[key] for key in order.static_order())
