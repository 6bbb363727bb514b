"""`palate study report`: the analysis of a study, and the page and tables that show it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palate.errors import RunError
from palate.report.study import write_study_report
from palate.store.files import read_json, write_json
from palate.store.study_records import NAME
from palate.study.analysis import analyse
from palate.study.commands import PLAN
from palate.study.run import RECIPE, stage_states
from palate.study.study import Study, load_study


def study_at(place: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Study:
    """The study of a recipe, or that of a folder in which it was run.

    Raises:
        RecipeError: the recipe is wrong. RunError: a folder without a study.
    """
    folder = Path(place)
    if not folder.is_dir():
        return load_study(place, overrides)
    folder = folder.resolve()
    file = folder / RECIPE
    if not file.is_file():
        raise RunError(f"{place}: no study was run in it ({RECIPE} is missing)")
    # The folder may have been moved since.
    return load_study(file, [f"output_dir={json.dumps(str(folder))}", *overrides])


@contextmanager
def begun_in(place: str | Path) -> Iterator[None]:
    """Works where a study was begun, if `place` is its folder: paths of its recipe start there."""
    plan = Path(place) / PLAN
    there: str | None = read_json(plan).get("directory") if plan.is_file() else None
    before = os.getcwd()
    if there is not None and Path(there).is_dir():
        os.chdir(there)
    try:
        yield
    finally:
        os.chdir(before)


def write_report(study: Study, out: str | Path | None = None) -> Path:
    """Analyses a study as far as it is finished, and writes analysis.json, page and tables.

    Args:
        out: the page, or an existing folder for it; default: report.html in the study's folder.

    Raises:
        RecipeError: the study is wrong or confounded.
        RunError: a stage's files are damaged, or a file cannot be written.
    """
    plan = study.plan()
    failures = {
        key: record.error or "without a reason"
        for key, record in stage_states(study, plan).items()
        if record is not None and record.state == "failed"
    }
    write_json(study.root / NAME, analyse(study, plan) | {"failures": failures})
    return write_study_report(study.root, out)
