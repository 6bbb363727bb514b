"""`palate demo`: controlled sentiment, from nothing to a report.

Openings of reviews are continued by the base model, a lexicon rates the continuations, the better
and the worse one make a pair, DPO, TDPO1 and TDPO2 learn from the same pairs, and the reward is
drawn against the distance from the base model on openings that none of them has seen. Each of
these is a stage, and none is done twice.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from palate.demo.conclusion import Curve, conclude
from palate.demo.feedback import write_feedback
from palate.demo.model import DemoModel, packaged_model
from palate.demo.presets import FULL, METHODS, QUICK, Preset, eval_recipe, tune_recipe
from palate.demo.quiet import quiet_libraries
from palate.memory import kept_memory
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.schema import DemoRecipe, LengthRecipe, ModelRecipe
from palate.store.durations import duration
from palate.store.files import read_json, read_jsonl
from palate.store.folder import RunFolder, comparable, is_finished
from palate.store.records import Conclusion, write_record
from palate.store.stages import Result, Results, Stage, run_stages

MODEL, DATA, EVALUATION, CONCLUSION = "model", "data", "evaluation", "conclusion"
TITLE = "Controlled sentiment: DPO, TDPO1 and TDPO2 from the same pairs"


def demo(recipe: DemoRecipe, *, console: Console | None = None) -> Path:
    """Runs the demonstration, or what is missing of it.

    Writes `<output_dir>/quick` or `<output_dir>/full`: data, one run folder a method, evaluation,
    conclusion.json and report.html. Prints the conclusion's three lines. Of a recipe with `vision`
    it is `palate.demo.vision.run.vision_demo`, with `online` `palate.demo.online.run.online_demo`.

    Returns:
        The path of report.html.

    Raises:
        PalateError: the `demo` extra is missing; another demonstration is in the folder.
    """
    if recipe.vision:
        from palate.demo.vision.run import vision_demo

        return vision_demo(recipe, console=console)
    if recipe.online:
        from palate.demo.online.run import online_demo

        return online_demo(recipe, console=console)
    console = console or Console(stderr=True)
    root = recipe.output_dir / ("quick" if recipe.quick else "full")
    stages = demo_stages(recipe, root, QUICK if recipe.quick else FULL, console)
    return run_demo(recipe, root, stages, (*METHODS, EVALUATION), TITLE, console)


def run_demo(
    recipe: DemoRecipe,
    root: Path,
    stages: Sequence[Stage],
    runs: Sequence[str],
    title: str,
    console: Console,
) -> Path:
    """Runs the stages of a demonstration, of which CONCLUSION is one, and writes its report.

    Args:
        runs: folders in `root` that the report shows, beside `root`, which brings the conclusion.

    Returns:
        The path of report.html.
    """
    begun = time.monotonic()
    with RunFolder.open(recipe, root), quiet_libraries(), kept_memory():
        records = run_stages(stages, root, console=console)

    from palate.report import write_report

    path = write_report([root, *(root / run for run in runs)], root / "report.html", title)
    console.print(f"  done in {duration(time.monotonic() - begun)}", highlight=False)
    out = Console()
    for line in records[CONCLUSION].result["lines"]:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    return path


def demo_stages(recipe: DemoRecipe, root: Path, preset: Preset, console: Console) -> list[Stage]:
    """The demonstration's stages, for `run_stages`."""
    seed = recipe.seed
    evaluation = eval_recipe(root, preset=preset, seed=seed, resume=False)

    def model_of(results: Results) -> str:
        return str(results[MODEL]["path"])

    def tuning(method: str) -> Stage:
        # Of the model only the stage is known before it has run.
        plan = tune_recipe(root, method, model=MODEL, preset=preset, seed=seed, resume=False)
        return Stage(
            name=method,
            title=f"Tuning with {METHODS[method][0]}",
            inputs=comparable(plan),
            needs=(MODEL, DATA),
            seconds=20.0 if recipe.quick else 75.0,
            run=lambda _, results: _tune(root, method, model_of(results), preset, seed),
        )

    return [
        Stage(
            name=MODEL,
            title="Base model",
            inputs=recipe.model,
            always=True,
            seconds=45.0,
            run=lambda *_: dataclasses.asdict(base_model(recipe, packaged_model, console)),
        ),
        Stage(
            name=DATA,
            title="Continuations of review openings, rated by the lexicon",
            inputs={"preset": dataclasses.asdict(preset), "seed": seed},
            needs=(MODEL,),
            seconds=40.0 if recipe.quick else 120.0,
            run=lambda _, results: _feedback(root, preset, model_of(results), seed, console),
        ),
        *map(tuning, METHODS),
        Stage(
            name=EVALUATION,
            title="Held-out openings: reward, KL, diversity",
            inputs=comparable(evaluation),
            needs=(*METHODS,),
            seconds=50.0 if recipe.quick else 210.0,
            run=lambda *_: run_evaluation(evaluation, console),
        ),
        Stage(
            name=CONCLUSION,
            title="Conclusion and report",
            needs=(EVALUATION,),
            always=True,
            seconds=5.0,
            run=lambda _, results: _conclude(root, seed, results[EVALUATION]["confidence"]),
        ),
    ]


