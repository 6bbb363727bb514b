"""The script for Slurm, run with a stand-in for `sbatch` that runs jobs as Slurm would."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from palate.recipes.study import StudyRecipe
from palate.study import slurm
from palate.study.costs import Cost, Costs
from palate.study.graph import StudyStage
from palate.study.plan import Plan
from palate.study.slurm import write_script
from study_cases import algorithm, plant, recipe, study_of, tuning, validating

SBATCH = """#!/usr/bin/env bash
# Prints a job's number, and notes name, needs and command.
n=$(($(cat jobs 2>/dev/null | wc -l) + 1))
after=none
for word in "$@"; do
  case "$word" in
    --job-name=*) name="${word#*=}" ;;
    --dependency=afterok:*) after="${word#*afterok:}" ;;
    --wrap=*) wrap="${word#*=}" ;;
  esac
done
echo "$n|$name|$after|$wrap|$*" >> jobs
echo "$n"
"""


def submitted(script: Path) -> list[list[str]]:
    """[number, name, needs, command, all words] of each job."""
    binary = Path("bin")
    binary.mkdir(exist_ok=True)
    (binary / "sbatch").write_text(SBATCH)
    (binary / "sbatch").chmod(stat.S_IRWXU)
    path = f"{binary.resolve()}:{os.environ['PATH']}"
    subprocess.run(["bash", str(script)], check=True, env=os.environ | {"PATH": path})
    return [line.split("|", 4) for line in Path("jobs").read_text().splitlines()]


def test_jobs_follow_those_that_they_need() -> None:
    study = study_of(recipe(aspects=[algorithm()]))
    stages = study.plan().stages
    assert write_script(study, Path("submit.sh"), ["--partition=gpu"]) == len(stages)
    jobs = submitted(Path("submit.sh"))
    number = {name: n for n, name, *_ in jobs}
    assert number.keys() == stages.keys()
    for n, name, after, command, words in jobs:
        needs = stages[name].needs
        assert set(after.split(":")) == ({number[need] for need in needs} or {"none"})
        assert all(int(number[need]) < int(n) for need in needs)
        assert command == f"palate stage {name} --study {study.root.resolve()}"
        assert "--partition=gpu" in words and "--kill-on-invalid-dep=yes" in words


def test_what_is_finished_is_no_job_and_no_need() -> None:
    study = study_of(recipe(aspects=[algorithm()]))
    stages = study.plan().stages
    done = [stage for stage in stages.values() if stage.verb == "reference cache"]
    for stage in done:
        plant(study, stage)
    assert write_script(study, Path("submit.sh")) == len(stages) - len(done)
    jobs = submitted(Path("submit.sh"))
    assert all(after == "none" for _, name, after, *_ in jobs if stages[name].step == "policy")


def test_time_and_memory_are_asked_for_where_trials_have_told_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cost(self: Costs, stage: StudyStage, plan: Plan) -> Cost | None:
        known = stage.step == "policy"
        return Cost(seconds=300.0, memory_bytes=2**30) if known else None

    monkeypatch.setattr(Costs, "of", cost)
    write_script(study_of(recipe(aspects=[algorithm()])), Path("submit.sh"))
    for _, name, *_, words in submitted(Path("submit.sh")):
        asked = "--time=16 --mem=1332M" in words
        assert asked is name.startswith("policy-") or "reference" in name
    assert slurm.ROOM * 300 / 60 + 1 == 16


def test_paths_with_spaces_and_quotes_stay_one_word() -> None:
    folder = Path("it's a folder")
    study = study_of(recipe(aspects=[algorithm()], output_dir=str(folder)))
    write_script(study, Path("submit.sh"))
    (_, name, _, command, _), *_ = submitted(Path("submit.sh"))
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == ["palate", "stage", name, "--study", str(folder.resolve())]


def test_what_hangs_on_results_is_told_in_the_script() -> None:
    study = study_of(validating(tuning=tuning()))
    assert isinstance(study.recipe, StudyRecipe)
    write_script(study, Path("submit.sh"))
    assert "# later: " in Path("submit.sh").read_text()
