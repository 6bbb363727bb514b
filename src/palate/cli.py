"""The command line: one thin command a verb. Heavy imports happen inside the commands.

Exit status: 0 done, 1 `doctor` found a problem, 2 a mistake (one line says which), 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from palate.cli_parts import (
    Overrides,
    PrintRecipe,
    RecipeFile,
    TwoWordGroup,
    errors_as_lines,
    finished,
    recipe_command,
    show,
)
from palate.data_cli import app as data_app
from palate.errors import RecipeError
from palate.store.versions import __version__
from palate.study_cli import app as study_app
from palate.study_cli import stage

app = typer.Typer(
    name="palate",
    cls=TwoWordGroup,
    help="Learn from preference feedback: tune, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 110},
    pretty_exceptions_enable=False,
)
app.add_typer(data_app)
app.add_typer(study_app)
app.command()(stage)


def main() -> None:
    """Entry point of the `palate` command."""
    # Threads that wait by spinning hold cores that others need: beside one busy process a training
    # step took ten times as long. On an idle machine passive waiting costs nothing measurable.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="palate")


class _Notes(logging.Handler):
    """Prints what the library logs, one line each, to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"palate: {record.getMessage()}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"palate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and stop."
        ),
    ] = False,
) -> None:
    logging.getLogger("palate").handlers = [_Notes()]


