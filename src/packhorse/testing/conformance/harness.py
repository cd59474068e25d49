"""Where a case runs: one empty store, the connections opened on it, and its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, Self

from ...backends.base import (
    BATCH_MAX,
    Backend,
    Enqueued,
    Keep,
    Limit,
    Query,
    QueueChange,
    ScheduleChange,
    Settlement,
    Ticked,
    Verdict,
    WorkerInfo,
)
from ...chance import Chance
from ...clock import SYSTEM_CLOCK, ManualClock
from ...errors import ConfigurationError
from ...job import DELAY_MS_MAX, Claimed, JobError, JobRecord, JobSpec, State

#: Retention that drops nothing.
FOREVER = Keep(succeeded_ms=DELAY_MS_MAX, failed_ms=DELAY_MS_MAX, cancelled_ms=DELAY_MS_MAX)

#: Batches or pages after which a loop gives up. A backend without awaits of its own cannot be timed out.
ROUNDS_MAX = 1_000


class OwnConnection(Protocol):
    """A connection to the store as a user has it, for `Backend.bind`. Without `begin` no transaction is open."""

    raw: object

    async def begin(self) -> None:
        """Begin a transaction, one that may write."""
        ...

    async def commit(self) -> None:
        """Commit it."""
        ...

    async def rollback(self) -> None:
        """Roll it back."""
        ...

    async def close(self) -> None:
        """Disconnect; what is open is rolled back. Idempotent."""
        ...


class Harness:
    """Opens connections to one store that starts empty, and moves its time.

    `make` answers a new, unopened connection to the store. With `clock` (the one `make` gives to its
    backends) time is moved by hand; without, `advance` really waits and all durations are short.
    Subclass it to clean up (`clean`), to lose worker rows (`drop_workers`), or to connect as a user does
    (`make_connection`).
    """

    def __init__(self, make: Callable[[], Backend], clock: ManualClock | None = None) -> None:
        self._make = make
        self.clock = clock
        self.lease_ms = 30_000 if clock is not None else 1_500
        self.step_ms = 1_000 if clock is not None else 150  # a delay that is long compared to one call
        #: Whether payloads may be larger than an app lets them be. A server at the other end checks them again.
        self.any_payload = True
        self.ring_ms = 30_000  # how long a ring may take: only a lost one takes this long
        self._open: list[Backend] = []
        self._connections: list[OwnConnection] = []
        self._chance = Chance()
        self.backend: Backend

    async def __aenter__(self) -> Self:
        first = self._make()
        await first.migrate()
        await first.open()
        self._open.append(first)
        self.backend = first
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for connection in self._connections:
            await connection.close()
        self._connections.clear()
        for backend in reversed(self._open):
            await backend.close()
        self._open.clear()
        await self.clean()

    async def clean(self) -> None:
        """Remove the store. The default leaves it: memory goes by itself, a directory with its owner."""

    async def open(self) -> Backend:
        """Open one more connection to the same store, as another process would."""
        backend = self._make()
        await backend.open()
        self._open.append(backend)
        return backend

    async def several(self, count: int) -> list[Backend]:
        """Open `count` connections."""
        return [await self.open() for _ in range(count)]

    async def connect(self) -> OwnConnection:
        """Connect to the store as a user would. Needs `own_connections`."""
        connection = await self.make_connection()
        self._connections.append(connection)
        return connection

    async def make_connection(self) -> OwnConnection:
        """Make what `connect` answers."""
        raise NotImplementedError

    async def advance(self, ms: int) -> None:
        """Let `ms` pass for the store."""
        if self.clock is not None:
            self.clock.advance(ms)
        else:
            await asyncio.sleep(ms / 1000)

    def jump(self, ms: int) -> None:
        """Set the wall clock of the store, as an operator or NTP does. Needs `manual_clock`."""
        assert self.clock is not None
        self.clock.jump(ms)

    def drop_workers(self) -> None:
        """Delete what the store knows of workers behind its back, as an operator may. Needs `worker_rows`."""
        raise NotImplementedError

    def has(self, need: str) -> bool:
        """Answer whether cases that need this can be asked: a capability, or a thing of the harness.

        These are `manual_clock`, `worker_rows`, `own_connections`, and `any_payload`: what no door would let in.
        """
        if need == "any_payload":
            return self.any_payload
        if need == "manual_clock":
            return self.clock is not None
        if need == "worker_rows":
            return type(self).drop_workers is not Harness.drop_workers
        if need == "own_connections":
            return type(self).make_connection is not Harness.make_connection
        return bool(getattr(self.backend.capabilities, need))

    # ---- builders ----------------------------------------------------------------------------------------

    def new_id(self) -> str:
        """Make an id for a job."""
        return self._chance.id(SYSTEM_CLOCK.now_ms())

    def spec(self, **fields: Any) -> JobSpec:
        """Describe a job with a new id, of type `work` in queue `default` unless told otherwise."""
        return JobSpec(**{"id": self.new_id(), "type": "work", **fields})

    def specs(self, count: int, **fields: Any) -> list[JobSpec]:
        """Describe `count` jobs."""
        ids = self._chance.ids(SYSTEM_CLOCK.now_ms(), count)
        return [JobSpec(**{"id": job_id, "type": "work", **fields}) for job_id in ids]

    async def enqueue(self, count: int = 1, **fields: Any) -> list[str]:
        """Store `count` new jobs, in as many calls as it takes; answers their ids."""
        specs = self.specs(count, **fields)
        for start in range(0, count, BATCH_MAX):
            answers = await self.backend.enqueue(specs[start : start + BATCH_MAX])
            assert all(answer.created for answer in answers)
        return [spec.id for spec in specs]

    async def add(self, **fields: Any) -> str:
        """Store one new job; answers its id."""
        return (await self.enqueue(1, **fields))[0]

    async def try_add(self, **fields: Any) -> Enqueued:
        """Enqueue one job; answers what the backend answered."""
        return (await self.backend.enqueue([self.spec(**fields)]))[0]

    async def claim(
        self,
        limit: int = 1,
        *queues: str,
        worker: str = "w1",
        lease_ms: int | None = None,
        backend: Backend | None = None,
    ) -> list[Claimed]:
        """Claim up to `limit` jobs, by default from `default` for worker `w1` with the harness's lease."""
        lease_ms = lease_ms if lease_ms is not None else self.lease_ms
        return await (backend or self.backend).claim(queues or ("default",), limit, lease_ms, worker)

    async def start(self, worker: str = "w1", **fields: Any) -> Claimed:
        """Store one new job and claim it. Nothing else may be pending in its queue."""
        spec = self.spec(**fields)
        await self.backend.enqueue([spec])
        claimed = await self.claim(1, spec.queue, worker=worker)
        assert [job.id for job in claimed] == [spec.id]
        return claimed[0]

    async def settle(
        self, job: Claimed, state: State = State.SUCCEEDED, *, backend: Backend | None = None, **fields: Any
    ) -> Verdict:
        """End the attempt of a claimed job."""
        settlement = Settlement(id=job.id, token=job.token, state=state, **fields)
        return (await (backend or self.backend).settle([settlement]))[0]

    async def beat(self, worker: str = "w1", **fields: Any) -> dict[str, str]:
        """Send a heartbeat; answers what the worker holds."""
        return (await self.backend.heartbeat(WorkerInfo(id=worker), self.lease_ms, **fields)).held

    async def tick(self, limit: int = BATCH_MAX, keep: Keep = FOREVER, backend: Backend | None = None) -> Ticked:
        """Move time on; drops nothing unless told to."""
        return await (backend or self.backend).tick(limit, keep)

    async def pass_time(self, ms: int) -> Ticked:
        """Let `ms` pass, and tick."""
        await self.advance(ms)
        return await self.tick()

    async def record(self, job_id: str, backend: Backend | None = None) -> JobRecord:
        """Look up a job that must be there."""
        found = (await (backend or self.backend).get([job_id]))[0]
        if found is None:
            raise AssertionError(f"job {job_id} has vanished")
        return found

    async def state(self, job_id: str) -> State | None:
        """Look up the state of a job; None if there is no such job."""
        found = (await self.backend.get([job_id]))[0]
        return found.state if found is not None else None

    async def put(self, state: State, **fields: Any) -> tuple[str, str]:
        """Bring a new job into `state`; answers its id and the last token it had (empty: none).

        Nothing else may be pending in its queue. `waiting` needs `dependencies`.
        """
        if state is State.WAITING:
            return await self.add(**fields, after=(await self.add(queue="parents"),)), ""
        if state is State.SCHEDULED:
            return await self.add(**{"delay_ms": DELAY_MS_MAX, **fields}), ""
        if state is State.PENDING:
            return await self.add(**fields), ""
        job = await self.start(**fields)
        if state is not State.RUNNING:
            error = self.error(1) if state is State.FAILED else None
            await self.settle(job, state, error=error)
        return job.id, job.token

    def error(self, attempt: int = 1, message: str = "it broke") -> JobError:
        """Make an error record."""
        return JobError(attempt=attempt, at_ms=1_700_000_000_000 + attempt, kind="Trouble", message=message)

    async def pages(self, **query: Any) -> list[list[JobRecord]]:
        """Walk along `find` to the end; answers its pages. Raises if there is no end."""
        pages: list[list[JobRecord]] = []
        cursor = None
        for _ in range(ROUNDS_MAX):
            page = await self.backend.find(Query(**{"limit": BATCH_MAX, "cursor": cursor, **query}))
            pages.append(page.jobs)
            cursor = page.next
            if cursor is None:
                return pages
        raise AssertionError(f"a walk along the cursor has no end after {ROUNDS_MAX} pages")

    async def all(self, **query: Any) -> list[JobRecord]:
        """Answer all jobs that match."""
        return [job for page in await self.pages(**query) for job in page]

    async def drain(self, limit: int, *queues: str, worker: str, backend: Backend) -> AsyncIterator[list[Claimed]]:
        """Claim batch after batch until none is left, letting others go on in between. Raises if there is no end."""
        for _ in range(ROUNDS_MAX):
            batch = await self.claim(limit, *queues, worker=worker, backend=backend)
            if not batch:
                return
            yield batch
            await asyncio.sleep(0)
        raise AssertionError(f"there are still jobs to claim after {ROUNDS_MAX} batches")


