"""Every test has a folder with a model's files and pairs, and works in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from study_cases import write_files


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
