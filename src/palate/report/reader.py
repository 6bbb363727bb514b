"""Run folders as typed values. What is missing stays missing; what is damaged is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from palate.errors import RecipeError, RunError
from palate.recipes.yaml import parse_yaml
from palate.report.curves import Metrics, read_metrics
from palate.report.words import plain
from palate.store.examples import NAME as EXAMPLES
from palate.store.examples import WrongPair
from palate.store.files import read_json
from palate.store.names import path_names
from palate.store.records import (
    AlarmRecord,
    Conclusion,
    Data,
    Evaluation,
    Lineage,
    Record,
    SampleRecord,
    Status,
    read_lines,
)
from palate.store.reward_records import KIND, RewardEvaluation
from palate.store.rollouts import RolloutRow, read_rollout, rollout_files

SHOWN_ROLLOUTS = 12
"""Rollouts that are read of a run: the first, the last, and others evenly between."""

FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    "evaluation.json",
    "data.json",
    "lineage.json",
    "status.json",
    "conclusion.json",
)
"""A folder with one of these is a run folder."""

L = TypeVar("L", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        name: its shortest name that is unlike the other runs' of the report.
        verb: tune, sft, eval ...; None when the recipe does not say.
        recipe, recipe_text: as resolved when it ran.
        alarms: lines of alarms.jsonl.
        rollouts: rows of some rollouts, by their numbers. n_rollouts: that the folder holds.
        problems: what could not be read, in words.
    """

    path: Path
    name: str
    verb: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str | None = None
    data: Data | None = None
    metrics: Metrics = field(default_factory=Metrics)
    lineage: Lineage | None = None
    status: Status | None = None
    evaluation: Evaluation | None = None
    rewards: RewardEvaluation | None = None
    samples: tuple[SampleRecord, ...] = ()
    wrong_pairs: tuple[WrongPair, ...] = ()
    alarms: tuple[AlarmRecord, ...] = ()
    rollouts: dict[int, tuple[RolloutRow, ...]] = field(default_factory=dict)
    n_rollouts: int = 0
    conclusion: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether a policy was trained here, in distinction to an evaluation or a collection."""
        return bool(self.metrics.train) or self.verb in ("tune", "sft", "reward", "rl")

    @property
    def is_online(self) -> bool:
        """Whether a policy learnt from its own responses."""
        return self.verb == "rl"

    @property
    def loss_type(self) -> str | None:
        """`type` of the loss, as evaluation.json has it; sft for supervised fine-tuning, the
        algorithm of online learning."""
        if self.verb == "sft":
            return "sft"
        if self.is_online:
            algorithm = self.recipe.get("algorithm")
            return str(algorithm.get("type", "grpo")) if isinstance(algorithm, dict) else "grpo"
        loss = self.recipe.get("loss")
        if not isinstance(loss, dict):
            return {"tune": "dpo", "reward": "bradley_terry"}.get(self.verb or "")
        return str(loss["type"]) if "type" in loss else None

    @property
    def beta(self) -> float | None:
        loss = self.recipe.get("kl" if self.is_online else "loss")
        key = "coefficient" if self.is_online else "beta"
        value = loss.get(key) if isinstance(loss, dict) else None
        return float(value) if isinstance(value, int | float) else None


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Reads run folders, in the order given.

    Raises:
        RunError: none given, a folder given twice, or one that is no run folder.
    """
    folders = [Path(path) for path in paths]
    if not folders:
        raise RunError("no run folder given")
    resolved = [folder.resolve() for folder in folders]
    for i, folder in enumerate(resolved):
        if folder in resolved[:i]:
            raise RunError(f"{folders[i]} is given twice")
    names = plain(path_names(resolved))
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str | None = None) -> Run:
    """Reads one run folder.

    Raises:
        RunError: `folder` is no run folder.
    """
    _check(folder)
    problems: list[str] = []
    text, recipe = _recipe(folder / "recipe.yaml", problems)
    lineage = _record(folder / "lineage.json", Lineage, problems)
    first = (text or "").partition("\n")[0].split()
    verb = first[2] if first[:2] == ["#", "palate"] and len(first) > 2 else None
    conclusion = _record(folder / "conclusion.json", Conclusion, problems)
    evaluation = folder / "evaluation.json"
    rewards = _is_of_rewards(evaluation)
    files = rollout_files(folder)
    return Run(
        path=folder,
        name=name or plain(folder.resolve().name),
        verb=verb or (lineage.verb if lineage else None),
        recipe=recipe,
        recipe_text=text,
        data=_record(folder / "data.json", Data, problems),
        metrics=_metrics(folder / "metrics.jsonl", problems),
        lineage=lineage,
        status=_record(folder / "status.json", Status, problems),
        evaluation=None if rewards else _record(evaluation, Evaluation, problems),
        rewards=_record(evaluation, RewardEvaluation, problems) if rewards else None,
        samples=_lines(folder / "samples.jsonl", SampleRecord, problems),
        wrong_pairs=_lines(folder / EXAMPLES, WrongPair, problems),
        alarms=_lines(folder / "alarms.jsonl", AlarmRecord, problems),
        rollouts=_rollouts(files, problems),
        n_rollouts=len(files),
        conclusion=conclusion.lines if conclusion else (),
        problems=tuple(problems),
    )


