"""Most runs here are about weights and files: their report is left out."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_report" not in request.node.name:
        monkeypatch.setattr(
            "palate.report.write_report", lambda runs, *more: runs[0] / "report.html"
        )
