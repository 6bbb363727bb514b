"""Errors that a user can act on.

PalateError (a ValueError)
  RecipeError   a recipe or override is wrong: names the key, the nearest valid key, file and line
  DataError     a data file or row is wrong: names file, row and field
  ModelError    a model folder, tokenizer, template or checkpoint cannot be used
  RunError      a run folder cannot be read, written or resumed

The command line prints each as one line and exits with status 2; everything else is a bug and
keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class PalateError(ValueError):
    """Base of every error whose message is meant for the user."""


class RecipeError(PalateError):
    """A recipe, an override or an option that the chosen path does not use."""


class DataError(PalateError):
    """A data file or one of its rows.

    Args:
        message: what is wrong, in one line.
        file: the file it is in.
        row: 1-based row (line for JSONL and CSV, record for Parquet and JSON).
        field: the field, dotted.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        where = str(file) if file is not None else ""
        if row is not None:
            where += f"{', ' if where else ''}row {row}"
        if field is not None:
            where += f"{', ' if where else ''}field '{field}'"
        super().__init__(f"{where}: {message}" if where else message)
        self.reason = message
        self.file = file
        self.row = row
        self.field = field


class ModelError(PalateError):
    """A model, tokenizer, chat template or checkpoint that cannot be used."""


class RunError(PalateError):
    """A run folder that cannot be read, written or resumed."""


def in_one_line(value: object, most: int = 120) -> str:
    """`value` as text for a message: in one line, printable, and cut inside where it is longer than
    `most`; of an error without a message its class."""
    words = " ".join(str(value).split())
    if not words and isinstance(value, BaseException):
        words = type(value).__name__
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return text if len(text) <= most else f"{text[: most - 23]} ... {text[-18:]}"
