"""`palate demo`: controlled sentiment, from nothing to a report.

Openings of reviews are continued by the base model, a lexicon rates the continuations, the better
and the worse one make a pair, DPO, TDPO1 and TDPO2 learn from the same pairs, and the reward is
drawn against the distance from the base model on openings that none of them has seen. Every part is
a recipe or a file in the run folder, and none is done twice.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from palate.demo.conclusion import Curve, conclude
from palate.demo.feedback import write_feedback
from palate.demo.model import DemoModel, packaged_model
from palate.demo.presets import FULL, METHODS, QUICK, Preset, eval_recipe, tune_recipe
from palate.errors import RunError
from palate.evaluate.progress import duration
from palate.memory import kept_memory
from palate.recipes import load_recipe, resolve_yaml
from palate.recipes.schema import DemoRecipe, ModelRecipe
from palate.store.files import read_json, write_json, write_text

TITLE = "Controlled sentiment: DPO, TDPO1 and TDPO2 from the same pairs"


def demo(recipe: DemoRecipe, *, console: Console | None = None) -> Path:
    """Runs the demonstration, or what is missing of it.

    Writes `<output_dir>/quick` or `<output_dir>/full`: data, one run folder a method, evaluation,
    conclusion.json and report.html. Prints the conclusion's three lines.

    Returns:
        The path of report.html.

    Raises:
        PalateError: the `demo` extra is missing; another demonstration is in the folder.
    """
    console = console or Console(stderr=True)
    preset = QUICK if recipe.quick else FULL
    root = recipe.output_dir / ("quick" if recipe.quick else "full")
    _open(recipe, root)
    parts = _Parts(console, recipe.quick)
    with _quiet_libraries(), kept_memory():
        return _run(recipe, root, preset, parts)


def _run(recipe: DemoRecipe, root: Path, preset: Preset, parts: _Parts) -> Path:
    console = parts.console
    parts.start("model", "Base model")
    model = _model(recipe, parts)
    parts.start("feedback", "Continuations of review openings, rated by the lexicon")
    _feedback(root, preset, model, recipe.seed, console)
    for method, (name, _) in METHODS.items():
        parts.start("tune", f"Tuning with {name}")
        _tune(root, method, model, preset, recipe.seed, parts)
    parts.start("evaluate", "Held-out openings: reward, KL, diversity")
    confidence = _evaluate(root, preset, recipe.seed, console)
    parts.start("report", "Conclusion and report")
    lines = _conclude(root, recipe.seed, confidence)

    from palate.report import write_report

    # The demonstration's own folder brings the conclusion.
    folders = [root, *(root / method for method in METHODS), root / "evaluation"]
    path = write_report(folders, root / "report.html", TITLE)
    parts.end()
    out = Console()
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    return path


class _Parts:
    """Says which part begins and how long the rest will take."""

    PLAN = ("model", "feedback", "tune", "tune", "tune", "evaluate", "report")
    SECONDS = {  # noqa: RUF012 - a table
        False: {"model": 45, "feedback": 120, "tune": 75, "evaluate": 210, "report": 5},
        True: {"model": 45, "feedback": 40, "tune": 20, "evaluate": 50, "report": 5},
    }
    """Measured on two cores; what this machine took so far scales the rest."""

    def __init__(self, console: Console, quick: bool) -> None:
        self.console = console
        self.expected = self.SECONDS[quick]
        self.begun = time.monotonic()
        self.index = 0
        self.kind: str | None = None
        self.part_begun = self.begun
        self.took = 0.0
        self.should_take = 0.0

    def start(self, kind: str, title: str) -> None:
        self._close()
        left = sum(self.expected[k] for k in self.PLAN[self.index :])
        # Parts that a former run has finished take no time and say nothing of this machine.
        scale = self.took / self.should_take if self.should_take else 1.0
        self.index += 1
        self.kind = kind
        self.part_begun = time.monotonic()
        self.console.print(
            f"[bold]{self.index}/{len(self.PLAN)} {title}[/bold] "
            f"(about {duration(left * scale)} left)",
            highlight=False,
        )

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, markup=False)

    def end(self) -> None:
        self._close()
        self.say(f"done in {duration(time.monotonic() - self.begun)}")

    def _close(self) -> None:
        if self.kind is None:
            return
        took = time.monotonic() - self.part_begun
        if took > 0.2 * self.expected[self.kind]:
            self.took += took
            self.should_take += self.expected[self.kind]


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    # Their bars of loading a few files in a second would bury the demonstration's own progress.
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT reads a name that transformers has deprecated.
            warnings.filterwarnings(
                "ignore", message=".is_gradient_checkpointing", category=FutureWarning
            )
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _open(recipe: DemoRecipe, root: Path) -> None:
    file = root / "recipe.yaml"
    if file.exists():
        if not recipe.resume:
            raise RunError(f"{root}: holds a demonstration already; choose another output_dir")
        other = load_recipe(DemoRecipe, file)
        if (other.model, other.seed) != (recipe.model, recipe.seed):
            raise RunError(
                f"{root}: holds a demonstration with another model or seed; choose another "
                "output_dir"
            )
    write_text(file, resolve_yaml(recipe))


def _model(recipe: DemoRecipe, parts: _Parts) -> DemoModel:
    if recipe.model is not None:
        parts.say(recipe.model)
        return DemoModel(path=recipe.model, name=recipe.model, terms=None)
    model = packaged_model(parts.say)
    parts.say(model.name)
    if model.terms is not None:
        parts.say(f"{model.terms} (a copy is in {model.path})")
    return model


def _feedback(root: Path, preset: Preset, model: DemoModel, seed: int, console: Console) -> None:
    from palate.data.encode import Encoder
    from palate.models.loading import load_policy, load_tokenizer

    own = ModelRecipe(path=model.path)
    recipe = tune_recipe(
        root, next(iter(METHODS)), model=model.path, preset=preset, seed=seed, resume=False
    )

    def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
        encoder = Encoder(tokenizer, own.chat_template, recipe.data.length)
        return encoder.encode_prompt(text)

    write_feedback(
        root / "data",
        preset,
        load=lambda: (load_policy(own).requires_grad_(False), load_tokenizer(own)),
        encode=encode,
        seed=seed,
        console=console,
    )


def _tune(
    root: Path, method: str, model: DemoModel, preset: Preset, seed: int, parts: _Parts
) -> None:
    from palate.train import tune

    status = root / method / "status.json"
    if status.exists() and read_json(status)["state"] == "finished":
        parts.say("finished before")
        return
    tune(
        tune_recipe(
            root, method, model=model.path, preset=preset, seed=seed, resume=status.exists()
        )
    )


def _evaluate(root: Path, preset: Preset, seed: int, console: Console) -> float:
    from palate.evaluate import evaluate

    resume = (root / "evaluation" / "recipe.yaml").exists()
    recipe = eval_recipe(root, preset=preset, seed=seed, resume=resume)
    evaluate(recipe, console=console)
    return recipe.confidence


def _conclude(root: Path, seed: int, confidence: float) -> list[str]:
    base, entropy, curves = read_curves(root / "evaluation")
    found = conclude(
        base,
        entropy,
        curves,
        scale="VADER compound, -1 to 1",
        confidence=confidence,
        seed=seed,
    )
    write_json(root / "conclusion.json", found)
    lines: list[str] = found["lines"]
    return lines


def read_curves(folder: Path) -> tuple[np.ndarray, float, list[Curve]]:
    """Base rewards [P], base entropy and the methods' curves of an evaluation folder."""
    document = read_json(folder / "evaluation.json")
    text = (folder / "samples.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    prompts = list(dict.fromkeys(r["prompt_id"] for r in rows if r["policy"] == "reference"))

    def column(policy: str, step: int | None, name: str) -> np.ndarray:
        found: dict[str, list[float]] = {p: [] for p in prompts}
        for row in rows:
            if (row["policy"], row["checkpoint"]) == (policy, step):
                found[row["prompt_id"]].append(row[name])
        return np.array([np.mean(found[p]) for p in prompts])

    curves = []
    for method, (name, _) in METHODS.items():
        entries = [p for p in document["policies"] if p["label"] == method]
        steps = [p["checkpoint"] for p in entries]
        curves.append(
            Curve(
                name=name,
                kl=np.stack([column(method, s, "kl") for s in steps]),
                reward=np.stack([column(method, s, "reward") for s in steps]),
                entropy=np.array([p["samples"]["diversity"]["entropy"] for p in entries]),
            )
        )
    base_entropy = document["reference"]["samples"]["diversity"]["entropy"]
    return column("reference", None, "reward"), float(base_entropy), curves
