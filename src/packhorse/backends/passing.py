"""A backend that passes every verb on to another one: the base of views, which change what some verbs see or do."""

from __future__ import annotations

from collections.abc import Sequence

from ..job import Claimed, JobRecord, JobSpec
from .base import (
    Arrival,
    Backend,
    Bound,
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
from .bells import Bell
from .checkup import Checkup


class PassingBackend(Backend):
    """Does what `inner` does. It has no connection of its own: opening and closing it leaves `inner` alone."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities
        self.rate_limited = inner.rate_limited  # the very object, which grows

    async def open(self) -> None:
        """Do nothing: who made `inner` opens it."""

    async def close(self) -> None:
        """Do nothing: who made `inner` closes it."""

    async def migrate(self) -> int:
        return await self._inner.migrate()

    async def checkup(self) -> Checkup:
        return await self._inner.checkup()

    def bind(self, connection: object) -> Bound:
        return self._inner.bind(connection)

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        return await self._inner.enqueue(specs)

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        return await self._inner.claim(queues, limit, lease_ms, worker)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        return await self._inner.settle(settlements)

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        return await self._inner.heartbeat(worker, lease_ms, notes)

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        return await self._inner.retire(worker, reason)

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        return await self._inner.tick(limit, keep)

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        return await self._inner.fire(firings)

    def watch(self, topics: Sequence[str]) -> Bell:
        return self._inner.watch(topics)

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        return await self._inner.get(ids)

    async def find(self, query: Query) -> Page:
        return await self._inner.find(query)

    async def counts(self) -> dict[str, QueueCounts]:
        return await self._inner.counts()

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        return await self._inner.workflows(limit, before)

    async def changes(self, cursor: str | None = None) -> Changes:
        return await self._inner.changes(cursor)

    async def workers(self) -> list[WorkerInfo]:
        return await self._inner.workers()

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        return await self._inner.cancel(ids)

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        return await self._inner.rerun(reruns)

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        return await self._inner.delete(ids)

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        return await self._inner.queues(changes)

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        return await self._inner.limits(changes, about=about)

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        return await self._inner.schedules(changes)

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        return await self._inner.hand_over(to, limit, stored)

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        return await self._inner.take_over(transfer)