def base_model(
    recipe: DemoRecipe,
    packaged: Callable[[Callable[[str], None]], DemoModel],
    console: Console,
) -> DemoModel:
    """The recipe's model, or the one that packages hold; says which, and on what terms."""

    def say(text: str) -> None:
        console.print(f"  {text}", highlight=False, markup=False)

    if recipe.model is not None:
        say(recipe.model)
        return DemoModel(path=recipe.model, name=recipe.model, terms=None)
    model = packaged(say)
    say(model.name)
    if model.terms is not None:
        say(f"{model.terms} (a copy is in {model.path})")
    return model


def _feedback(root: Path, preset: Preset, model: str, seed: int, console: Console) -> None:
    recipe = tune_recipe(
        root, next(iter(METHODS)), model=model, preset=preset, seed=seed, resume=False
    )
    write_rated(root / "data", preset, model, recipe.data.length, seed=seed, console=console)


def write_rated(
    folder: Path,
    preset: Preset,
    model: str,
    length: LengthRecipe,
    *,
    seed: int,
    console: Console,
    candidates: int | None = None,
) -> None:
    """Writes the base model's rated continuations; see `write_feedback`.

    Args:
        length: limits of the openings.
    """
    from palate.data.encode import Encoder
    from palate.models.loading import load_policy, load_tokenizer

    base = ModelRecipe(path=model)

    def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
        return Encoder(tokenizer, base.chat_template, length).encode_prompt(text).ids

    write_feedback(
        folder,
        preset,
        load=lambda: (load_policy(base).requires_grad_(False), load_tokenizer(base)),
        encode=encode,
        seed=seed,
        console=console,
        candidates=candidates,
    )


def _tune(root: Path, method: str, model: str, preset: Preset, seed: int) -> None:
    from palate.train import tune

    if is_finished(root / method):
        return
    resume = (root / method / "status.json").exists()
    tune(tune_recipe(root, method, model=model, preset=preset, seed=seed, resume=resume))


def run_evaluation(recipe: EvalRecipe, console: Console) -> Result:
    """Evaluates, from where it was stopped if it was."""
    from palate.evaluate import evaluate

    resume = (recipe.output_dir / "recipe.yaml").exists()
    evaluate(recipe.model_copy(update={"resume": resume}), console=console)
    return {"confidence": recipe.confidence}


def _conclude(root: Path, seed: int, confidence: float) -> Result:
    base, entropy, curves = read_curves(root / EVALUATION)
    conclusion = conclude(
        base,
        entropy,
        curves,
        scale="VADER compound, -1 to 1",
        confidence=confidence,
        seed=seed,
    )
    write_record(root / "conclusion.json", Conclusion.of(conclusion))
    return {"lines": conclusion["lines"]}


def read_curves(
    folder: Path, names: Mapping[str, str] | None = None
) -> tuple[np.ndarray, float, list[Curve]]:
    """Base rewards [P], base entropy and the methods' curves of an evaluation folder.

    Args:
        names: of runs as printed; default: those of this demonstration's methods.
    """
    names = names or {method: name for method, (name, _) in METHODS.items()}
    document = read_json(folder / "evaluation.json")
    rows = list(read_jsonl(folder / "samples.jsonl"))
    prompts = list(dict.fromkeys(r["prompt_id"] for r in rows if r["policy"] == "reference"))

    def column(policy: str, step: int | None, name: str) -> np.ndarray:
        by_prompt: dict[str, list[float]] = {p: [] for p in prompts}
        for row in rows:
            if (row["policy"], row["checkpoint"]) == (policy, step):
                by_prompt[row["prompt_id"]].append(row[name])
        return np.array([np.mean(by_prompt[p]) for p in prompts])

    curves = []
    for method, name in names.items():
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
