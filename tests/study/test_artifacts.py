"""Finished stages in a store beside the study's folder: pushed, fetched, damaged, cut off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from palate.errors import RunError
from palate.study.analysis import analyse
from palate.study.artifacts import Artifacts
from palate.study.graph import ordered
from palate.study.run import run_study
from palate.study.study import Study
from study_cases import FakeExecutor, algorithm, plant, recipe, study_of


def study(**changes: Any) -> Study:
    return study_of(recipe(aspects=[algorithm()], **changes))


class Pushing(FakeExecutor):
    """As the command of a stage does: its artifacts are pushed when it has ended."""

    def wait(self) -> dict[str, str | None]:
        ended = super().wait()
        address = self.study.recipe.artifacts
        for key in ended if address else ():
            Artifacts(str(address)).push(self.study.root, self.study.plan().stages[key])
        return ended


def test_a_second_machine_fetches_and_computes_nothing() -> None:
    first = study(artifacts=str(Path("store").resolve()), output_dir="first")
    run_study(first, make_executor=Pushing)
    second = study(artifacts=str(Path("store").resolve()), output_dir="second")
    executor = Pushing(second)
    progress = run_study(second, make_executor=lambda _: executor)
    assert executor.begun == [] and progress.executed == {}
    stages = first.plan().stages
    assert stages.keys() == second.plan().stages.keys()
    for key, stage in stages.items():
        assert second.record(stage) == first.record(stage)
        if stage.verb == "eval":
            pairs = Path("second", key, "pairs.jsonl")
            assert pairs.read_bytes() == Path("first", key, "pairs.jsonl").read_bytes()
    numbers = [[run["values"] for run in analyse(s)["runs"]] for s in (first, second)]
    assert numbers[0] == numbers[1]
    assert not list(Path("second").glob(".*"))


def test_what_was_cut_off_is_not_there() -> None:
    one = study(artifacts="store", output_dir="first")
    run_study(one, make_executor=Pushing)
    lost = next(s for s in ordered(one.plan().stages) if s.verb == "eval")
    Path("store", lost.key, "artifact.json").unlink()
    again = study(artifacts="store", output_dir="second")
    executor = Pushing(again)
    run_study(again, make_executor=lambda _: executor)
    assert executor.begun == [lost.key]


def test_what_was_changed_is_refused_and_leaves_nothing() -> None:
    one = study(artifacts="store", output_dir="first")
    run_study(one, make_executor=Pushing)
    stage = next(s for s in ordered(one.plan().stages) if s.verb == "eval")
    file = Path("store", stage.key, stage.key, "pairs.jsonl")
    file.write_text(file.read_text().replace("test:0", "test:9"))
    with pytest.raises(RunError, match=r"pairs\.jsonl is not as it was written"):
        Artifacts("store").fetch(Path("second"), stage)
    assert not Path("second", stage.key).exists()
    assert not list(Path("second").glob(".*"))


def test_a_push_is_made_once_and_never_of_what_is_not_finished() -> None:
    one = study(output_dir="first")
    cache, policy = list(ordered(one.plan().stages))[:2]
    artifacts = Artifacts("store")
    artifacts.push(one.root, cache)
    assert not Path("store").exists()
    plant(one, cache)
    artifacts.push(one.root, cache)
    manifest = Path("store", cache.key, "artifact.json")
    before = manifest.stat().st_mtime_ns
    artifacts.push(one.root, cache)
    assert manifest.stat().st_mtime_ns == before
    assert artifacts.fetch(Path("second"), cache)
    assert not artifacts.fetch(Path("second"), policy)


def test_a_reference_cache_travels_with_its_stage() -> None:
    one = study(output_dir="first")
    cache = next(s for s in ordered(one.plan().stages) if s.verb == "reference cache")
    plant(one, cache)
    shard = one.root / "reference_cache" / "id" / "shard.safetensors"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"numbers")
    Artifacts("store").push(one.root, cache)
    shutil.rmtree(one.root)
    assert Artifacts("store").fetch(Path("second"), cache)
    assert Path("second/reference_cache/id/shard.safetensors").read_bytes() == b"numbers"


def test_an_address_that_cannot_be_used_is_one_line() -> None:
    with pytest.raises(RunError, match="artifacts nowhere://x"):
        Artifacts("nowhere://x")


def test_a_manifest_names_every_file(tmp_path: Path) -> None:
    one = study(output_dir="first")
    stage = next(s for s in ordered(one.plan().stages) if s.verb == "eval")
    plant(one, stage, [1.0, -1.0])
    Artifacts("store").push(one.root, stage)
    manifest = json.loads(Path("store", stage.key, "artifact.json").read_text())
    assert list(manifest["files"]) == [f"{stage.key}/pairs.jsonl"]
    assert manifest["record"]["state"] == "finished"
