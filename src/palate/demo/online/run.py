"""`palate demo --online`: PPO, GRPO, RLOO and online DPO on controlled sentiment, in one report.

The base model continues openings of reviews, a lexicon is the reward. Each algorithm learns by
`palate rl` from responses of its own; DPO and its relatives learn offline, from rated continuations
of the base model to the same openings. All are drawn on the axes of reward and sequence KL, beside
best-of-n, on openings that none of them has seen. One more run has no KL: it collapses, and the
alarms say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from palate.demo.online.best_of_n import best_of_n_curve, read_ratings, write_evaluation
from palate.demo.online.conclusion import Collapse, conclude
from palate.demo.online.presets import (
    ALGORITHMS,
    COLLAPSE,
    FULL,
    QUICK,
    Preset,
    eval_recipe,
    rl_recipe,
    tune_recipe,
)
from palate.demo.presets import METHODS
from palate.demo.run import (
    CONCLUSION,
    DATA,
    EVALUATION,
    MODEL,
    base_model,
    read_curves,
    run_demo,
    run_evaluation,
    write_rated,
)
from palate.demo.smollm2 import packaged_smollm2
from palate.recipes.schema import DemoRecipe, TuneRecipe
from palate.store.files import read_jsonl, write_json
from palate.store.folder import comparable, is_finished
from palate.store.records import Conclusion, write_record
from palate.store.stages import Result, Stage

BEST_OF_N = "best-of-n"
SECONDS: dict[str, tuple[float, float]] = {
    DATA: (36.0, 12.0),
    "ppo": (175.0, 58.0),
    "grpo": (90.0, 33.0),
    "rloo": (130.0, 40.0),
    "online-dpo": (64.0, 24.0),
    COLLAPSE: (45.0, 27.0),
    **dict.fromkeys(METHODS, (55.0, 14.0)),
    EVALUATION: (240.0, 65.0),
}
"""Of stages on two cores: at full size, and quick."""
TITLE = "Online learning on controlled sentiment: PPO, GRPO, RLOO and online DPO"


def online_demo(recipe: DemoRecipe, *, console: Console | None = None) -> Path:
    """Runs the demonstration, or what is missing of it.

    Writes `<output_dir>/online-quick` or `<output_dir>/online`: data, a run folder each of the
    algorithms, of offline methods and of the run that collapses, evaluation, conclusion.json and
    report.html. Prints the conclusion's lines.

    Returns:
        The path of report.html.

    Raises:
        PalateError: a package is missing; another demonstration is in the folder.
    """
    console = console or Console(stderr=True)
    root = recipe.output_dir / ("online-quick" if recipe.quick else "online")
    preset = QUICK if recipe.quick else FULL
    stages = online_stages(recipe, root, preset, console)
    runs = (*ALGORITHMS, *preset.offline, EVALUATION, BEST_OF_N, COLLAPSE)
    return run_demo(recipe, root, stages, runs, TITLE, console)


def online_stages(recipe: DemoRecipe, root: Path, preset: Preset, console: Console) -> list[Stage]:
    """The demonstration's stages, for `run_stages`."""
    seed, sizes = recipe.seed, dataclasses.asdict(preset)
    evaluation = eval_recipe(root, preset=preset, seed=seed, resume=False)

    def seconds(stage: str) -> float:
        return SECONDS[stage][recipe.quick]

    def training(run: str, title: str, make: Callable[..., Any]) -> Stage:
        def planned(model: str, resume: bool) -> Any:
            return make(root, run, model=model, preset=preset, seed=seed, resume=resume)

        return Stage(
            name=run,
            title=title,
            # Of the model only the stage is known before it has run.
            inputs=comparable(planned(MODEL, False)),
            needs=(MODEL, DATA),
            seconds=seconds(run),
            run=lambda folder, results: _train(folder, planned, str(results[MODEL]["path"])),
        )

    return [
        Stage(
            name=MODEL,
            title="Base model",
            inputs=recipe.model,
            always=True,
            seconds=10.0,
            run=lambda *_: dataclasses.asdict(base_model(recipe, packaged_smollm2, console)),
        ),
        Stage(
            name=DATA,
            title="Continuations of review openings, rated by the lexicon",
            inputs={"preset": sizes, "seed": seed},
            needs=(MODEL,),
            seconds=seconds(DATA),
            run=lambda _, results: write_rated(
                root / "data",
                preset.pairs,
                str(results[MODEL]["path"]),
                evaluation.length,
                seed=seed,
                console=console,
                candidates=preset.best_of,
            ),
        ),
        *(
            training(run, f"Learning online with {name}", rl_recipe)
            for run, (name, *_) in ALGORITHMS.items()
        ),
        training(COLLAPSE, "GRPO without a KL, to collapse", rl_recipe),
        *(
            training(method, f"Tuning offline with {METHODS[method][0]}", tune_recipe)
            for method in preset.offline
        ),
        Stage(
            name=EVALUATION,
            title="Held-out openings: reward, KL, diversity",
            inputs=comparable(evaluation),
            needs=(*ALGORITHMS, *preset.offline),
            seconds=seconds(EVALUATION),
            run=lambda *_: run_evaluation(evaluation, console),
        ),
        Stage(
            name=CONCLUSION,
            title="Conclusion and report",
            needs=(EVALUATION, COLLAPSE),
            always=True,
            seconds=5.0,
            run=lambda _, results: _conclude(root, preset, seed, results[EVALUATION]["confidence"]),
        ),
    ]