class SharedHarness(Harness):
    """A harness on a store that is there already, as a server's. Refuses one with jobs, and empties it after a case."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if (await self.backend.find(Query(limit=1))).jobs:
            await super().__aexit__()
            raise ConfigurationError("the conformance suite wants a store without jobs: it deletes all it finds")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for connection in self._connections:  # what they hold could not be removed
            await connection.close()
        await self._empty()
        await super().__aexit__(*exc_info)

    async def _empty(self) -> None:
        backend = self.backend
        for info in await backend.workers():
            await backend.retire(info.id, "end of a conformance case")
        for _ in range(ROUNDS_MAX):
            jobs = (await backend.find(Query(limit=BATCH_MAX))).jobs
            if not jobs:
                break
            for worker in {job.worker for job in jobs if job.worker is not None}:
                await backend.retire(worker, "end of a conformance case")
            await backend.tick(BATCH_MAX, FOREVER)
            await backend.delete([job.id for job in jobs])
        for change in (await backend.queues()).values():
            await backend.queues([QueueChange(queue=change.queue, paused=False)])
            if change.capacity:
                await backend.queues([QueueChange(queue=change.queue, capacity=0)])
        for limit in await backend.limits():
            await backend.limits([Limit(type=limit.type, key=limit.key, cleared=True)])
        for schedule in await backend.schedules():
            await backend.schedules([ScheduleChange(name=schedule.name, removed=True)])
