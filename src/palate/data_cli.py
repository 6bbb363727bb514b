"""`palate data`: look at preference data, and build it."""

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
    name="data",
    help="Preference data: say what is in it, and build it from public formats.",
    no_args_is_help=True,
)


@app.command()
def inspect(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Files, folders or hub names.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the report; default: NAME.inspect here."),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Reader; default: recognised from the columns.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a folder or hub data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset of a folder or hub data set.")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Do without this column; may be given several times."),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(metavar="INTEGER", help="Look at this many rows, drawn by chance."),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that image paths start from.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Look for the prompts of this evaluation file, too."),
    ] = None,
) -> None:
    """Say what data is: its format and why, counts, and everything suspicious in a report.

    The data is only read. Writes report.html and data.json.
    """
    with errors_as_lines("", again="from the beginning"):
        from palate.data_verbs import inspect_data
        from palate.recipes import BuildSource
        from palate.recipes.load import check_recipe
        from palate.recipes.yaml import parse_yaml

        options = {
            "format": format,
            "split": split,
            "subset": subset,
            "ignore": ignore or [],
            "limit": parse_yaml(limit or "null", "--limit", positions=False),
            "image_root": image_root,
        }
        sources = [
            check_recipe(BuildSource, {"path": file, **options}, "data inspect") for file in files
        ]
        inspected = inspect_data(sources, out, against=against or ())
        for line in inspected.lines():
            typer.echo(line)
        typer.echo(str(inspected.folder / "report.html"))


@app.command(cls=recipe_command("DataBuildRecipe"))
def build(recipe: RecipeFile, set_: Overrides = None, print_recipe: PrintRecipe = False) -> None:
    """Build pairs: read, pair, curate, mix, and write Parquet with a data card and a report."""
    with errors_as_lines("--set resume=true"):
        from palate.recipes import DataBuildRecipe, load_recipe

        loaded = load_recipe(DataBuildRecipe, recipe, set_ or [])
        if print_recipe:
            return show(loaded)
        from palate.data_verbs import build_data

        finished(build_data(loaded))
