"""Small studies: files that a plan reads, recipes as mappings, stages that are finished already."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from palate.errors import RecipeError
from palate.recipes.document import Document
from palate.recipes.load import check_document
from palate.recipes.study import StudyRecipe
from palate.store.stages import run_stages
from palate.study.commands import as_stage, read_stage
from palate.study.executors import Job
from palate.study.graph import StudyStage
from palate.study.plan import Plan
from palate.study.run import Study

MODEL_FILES = {
    "config.json": "{}",
    "model.safetensors": "weights",
    "tokenizer.json": "tokens",
    "tokenizer_config.json": "template",
}


def write_pairs(path: Path, name: str, rows: int = 4) -> None:
    lines = [
        json.dumps({"prompt": f"{name} {i}", "chosen": f" good {i}", "rejected": " bad"})
        for i in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")


def write_model(folder: Path, **files: str) -> None:
    """Files of a model, as far as a plan looks; others than usual by their stems."""
    folder.mkdir()
    for name, text in MODEL_FILES.items():
        (folder / name).write_text(files.get(name.partition(".")[0], text))


def write_files(folder: Path) -> None:
    """What `recipe` reads, relative to this folder."""
    write_model(folder / "base")
    for name in ("a", "b", "c", "test", "validation"):
        write_pairs(folder / f"{name}.jsonl", name)


def recipe(**changes: Any) -> dict[str, Any]:
    """A study of two losses and two data sets, with top-level keys replaced; None takes one out."""
    value: dict[str, Any] = {
        "output_dir": "out",
        "seeds": [0, 1],
        "steps": [policy_step(), evaluation_step()],
        "aspects": [algorithm(), data()],
        "budget": {"updates": 3},
        "measures": [{"name": "accuracy", "step": "evaluation", "value": "accuracy"}],
    }
    return {key: item for key, item in (value | changes).items() if item is not None}


def policy_step(**changes: Any) -> dict[str, Any]:
    value = {
        "model": {"path": "base", "dtype": "float32"},
        "data": {"train": [{"path": "a.jsonl"}]},
        "loss": {"type": "dpo"},
        "reference": {"kind": "cache"},
    }
    return {"name": "policy", "verb": "tune", "recipe": value | changes}


def evaluation_step(name: str = "evaluation", **changes: Any) -> dict[str, Any]:
    value = {"runs": ["step:policy"], "data": [{"path": "test.jsonl"}]}
    return {"name": name, "verb": "eval", "recipe": value | changes}


def algorithm(*more: dict[str, Any]) -> dict[str, Any]:
    tdpo2 = {"name": "tdpo2", "set": {"policy.loss.type": "tdpo2"}}
    return {"name": "algorithm", "variants": [{"name": "dpo"}, tdpo2, *more]}


def data(*more: dict[str, Any]) -> dict[str, Any]:
    b = {"name": "b", "set": {"policy.data.train": [{"path": "b.jsonl"}]}}
    return {"name": "data", "variants": [{"name": "a"}, b, *more]}


def aspect(name: str, changes: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """An aspect whose second variant, `changed`, sets keys."""
    variant = {"name": "changed", **({"set": dict(changes)} if changes else {}), **more}
    varies = sorted(changes)
    return {
        "name": name,
        "varies": varies or ["policy.token_weights"],
        "variants": [{"name": "plain"}, variant],
    }


def tuning(**changes: Any) -> dict[str, Any]:
    return {
        "keys": {"policy.train.learning_rate": [1e-5, 1e-4, 1e-3]},
        "trials": 2,
        "measure": "validation",
        **changes,
    }


VALIDATION = {
    "name": "validation",
    "step": "validation",
    "value": "accuracy",
    "better": "higher",
}
ACCURACY = {"name": "accuracy", "step": "evaluation", "value": "accuracy", "better": "higher"}


def validating(**changes: Any) -> dict[str, Any]:
    """A study with a step that chooses, on data of its own."""
    steps = [
        policy_step(),
        evaluation_step(),
        evaluation_step("validation", data=[{"path": "validation.jsonl"}]),
    ]
    return recipe(steps=steps, measures=[ACCURACY, VALIDATION], **changes)


def study_of(value: Mapping[str, Any]) -> Study:
    document = Document(copy.deepcopy(dict(value)), name="study.yaml")
    return Study(recipe=check_document(StudyRecipe, document), document=document)


def plan_of(value: Mapping[str, Any]) -> Plan:
    return study_of(value).plan()


def refusal(value: Mapping[str, Any]) -> str:
    """Why a study is refused: one line for all that is wrong with it."""
    with pytest.raises(RecipeError) as caught:
        plan_of(value)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def keys_by_run(plan: Plan) -> dict[tuple[str, int, str], str]:
    """(cell, seed, step) -> key."""
    return {
        (run.cell.name, run.seed, step): key
        for run in plan.runs
        for step, key in run.stages.items()
    }


def write_pairs_measured(folder: Path, margins: Sequence[float]) -> None:
    """`pairs.jsonl` of an evaluation of one policy."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "policy": "p",
            "checkpoint": 3,
            "id": f"test:{i}",
            "prompt_id": f"test:{i}",
            "source": "test",
            "margin": margin,
            "log_ratio_margin": 10 * margin,
        }
        for i, margin in enumerate(margins)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def plant(study: Study, stage: StudyStage, margins: Sequence[float] = (1.0,)) -> None:
    """Finishes a stage without its work."""

    def work(folder: Path, _: Any) -> dict[str, Any]:
        if stage.verb == "eval":
            write_pairs_measured(folder, margins)
        return {}

    planted = as_stage(stage)
    object.__setattr__(planted, "run", work)
    run_stages([planted], study.root)


