"""Requests into batches: a bounded queue, one scorer, one thread that runs it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from palate.data.schema import Content
from palate.errors import PalateError
from palate.rewards.base import Scorer
from palate.rewards.rows import Outcome, score_rows
from palate.serve.metrics import Metrics

Outcomes = list[list[Outcome]]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Responses to prompts, to be scored.

    Attributes:
        prompts: one a group.
    """

    prompts: Sequence[Content]
    responses: Sequence[Sequence[Content | str]]

    def __len__(self) -> int:
        return sum(len(group) for group in self.responses)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Conversations that went through the model's template already, to be scored.

    Attributes:
        prompts: the part of each before its response, where it is known.
    """

    texts: Sequence[str]
    prompts: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.texts)


Work = Groups | Rendered


class QueueFull(Exception):
    """No room for a request.

    Attributes:
        retry_after: seconds after which there should be.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class Stopping(Exception):
    """The server takes no more requests."""


@dataclass(eq=False)
class _Job:
    work: Work
    answer: asyncio.Future[Outcomes]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects requests and has them scored together.

    A batch is closed when it has `max_batch` responses, or `max_wait` seconds after its first
    request came. A request is never split, so that one larger than a batch is a batch by itself.

    Args:
        exact: every response in a pass of its own.
        max_queue: responses that may wait. max_wait: seconds.
    """

    def __init__(
        self,
        scorer: Scorer,
        metrics: Metrics,
        *,
        exact: bool,
        max_batch: int,
        max_wait: float,
        max_queue: int,
    ) -> None:
        self.scorer = scorer
        self.metrics = metrics
        self.exact = exact
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.max_queue = max_queue
        self._waiting: deque[_Job] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._stopping = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._rate: float | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Responses that wait."""
        return self._size

    def start(self) -> None:
        """Begins to work; within a running event loop."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answers what is waiting, takes nothing more, and ends."""
        self._stopping = True
        self._arrived.set()
        if self._loop is not None:
            await self._loop
        self._pool.shutdown(wait=True)

    async def submit(self, work: Work) -> Outcomes:
        """The outcomes of a request, when they are there; cancelling takes it out of the queue.

        Raises:
            QueueFull: too much is waiting. Stopping: the server is about to end.
            PalateError: the scorer cannot score such a request.
        """
        if self._stopping:
            raise Stopping
        n = len(work)
        if self._size + n > self.max_queue:
            raise QueueFull(self._retry_after())
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._resize(n)
        self._arrived.set()
        try:
            return await job.answer
        finally:
            if not job.answer.done() or job.answer.cancelled():
                self._forget(job)

    def _forget(self, job: _Job) -> None:
        # Identity: two requests may hold equal texts.
        for place, other in enumerate(self._waiting):
            if other is job:
                del self._waiting[place]
                self._resize(-len(job.work))
                return

    def _resize(self, by: int) -> None:
        self._size += by
        self.metrics.queued.set(self._size)

    def _retry_after(self) -> int:
        seconds = 1.0 if self._rate is None else self._size / self._rate
        return max(1, min(60, math.ceil(seconds)))

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._waiting:
                if self._stopping:
                    return
                self._arrived.clear()
                continue
            left = self._waiting[0].since + self.max_wait - time.monotonic()
            if left > 0 and self._size < self.max_batch and not self._stopping:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), left)
                except TimeoutError:
                    self._arrived.set()
                continue
            batch: list[_Job] = []
            taken = 0
            while self._waiting and (
                not batch or taken + len(self._waiting[0].work) <= self.max_batch
            ):
                job = self._waiting.popleft()
                taken += len(job.work)
                self._resize(-len(job.work))
                batch.append(job)
            await self._answer(batch)

    async def _answer(self, batch: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        start = time.monotonic()
        works = [job.work for job in batch]
        n = sum(map(len, works))
        found: Sequence[Outcomes | Exception]
        found = await loop.run_in_executor(self._pool, self._try, works)
        seconds = time.monotonic() - start
        rate = n / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate
        self.metrics.batch(n, seconds)
        for job, outcomes in zip(batch, found, strict=True):
            if job.answer.done():
                continue  # it waited too long, or its client went away
            if isinstance(outcomes, Exception):
                job.answer.set_exception(outcomes)
            else:
                self.metrics.outcomes(outcomes)
                job.answer.set_result(outcomes)

    def _try(self, works: Sequence[Work]) -> list[Outcomes | Exception]:
        try:
            return list(self._score(works))
        except Exception as error:
            if len(works) == 1:
                return [error]
        # One request that cannot be scored must not cost the others theirs.
        return [self._try([work])[0] for work in works]

    def _score(self, works: Sequence[Work]) -> list[Outcomes]:
        groups = [work for work in works if isinstance(work, Groups)]
        scored = iter(
            score_rows(
                self.scorer,
                [prompt for work in groups for prompt in work.prompts],
                [group for work in groups for group in work.responses],
                exact=self.exact,
            )
        )
        return [
            [next(scored) for _ in work.responses]
            if isinstance(work, Groups)
            else [self._rendered(work)]
            for work in works
        ]

    def _rendered(self, work: Rendered) -> list[Outcome]:
        from palate.rewards.model import ModelScorer
        from palate.rewards.rendered import score_rendered

        if not isinstance(self.scorer, ModelScorer):
            raise PalateError(f"{self.scorer.name} reads no rendered conversations")
        return score_rendered(self.scorer, work.texts, work.prompts, exact=self.exact)
