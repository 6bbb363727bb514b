"""What the commands share: options, help made from recipes, mistakes as one line."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from palate.errors import PalateError, RecipeError, in_one_line

if TYPE_CHECKING:
    from palate.recipes.losses import Strict

RecipeFile = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one key, e.g. loss.beta=0.2; the value is YAML. May be repeated.",
    ),
]
PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Print the resolved recipe and stop.")
]

_NOT_A_BUG = (
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
)
"""What a name or the machine is to blame for, wherever in a run it shows."""


def recipe_command(name: str) -> type[TyperCommand]:
    """A command whose help ends with the keys of its recipe.

    Args:
        name: of the recipe's class in `palate.recipes`, which is loaded when it is asked for.
    """

    class RecipeCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            from rich.console import Console
            from rich.padding import Padding
            from rich.text import Text

            from palate import recipes
            from palate.recipes.help import help_block
            from palate.recipes.load import VERBS, shipped_recipes

            cls = getattr(recipes, name)
            console = Console()
            if shipped := shipped_recipes(VERBS[cls]):
                console.print(Text("Shipped recipes", style="bold yellow"))
                for shipped_name, text in shipped.items():
                    line = Text(shipped_name, style="bold").append(f"  {text}", style="not bold")
                    console.print(Padding(line, (0, 0, 0, 2)))
                console.print()
            console.print(Text("Keys of the recipe, and of --set", style="bold yellow"))
            console.print(help_block(cls))

    return RecipeCommand


class TwoWordGroup(TyperGroup):
    """Commands of which one may be the beginning of another: `eval` and `eval reward`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # A run folder of that name is meant as what it is.
        words = " ".join(args[:2])
        if len(args) > 1 and words in self.commands and not Path(args[1]).is_dir():
            return words, self.commands[words], args[2:]
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The list of commands in plain text: rich's boxes take as long as all the rest."""
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


def finished(path: Path) -> None:
    """Prints where the result is, once for all processes of a run."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(str(path))


def show(recipe: Strict) -> None:
    from palate.recipes.load import resolve_yaml

    typer.echo(resolve_yaml(recipe), nl=False)


@contextmanager
def errors_as_lines(resume: str, again: str = "") -> Iterator[None]:
    """Turns mistakes and interruptions into lines on stderr and an exit status.

    Args:
        resume: what to add to the command to go on after an interruption.
        again: what the same command then does.
    """
    try:
        yield
    except PalateError as error:
        # Of a recipe each wrong key has a line; else a line break comes from a name or a value.
        text = str(error)
        is_recipe = isinstance(error, RecipeError)
        for line in text.splitlines() if is_recipe else [" ".join(text.split())]:
            typer.echo(f"palate: {line}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.errno not in _NOT_A_BUG or error.filename is None:
            raise
        typer.echo(f"palate: {in_one_line(error.filename)}: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        command = shlex.join(["palate", *sys.argv[1:]])
        if resume and resume not in command:
            command = f"{command} {resume}"
        hint = f" ({again})" if again else ""
        typer.echo(f"palate: interrupted; to go on: {command}{hint}", err=True)
        raise typer.Exit(130) from None
