"""What stages take on this machine, before they run: from a short trial of each kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.errors import PalateError, RunError
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.losses import REFERENCE_FREE, Loss, Strict
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import ModelRecipe, SftRecipe, TuneRecipe
from palate.store.digests import sha256_json
from palate.store.files import read_json, write_json
from palate.store.records import Foresight
from palate.study.graph import REFERENCE_CACHE, StudyStage
from palate.study.plan import Plan
from palate.study.yardsticks import models_of

COSTS = "costs.json"
ENDING_SECONDS = 2.0
"""Of a training stage after its last step: model, checkpoint and report of a small model."""
STARTING_SECONDS = 0.5
"""Of any stage: its process, records and report."""
_FREE = ("seed", "output_dir", "resume", "results_dir", "cache_dir")
"""Keys that no time depends on."""
_FREE_OF_TRAINING = (
    *("learning_rate", "weight_decay", "scheduler", "warmup_steps", "warmup_fraction"),
    *("max_grad_norm", "max_steps", "epochs", "report_to", "keep_checkpoints"),
)

Training = TuneRecipe | SftRecipe | RewardRecipe


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        memory_bytes: most that its process holds.
        shared: of `seconds` what only the first of several stages spends: the reference's samples.
    """

    seconds: float
    memory_bytes: int
    shared: float = 0.0


class Costs:
    """Costs of stages, kept in the study's folder.

    Args:
        probe: make a trial of what is not known; otherwise it has no cost.
        says: told of each trial before it begins.
    """

    def __init__(
        self, root: Path, *, probe: bool = True, says: Callable[[str], None] = lambda _: None
    ) -> None:
        self.root = root
        self.probe = probe
        self.says = says
        self.notes: dict[str, str] = {}
        """Step -> why its costs are not known."""
        file = root / COSTS
        self._known: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, str] = {}
        with suppress(RunError):
            self._known = read_json(file) if file.exists() else {}

    def of(self, stage: StudyStage, plan: Plan) -> Cost | None:
        """What a stage takes; None where it cannot be told, and `notes` says why."""
        recipe = stage.recipe
        try:
            if isinstance(recipe, TuneRecipe | SftRecipe | RewardRecipe):
                foresight = self._foresight(stage, recipe)
                if stage.verb == REFERENCE_CACHE:
                    return _of_cache(foresight)
                return _of_training(recipe, foresight)
            if isinstance(recipe, EvalRecipe):
                return self._of_evaluation(stage, recipe, plan)
        except Unknown as reason:
            self.notes[stage.step] = str(reason)
            return None
        self.notes[stage.step] = f"no trial is made of `palate {stage.verb}`"
        return None

    def step_seconds(self, stage: StudyStage) -> float:
        """Seconds of an optimizer step of a stage that trains.

        Raises:
            Unknown: it cannot be told yet.
        """
        assert isinstance(stage.recipe, TuneRecipe | SftRecipe | RewardRecipe)
        return self._foresight(stage, stage.recipe).seconds

    def _foresight(self, stage: StudyStage, recipe: Training) -> Foresight:
        from palate.train.foresight import predict

        def trial() -> dict[str, Any]:
            self._check_there(recipe.data.train, stage)
            self.says(f"trial of {stage.step}")
            placed = recipe.model_copy(update={"output_dir": self.root / "trial"})
            return predict(placed).document() | {"epochs": recipe.train.epochs}

        document = self._kept(shape_of(recipe), trial)
        foresight = Foresight.of(document)
        total = recipe.train.max_steps
        if total is None and foresight.total_steps is not None:
            # The trial's number of epochs may be another's.
            per_epoch = foresight.total_steps / max(document.get("epochs", 1.0), 1e-9)
            total = max(1, round(per_epoch * recipe.train.epochs))
        return foresight.model_copy(update={"total_steps": total})

    def _of_evaluation(self, stage: StudyStage, recipe: EvalRecipe, plan: Plan) -> Cost:
        policies = [plan.stages[need] for need in stage.needs if need in plan.stages]
        trained = [p.recipe for p in policies if isinstance(p.recipe, TuneRecipe | SftRecipe)]
        model = trained[0].model if trained else recipe.model
        if model is None:
            raise Unknown("it evaluates no policy of a step")
        loss = trained[0].loss if trained and isinstance(trained[0], TuneRecipe) else None
        there = {key: self._there(getattr(recipe, key)) for key in ("reward", "judge")}
        absent = [key for key, scorer in there.items() if scorer is None and getattr(recipe, key)]
        placed = recipe.model_copy(update={"runs": (), "model": model, **there})
        of_loss = _loss_shape(None if loss is None else loss.model_dump(mode="json"))
        shape = sha256_json([_shown(placed, _FREE), model.model_dump(mode="json"), of_loss])

        def trial() -> dict[str, Any]:
            self._check_there(recipe.data, stage)
            self.says(f"trial of {stage.step}")
            return _in_process(placed, model, loss)

        measured = self._kept(shape, trial)
        for key in absent:
            self.notes[stage.step] = f"its {key} is of a step that is not finished"
        checkpoints = 1
        if recipe.checkpoints == "all" and trained:
            checkpoints = sum(self._checkpoints(policy) for policy in policies)
        return Cost(
            seconds=STARTING_SECONDS + measured["fixed"] + checkpoints * measured["seconds"],
            memory_bytes=int(measured["memory_bytes"]),
            shared=measured["of_reference"],
        )

    def _there(self, scorer: Any) -> Any:
        """A scorer whose models are there; None of one with a model of a step to come."""
        models = [] if scorer is None else models_of(scorer)
        to_come = any(p.startswith(f"{self.root}/") and not Path(p).exists() for p in models)
        return None if to_come else scorer

    def _checkpoints(self, policy: StudyStage) -> int:
        """How many a run leaves behind."""
        if not isinstance(policy.recipe, TuneRecipe | SftRecipe):
            return 0
        train = policy.recipe.train
        steps = self._foresight(policy, policy.recipe).total_steps or 1
        saved = math.ceil(steps / train.save_every_steps) if train.save_every_steps else 1
        return min(saved, train.keep_checkpoints or saved)

    def _check_there(self, sources: Any, stage: StudyStage) -> None:
        for source in sources:
            if source.path.startswith(f"{self.root}/") and not Path(source.path).exists():
                raise Unknown("its data are of a step that is not finished")

    def _kept(self, shape: str, trial: Callable[[], dict[str, Any]]) -> Mapping[str, Any]:
        if shape in self._failed:
            raise Unknown(self._failed[shape])
        if shape not in self._known:
            if not self.probe:
                raise Unknown("no trial was made")
            try:
                self._known[shape] = trial()
            except PalateError as error:
                # A trial of the next stage of this shape would fail as well.
                self._failed[shape] = str(error)
                raise Unknown(str(error)) from None
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / COSTS, self._known)
        return self._known[shape]


