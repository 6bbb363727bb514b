"""The recipe of `palate eval tasks`: public tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from palate.recipes.schema import Count, ModelRecipe, RunRecipe

SIX_CATEGORIES = "six_categories"


class TaskEvalRecipe(RunRecipe):
    """Public tasks of lm-evaluation-harness (extra `eval`) on one policy."""

    run: Path | None = None
    """Run folder of `tune` or `sft`; its final model is evaluated."""
    model: ModelRecipe | None = None
    """A model without a run folder, instead of `run`."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the harness; six_categories: those behind the six categories of "Unpacking DPO and
    PPO", averaged as there (docs/studies.md says where they differ)."""
    include: Path | None = None
    """Folder of task files of your own. A task file may name Python code beside it, which the
    harness runs: give none that you have not read."""
    fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples in the prompt; default: the task's own number."""
    limit: Count | None = None
    """Items of each task, its first; default: all. For trials: a mean over few says little."""
    chat: bool = False
    """Ask through the model's chat template."""
    batch_size: Count = 8
    run_generated_code: bool = False
    """Run programs that the model writes, which coding tasks need. Nothing holds them back: do it
    only where they can do no harm."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.run is None) is (self.model is None):
            yield "run", "give either `run` or `model`"
        for name in sorted({name for name in self.tasks if self.tasks.count(name) > 1}):
            yield "tasks", f"{name} is there twice"