@app.command(cls=recipe_command("TuneRecipe"))
def tune(recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False) -> None:
    """Preference tuning: DPO, TDPO and their relatives."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import TuneRecipe, load_recipe

        loaded = load_recipe(TuneRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.train import tune as run

        finished(run(loaded).path)


@app.command(cls=recipe_command("SftRecipe"))
def sft(recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False) -> None:
    """Supervised fine-tuning on demonstrations or chosen responses."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import SftRecipe, load_recipe

        loaded = load_recipe(SftRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.train import sft as run

        finished(run(loaded).path)


@app.command(cls=recipe_command("RewardRecipe"))
def reward(recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False) -> None:
    """Train a scalar reward model on pairs or ranked lists."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import RewardRecipe, load_recipe

        loaded = load_recipe(RewardRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.train import reward as run

        finished(run(loaded).path)


@app.command(cls=recipe_command("JudgeRecipe"))
def judge(recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False) -> None:
    """Train a judge or a critic, stage by stage, from preference data."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import JudgeRecipe, load_recipe

        loaded = load_recipe(JudgeRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.train.judge import train_judge as run

        finished(run(loaded).path)


@app.command(cls=recipe_command("RlRecipe"))
def rl(recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False) -> None:
    """Learn a policy from rewards of its own responses: PPO, GRPO, RLOO, online DPO."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import RlRecipe, load_recipe

        loaded = load_recipe(RlRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.train.rl_run import rl as run

        finished(run(loaded).path)


@app.command("eval", cls=recipe_command("EvalRecipe"))
def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE | RUN...", help="A recipe, or one or more run folders."),
    ],
    set_: Overrides = None,
    print_recipe: PrintRecipe = False,
) -> None:
    """Evaluate policies: preference accuracy, reward against KL, diversity, samples.

    With run folders the result goes to `evaluation` beside the first (--set output_dir=... changes
    it).
    """
    with errors_as_lines(""):
        recipe, overrides = _eval_targets(targets)
        from palate.recipes import EvalRecipe, load_recipe

        loaded = load_recipe(EvalRecipe, recipe, [*overrides, *(set_ or [])])
        if print_recipe:
            return show(loaded)
        from palate.evaluate import evaluate as run

        finished(run(loaded).path)


@app.command("eval reward", cls=recipe_command("RewardEvalRecipe"))
def evaluate_reward(
    recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False
) -> None:
    """Evaluate reward models, judges and ensembles: public benchmarks, pairs, best-of-n."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import RewardEvalRecipe, load_recipe

        loaded = load_recipe(RewardEvalRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.evaluate.reward import evaluate_rewards as run

        finished(run(loaded).path)


@app.command("eval tasks", cls=recipe_command("TaskEvalRecipe"))
def evaluate_tasks(
    recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False
) -> None:
    """Public tasks of lm-evaluation-harness on one policy (extra `eval`)."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import TaskEvalRecipe, load_recipe

        loaded = load_recipe(TaskEvalRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.evaluate.tasks import evaluate_tasks as run

        finished(run(loaded).path)


@app.command(cls=recipe_command("ScoreRecipe"))
def score(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE | FILE...", help="A recipe, or data files."),
    ],
    model: Annotated[
        str | None, typer.Option(help="Reward model that scores files: a folder or hub name.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder; default of files: `<name>.scores` here.")
    ] = None,
    set_: Overrides = None,
    print_recipe: PrintRecipe = False,
) -> None:
    """Score every response in data files with a reward model, a judge or an ensemble."""
    with errors_as_lines("--set resume=true"):
        recipe, overrides = _score_targets(targets, model, output_dir)
        from palate.recipes import ScoreRecipe, load_recipe

        loaded = load_recipe(ScoreRecipe, recipe, [*overrides, *(set_ or [])])
        if print_recipe:
            return show(loaded)
        from palate.evaluate.reward import score_files

        finished(score_files(loaded).path)


@app.command(cls=recipe_command("ServeRecipe"))
def serve(recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False) -> None:
    """Serve a reward model, a judge or an ensemble over HTTP (extra `serve`)."""
    with errors_as_lines(""):
        from palate.recipes import ServeRecipe, load_recipe

        loaded = load_recipe(ServeRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.serve import serve as run

        run(loaded)


def _score_targets(
    targets: list[str], model: str | None, output_dir: Path | None
) -> tuple[str | None, list[str]]:
    scorer = [] if model is None else [{"type": "model", "path": model}]
    overrides = [f"scorer={json.dumps(value)}" for value in scorer]
    if output_dir is not None:
        overrides.append(f"output_dir={json.dumps(str(output_dir))}")
    first = Path(targets[0])
    # With a model named the targets are data, be they files, folders or names on the hub.
    recipe = model is None and first.suffix in ("", ".yaml", ".yml") and not first.is_dir()
    if recipe and len(targets) == 1:
        return targets[0], overrides
    sources = [{"path": target} for target in targets]
    given = [f"data={json.dumps(sources)}", *overrides]
    if output_dir is None:
        given.append(f"output_dir={json.dumps(first.name.partition('.')[0] + '.scores')}")
    return None, given


def _eval_targets(targets: list[str]) -> tuple[str | None, list[str]]:
    folders = [target for target in targets if Path(target).is_dir()]
    if not folders and len(targets) == 1:
        return targets[0], []
    if len(folders) != len(targets):
        no_folder = next(target for target in targets if target not in folders)
        raise RecipeError(f"{no_folder} is no run folder; give one recipe, or run folders alone")
    out = Path(folders[0]).resolve().parent / "evaluation"
    return None, [f"runs={json.dumps(folders)}", f"output_dir={json.dumps(os.path.relpath(out))}"]


@app.command()
def merge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder with LoRA adapters, or its `model`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="bfloat16, float32 or float16; default: as trained. Only in float32"
            " nothing is rounded."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run code that came with the base model.")
    ] = False,
) -> None:
    """Add LoRA adapters to their base model: one whole policy or reward model."""
    with errors_as_lines(""):
        from palate.recipes.schema import Dtype
        from palate.train.merge import merge_adapters

        if dtype is not None and dtype not in get_args(Dtype):
            raise RecipeError(f"--dtype {dtype}: not one of {', '.join(get_args(Dtype))}")
        merged = merge_adapters(
            run, out, dtype=cast(Dtype, dtype), trust_remote_code=trust_remote_code
        )
        typer.echo(str(merged))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="HTML file; default: report.html in the run folder."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
) -> None:
    """One self-contained HTML file from one or more run folders."""
    with errors_as_lines(""):
        from palate.report import write_report

        typer.echo(str(write_report(runs, out, title)))


@app.command()
def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE | MODEL]", help="What to check besides this machine."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Of a recipe that trains: start it in a process of its own, make two or three of"
            " its steps, and say what a step takes. Without it that is not predicted.",
        ),
    ] = True,
) -> None:
    """Say what would stop a run before it starts, and what a step of it takes.

    Exit status 1 if something would stop it.
    """
    with errors_as_lines(""):
        from rich.console import Console

        from palate.doctor import examine, render

        checks = examine(target, probe=probe)
        Console().print(render(checks))
        if any(check.state == "problem" for check in checks):
            raise typer.Exit(1)


@app.command(cls=recipe_command("DemoRecipe"))
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer pairs and steps.")] = False,
    vision: Annotated[
        bool,
        typer.Option("--vision", help="A model that sees: reward model, DPO and TDPO2 on images."),
    ] = False,
    online: Annotated[
        bool,
        typer.Option("--online", help="Online learning: PPO, GRPO, RLOO and online DPO."),
    ] = False,
    model: Annotated[str | None, typer.Option(help="Hub name or folder of a base model.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="INTEGER", help="Seed.")] = None,
    set_: Overrides = None,
    print_recipe: PrintRecipe = False,
) -> None:
    """Controlled sentiment on this machine: sample, score, pair, tune three ways, compare."""
    options = {
        "model": model,
        "output_dir": output_dir,
        "quick": quick or None,
        "vision": vision or None,
        "online": online or None,
    }
    given = [
        f"{key}={json.dumps(value, default=str)}"
        for key, value in options.items()
        if value is not None
    ]
    given += [f"seed={seed}"] if seed is not None else []
    with errors_as_lines("", again="the finished parts are kept"):
        from palate.recipes import DemoRecipe, load_recipe

        loaded = load_recipe(DemoRecipe, None, [*given, *(set_ or [])])
        if print_recipe:
            return show(loaded)
        from palate.demo import demo as run

        typer.echo(str(run(loaded)))


if __name__ == "__main__":
    main()
