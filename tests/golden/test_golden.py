"""Numbers that were recorded once, through the outer surface alone: they stay what they were.

`golden.json` holds losses, gradient norms, statistics and scores of tiny runs in float32. Where a
case fails, the code computes something else than it did. `record.py` says how to record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from golden.cases import CASES
from golden.record import GOLDEN
from golden.running import differences, quiet_machine

RECORDED: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with quiet_machine():
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the models and rows of all cases."""
    return tmp_path_factory.mktemp("golden")


def test_every_case_is_recorded() -> None:
    assert sorted(RECORDED) == sorted(CASES)


def test_the_second_step_shows_the_first_gradient() -> None:
    """Else a wrong gradient would go unseen."""
    for name, values in RECORDED.items():
        for key, first in values.items():
            stage, step, last = key.rpartition("train 1.loss")
            if step and not last:
                assert abs(values[f"{stage}train 2.loss"] - first) > 1e-3, (name, key)


@pytest.mark.parametrize("name", sorted(CASES))
def test_numbers_are_those_recorded(name: str, shared: Path) -> None:
    found = CASES[name](shared / name.replace("/", "_"))
    if lines := differences(found, RECORDED[name]):
        pytest.fail(f"golden case {name}:\n" + "\n".join(lines), pytrace=False)
