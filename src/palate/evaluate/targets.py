"""Which policies an evaluation is about: the final model and the checkpoints of run folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.errors import RunError
from palate.models.adapters import holds_adapters
from palate.recipes import load_recipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.losses import Loss, TokenWeights, members
from palate.recipes.rl import RlRecipe
from palate.recipes.rl_algorithms import OnlineDpo
from palate.recipes.schema import ModelRecipe, SftRecipe, TuneRecipe
from palate.store.files import read_json
from palate.store.names import path_names

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One policy to evaluate.

    Attributes:
        name: unique in the evaluation. label: of its run, shared by the run's checkpoints.
        run: run folder, None for a model without one.
        checkpoint: optimizer steps it has behind it; None where not known.
        folder: its weights or adapter; None: the recipe's model as it is.
        model: recipe of the base model. loss: None for supervised fine-tuning, policy gradients and
            plain models.
        token_weights: those of the loss. algorithm: of online learning, by its type.
        reference: path of the reference; None where there is none.
    """

    name: str
    label: str
    run: Path | None
    checkpoint: int | None
    folder: Path | None
    model: ModelRecipe
    loss: Loss | None
    token_weights: TokenWeights | None = None
    algorithm: str | None = None
    reference: str | None

    @property
    def has_adapters(self) -> bool:
        return self.folder is not None and holds_adapters(self.folder)

    @property
    def beta(self) -> float | None:
        """Of the loss, where it is one loss."""
        singles = [] if self.loss is None else members(self.loss)
        return float(singles[0].beta) if len(singles) == 1 and hasattr(singles[0], "beta") else None

    def entry(self) -> dict[str, Any]:
        """How evaluation.json names it."""
        return {
            "name": self.name,
            "label": self.label,
            "checkpoint": self.checkpoint,
            "run": None if self.run is None else str(self.run),
            # Of two runs with DPO's loss, one on its own responses, the report makes two.
            "loss": self.algorithm or (None if self.loss is None else self.loss.type),
            "beta": self.beta,
        }


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished (or stopped) run of `tune`, `sft` or `rl`."""

    path: Path
    recipe: TuneRecipe | SftRecipe | RlRecipe
    label: str


def trained_runs(paths: Sequence[Path]) -> list[TrainedRun]:
    """Reads the recipes of run folders; labels are the shortest ends of their paths that differ.

    Raises:
        RunError: not a run folder of tune, sft or rl, or one that is given twice.
    """
    labels = path_names(paths)
    if len(set(labels)) < len(labels):
        raise RunError(f"runs: a folder is given twice: {', '.join(map(str, paths))}")
    return [
        TrainedRun(path=path, recipe=_recipe(path), label=label)
        for path, label in zip(paths, labels, strict=True)
    ]


def _recipe(run: Path) -> TuneRecipe | SftRecipe | RlRecipe:
    file = run / "recipe.yaml"
    if not file.exists():
        raise RunError(f"{run}: not a run folder (no recipe.yaml)")
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    if first.startswith("# palate tune"):
        return load_recipe(TuneRecipe, file)
    if first.startswith("# palate sft"):
        return load_recipe(SftRecipe, file)
    if first.startswith("# palate rl"):
        return load_recipe(RlRecipe, file)
    raise RunError(f"{run}: not a run of tune, sft or rl")


def find_targets(recipe: EvalRecipe, runs: Sequence[TrainedRun]) -> list[Target]:
    """The policies of a recipe, each run's in order of training.

    Raises:
        RunError: a run without a model.
    """
    targets: list[Target] = []
    for run in runs:
        trained = run.recipe
        tuned = trained if isinstance(trained, TuneRecipe) else None
        algorithm = trained.algorithm if isinstance(trained, RlRecipe) else None
        loss = None if tuned is None else tuned.loss
        if isinstance(algorithm, OnlineDpo):
            loss = algorithm.loss
        trained_with = None if isinstance(trained, SftRecipe) else trained.reference
        base = (trained_with and trained_with.path) or run.recipe.model.path
        for step, folder in _models(run.path, all_=recipe.checkpoints == "all"):
            targets.append(
                Target(
                    name=run.label if step is None else f"{run.label}@{step}",
                    label=run.label,
                    run=run.path,
                    checkpoint=step,
                    folder=folder,
                    model=run.recipe.model,
                    loss=loss,
                    token_weights=None if tuned is None else tuned.token_weights,
                    algorithm=None if algorithm is None else algorithm.type,
                    reference=recipe.reference or base,
                )
            )
    if recipe.model is not None:
        label = recipe.model.path.rstrip("/").rsplit("/", 1)[-1]
        targets.append(
            Target(
                name=label,
                label=label,
                run=None,
                checkpoint=None,
                folder=None,
                model=recipe.model,
                loss=None,
                token_weights=None,
                reference=recipe.reference,
            )
        )
    return targets


def _models(run: Path, *, all_: bool) -> list[tuple[int | None, Path]]:
    steps = {
        int(match[1]): weights_folder(path)
        for path in sorted((run / "checkpoints").glob("step-*"))
        if (match := _STEP.fullmatch(path.name))
    }
    final = run / "model"
    status = read_json(run / "status.json") if (run / "status.json").exists() else {}
    last = status.get("step")
    if final.is_dir():
        earlier = {step: path for step, path in steps.items() if step != last} if all_ else {}
        return [*sorted(earlier.items()), (last, final)]
    if not steps:
        raise RunError(f"{run}: has no model yet: the run has not finished or has failed")
    # An interrupted run has checkpoints only.
    return sorted(steps.items()) if all_ else [max(steps.items())]


def weights_folder(checkpoint: Path) -> Path:
    """The folder of a checkpoint that holds its weights."""
    inner = checkpoint / "model"
    return inner if inner.is_dir() else checkpoint
