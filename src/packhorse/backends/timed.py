"""A backend that times every call of the store, counts those that failed, and notes whether it takes writes."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

from ..clock import Clock
from ..errors import PackhorseError
from ..job import Claimed, JobRecord, JobSpec
from ..observe import metrics
from ..observe.meters import Histogram, Sheet
from ..observe.writing import Writing
from .base import (
    Arrival,
    Backend,
    Changes,
    Enqueued,
    Firing,
    Keep,
    Lapse,
    Limit,
    Note,
    Page,
    Pulse,
    Query,
    QueueChange,
    QueueCounts,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Steered,
    Ticked,
    Transfer,
    Verdict,
    WorkerInfo,
    WorkflowCounts,
)
from .passing import PassingBackend

T = TypeVar("T")


class TimedBackend(PassingBackend):
    """Does what `inner` does. For one event loop, as its sheet is."""

    def __init__(self, inner: Backend, sheet: Sheet, writing: Writing, clock: Clock) -> None:
        super().__init__(inner)
        self.sheet = sheet
        self._writing = writing
        self._clock = clock
        self._calls: dict[str, Histogram] = {}

    @property
    def inner(self) -> Backend:
        """The backend that does the work."""
        return self._inner

    async def _timed(self, operation: str, call: Awaitable[T]) -> T:
        began_ns = self._clock.boot_ns()
        try:
            answer = await call
        except PackhorseError as error:
            self.sheet.number(metrics.CALL_ERRORS, operation, _kind_of(error)).value += 1
            self._writing.failed(operation, error, self._clock.boot_ms())
            raise
        else:
            if self._writing.failures:
                self._writing.done(operation, answer)
            return answer
        finally:
            cell = self._calls.get(operation)
            if cell is None:
                cell = self._calls[operation] = self.sheet.histogram(metrics.CALL_DURATION, operation)
            cell.observe(self._clock.boot_ns() - began_ns)

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        return await self._timed("enqueue", self._inner.enqueue(specs))

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        return await self._timed("claim", self._inner.claim(queues, limit, lease_ms, worker))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        return await self._timed("settle", self._inner.settle(settlements))

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        return await self._timed("heartbeat", self._inner.heartbeat(worker, lease_ms, notes))

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        return await self._timed("retire", self._inner.retire(worker, reason))

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        return await self._timed("tick", self._inner.tick(limit, keep))

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        return await self._timed("fire", self._inner.fire(firings))

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        return await self._timed("get", self._inner.get(ids))

    async def find(self, query: Query) -> Page:
        return await self._timed("find", self._inner.find(query))

    async def counts(self) -> dict[str, QueueCounts]:
        return await self._timed("counts", self._inner.counts())

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        return await self._timed("workflows", self._inner.workflows(limit, before))

    async def changes(self, cursor: str | None = None) -> Changes:
        return await self._timed("changes", self._inner.changes(cursor))

    async def workers(self) -> list[WorkerInfo]:
        return await self._timed("workers", self._inner.workers())

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        return await self._timed("cancel", self._inner.cancel(ids))

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        return await self._timed("rerun", self._inner.rerun(reruns))

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        return await self._timed("delete", self._inner.delete(ids))

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        return await self._timed("queues", self._inner.queues(changes))

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        return await self._timed("limits", self._inner.limits(changes, about=about))

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        return await self._timed("schedules", self._inner.schedules(changes))

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        return await self._timed("hand_over", self._inner.hand_over(to, limit, stored))

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        return await self._timed("take_over", self._inner.take_over(transfer))


def _kind_of(error: PackhorseError) -> str:
    """Name an error by the nearest class of `packhorse.errors`: those are few, whoever derives from them."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == PackhorseError.__module__)
