"""The run folder: opened, refused or gone on with, and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from palate.errors import RunError
from palate.recipes.schema import DemoRecipe
from palate.store.folder import RunFolder, is_finished
from palate.store.folders import lock_folder
from palate.store.records import (
    AlarmRecord,
    Conclusion,
    Data,
    Evaluation,
    Status,
    read_lines,
    read_record,
)
from palate.store.reward_records import RewardEvaluation


def recipe(path: Path, *, resume: bool = False, seed: int = 0) -> DemoRecipe:
    return DemoRecipe(output_dir=path, resume=resume, seed=seed)


def status(path: Path) -> Status:
    return read_record(path / "status.json", Status)


def ended(path: Path, error: type[BaseException] | None, *, worked: bool) -> None:
    """A run that ended in a folder, by an error or well."""
    try:
        with RunFolder.open(recipe(path)) as folder:
            assert status(path).state == "running"
            folder.step = 7
            if worked:
                folder.log("train", 7, 0.5, {"loss": 0.25})
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "finished"), (KeyboardInterrupt, "interrupted"), (ValueError, "failed")],
)
def test_the_status_is_true_however_the_run_ends(
    error: type[BaseException] | None, state: str, tmp_path: Path
) -> None:
    ended(tmp_path / "run", error, worked=True)
    record = status(tmp_path / "run")
    assert (record.state, record.step) == (state, 7) and record.ended is not None
    assert is_finished(tmp_path / "run") == (state == "finished")


def test_a_used_folder_is_refused_or_gone_on_with(tmp_path: Path) -> None:
    ended(tmp_path, KeyboardInterrupt, worked=True)
    started, seconds = status(tmp_path).started, status(tmp_path).seconds
    with pytest.raises(RunError, match="holds a run already; set `resume: true`"):
        RunFolder(recipe(tmp_path))
    with pytest.raises(RunError, match=r"another recipe \(seed: 0 then, 5 now\)"):
        RunFolder(recipe(tmp_path, resume=True, seed=5))
    with RunFolder.open(recipe(tmp_path, resume=True)) as folder:
        assert not folder.finished and seconds is not None and folder.seconds >= seconds
    assert status(tmp_path).started == started
    assert RunFolder(recipe(tmp_path, resume=True)).finished


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_run_that_came_to_nothing_leaves_the_folder_free(
    error: type[BaseException], tmp_path: Path
) -> None:
    ended(tmp_path, error, worked=False)
    with RunFolder.open(recipe(tmp_path, seed=5)):
        pass
    # What has finished is a run, whatever it left behind.
    with pytest.raises(RunError, match="holds a run already"):
        RunFolder(recipe(tmp_path))


@pytest.mark.parametrize("left", ["model/x", "parts/x", "stages/x", "checkpoints/step-000001/x"])
def test_work_of_any_kind_keeps_other_runs_out(left: str, tmp_path: Path) -> None:
    ended(tmp_path, ValueError, worked=False)
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_text("")
    with pytest.raises(RunError, match="holds a run already"):
        RunFolder(recipe(tmp_path))


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "left", ["checkpoints/step-000001/x", "model/x", "data.json", "metrics.jsonl", "report.html"]
)
def test_what_a_run_left_is_not_taken_over_without_its_recipe(
    left: str, resume: bool, tmp_path: Path
) -> None:
    ended(tmp_path, KeyboardInterrupt, worked=True)
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("{}")
    name = left.removesuffix("/x")
    with pytest.raises(RunError, match=rf"holds {name} and no recipe\.yaml to tell whose it is"):
        RunFolder(recipe(tmp_path, resume=resume))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / left]


def test_a_folder_of_other_things_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("x")
    with RunFolder.open(recipe(tmp_path)):
        pass
    assert (tmp_path / "train.log").read_text() == "x"


def test_one_process_at_a_time_and_only_one_that_writes(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(RunError, match="another process writes to it"):
        RunFolder.open(recipe(tmp_path)).__enter__()
    reader = RunFolder(recipe(tmp_path), writes=False)
    with reader.running():
        reader.write(Data())
        reader.log("train", 1, 0.1, {})
        reader.write_quarantine([{"row": 1}])
    assert list(tmp_path.iterdir()) == []


def test_records_go_to_the_file_of_their_kind_and_lose_nothing(tmp_path: Path) -> None:
    document = {"kind": "x", "sources": [{"name": "a", "read": 3, "later": {"n": 1}}], "more": [1]}
    with RunFolder.open(recipe(tmp_path)) as folder:
        folder.write(Data.of(document))
        folder.write(RewardEvaluation.of({"kind": "r", "models": [{"name": "m", "odd": 1.5}]}))
        folder.write(Conclusion(lines=("one",)))
    assert json.loads((tmp_path / "data.json").read_text()) == document
    assert read_record(tmp_path / "data.json", Data).sources[0].read == 3
    models = json.loads((tmp_path / "evaluation.json").read_text())["models"]
    assert models == [{"name": "m", "odd": 1.5}]
    (tmp_path / "evaluation.json").write_text('{"policies": [{"checkpoint": "last"}]}')
    with pytest.raises(RunError, match=r"evaluation\.json: policies\.0\.checkpoint: "):
        read_record(tmp_path / "evaluation.json", Evaluation)


def test_lines_of_the_log_past_a_step_are_cut(tmp_path: Path) -> None:
    with RunFolder.open(recipe(tmp_path)) as folder:
        for step in (1, 2, 3):
            folder.log("train", step, step / 3, {"loss": 1.0 / step})
        with (tmp_path / "metrics.jsonl").open("a") as log:
            log.write('{"step": 1, "cut o')
        for step in (2, 3):
            folder.log_alarm(AlarmRecord(step=step, alarm="no_variance"))
        folder.cut_metrics(2)
    alarms = read_lines(tmp_path / "alarms.jsonl", AlarmRecord).records
    assert [alarm.step for alarm in alarms] == [2]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"], line["loss"]) for line in lines] == [
        (1, "train", 1.0), (2, "train", 0.5),
    ]  # fmt: skip
