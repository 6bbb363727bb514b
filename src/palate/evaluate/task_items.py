"""The lines of tasks.jsonl: a number of an item of a public task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from palate.errors import RunError

ITEMS = "tasks.jsonl"


def task_items(file: Path, task: str | None) -> Iterator[tuple[str, float]]:
    """Item and value of the first metric of each task; of one task where named.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}") from None
    first: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        row = json.loads(line)
        if task not in (None, row["task"]):
            continue
        metric = (row["metric"], row["filter"])
        if first.setdefault(row["task"], metric) == metric:
            yield f"{row['task']}|{row['id']}", row["value"]
