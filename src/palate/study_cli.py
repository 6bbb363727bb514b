"""`palate study`: which choice mattered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palate.cli_parts import (
    Overrides,
    PrintRecipe,
    RecipeFile,
    errors_as_lines,
    finished,
    recipe_command,
    show,
)

app = typer.Typer(
    name="study",
    help="Studies: vary one aspect at a time, share the rest, and say what made a difference.",
    no_args_is_help=True,
)


@app.command(cls=recipe_command("StudyRecipe"))
def plan(
    recipe: RecipeFile,
    set_: Overrides = None,
    print_recipe: PrintRecipe = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Make a few steps of each kind of run, in a process of its own, and say what"
            " stages take; builds the pairs that they read, which `run` will find. Without it"
            " that is not predicted, or from former trials.",
        ),
    ] = True,
) -> None:
    """Say what a study will run, what is there already, and what it takes; train nothing."""
    with errors_as_lines(""):
        from palate.study.study import load_study

        study = load_study(recipe, set_ or [])
        if print_recipe:
            return show(study.recipe)
        from palate.study.show import plan_lines

        def says(line: str) -> None:
            typer.echo(line, err=True)

        for line in plan_lines(study, probe=probe, says=says):
            typer.echo(line)


@app.command()
def run(recipe: RecipeFile, set_: Overrides = None) -> None:
    """Run what is missing of a study; what failed before is tried again."""
    with errors_as_lines("", again="what is finished is kept"):
        from palate.study.run import run_study
        from palate.study.show import progress_lines
        from palate.study.study import load_study

        study = load_study(recipe, set_ or [])
        progress = run_study(study)
        for line in progress_lines(study, progress):
            typer.echo(line, err=True)
        from palate.study.report import write_report

        page = write_report(study)
        if not progress.complete:
            raise typer.Exit(2)
        finished(page)


@app.command()
def status(recipe: RecipeFile, set_: Overrides = None) -> None:
    """Say which stages of a study are finished, failed and to come."""
    with errors_as_lines(""):
        from palate.study.show import status_lines
        from palate.study.study import load_study

        for line in status_lines(load_study(recipe, set_ or [])):
            typer.echo(line)


@app.command()
def slurm(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Script to write.")],
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Of every sbatch; may be given several times."),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Write a script that hands the missing stages to Slurm, each after those that it needs."""
    with errors_as_lines(""):
        from palate.study.slurm import write_script
        from palate.study.study import load_study

        n = write_script(load_study(recipe, set_ or []), out, sbatch or [])
        typer.echo(f"{out}: {n} jobs; submit them with: bash {out}")


@app.command()
def report(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE|FOLDER", help="A study's recipe, or the folder of its run."),
    ],
    set_: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="HTML file, tables beside it; default: report.html in the study's folder.",
        ),
    ] = None,
) -> None:
    """Write what a study says as far as it is finished: one page, and tables beside it."""
    with errors_as_lines(""):
        from palate.study.report import begun_in, study_at, write_report

        target = None if out is None else out.resolve()
        study = study_at(recipe, set_ or [])
        with begun_in(recipe):
            finished(write_report(study, target))


def stage(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Of the stage, as `status` names it.")],
    study: Annotated[Path, typer.Option(help="Folder of the study.")],
) -> None:
    """Run one stage of a study, whose needs are finished; it ends whole or not at all."""
    with errors_as_lines("", again="what is finished is kept"):
        from palate.study.commands import run_stage

        run_stage(study, key)
