"""Requests into batches: a bounded queue, one scorer, one thread that runs it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from palate.data.scorer import Group, Score, Scorer
from palate.rewards.groups import score_groups
from palate.rewards.model import forget
from palate.rewards.rendered import score_rendered
from palate.serve.metrics import Metrics

Scored = list[list[Score]]
"""Scores of a request, a list a group; those of rendered texts are one list."""
THREAD = "palate-scorer"
"""Name of the thread that runs the scorer."""
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Responses to prompts, to be scored."""

    groups: Sequence[Group]

    def __len__(self) -> int:
        return sum(len(group.responses) for group in self.groups)


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


Request = Groups | Rendered


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
    work: Request
    answer: asyncio.Future[Scored]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects requests and has them scored together.

    A batch is closed when it has `max_batch` responses, or `max_wait` seconds after its first
    request came. A request is never split, so that one larger than a batch is a batch by itself.
    Nothing is begun for a request that nobody waits for any more.

    Args:
        exact: every response in a pass of its own; then requests share nothing, and each is
            answered as soon as it has been scored.
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
        # One by one, unless passes are shared, or nothing depends on the call.
        self._together = not exact or scorer.traits.independent
        self._batch: list[_Job] = []
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD)
        self._rate: float | None = None
        self._since: float | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Responses that wait."""
        return self._size

    @property
    def busy_seconds(self) -> float:
        """How long the scorer has been at its present call; 0 between calls."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        """Begins to work; within a running event loop."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answers what is waiting, takes nothing more, and ends.

        A call of the scorer whose requests were all given up is left to end in its thread.
        """
        self._stopping = True
        self._arrived.set()
        while self._loop is not None and not self._loop.done() and self._wanted:
            await asyncio.wait((self._loop,), timeout=_LOOK_SECONDS)
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait((self._loop,))
        self._pool.shutdown(wait=False)

    @property
    def _wanted(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._waiting) or not all(job.answer.done() for job in self._batch)

    async def submit(self, work: Request) -> Scored:
        """The scores of a request, when they are there; cancelling takes it out of the queue.

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
        for place, queued in enumerate(self._waiting):
            if queued is job:
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
        self._batch = batch
        start = time.monotonic()
        scored = await loop.run_in_executor(self._pool, self._try, batch, loop)
        seconds = time.monotonic() - start
        self._batch = []
        if scored:
            rate = scored / max(seconds, 1e-6)
            self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate
            self.metrics.batch(scored, seconds)

    def _try(self, batch: Sequence[_Job], loop: asyncio.AbstractEventLoop) -> int:
        """Scores a batch, answering as soon as there are answers; in the scorer's thread.

        Returns:
            Responses that the scorer was asked about.
        """
        # A future that is done was given up: its request is late, or its client is gone.
        wanted = [job for job in batch if not job.answer.done()]
        if len(wanted) > 1 and not self._together:
            return sum(self._try([job], loop) for job in wanted)
        if not wanted:
            return 0
        results: Sequence[Scored | Exception]
        self._since = time.monotonic()
        try:
            results = self._score([job.work for job in wanted])
        except Exception as error:
            if len(wanted) > 1:
                # One request that cannot be scored must not cost the others theirs.
                return sum(self._try([job], loop) for job in wanted)
            results = [error]
        finally:
            self._since = None
            # Requests share no passes but those of one call, and a server lives for months.
            forget()
        loop.call_soon_threadsafe(self._deliver, wanted, results)
        return sum(len(job.work) for job in wanted)

    def _deliver(self, jobs: Sequence[_Job], results: Sequence[Scored | Exception]) -> None:
        for job, scored in zip(jobs, results, strict=True):
            if job.answer.done():
                continue
            if isinstance(scored, Exception):
                job.answer.set_exception(scored)
            else:
                self.metrics.responses(scored)
                job.answer.set_result(scored)

    def _score(self, works: Sequence[Request]) -> list[Scored]:
        groups = [group for work in works if isinstance(work, Groups) for group in work.groups]
        rendered = [work for work in works if isinstance(work, Rendered)]
        scored = iter(score_groups(self.scorer, groups, exact=self.exact))
        read = iter(self._rendered(rendered))
        return [
            [next(scored) for _ in work.groups]
            if isinstance(work, Groups)
            else [[next(read) for _ in work.texts]]
            for work in works
        ]

    def _rendered(self, works: Sequence[Rendered]) -> list[Score]:
        if not works:
            return []
        return score_rendered(
            self.scorer,
            [text for work in works for text in work.texts],
            [prompt for work in works for prompt in work.prompts or [""] * len(work)],
            exact=self.exact,
        )