@dataclass
class FakeExecutor:
    """Finishes stages at once, in this process.

    Attributes:
        fails: steps of the stages that fail. stops: the number of stages after which it is
            interrupted. begun: keys, in order. room: how many at once.
    """

    study: Study
    fails: Iterable[str] = ()
    stops: int | None = None
    room: int = 1
    begun: list[str] = field(default_factory=list)
    closed: bool = False
    _running: list[str] = field(default_factory=list)

    def has_room(self, job: Job) -> bool:
        return len(self._running) < self.room

    def begin(self, job: Job) -> None:
        if self.stops is not None and len(self.begun) >= self.stops:
            raise KeyboardInterrupt
        stage = read_stage(self.study.root, job.key)
        for need in stage.needs:
            assert self.study.finished(read_stage(self.study.root, need))
        self.begun.append(job.key)
        self._running.append(job.key)

    def wait(self) -> dict[str, str | None]:
        ended: dict[str, str | None] = {}
        for key in self._running:
            stage = read_stage(self.study.root, key)
            if stage.step in self.fails:
                ended[key] = "no luck"
            else:
                # Told by the key, so that outcomes are the same whenever it is run.
                plant(self.study, stage, [int(digit, 16) - 7.5 for digit in key[-12:]])
                ended[key] = None
        self._running.clear()
        return ended

    def close(self) -> None:
        self.closed = True


def tiny_study(folder: Path, **changes: Any) -> Path:
    """The file of a study of two losses that really runs, on a tiny model, in seconds."""
    from tiny_text import save_tiny

    save_tiny(folder / "base")
    for name in ("a", "test"):
        write_pairs(folder / f"{name}.jsonl", name, rows=8)
    policy = policy_step(
        model={"path": str(folder / "base"), "dtype": "float32", "lora": {"r": 2}},
        data={"train": [{"path": str(folder / "a.jsonl")}]},
        train={"batch_size_pairs": 4, "learning_rate": 0.02},
    )
    evaluation = evaluation_step(data=[{"path": str(folder / "test.jsonl")}])
    value = recipe(
        output_dir=str(folder / "out"),
        seeds=[0],
        steps=[policy, evaluation],
        aspects=[algorithm()],
        budget={"updates": 2},
        **changes,
    )
    file = folder / "study.yaml"
    file.write_text(json.dumps(value))
    return file