def _check(folder: Path) -> None:
    if not folder.exists():
        raise RunError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: give the run folder")
    try:
        if any((folder / name).is_file() for name in FILES):
            return
        inside = sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and any((path / name).is_file() for name in FILES)
        )
    except OSError as error:
        raise RunError(f"cannot read {folder}: {error.strerror or error}") from error
    hint = f"; it holds run folders: {', '.join(inside[:5])}" if inside else ""
    raise RunError(f"{folder} is no run folder: it has none of {', '.join(FILES[:3])}{hint}")


def _recipe(path: Path, problems: list[str]) -> tuple[str | None, dict[str, Any]]:
    if not path.is_file():
        return None, {}
    try:
        text = path.read_bytes().decode("utf-8", "replace")
        value = parse_yaml(text, path.name)
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return None, {}
    except RecipeError as error:
        problems.append(str(error))
        return None, {}
    return plain(text), plain(value) if isinstance(value, dict) else {}


def _record(path: Path, kind: type[L], problems: list[str]) -> L | None:
    if not path.is_file():
        return None
    try:
        return kind.model_validate(plain(read_json(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        problems.append(f"{path.name} is left out: {where}: {first['msg']}")
    except RunError as error:
        problems.append(f"{path.name} is left out: {str(error).removeprefix(str(path))}")
    return None


def _rollouts(files: dict[int, Path], problems: list[str]) -> dict[int, tuple[RolloutRow, ...]]:
    numbers = list(files)
    places = range(min(len(numbers), SHOWN_ROLLOUTS))
    chosen = [numbers[round(i * (len(numbers) - 1) / max(1, len(places) - 1))] for i in places]
    rollouts = {}
    for number in chosen:
        try:
            rollouts[number] = tuple(read_rollout(files[number], with_tokens=False))
        except RunError as error:
            where = f"{files[number].parent.name}/{files[number].name}"
            reason = str(error).removeprefix(str(files[number])).lstrip(",: ")
            problems.append(f"{where} is left out: {reason}")
    return rollouts


def _is_of_rewards(path: Path) -> bool:
    try:
        document = read_json(path) if path.is_file() else None
    except RunError:
        return False  # said when the record is read
    return isinstance(document, dict) and document.get("kind") == KIND


def _metrics(path: Path, problems: list[str]) -> Metrics:
    metrics = _read(path, read_metrics, problems)
    if metrics is None:
        return Metrics()
    _note_lines(path.name, metrics.cut_off, metrics.unreadable, problems)
    return metrics


def _lines(path: Path, kind: type[L], problems: list[str]) -> tuple[L, ...]:
    lines = _read(path, lambda file: read_lines(file, kind, plain), problems)
    if lines is None:
        return ()
    _note_lines(path.name, lines.cut_off, lines.unreadable, problems)
    return lines.records


def _read(path: Path, read: Callable[[Path], T], problems: list[str]) -> T | None:
    try:
        return read(path) if path.is_file() else None
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror or error}")
        return None


def _note_lines(name: str, cut_off: bool, bad: int, problems: list[str]) -> None:
    if cut_off:
        problems.append(f"the last line of {name} is cut off, as a killed run leaves it")
    if bad:
        problems.append(f"{bad} line{'s' * (bad > 1)} of {name} cannot be read and are left out")
