"""`palate demo --vision`: from packaged weights to a reward model that sees, DPO and TDPO2.

The projector between tower and language model is aligned on captions; a reward model and policies
learn from pairs of which nothing but the image tells the better answer; the same policies learn
without the images, too. What each is right about is measured on images, things and questions that
none of them has seen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from palate.demo.model import DemoModel
from palate.demo.run import run_demo
from palate.demo.vision import measures
from palate.demo.vision import pairs as files
from palate.demo.vision.conclusion import conclude
from palate.demo.vision.model import packaged_vision_model
from palate.demo.vision.presets import (
    BLIND,
    FULL,
    METHODS,
    QUICK,
    Preset,
    align_recipe,
    data_file,
    policy_recipe,
    reward_recipe,
)
from palate.recipes.schema import DemoRecipe
from palate.store.files import read_json, write_json
from palate.store.folder import comparable, is_finished
from palate.store.records import Conclusion, write_record
from palate.store.stages import Result, Results, Stage

MODEL, DATA, ALIGN, ALIGNED, REWARD = "model", "data", "align", "aligned", "reward"
BASELINES, ANSWERS, CONCLUSION = "baselines", "answers", "conclusion"
TITLE = "A reward model that sees, DPO and TDPO2, with images and without"
CONFIDENCE = 0.95
START = "start"
"""Name of the aligned model among the policies."""
RUNS = (*METHODS, *(f"{method}{BLIND}" for method in METHODS))


def vision_demo(recipe: DemoRecipe, *, console: Console | None = None) -> Path:
    """Runs the demonstration, or what is missing of it.

    Writes `<output_dir>/vision-quick` or `<output_dir>/vision`: data, a run folder each of
    alignment, reward model and policies, baselines, answers, conclusion.json and report.html.
    Prints the conclusion's lines.

    Returns:
        The path of report.html.

    Raises:
        PalateError: a package is missing; another demonstration is in the folder.
    """
    console = console or Console(stderr=True)
    root = recipe.output_dir / ("vision-quick" if recipe.quick else "vision")
    stages = vision_stages(recipe, root, QUICK if recipe.quick else FULL, console)
    return run_demo(recipe, root, stages, (REWARD, *RUNS, ALIGN), TITLE, console)


def vision_stages(recipe: DemoRecipe, root: Path, preset: Preset, console: Console) -> list[Stage]:
    """The demonstration's stages, for `run_stages`."""
    seed, sizes = recipe.seed, dataclasses.asdict(preset)
    train = (files.TRAIN, files.SCENES) if preset.scene_pairs else (files.TRAIN,)
    held_out = {
        name: title
        for name, title in files.TITLES.items()
        if preset.scene_pairs or name != files.HELD_OUT_SCENES
    }

    def align(model: str, resume: bool) -> Any:
        return align_recipe(root, model=model, train=files.CAPTIONS, seed=seed, resume=resume)

    def reward(model: str, resume: bool) -> Any:
        return reward_recipe(
            root, model=model, train=train, held_out=held_out, seed=seed, resume=resume
        )

    def policy(run: str, model: str, resume: bool) -> Any:
        rows = files.POLICY_BLIND if run.endswith(BLIND) else files.POLICY
        return policy_recipe(root, run, model=model, train=rows, seed=seed, resume=resume)

    aligned = root / ALIGNED

    def tuning(run: str) -> Stage:
        name = METHODS[run.removesuffix(BLIND)][0]
        return Stage(
            name=run,
            title=f"Tuning with {name}{', without images' if run.endswith(BLIND) else ''}",
            inputs=comparable(policy(run, ALIGNED, False)),
            needs=(ALIGNED, DATA),
            seconds=_seconds(recipe, 70.0, 25.0) / (2 if run.endswith(BLIND) else 1),
            run=lambda folder, _: _train(folder, "tune", policy, run, str(aligned)),
        )

    return [
        Stage(
            name=MODEL,
            title="A model that sees, from packages",
            always=True,
            seconds=20.0,
            run=lambda *_: dataclasses.asdict(_model(console)),
        ),
        Stage(
            name=DATA,
            title="Pairs from easy-VQA and from scenes",
            inputs={"preset": sizes, "seed": seed},
            seconds=5.0,
            run=lambda folder, _: dict(files.write_pairs(folder, preset, seed=seed)),
        ),
        Stage(
            name=ALIGN,
            title="Aligning the projector on captions",
            inputs=comparable(align(MODEL, False)),
            needs=(MODEL, DATA),
            seconds=_seconds(recipe, 80.0, 40.0),
            run=lambda folder, results: _train(folder, "sft", align, str(results[MODEL]["path"])),
        ),
        Stage(
            name=ALIGNED,
            needs=(ALIGN,),
            seconds=10.0,
            run=lambda folder, _: _merge(root / ALIGN, folder),
        ),
        Stage(
            name=REWARD,
            title="Training a reward model",
            inputs=comparable(reward(ALIGNED, False)),
            needs=(ALIGNED, DATA),
            seconds=_seconds(recipe, 260.0, 65.0),
            run=lambda folder, _: _train(folder, "reward", reward, str(aligned)),
        ),
        *map(tuning, RUNS),
        Stage(
            name=BASELINES,
            title="Baselines: ridge probes, length, majority",
            inputs={"preset": sizes, "seed": seed},
            needs=(MODEL, DATA),
            seconds=_seconds(recipe, 30.0, 10.0),
            run=lambda _, results: _baselines(root, str(results[MODEL]["path"])),
        ),
        Stage(
            name=ANSWERS,
            title="Held-out questions: which answer policies find likelier",
            inputs={"preset": sizes, "seed": seed},
            needs=RUNS,
            seconds=_seconds(recipe, 60.0, 30.0),
            run=lambda *_: _answers(root, str(aligned)),
        ),
        Stage(
            name=CONCLUSION,
            title="Conclusion and report",
            needs=(REWARD, BASELINES, ANSWERS),
            always=True,
            seconds=5.0,
            run=lambda _, results: _conclude(root, results, seed),
        ),
    ]