class Unknown(Exception):
    """Why a cost is not known."""


def shape_of(recipe: Training) -> str:
    """Of runs that take the same time a step."""
    shown = _shown(recipe, _FREE)
    shown["train"] = {
        key: value for key, value in shown["train"].items() if key not in _FREE_OF_TRAINING
    }
    shown["loss"] = _loss_shape(shown.get("loss"))
    return sha256_json(shown)


def _loss_shape(loss: Any) -> Any:
    """Which of a loss's numbers are there, and not what they are."""
    if not isinstance(loss, dict):
        return loss
    return {key: key == "type" and value for key, value in loss.items()}


def _shown(recipe: Strict, without: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in recipe.model_dump(mode="json").items() if k not in without}


def _of_training(recipe: Training, foresight: Foresight) -> Cost:
    steps = foresight.total_steps or 1
    every = recipe.train.eval_every_steps
    evaluations = 1 + (steps // every if every else 0)
    forward = _forward_seconds(recipe, foresight) * (foresight.eval_items or 0) * evaluations
    if isinstance(recipe, RewardRecipe):
        counted = min(recipe.normalise_on_items, foresight.train_items or 0)
        forward += _forward_seconds(recipe, foresight) * counted
    return Cost(
        seconds=STARTING_SECONDS
        + foresight.start_seconds
        + steps * foresight.seconds
        + forward
        + ENDING_SECONDS,
        memory_bytes=foresight.memory_bytes,
    )


def _of_cache(foresight: Foresight) -> Cost:
    variable = foresight.seconds - foresight.fixed_seconds
    # Forward, and backward of twice as much: the cache takes the forward pass alone.
    forward = variable / foresight.items / 3 * (foresight.train_items or 0)
    return Cost(
        seconds=STARTING_SECONDS + foresight.start_seconds + forward,
        memory_bytes=foresight.memory_bytes,
    )


def _forward_seconds(recipe: Training, foresight: Foresight) -> float:
    """Of one item through what an evaluation runs."""
    variable = (foresight.seconds - foresight.fixed_seconds) / foresight.items
    cached = (
        not isinstance(recipe, TuneRecipe)
        or recipe.loss.type in REFERENCE_FREE
        or (recipe.reference is not None and recipe.reference.kind == "cache")
    )
    # Policy forward and backward is three passes, a live reference a fourth.
    return variable * (1 / 3 if cached else 2 / 4)


def _in_process(recipe: EvalRecipe, model: ModelRecipe, loss: Loss | None) -> dict[str, Any]:
    """What `probe.measure` answers in a process of its own."""
    from palate.train.foresight import in_own_process

    parts = {"eval": recipe, "model": model, "loss": loss}
    given = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
    return in_own_process("palate.study.probe", json.dumps(given))
