"""A study: its recipe, its folder, and what of it is finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from palate.recipes.document import Document
from palate.recipes.load import check_document, load_document
from palate.recipes.study import StudyRecipe
from palate.store.stages import StageRecord, finished_record
from palate.study.commands import as_stage
from palate.study.confounds import check_study
from palate.study.contents import Contents
from palate.study.costs import Costs, Unknown
from palate.study.graph import Graph, NotYet, StudyStage
from palate.study.plan import Plan, make_plan


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study's recipe, and as what it was written.

    Attributes:
        contents: digests of what is read; each plan asks for them anew.
    """

    recipe: StudyRecipe
    document: Document
    contents: Contents = field(default_factory=Contents)

    @property
    def root(self) -> Path:
        return self.recipe.output_dir

    def record(self, stage: StudyStage) -> StageRecord | None:
        """The record of a stage that is finished."""
        return finished_record(self.root, as_stage(stage))

    def finished(self, stage: StudyStage) -> bool:
        return self.record(stage) is not None

    def plan(self) -> Plan:
        """What is known to be done.

        Raises:
            RecipeError: a step's recipe is wrong, or a comparison would be confounded.
        """
        graph = Graph(self.recipe, self.document, self._step_seconds, self.contents)
        plan = make_plan(graph, self.finished)
        check_study(plan)
        return plan

    def seconds(self, plan: Plan) -> dict[str, float]:
        """Key -> seconds of work, of the stages that are finished."""
        return {k: r.seconds for k, stage in plan.stages.items() if (r := self.record(stage))}

    def _step_seconds(self, stage: StudyStage) -> float:
        costs = Costs(self.root)
        try:
            return costs.step_seconds(stage)
        except Unknown as reason:
            raise NotYet(f"the time of a step is not known: {reason}") from None


def load_study(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Study:
    """Reads and checks a study.

    Raises:
        RecipeError: one line for every key that is wrong.
    """
    document = load_document(StudyRecipe, path, overrides)
    return Study(recipe=check_document(StudyRecipe, document), document=document)
