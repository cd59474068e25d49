"""Asks the store what `top` shows, and bounds what that costs it.

Four to six short reads a look, never a write: `counts`, `workers`, the newest jobs, those that run, and what failed.
After a look that took t ms the next one waits 19 t at least, so the store is asked for at most 5 % of the time.

Why not `changes`: a store that is asked for them writes them down, they do not say of which queue a job is, more than
10,000 a look are a gap, and a token for some queues gets none. What came is read from the newest jobs instead.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ...backends.base import Query
from ...errors import PackhorseError, Unavailable
from ...job import State
from .samples import Arrived, ErrorGroup, Failure, Failures, Run, Sample, failure_of, group, run_of

if TYPE_CHECKING:
    from ...backends.base import Backend, QueueCounts
    from ...clock import Clock
    from ...job import JobRecord

#: The store is asked for one part in so many of the time, at most.
SHARE = 20

#: A look that takes longer is given up, ms.
LOOK_MS_MAX = 10_000

#: While the store is away it is tried again after so many times what the last try took: it must be seen to be back.
AWAY_FACTOR = 2

#: Newest jobs that a look reads, at least and at most: twice as many as came last time.
NEWEST_MIN, NEWEST_MAX = 50, 1_000

#: Jobs that run or wait for a retry are looked through while they are no more than these: every backend finds so few
#: without walking through all jobs.
FEW = 500

#: Dead letters that are read, the newest; and failures that are kept of all that was read.
DEAD_MAX, LATEST_MAX = 300, 100

#: Failures are looked at again when their number changed, at most this often; and in any case after the second, ms.
FAILURES_AGAIN_MS, FAILURES_STALE_MS = 2_000, 10_000


class Newest:
    """The newest jobs of the last look: what came since stands above them."""

    def __init__(self) -> None:
        self._seen: frozenset[str] | None = None
        self._total = 0
        self._came = 0

    async def look(self, backend: Backend, total: int) -> Arrived | None:
        """Answer what came since the last look, None at the first. `total` is the number of jobs in the store."""
        seen, limit = self._seen, min(NEWEST_MAX, max(NEWEST_MIN, 2 * self._came))
        if seen is None:
            page = await backend.find(Query(brief=True, limit=NEWEST_MIN))
            self._remember(page.jobs, total)
            return None
        jobs: list[JobRecord] = []
        cursor: str | None = None
        while True:
            page = await backend.find(Query(brief=True, limit=limit, cursor=cursor))
            jobs += page.jobs
            met = next((at for at, job in enumerate(jobs) if job.id in seen), None)
            cursor = page.next
            if met is not None or cursor is None or len(jobs) >= NEWEST_MAX:
                break
            limit = NEWEST_MAX - len(jobs)
        new = jobs if met is None else jobs[:met]
        came = Counter(job.queue for job in new)
        cut = met is None and cursor is not None
        if cut:  # more than were read: the counts say how many at least, the newest into which queues
            more = total - self._total
            came = Counter({queue: max(n, n * more // len(new)) for queue, n in came.items()})
        self._came = len(new)
        self._remember(jobs, total)
        return Arrived(dict(came), cut)

    def _remember(self, jobs: list[JobRecord], total: int) -> None:
        self._seen, self._total = frozenset(job.id for job in jobs[:NEWEST_MIN]), total


class Sampler:
    """Opens the store when it is needed, looks at it, and opens it anew after it was away. For one event loop.

    `queue` narrows all that is told to one queue. `make` answers a backend that is not open yet.
    """

    def __init__(self, make: Callable[[], Backend], clock: Clock, queue: str | None = None) -> None:
        self._make = make
        self._clock = clock
        self._queue = queue
        self._backend: Backend | None = None
        self._newest = Newest()
        self._failures = Failures()
        self._failures_of: tuple[int, int] | None = None
        self._failures_at_ms = 0
        self._prints: dict[str, tuple[int, str, str]] = {}
        #: How long the last look took, whatever came of it, ms; without opening the store.
        self.took_ms = 0
        self._is_away = False
        #: Since when the look that is under way waits for its answer, by the boot clock.
        self.asking_since_ms: int | None = None

    async def look(self) -> Sample:
        """Look at the store. Raises Unavailable within `LOOK_MS_MAX`, Forbidden, and what `open` raises."""
        self.asking_since_ms = began_ms = self._clock.boot_ms()
        try:
            async with asyncio.timeout(LOOK_MS_MAX / 1000):
                if self._backend is None:
                    await self._open()
                    began_ms = self._clock.boot_ms()  # what it takes to load a driver is no load of the store
                assert self._backend is not None
                found = await self._look(self._backend)
            self._is_away = False
            return found
        except TimeoutError:
            self._is_away = True
            await self.close()
            raise Unavailable(f"no answer within {LOOK_MS_MAX // 1000} s") from None
        except PackhorseError:
            self._is_away = True
            await self.close()  # what was away may be another one when it is back, as a file put back from a backup
            raise
        finally:
            self.took_ms = self._clock.boot_ms() - began_ms
            self.asking_since_ms = None

    def pause_ms(self, interval_ms: int) -> int:
        """Answer how long to wait after the last look, so that looks begin `interval_ms` apart, or less often."""
        return max(interval_ms - self.took_ms, (AWAY_FACTOR if self._is_away else SHARE - 1) * self.took_ms)

    async def close(self) -> None:
        """Let the store go. Idempotent; the next look opens it again."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with suppress(PackhorseError, TimeoutError):
                async with asyncio.timeout(LOOK_MS_MAX / 1000):
                    await backend.close()

    async def _open(self) -> None:
        self._backend = self._make()
        await self._backend.open()

    async def _look(self, backend: Backend) -> Sample:
        at_ms, now_ms = self._clock.boot_ms(), self._clock.now_ms()
        counts = await backend.counts()
        answer_ms = self._clock.boot_ms() - at_ms
        workers = await backend.workers()
        arrived = await self._newest.look(backend, sum(sum(each.states.values()) for each in counts.values()))
        running = await self._running(backend, counts)
        await self._look_at_failures(backend, counts)
        if self._queue is not None:
            counts = {name: each for name, each in counts.items() if name == self._queue}
            workers = [worker for worker in workers if self._queue in worker.queues]
        return Sample(
            at_ms=at_ms,
            now_ms=now_ms,
            answer_ms=answer_ms,
            queues=counts,
            workers=tuple(workers),
            arrived=self._own(arrived),
            running=running,
            failures=self._failures,
        )

    def _own(self, arrived: Arrived | None) -> Arrived | None:
        if arrived is None or self._queue is None:
            return arrived
        return Arrived({self._queue: arrived.queues.get(self._queue, 0)}, arrived.at_least)

    def _is_wanted(self, job: JobRecord) -> bool:
        return self._queue is None or job.queue == self._queue

    async def _running(self, backend: Backend, counts: dict[str, QueueCounts]) -> tuple[Run, ...] | None:
        count = _count(counts, State.RUNNING)
        if not 0 < count <= FEW:
            return None if count else ()
        page = await backend.find(Query(states=(State.RUNNING,), brief=True, limit=FEW))
        runs = [run_of(job) for job in page.jobs if self._is_wanted(job)]
        return tuple(sorted(runs, key=lambda run: (run.started_at_ms, run.id))[:LATEST_MAX])

    async def _look_at_failures(self, backend: Backend, counts: dict[str, QueueCounts]) -> None:
        """Read what failed, if it may be another than last time. Not with each look: it is the dearest part of it."""
        dead, waiting = _count(counts, State.FAILED), _count(counts, State.SCHEDULED)
        since_ms = self._clock.boot_ms() - self._failures_at_ms
        changed = self._failures_of != (dead, waiting)
        if self._failures_of is not None and since_ms < (FAILURES_AGAIN_MS if changed else FAILURES_STALE_MS):
            return
        failed: list[JobRecord] = []
        if dead:
            page = await backend.find(Query(states=(State.FAILED,), brief=True, limit=DEAD_MAX))
            failed = [job for job in page.jobs if self._is_wanted(job)]
        retried: list[JobRecord] = []
        if 0 < waiting <= FEW:
            page = await backend.find(Query(states=(State.SCHEDULED,), brief=True, limit=FEW))
            retried = [job for job in page.jobs if job.attempt and self._is_wanted(job)]
        self._failures = Failures(_latest(failed + retried), self._grouped(failed), len(failed))
        self._failures_of, self._failures_at_ms = (dead, waiting), self._clock.boot_ms()

    def _grouped(self, dead: list[JobRecord]) -> tuple[ErrorGroup, ...]:
        return group(dead, self._prints)


def _count(counts: dict[str, QueueCounts], state: State) -> int:
    return sum(each.states.get(state, 0) for each in counts.values())


def _latest(jobs: list[JobRecord]) -> tuple[Failure, ...]:
    found = [failure for job in jobs if (failure := failure_of(job)) is not None]
    return tuple(sorted(found, key=lambda each: (-each.at_ms, each.id))[:LATEST_MAX])
