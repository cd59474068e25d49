"""The verbs of the contract: each checks what it was given and hands the rest to a thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ...clock import SYSTEM_CLOCK, Clock
from ...job import Claimed, JobRecord, JobSpec
from ...limits import check_limit_change
from ..base import (
    Arrival,
    Backend,
    Bound,
    Capabilities,
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
    check_batch,
    check_changes,
    check_limit,
    check_settlements,
    check_specs,
    page_limit,
    parse_cursor,
)
from ..bells import Bell
from . import (
    adding,
    arriving,
    claiming,
    departing,
    following,
    keeping,
    limit_rows,
    looking,
    moving,
    schedules,
    steering,
)
from .binding import SQLiteBound, check_connection
from .connection import explain, migrate
from .engine import Engine
from .filing import parse_url
from .ops import Op

if TYPE_CHECKING:
    import asyncio

    from ..checkup import Checkup

T = TypeVar("T")


class SQLiteBackend(Backend):
    """Jobs in one SQLite file."""

    capabilities = Capabilities(
        durable=True,
        shared=True,
        limits=True,
        fair=True,
        unique_windows=True,
        dependencies=True,
        schedules=True,
        capacity=True,
        steps=True,
        bind=True,
        transfer=True,
        changes=True,
    )

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.location = parse_url(url)
        self._engine = Engine(self.location, clock)
        self.rate_limited = self._engine.rate_limited
        self._renewal: asyncio.Future[Any] | None = None  # of the note that somebody asks for changes

    async def open(self) -> None:
        """Connect; a file that does not exist is made, unless it was there when this backend was first opened."""
        await self._engine.open()

    async def close(self) -> None:
        await self._engine.close()

    async def migrate(self) -> int:
        import asyncio

        try:
            return await asyncio.to_thread(migrate, self.location)
        except sqlite3.Error as error:
            raise explain(error, self.location) from error

    async def checkup(self) -> Checkup:
        import asyncio

        from .checkup import checkup

        return await asyncio.to_thread(checkup, self.location)

    def bind(self, connection: object) -> Bound:
        """Answer verbs for the caller's own transaction on a connection to the same file."""
        check_connection(connection)
        return SQLiteBound(self._engine, connection, self.capabilities)

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        check_specs(specs, self.capabilities)
        if not specs:
            return []
        answer: list[Enqueued] = await self._engine.post(
            Op(adding.enqueue, specs, len(specs), many=adding.enqueue_many)
        )
        return answer

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        """Take pending jobs. Where there are none, the lease is renewed only if a third of it is gone."""
        check_limit(limit)
        claim = claiming.Claim(tuple(queues), limit, lease_ms, worker)
        op = Op(claiming.take, claim, max(1, limit), probe=claiming.probe, abandoned=self._release)
        answer: list[Claimed] = await self._engine.post(op)
        return answer

    def _release(self, claimed: list[Claimed]) -> None:
        """Give jobs back that were claimed for a caller who was cancelled meanwhile."""
        if claimed and self._engine.is_open:
            self._engine.post(Op(claiming.release, claimed, len(claimed))).add_done_callback(_forget)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        check_settlements(settlements, self.capabilities)
        if not settlements:
            return []
        answer: list[Verdict] = await self._engine.post(
            Op(moving.settle, settlements, len(settlements), many=moving.settle_many)
        )
        return answer

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        check_batch(notes)
        beat = keeping.Beat(worker, lease_ms, tuple(notes))
        answer: Pulse = await self._engine.post(Op(keeping.heartbeat, beat, 1 + len(notes)))
        return answer

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        answer: list[Lapse] = await self._engine.post(Op(keeping.retire, keeping.Retirement(worker, reason)))
        return answer

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        check_limit(limit)
        answer: Ticked = await self._engine.post(Op(keeping.tick, keeping.Tick(limit, keep), probe=keeping.probe))
        return answer

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        check_batch(firings)
        for firing in firings:
            check_specs(firing.specs, self.capabilities)
        if not firings:
            return []
        items = sum(1 + len(firing.specs) for firing in firings)
        answer: list[Verdict] = await self._engine.post(Op(schedules.fire, firings, items))
        return answer

    def watch(self, topics: Sequence[str]) -> Bell:
        return self._engine.wake.bells.watch(topics)

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        return await self._read(lambda db, _: looking.get(db, ids))

    async def find(self, query: Query) -> Page:
        page_limit(query)
        parse_cursor(query.cursor)
        return await self._read(lambda db, _: looking.find(db, query))

    async def counts(self) -> dict[str, QueueCounts]:
        return await self._read(looking.counts)

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        check_limit(limit)
        return await self._read(lambda db, _: looking.workflows(db, limit, before))

    async def changes(self, cursor: str | None = None) -> Changes:
        before = self._renewal
        may_note = before is None or before.done()  # else the look may miss the note that is just being written
        found = await self._read(lambda db, now_ms: following.look(db, now_ms, cursor))
        if found.answer is None:
            here: str = await self._engine.post(Op(following.listen, None))
            return Changes([], here, gap=cursor is not None)
        # Not waited for: it may stand in line for the write lock.
        if found.renew and may_note and self._renewal is before:
            self._renewal = self._engine.post(Op(following.listen, None))
            self._renewal.add_done_callback(_forget)
        return found.answer

    async def workers(self) -> list[WorkerInfo]:
        return await self._read(looking.workers)

    async def _read(self, look: Callable[[sqlite3.Connection, int], T]) -> T:
        found: T = await self._engine.read(look)
        return found

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        return await self._steer(steering.cancel, ids)

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        return await self._steer(steering.rerun, reruns)

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        return await self._steer(steering.delete, ids)

    async def _steer(self, run: Callable[..., list[Steered]], items: Sequence[Any]) -> list[Steered]:
        check_batch(items)
        if not items:
            return []
        answer: list[Steered] = await self._engine.post(Op(run, items, len(items)))
        return answer

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        check_changes(changes, self.capabilities)
        if not changes:
            return await self._read(lambda db, _: steering.read_queues(db))
        answer: dict[str, QueueChange] = await self._engine.post(Op(steering.change_queues, changes, len(changes)))
        return answer

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        check_batch(changes)
        for change in changes:
            check_limit_change(change)
        if changes:
            answer: list[Limit] = await self._engine.post(Op(limit_rows.change_limits, changes, len(changes)))
            if about is None:
                return answer
        if about is not None:
            return await self._read(lambda db, now_ms: limit_rows.limits_about(db, *about, now_ms))
        return await self._read(lambda db, _: limit_rows.read_limits(db))

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        check_batch(changes)
        if not changes:
            return await self._read(lambda db, _: schedules.read_all(db))
        answer: list[Schedule] = await self._engine.post(Op(schedules.change, changes, len(changes)))
        return answer

    # ---- move to another store ---------------------------------------------------------------------------

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        check_limit(limit)
        asked = departing.Departure(to, limit, stored)
        answer: Transfer = await self._engine.post(Op(departing.hand_over, asked, max(1, limit)))
        return answer

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        items = 1
        if transfer is not None:
            check_batch(transfer.jobs)
            items += len(transfer.jobs)
        answer: Arrival = await self._engine.post(Op(arriving.take_over, transfer, items))
        return answer


def _forget(future: Any) -> None:
    if not future.cancelled():
        future.exception()
