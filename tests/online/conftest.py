"""Runs of online learning share a folder, and with it a model and its start checks."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_report" not in request.node.name:
        monkeypatch.setattr(
            "palate.report.write_report", lambda runs, *more: runs[0] / "report.html"
        )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("online")
