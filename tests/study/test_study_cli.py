"""`palate study` and `palate stage`: mistakes in one line with status 2, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from palate.cli import app
from palate.study import report
from palate.study import run as study_run
from palate.train.foresight import NotPredicted
from study_cases import FakeExecutor, algorithm, data, evaluation_step, plan_of, policy_step, recipe

GRID = recipe(design={"type": "grid"})


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def write(value: dict[str, Any], name: str = "study.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(value))
    return name


def _no_trial(*arguments: Any) -> None:
    raise NotPredicted("no trial here")


@pytest.fixture(autouse=True)
def _no_page_and_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report and the trials of costs are tested where they are made."""

    monkeypatch.setattr("palate.study.costs._in_process", _no_trial)
    monkeypatch.setattr("palate.train.foresight.predict", _no_trial)
    monkeypatch.setattr(report, "write_report", lambda study: study.root / "report.html")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are finished without their work."""
    monkeypatch.setattr(study_run, "_executor", FakeExecutor)


def refused(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("palate: ")
    return str(line).removeprefix("palate: ")


@pytest.mark.parametrize("command", ["plan", "run", "status"])
def test_mistakes_in_a_recipe(command: str) -> None:
    assert "no recipe file nothing.yaml" in refused("study", command, "nothing.yaml")
    Path("bad.yaml").write_text("steps: [a\n b: c]: d\n")
    assert "bad.yaml, line" in refused("study", command, "bad.yaml")
    name = write(GRID | {"colour": "red"})
    assert "`colour`" in refused("study", command, name)
    odd = {"name": "x", "set": {"plicy.loss.beta": 1}}
    line = refused("study", command, write(GRID | {"aspects": [algorithm(odd), data()]}))
    assert line == "study.yaml, algorithm x: `plicy.loss.beta`: no step is named plicy"
    Path("tune.yaml").write_text("# palate tune\noutput_dir: x\n")
    line = refused("study", command, "tune.yaml")
    assert line == "tune.yaml is a recipe of `palate tune`, not `palate study`"
    assert not Path("out").exists()


def test_a_wrong_key_of_a_step_is_told_with_its_place() -> None:
    steps = [policy_step(los={"type": "dpo"}), evaluation_step()]
    line = refused("study", "plan", write(recipe(steps=steps)))
    assert line.startswith("study.yaml, line ") and "`los`" in line
    line = refused("study", "plan", write(GRID), "--set", "steps.0.recipe.loss.beta=much")
    assert "--set steps.0.recipe.loss.beta=much" in line


def test_a_confound_is_a_line() -> None:
    line = refused("study", "plan", write(recipe(budget=None)))
    assert line.startswith("study.yaml: step policy trains on other data")


def test_unknown_stages_and_folders() -> None:
    assert refused("stage", "policy-1", "--study", "nowhere") == (
        f"{Path.cwd()}/nowhere: holds no plan.json; `palate study plan RECIPE` writes it"
    )
    Path("out").mkdir()
    Path("out/plan.json").write_text('{"stages": {}}')
    assert (
        refused("stage", "policy-1", "--study", "out")
        == f"{Path.cwd()}/out/plan.json: no stage policy-1"
    )
    Path("out/plan.json").write_text("{")
    assert refused("stage", "policy-1", "--study", "out").startswith(
        f"{Path.cwd()}/out/plan.json, line 1: not JSON"
    )


def test_a_stage_whose_need_is_missing(at_once: None) -> None:
    name = write(GRID)
    assert invoke("study", "run", name).exit_code == 0
    key = next(key for key in plan_of(GRID).stages if key.startswith("evaluation"))
    (need,) = plan_of(GRID).stages[key].needs
    Path("out/stages", f"{need}.json").unlink()
    assert refused("stage", key, "--study", "out") == f"{key}: needs {need}, which is not finished"


def test_plan_and_status_before_and_after(at_once: None) -> None:
    name = write(GRID)
    before = invoke("study", "plan", name)
    assert before.exit_code == 0
    lines = before.stdout.splitlines()
    assert lines[0] == "4 cells, 8 runs, 20 stages: 0 finished, 20 to run"
    assert "  policy-reference: 4 stages, 0 finished" in lines
    assert not Path("out").exists()
    assert invoke("study", "status", name).stdout.count("to run") == 20
    result = invoke("study", "run", name)
    assert result.exit_code == 0 and result.stdout == "out/report.html\n"
    assert "20 stages run in" in result.stderr
    after = invoke("study", "plan", name).stdout.splitlines()
    assert after[0] == "4 cells, 8 runs, 20 stages: 20 finished, 0 to run"
    assert invoke("study", "status", name).stdout.count("finished") == 20


def test_a_run_that_fails_in_part_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        study_run, "_executor", lambda study: FakeExecutor(study, fails=["evaluation"])
    )
    result = invoke("study", "run", write(GRID))
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.count("failed: evaluation-") == 8
    assert "12 stages run in" in result.stderr


def test_an_interrupted_run_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_run, "_executor", lambda study: FakeExecutor(study, stops=3))
    result = invoke("study", "run", write(GRID))
    assert result.exit_code == 130
    assert "interrupted; to go on: palate" in result.stderr.splitlines()[-1]
    assert "(what is finished is kept)" in result.stderr


def test_a_report_is_made_from_anywhere(
    at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of the recipe are relative to where the study was begun."""
    assert invoke("study", "run", write(GRID)).exit_code == 0
    asked: list[Any] = []

    def page(study: Any, out: Path | None) -> Path:
        stages = study.plan().stages.values()
        asked.append([study.finished(stage) for stage in stages])
        assert out is not None
        return out

    monkeypatch.setattr(report, "write_report", page)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = invoke("study", "report", str(tmp_path / "out"), "-o", "page.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith(str(tmp_path / "elsewhere" / "page.html"))
    assert asked == [[True] * 20] and Path.cwd() == tmp_path / "elsewhere"


def test_broken_records_are_told(at_once: None) -> None:
    name = write(GRID)
    assert invoke("study", "run", name).exit_code == 0
    record = next(Path("out/stages").glob("policy-*.json"))
    record.write_text("{}")
    assert refused("study", "plan", name).startswith(f"{record}: ")


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("a/b", "`steps.0.name`: letters, digits, `_` and `-`"),
        ("a.b", "`steps.0.name`: letters, digits, `_` and `-`"),
        ("", "`steps.0.name`: expected text"),
        ("../up", "`steps.0.name`: letters, digits, `_` and `-`"),
        ("x" * 65, "`steps.0.name`: letters, digits, `_` and `-`"),
    ],
)
def test_names_of_steps_are_names_of_folders(step: str, line: str) -> None:
    value = recipe(steps=[policy_step() | {"name": step}, evaluation_step(runs=[f"step:{step}"])])
    assert line in refused("study", "plan", write(value))


@pytest.mark.parametrize("variant", ["a/b", "x" * 300, "[bold]", "../..", "é, ü"])
def test_names_of_variants_are_any_text(variant: str, at_once: None) -> None:
    named = {"name": variant, "set": {"policy.loss.type": "tdpo2"}}
    aspects = [{"name": "algorithm", "variants": [{"name": "dpo"}, named]}]
    value = recipe(aspects=aspects, seeds=[0])
    assert invoke("study", "run", write(value)).exit_code == 0
    assert sorted(path.name for path in Path.cwd().iterdir() if path.is_dir()) == ["base", "out"]


def test_a_resolved_recipe_is_a_recipe() -> None:
    printed = invoke("study", "plan", write(GRID), "--print-recipe").stdout
    Path("resolved.yaml").write_text(printed)
    assert invoke("study", "plan", "resolved.yaml", "--print-recipe").stdout == printed
    plan = [invoke("study", "plan", name).stdout for name in ("study.yaml", "resolved.yaml")]
    assert plan[0] == plan[1] != ""
