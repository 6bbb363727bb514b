"""What an optimizer step takes: predicted before a run, and measured in it.

`predict` starts the run in a process of its own and makes a few trial steps there
(`palate.train.trial`), so that the peak of memory is theirs alone; what it says is kept beside the
run folder, where the run finds it and tells it beside what was measured (`StepMeter`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.errors import PalateError, RunError, in_one_line
from palate.memory import peak_bytes
from palate.recipes.load import VERBS, resolve_yaml
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import SftRecipe, TuneRecipe
from palate.store.digests import sha256_text
from palate.store.files import write_json
from palate.store.records import Foresight, StepCost, read_record
from palate.train.callbacks import Callback, Split

if TYPE_CHECKING:
    from palate.train.loop import Loop

TrainingRecipe = TuneRecipe | SftRecipe | RewardRecipe
FOLDER = "foresight"


class NotPredicted(PalateError):
    """Why there is no prediction, in one clause."""


def predict(recipe: TrainingRecipe) -> Foresight:
    """What a step of a run takes in one process on this machine; kept for the run.

    Takes as long as the start of the run and two or three of its steps.

    Raises:
        NotPredicted: the model or data are not on this machine, or the trial failed.
        RunError: the prediction cannot be written.
    """
    check_local(recipe)
    document = in_own_process("palate.train.trial", resolve_yaml(recipe), VERBS[type(recipe)])
    foresight = Foresight.of(document)
    write_json(kept_file(recipe), foresight.document())
    return foresight


def in_own_process(module: str, text: str, *arguments: str) -> dict[str, Any]:
    """What a module's `main` answers in a process of its own, whose memory is the trial's alone.

    Args:
        text: of the file that it is given, after `arguments` and before the file of its answer.

    Raises:
        NotPredicted: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="palate-foresight-") as folder:
        file, answer = Path(folder) / "recipe.yaml", Path(folder) / "answer.json"
        file.write_text(text, encoding="utf-8")
        code = f"from {module} import main; main()"
        # -P: modules do not come from the current directory, as for the command itself.
        command = [sys.executable, "-P", "-c", code, *arguments, str(file), str(answer)]
        result = subprocess.run(command, capture_output=True, text=True)
        if not answer.is_file():
            raise NotPredicted(_ended(result))
        document: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in document:
        raise NotPredicted(f"the trial steps failed: {document['error']}")
    return document


def check_local(recipe: TrainingRecipe) -> None:
    """Raises NotPredicted where a model or data would first have to be fetched."""
    paths = [recipe.model.path]
    paths += [source.path for source in (*recipe.data.train, *recipe.data.eval)]
    if isinstance(recipe, TuneRecipe) and recipe.reference and recipe.reference.path:
        paths.append(recipe.reference.path)
    for path in paths:
        if not Path(path).expanduser().exists():
            raise NotPredicted(f"{path} is not on this machine")


def _ended(result: subprocess.CompletedProcess[str]) -> str:
    """Why a process left no answer."""
    if result.returncode < 0:
        return f"the trial steps were ended by signal {-result.returncode}: is there memory enough?"
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return f"the trial steps failed: {in_one_line(lines[-1], 200)}"


def kept_file(recipe: TrainingRecipe) -> Path:
    """Where the prediction of a recipe is, beside its run folder."""
    document = recipe.model_dump(mode="json", exclude={"resume"})
    key = sha256_text(json.dumps(document, sort_keys=True))[:24]
    return recipe.output_dir.parent / FOLDER / f"{key}.json"


def kept(recipe: TrainingRecipe) -> Foresight | None:
    """What was predicted of this very recipe; None where nothing was, or it cannot be read."""
    file = kept_file(recipe)
    try:
        return read_record(file, Foresight) if file.is_file() else None
    except RunError:
        return None


class StepMeter(Callback):
    """What the steps of this process took, for status.json, beside what was predicted.

    The first step is not counted where there are more: it waits for memory and kernels. Nor is what
    comes after a step: log, evaluation, checkpoint.

    Args:
        predicted: of the run's recipe.
    """

    def __init__(self, predicted: Foresight | None) -> None:
        self.predicted = predicted
        self._seconds: list[float] = []
        self._mark = 0.0

    def on_start(self, loop: Loop) -> None:
        self._mark = time.monotonic()
        if self.predicted is not None:
            loop.job.folder.costs["foresight"] = self.predicted

    def on_step(self, loop: Loop) -> None:
        now = time.monotonic()
        self._seconds.append(now - self._mark)
        self._mark = now
        counted = self._seconds[1:] or self._seconds
        loop.job.folder.costs["step_cost"] = StepCost(
            seconds=sum(counted) / len(counted), memory_bytes=peak_bytes()
        )

    def on_log(self, loop: Loop, split: Split, values: Mapping[str, float]) -> None:
        self._mark = time.monotonic()

    def on_save(self, loop: Loop) -> None:
        self._mark = time.monotonic()
