"""A study on a real local Ray cluster: each stage is a job with its cores, none starts early."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="extra ray is not installed")

from palate.errors import RunError
from palate.recipes.study import RayExecutor
from palate.study.executors import Job
from palate.study.ray import RayJobs

PORT = 8299


@pytest.fixture(scope="module")
def cluster():
    """The dashboard's address of a cluster of two cores, on this machine."""
    ray = Path(sys.executable).with_name("ray")
    start = [str(ray), "start", "--head", "--num-cpus=2", f"--dashboard-port={PORT}"]
    subprocess.run(
        [*start, "--port=6399", "--disable-usage-stats"], check=True, capture_output=True
    )
    yield f"http://127.0.0.1:{PORT}"
    subprocess.run([str(ray), "stop", "--force"], check=True, capture_output=True)


def executor(cluster, root, **options):
    recipe = RayExecutor(address=cluster, **({"cores_per_stage": 2} | options))
    return RayJobs(recipe, root)


def fake_palate(folder: Path, script: str) -> Path:
    """A command `palate` that logs when it begins and ends."""
    file = folder / "palate"
    file.write_text(f"#!{sys.executable}\n{script}")
    file.chmod(0o755)
    return file


def commands(monkeypatch, folder, script):
    from palate.study import ray as module

    command = fake_palate(folder, script)
    monkeypatch.setattr(module, "stage_command", lambda root, key: [str(command), key, str(root)])


LOGGED = """
import json, sys, time
key, root = sys.argv[1:]
begun = time.time()
time.sleep(1.0)
with open(f"{root}/{key}.json", "w") as file:
    json.dump([begun, time.time()], file)
print("did", key)
"""


def drained(jobs):
    ended = {}
    while jobs._running:
        ended |= jobs.wait()
    return ended


def test_jobs_take_their_cores_and_follow_one_another(cluster, tmp_path, monkeypatch):
    commands(monkeypatch, tmp_path, LOGGED)
    jobs = executor(cluster, tmp_path)
    for key in ("a", "b", "c"):
        assert jobs.has_room(Job(key=key, cores=2))
        jobs.begin(Job(key=key, cores=2))
    assert drained(jobs) == {"a": None, "b": None, "c": None}
    spans = sorted(json.loads((tmp_path / f"{key}.json").read_text()) for key in "abc")
    # Each asked for both cores of the cluster: no two at once.
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert (tmp_path / "logs" / "a.log").read_text().splitlines()[-1] == "did a"


def test_a_job_that_fails_is_begun_again_and_then_told(cluster, tmp_path, monkeypatch):
    counted = """
import sys
from itertools import pairwise
from pathlib import Path
key, root = sys.argv[1:]
file = Path(root) / f"{key}.times"
times = file.read_text() + "x" if file.exists() else "x"
file.write_text(times)
sys.exit(0 if key == "flaky" and len(times) == 2 else 3)
"""
    commands(monkeypatch, tmp_path, counted)
    jobs = executor(cluster, tmp_path, attempts=2)
    jobs.begin(Job(key="flaky", cores=2))
    jobs.begin(Job(key="broken", cores=2))
    ended = drained(jobs)
    assert ended["flaky"] is None
    assert ended["broken"] is not None and ended["broken"].startswith("failed")
    assert (tmp_path / "broken.times").read_text() == "xx"


def test_no_cluster_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"no Ray cluster at http://127\.0\.0\.1:1"):
        executor("http://127.0.0.1:1", tmp_path)


def test_a_study_runs_on_the_cluster(cluster, tmp_path):
    """The whole way: `palate study run` with the real command line of stages."""
    from study_cases import tiny_study  # type: ignore[import-not-found]

    study = tiny_study(tmp_path, executor={"type": "ray", "address": cluster, "cores_per_stage": 2})
    palate = Path(sys.executable).with_name("palate")
    done = subprocess.run([str(palate), "study", "run", str(study)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