def _train(folder: Path, planned: Callable[[str, bool], Any], model: str) -> None:
    """Trains a stage's run, from where it was stopped if it was."""
    from palate.train import tune
    from palate.train.rl_run import rl

    if is_finished(folder):
        return
    recipe = planned(model, (folder / "status.json").exists())
    (tune if isinstance(recipe, TuneRecipe) else rl)(recipe)


def _conclude(root: Path, preset: Preset, seed: int, confidence: float) -> Result:
    online = {run: name for run, (name, *_) in ALGORITHMS.items()}
    offline = {method: METHODS[method][0] for method in preset.offline}
    folder = root / EVALUATION
    _, entropy, curves = read_curves(folder, online | offline)
    prompts = [r["prompt"] for r in read_jsonl(folder / "samples.jsonl") if _is_base(r)]
    ratings = read_ratings(root / "data" / "heldout.jsonl", list(dict.fromkeys(prompts)))
    best = best_of_n_curve(ratings)
    write_evaluation(root / BEST_OF_N, best, confidence=confidence)
    conclusion = conclude(
        # Of more continuations than the evaluation has of the base model.
        ratings.mean(1),
        entropy,
        curves[: len(online)],
        curves[len(online) :],
        best,
        read_collapse(root / COLLAPSE),
        {name: read_alarms(root / run) for run, name in online.items()},
        scale="VADER compound, -1 to 1",
        confidence=confidence,
        seed=seed,
    )
    write_json(root / "measures.json", conclusion)
    write_record(root / "conclusion.json", Conclusion.of(conclusion))
    return {"lines": conclusion["lines"]}


def _is_base(row: dict[str, Any]) -> bool:
    return bool(row["policy"] == "reference")


def read_collapse(folder: Path) -> Collapse:
    """What the log of a run says of how it went."""
    lines = [row for row in read_jsonl(folder / "metrics.jsonl") if row["split"] == "train"]

    def ends(name: str) -> tuple[float, float]:
        return float(lines[0][name]), float(lines[-1][name])

    return Collapse(
        reward=ends("reward"),
        entropy=ends("entropy/sampled"),
        kl=ends("kl/exact"),
        commonest=float(lines[-1]["samples/commonest"]),
        steps=int(lines[-1]["step"]),
        alarms=read_alarms(folder),
    )


def read_alarms(folder: Path) -> list[tuple[int, str]]:
    """(step, title) of the alarms that began in a run."""
    file = folder / "alarms.jsonl"
    rows = read_jsonl(file) if file.exists() else ()
    return [(int(row["step"]), str(row["title"])) for row in rows if row["state"] == "begins"]
