"""How a golden case is run, and what is written down of it.

Only the outer surface of palate is used: recipes, the verbs, `load_scorer`, and the files that runs
write. What is within may change; these numbers may not.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import peft
import torch

import palate
import palate.report

Values = dict[str, Any]
"""What a case comes to: flat names, and numbers or texts."""

Case = Callable[[Path], Values]
"""Runs in a folder of its own, whose parent holds the models and rows that cases share."""

LEFT_OUT = frozenset(
    {"split", "step", "time", "pairs_per_second", "tokens_per_second", "displacement/chosen"}
)
"""Of lines of metrics.jsonl: their place, which is in the name, times and rates; and the difference
of two sums of log-probs that are rounded more than it is large. Rewards show it times beta."""

TOLERANCE = 1e-6


@contextmanager
def quiet_machine() -> Iterator[None]:
    """One thread, and nothing that costs more than the runs: reports, model cards, waiting for the
    disk, and a garbage collector that looks at all of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    try:
        with (
            patch.object(palate.report, "write_report", lambda runs, *_: runs[0] / "report.html"),
            patch.object(peft.PeftModel, "create_or_update_model_card", lambda *_: None),
            patch.object(os, "fsync", lambda _: None),
        ):
            yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


def metrics_of(run: Path, prefix: str = "") -> Values:
    """The lines of metrics.jsonl, each value under `split step.name`, and the layout that was run:
    a shared one that is wrong would be found at the start, and give the numbers of the plain one.
    """
    lineage = json.loads((run / "lineage.json").read_text())
    values: Values = {f"{prefix}layout": lineage["layout"]["used"]}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        place = f"{prefix}{line['split']} {line['step']}"
        values |= {
            f"{place}.{name}": value
            for name, value in line.items()
            if name not in LEFT_OUT and not name.startswith("seconds")
        }
    return values


def evaluation_of(run: Path, prefix: str = "") -> Values:
    """Accuracy, margin and rewards of evaluation.json, where there is one."""
    file = run / "evaluation.json"
    if not file.exists():
        return {}
    (entry,) = json.loads(file.read_text())["policies"]
    known = {key: entry[key] for key in ("rewards", "heads") if key in entry}
    known |= {key: entry["preference"]["all"][key] for key in ("accuracy", "margin")}
    return {f"{prefix}evaluation.{name}": value for name, value in flat(known).items()}


def scores_of(
    source: Any, asked: Sequence[tuple[Any, Sequence[Any]]], prefix: str = "scores"
) -> Values:
    """Scores, and what was written about them, of every response to every prompt."""
    scorer = palate.load_scorer(source)
    values: Values = {}
    for i, (prompt, responses) in enumerate(asked):
        for j, score in enumerate(scorer.score(prompt, responses)):
            values[f"{prefix}.{i}.{j}"] = score.value
            if score.text is not None:
                values[f"{prefix}.{i}.{j}.text"] = score.text
    return values


def flat(tree: Any, name: str = "") -> Values:
    """Leaves of nested mappings and lists, under dotted names."""
    if isinstance(tree, Mapping):
        children = tree.items()
    elif isinstance(tree, list):
        children = enumerate(tree)  # type: ignore[assignment]
    else:
        return {name: tree}
    values: Values = {}
    for key, child in children:
        values |= flat(child, f"{name}.{key}" if name else str(key))
    return values


def differences(found: Values, recorded: Values) -> list[str]:
    """A line for every recorded value that is not there, or is another one.

    Names that were not recorded are new statistics, and no difference.
    """
    lines = []
    for name, right in recorded.items():
        if name not in found:
            lines.append(f"{name}: recorded {right!r}, and not there")
        elif not _equal(found[name], right):
            lines.append(
                f"{name}: {found[name]!r}, recorded {right!r}{_distance(found[name], right)}"
            )
    return lines


def _equal(value: Any, right: Any) -> bool:
    if not (_is_number(value) and _is_number(right)):
        return bool(value == right)
    return abs(value - right) <= TOLERANCE * max(1.0, abs(right))


def _distance(value: Any, right: Any) -> str:
    numbers = _is_number(value) and _is_number(right)
    return f", {abs(value - right):.2g} apart" if numbers else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
