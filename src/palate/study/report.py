"""`palate study report`: the analysis of a study, and the page and tables that show it."""

from __future__ import annotations

from pathlib import Path

from palate.report.study import write_study_report
from palate.store.files import write_json
from palate.store.study_records import NAME
from palate.study.analysis import analyse
from palate.study.run import stage_states
from palate.study.study import Study


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
