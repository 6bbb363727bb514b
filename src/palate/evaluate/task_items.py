"""The lines of tasks.jsonl: a number of an item of a public task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from palate.store.files import read_jsonl

ITEMS = "tasks.jsonl"


def task_items(file: Path, task: str | None) -> Iterator[tuple[str, float]]:
    """Item and value of the first metric of each task; of one task where named.

    Raises:
        RunError: the file cannot be read, or a line is no JSON.
    """
    first: dict[str, tuple[str, str]] = {}
    for row in read_jsonl(file):
        if task not in (None, row["task"]):
            continue
        metric = (row["metric"], row["filter"])
        if first.setdefault(row["task"], metric) == metric:
            yield f"{row['task']}|{row['id']}", row["value"]
