"""A script that hands a study's stages to Slurm, each after those that it needs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from palate.store.files import write_text
from palate.study.commands import write_plan
from palate.study.costs import Cost, Costs
from palate.study.executors import LOGS, stage_command
from palate.study.graph import ordered
from palate.study.study import Study

ROOM = 3.0
"""Times the predicted time that a job may take: another machine is another machine."""


def write_script(study: Study, file: Path, options: Sequence[str] = ()) -> int:
    """Writes a script of `sbatch` lines for the stages that are not finished, with `afterok`.

    Where trials have told time and memory, jobs ask for as much, with room. What hangs on results
    (after tuning, after a round of halving) is not in it: write it again when these are there.

    Args:
        options: of every `sbatch`, as `--partition=gpu`.

    Returns:
        How many jobs it submits.
    """
    plan = study.plan()
    root = study.root.resolve()
    write_plan(study.root, plan.stages, artifacts=study.recipe.artifacts)
    costs = Costs(study.root, probe=False)
    stages = [stage for stage in ordered(plan.stages) if not study.finished(stage)]
    waiting = {stage.key for stage in stages}
    lines = [
        "#!/usr/bin/env bash",
        f"# {len(stages)} stages of the study in {shlex.quote(str(root))}",
        "set -euo pipefail",
        f"mkdir -p {shlex.quote(str(root / LOGS))}",
        "declare -A job",
    ]
    for stage in stages:
        needs = [f"${{job[{need}]}}" for need in stage.needs if need in waiting]
        after = [f'"--dependency=afterok:{":".join(needs)}"'] if needs else []
        log = shlex.quote(f"--output={root / LOGS / stage.key}.log")
        command = shlex.quote(shlex.join(stage_command(study.root, stage.key)))
        words = [
            *("sbatch", "--parsable", "--kill-on-invalid-dep=yes"),
            f"--job-name={shlex.quote(stage.key)}",
            log,
            *_asked(costs.of(stage, plan)),
            *map(shlex.quote, options),
            *after,
            f"--wrap={command}",
        ]
        lines.append(f"job[{stage.key}]=$({' '.join(words)})")
    lines += [f"# later: {line}" for line in plan.later]
    write_text(file, "\n".join(lines) + "\n")
    return len(stages)


def _asked(cost: Cost | None) -> list[str]:
    if cost is None:
        return []
    minutes = math.ceil(ROOM * (cost.seconds + cost.shared) / 60) + 1
    memory = math.ceil(1.3 * cost.memory_bytes / 2**20)
    return [f"--time={minutes}", f"--mem={memory}M"]
