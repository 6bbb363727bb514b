"""Stages as jobs of a Ray cluster: the same command lines, through its Jobs API."""

from __future__ import annotations

import importlib
import shlex
import time
import uuid
from pathlib import Path
from typing import Any

from palate.errors import RunError, in_one_line
from palate.recipes.study import RayExecutor
from palate.study.executors import LOGS, Job, stage_command

POLL_SECONDS = 1.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class RayJobs:
    """Jobs of a cluster; what a stage printed is in `logs/<key>.log` of the study.

    A job dies with its cluster, and Ray tries none again: that is done here.

    Raises:
        RunError: the extra is missing, or there is no cluster.
    """

    def __init__(self, recipe: RayExecutor, root: Path) -> None:
        self.recipe = recipe
        self.root = root
        self._client = _client(recipe.address)
        self._running: dict[str, tuple[Job, str]] = {}
        self._attempts: dict[str, int] = {}

    def has_room(self, job: Job) -> bool:
        """Ray places jobs by the cores and memory that they ask for."""
        return len(self._running) < self.recipe.most_jobs

    def begin(self, job: Job) -> None:
        self._attempts[job.key] = self._attempts.get(job.key, 0) + 1
        memory = self.recipe.memory_gb_per_stage
        submission = self._client.submit_job(
            entrypoint=shlex.join(stage_command(self.root, job.key)),
            submission_id=f"{job.key}-{uuid.uuid4().hex[:8]}",
            entrypoint_num_cpus=job.cores,
            entrypoint_num_gpus=self.recipe.gpus_per_stage or None,
            entrypoint_memory=None if memory is None else int(memory * 1e9),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(job.cores)}},
        )
        self._running[job.key] = (job, submission)

    def wait(self) -> dict[str, str | None]:
        while True:
            ended: dict[str, str | None] = {}
            for key, (job, submission) in list(self._running.items()):
                state, message = self._state(submission)
                if state not in _ENDED:
                    continue
                del self._running[key]
                self._keep_log(key, submission)
                if state == "SUCCEEDED":
                    ended[key] = None
                elif self._attempts[key] < self.recipe.attempts:
                    self.begin(job)
                else:
                    ended[key] = f"{state.lower()}: {message}"
            if ended:
                return ended
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        for _, submission in self._running.values():
            self._client.stop_job(submission)
        self._running.clear()

    def _state(self, submission: str) -> tuple[str, str]:
        try:
            info = self._client.get_job_info(submission)
        except RuntimeError as error:  # the cluster is gone, and its jobs with it
            raise RunError(
                f"the Ray cluster at {self.recipe.address} does not answer: "
                f"{in_one_line(error)}; run the study again when it is back"
            ) from None
        return str(info.status.value), in_one_line(info.message or "")

    def _keep_log(self, key: str, submission: str) -> None:
        log = self.root / LOGS / f"{key}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text(self._client.get_job_logs(submission), encoding="utf-8")


def _client(address: str) -> Any:
    try:
        submission = importlib.import_module("ray.job_submission")
    except ImportError:
        raise RunError("executor ray: needs the extra: pip install 'palate[ray]'") from None
    try:
        return submission.JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RunError(f"no Ray cluster at {address}: {in_one_line(error)}") from None
