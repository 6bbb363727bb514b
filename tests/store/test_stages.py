"""Stages: the order of needs, what is skipped and why, whole folders, errors kept apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from graphlib import CycleError
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from palate.store.stages import Result, Results, Stage, keys_of, run_stages


class Log:
    """Stages that write down that they were run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def stage(self, name: str, *needs: str, **more: Any) -> Stage:
        def run(folder: Path, results: Results) -> Result:
            self.ran.append(name)
            return {"of": name, "saw": sorted(results)}

        return Stage(**{"name": name, "needs": needs, "run": run} | more)


def writing(text: str) -> Callable[[Path, Results], None]:
    def run(folder: Path, results: Results) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text(text)

    return run


def test_stages_run_once_each_in_the_order_of_their_needs(tmp_path: Path) -> None:
    log = Log()
    stages = [log.stage("c", "a", "b"), log.stage("b"), log.stage("a", "b"), log.stage("d")]
    records = run_stages(stages, tmp_path)
    assert log.ran == ["b", "d", "a", "c"]
    assert records["c"].result == {"of": "c", "saw": ["a", "b", "d"]}
    again = run_stages(stages, tmp_path)
    assert log.ran == ["b", "d", "a", "c"] and again == records
    run_stages([log.stage("a", "b"), log.stage("b"), log.stage("e", always=True)], tmp_path)
    run_stages([log.stage("e", always=True)], tmp_path)
    assert log.ran == ["b", "d", "a", "c", "e", "e"]


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ({"b": {"inputs": {"seed": 2}}}, ["b", "a"]),
        ({"b": {"version": 2}}, ["b", "a"]),
        ({"a": {"inputs": [1]}}, ["a"]),
        ({"a": {"needs": ("b", "d")}}, ["a"]),
        ({"d": {"title": "another"}}, []),
    ],
    ids=str,
)
def test_what_depends_on_a_change_is_done_anew(
    change: dict[str, Any], rerun: list[str], tmp_path: Path
) -> None:
    log = Log()
    stages = [log.stage("b", inputs={"seed": 1}), log.stage("a", "b"), log.stage("d")]
    run_stages(stages, tmp_path)
    log.ran.clear()
    run_stages([replace(s, **change.get(s.name, {})) for s in stages], tmp_path)
    assert log.ran == rerun


def test_another_version_of_the_code_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [Log().stage("a")]
    before = keys_of(stages)
    monkeypatch.setattr("palate.store.stages.__version__", "9.9")
    assert keys_of(stages) != before


def test_a_whole_folder_is_there_in_one_step_or_not_at_all(tmp_path: Path) -> None:
    def half(folder: Path, results: Results) -> None:
        writing("new")(folder, results)
        assert not (tmp_path / "a" / "file").exists() or (tmp_path / "a/file").read_text() == "old"
        raise KeyboardInterrupt

    for before in (None, "old"):
        if before is not None:
            run_stages([Stage(name="a", run=writing(before), whole=True)], tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run_stages([Stage(name="a", run=half, whole=True, version=2)], tmp_path)
        assert [p.name for p in tmp_path.glob("a*")] == ([] if before is None else ["a"])
    # The interrupted stage is not finished, and what it was to replace is.
    assert (tmp_path / "a/file").read_text() == "old"
    run_stages([Stage(name="a", run=writing("new"), whole=True, version=2)], tmp_path)
    assert (tmp_path / "a/file").read_text() == "new"


def test_a_stage_whose_folder_is_gone_is_done_again(tmp_path: Path) -> None:
    stage = Stage(name="a", run=writing("x"), whole=True)
    run_stages([stage], tmp_path)
    (tmp_path / "a/file").unlink()
    (tmp_path / "a").rmdir()
    run_stages([stage], tmp_path)
    assert (tmp_path / "a/file").exists()


def fails(folder: Path, results: Results) -> None:
    raise ValueError("no\nluck")


def test_an_error_ends_the_run_or_only_what_needs_the_stage(tmp_path: Path) -> None:
    log = Log()
    bad = Stage(name="bad", run=fails)
    stages = [bad, log.stage("needs it", "bad"), log.stage("and it", "needs it"), log.stage("free")]
    with pytest.raises(ValueError, match="no"):
        run_stages(stages, tmp_path)
    assert log.ran == []
    record = json.loads((tmp_path / "stages/bad.json").read_text())
    assert (record["state"], record["error"]) == ("failed", "ValueError: no luck")
    records = run_stages(stages, tmp_path, keep_going=True)
    assert log.ran == ["free"]
    assert {name: r.state for name, r in records.items()} == {
        "bad": "failed", "needs it": "skipped", "and it": "skipped", "free": "finished",
    }  # fmt: skip
    assert records["needs it"].error == "needs bad"
    # Put right, it goes on with what is missing.
    run_stages([log.stage("bad"), *stages[1:]], tmp_path)
    assert log.ran == ["free", "bad", "needs it", "and it"]


def test_lists_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(ValueError, match="of one name"):
        run_stages([log.stage("a"), log.stage("a")], tmp_path)
    with pytest.raises(ValueError, match="no stage of the name b"):
        run_stages([log.stage("a", "b")], tmp_path)
    with pytest.raises(CycleError):
        run_stages([log.stage("a", "b"), log.stage("b", "a")], tmp_path)
    assert log.ran == []


def test_the_user_hears_what_begins_and_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    stages = [
        log.stage("a", title="First", seconds=70.0),
        log.stage("quiet"),
        log.stage("b", title="Second", seconds=20.0),
    ]
    console = Console(width=80)
    run_stages(stages, tmp_path, console=console)
    run_stages(stages[:1], tmp_path, console=console)
    assert capsys.readouterr().out.splitlines() == [
        "1/2 First (about 1 min 30 s left)",
        "2/2 Second (about 20 s left)",
        "1/1 First (about 1 min 10 s left)",
        "  finished before",
    ]