def _seconds(recipe: DemoRecipe, full: float, quick: float) -> float:
    return quick if recipe.quick else full


def _model(console: Console) -> DemoModel:
    def say(text: str) -> None:
        console.print(f"  {text}", highlight=False, markup=False)

    model = packaged_vision_model(say)
    say(model.name)
    if model.terms is not None:
        say(model.terms)
    return model


def _train(folder: Path, verb: str, recipe: Any, *given: str) -> None:
    """Trains a stage's run, from where it was stopped if it was.

    Args:
        recipe: makes the recipe of what is given and `resume`.
    """
    import palate.train

    if not is_finished(folder):
        getattr(palate.train, verb)(recipe(*given, (folder / "status.json").exists()))


def _merge(run: Path, folder: Path) -> None:
    """The aligned model whole, which the runs behind start from."""
    from palate.store.folders import remove_folder
    from palate.train.merge import merge_adapters

    remove_folder(folder)
    merge_adapters(run, folder)


def _baselines(root: Path, model: str) -> Result:
    from palate.demo.vision.features import probe_pairs

    names = (files.TRAIN, files.HELD_OUT, files.UNSEEN_THING, files.UNSEEN_WORDING)
    seen = probe_pairs(model, {name: data_file(root, name) for name in names})
    return {"right": measures.baseline_answers(seen[files.TRAIN], seen, names[1:])}


def _answers(root: Path, model: str) -> Result:
    policies = {START: None} | {run: root / run / "model" for run in RUNS}
    right = measures.likelier_answers(model, policies, data_file(root, files.HELD_OUT))
    return {"right": {name: values.tolist() for name, values in right.items()}}


def _conclude(root: Path, results: Results, seed: int) -> Result:
    evaluation = read_json(root / REWARD / "evaluation.json")["policies"][0]["preference"]
    conclusion = conclude(
        evaluation,
        results[BASELINES]["right"],
        results[ANSWERS]["right"],
        root=root,
        confidence=CONFIDENCE,
        seed=seed,
    )
    write_json(root / "measures.json", conclusion)
    write_record(root / "conclusion.json", Conclusion.of(conclusion))
    return {"lines": conclusion["lines"]}
