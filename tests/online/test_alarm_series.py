"""Alarms against recorded logs, and the figures that benchmarks/alarms.py makes of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from palate.train.alarms import alarms_of
from synthetic_series import FAILURES, failing, healthy

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "alarms.py"
RECORDED = sorted((Path(__file__).parent / "series").glob("*.jsonl"))
"""Logs that `benchmarks/alarms.py record` wrote; the first line has the label."""


@pytest.fixture(scope="module")
def alarms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("alarms_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["alarms_benchmark"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_failure_is_seen(path: Path, alarms: ModuleType) -> None:
    series = alarms.read_series(path)
    begun = {alarm.alarm for alarm in alarms_of(series.lines)}
    assert series.label == alarms.HEALTHY or series.label in begun


def test_recorded_healthy_runs_stay_below_one_false_alarm_in_twenty(alarms: ModuleType) -> None:
    series = [alarms.read_series(path) for path in RECORDED]
    wrong, runs = alarms.judge(series, "reward/gold")["healthy"]
    assert runs > 0 and wrong <= 0.05 * runs


def test_detection_false_alarms_and_lead_are_counted(alarms: ModuleType, capsys: Any) -> None:
    series = [alarms.Series(str(seed), "healthy", tuple(healthy(seed))) for seed in range(4)]
    # Labelled healthy, it is a false alarm; labelled with another alarm, a failure not seen.
    collapse = tuple(failing("entropy_collapse", 0))
    series += [alarms.Series(label, label, collapse) for label in ("healthy", "mismatch")]
    series += [alarms.Series(name, name, tuple(failing(name, 3))) for name in FAILURES]
    result = alarms.judge(series, "reward/gold")
    assert result["healthy"] == (1, 5) and "entropy_collapse" in result["false"]
    assert result["seen"]["mismatch"] == (1, 2) and result["seen"]["eos_collapse"] == (1, 1)
    assert result["any"] == (len(FAILURES) + 1,) * 2
    assert set(result["leads"]) == set(FAILURES)
    alarms.show(result)
    assert "false alarms, runs: 1/5 = 20.0% [3.6%, 62.4%]" in capsys.readouterr().out


def test_the_gold_score_falls_where_it_falls_for_good(alarms: ModuleType) -> None:
    def lines(*gold: float) -> list[dict[str, Any]]:
        return [{"split": "eval", "step": 10 * i, "g": g} for i, g in enumerate(gold)]

    assert alarms.gold_fall(lines(0.0, 0.4, 1.0, 0.9, 0.7, 0.6), "g") == 40
    assert alarms.gold_fall(lines(0.0, 1.0, 0.5, 0.9, 0.5, 0.2), "g") == 40  # it came back once
    assert alarms.gold_fall(lines(0.0, 0.5, 1.0, 0.8), "g") is None
    assert alarms.gold_fall(lines(1.0, 0.5, 0.0), "g") is None  # it never gained
    assert alarms.gold_fall(lines(0.0, 1.0, 0.0), "h") is None


def test_a_recorded_series_sounds_as_the_run_did(tmp_path: Path, alarms: ModuleType) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = failing("kl_explosion", 1)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = alarms.record("kl_explosion", run, tmp_path, "synthetic")
    assert path.name == "kl_explosion-run.jsonl"
    series = alarms.read_series(path)
    assert alarms_of(series.lines) == alarms_of(lines) != []
    assert series.label == "kl_explosion"
    assert alarms.gold_fall(series.lines, "reward/gold") == alarms.gold_fall(lines, "reward/gold")
    with pytest.raises(SystemExit, match="no alarm"):
        alarms.read_series(path, "kl")
    with pytest.raises(SystemExit, match="no label"):
        alarms.read_series(run)
