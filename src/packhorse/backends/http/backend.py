"""The verbs of the contract, each a call to a server of packhorse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ...clock import SYSTEM_CLOCK, Clock
from ...errors import PackhorseError, Refused
from ...job import Claimed, JobRecord, JobSpec, State
from ...wording import quantity
from ..base import (
    Arrival,
    Backend,
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
)
from ..bells import Bell
from ..grouping import Group
from . import wire
from .link import Link
from .location import parse_url
from .portions import portions
from .wake import Wake

if TYPE_CHECKING:
    from ..checkup import Checkup

log = logging.getLogger("packhorse.http")

#: A call of so many jobs goes by itself; smaller ones that come while another is on its way go out together.
ALONE = 100

#: Before a server has said what its store can do: whatever is asked goes out, and the server refuses what it cannot.
_UNKNOWN = Capabilities(
    durable=False,
    shared=True,
    unique_windows=True,
    dependencies=True,
    limits=True,
    fair=True,
    schedules=True,
    capacity=True,
    steps=True,
    transfer=True,
    changes=True,
)


class HTTPBackend(Backend):
    """The store of a server, over HTTP. `clock` is not used: the server's own judges."""

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.location = parse_url(url)
        self.capabilities = _UNKNOWN
        self._link = Link(self.location)
        self._wake = Wake(self._link)
        self._enqueues = Group(self._enqueue_all, wire.bytes_of_spec)
        self._calls: set[asyncio.Task[Any]] = set()
        self._opened = False

    async def open(self) -> None:
        """Connect, and ask the server what it speaks and can do."""
        if self._opened:
            return
        self._link.connect()
        try:
            contract = await self._link.greet()
        except BaseException:
            await self._link.disconnect()
            raise
        # Others see the jobs through the server, also where its own store is in its memory.
        self.capabilities = replace(contract.capabilities, shared=True, bind=False)
        if self.location.is_secret_in_clear:
            log.warning("%s: the token travels unencrypted; use https://", self.location.shown)
        self._opened = True

    async def close(self) -> None:
        await self._enqueues.finish()
        while self._calls:
            await asyncio.wait(self._calls)
        self._opened = False
        await self._wake.close()
        await self._link.disconnect()

    async def migrate(self) -> int:
        """Answer the schema of the server's store, which is the server's own to migrate: nothing is changed."""
        if self._opened:
            return await self._link.ask(wire.MIGRATE, wire.Nothing())
        link = Link(self.location)
        link.connect()
        try:
            await link.greet()
            return await link.ask(wire.MIGRATE, wire.Nothing())
        finally:
            await link.disconnect()

    async def checkup(self) -> Checkup:
        from .checkup import checkup

        return await checkup(self.location)

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        check_specs(specs, self.capabilities)
        if not specs:
            return []
        if len(specs) >= ALONE or any(spec.after for spec in specs):
            return await self._enqueue(specs)
        answers: list[Enqueued] = await self._enqueues.ask(specs)
        return answers

    async def _enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        return await self._link.ask(wire.ENQUEUE, wire.Enqueue(tuple(specs)))

    async def _enqueue_all(self, calls: list[Sequence[JobSpec]]) -> list[Any]:
        """Store what several callers want in one call; where that is refused, each of them finds out for itself."""
        if len(calls) > 1:
            try:
                answers = iter(await self._enqueue([spec for specs in calls for spec in specs]))
            except Refused:
                return await asyncio.gather(*map(self._enqueue, calls), return_exceptions=True)
            return [[next(answers) for _ in specs] for specs in calls]
        return [await self._enqueue(calls[0])]

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        """Take pending jobs. Who is cancelled meanwhile holds none: what was claimed is given back."""
        check_limit(limit)
        if not queues:
            return []
        call = self._link.ask(wire.CLAIM, wire.Claim(tuple(queues), limit, lease_ms, worker))
        task = asyncio.get_running_loop().create_task(call)
        self._keep(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._release)
            raise

    def _release(self, task: asyncio.Task[list[Claimed]]) -> None:
        """Give jobs back that were claimed for a caller who was cancelled meanwhile."""
        claimed = task.result() if not task.cancelled() and task.exception() is None else []
        if claimed and self._link.is_open:
            self._keep(asyncio.get_running_loop().create_task(self._give_back(claimed)))

    async def _give_back(self, claimed: Sequence[Claimed]) -> None:
        with suppress(PackhorseError):  # the lease of the worker brings them back as well
            await self.settle(
                [Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True) for job in claimed]
            )

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._calls.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        check_settlements(settlements, self.capabilities)
        verdicts: list[Verdict] = []
        for some in portions(settlements, _bytes_of_settlement) if settlements else ():
            answers: list[Verdict] = await self._link.ask(wire.SETTLE, wire.Settle(tuple(some)))
            verdicts += answers
        return verdicts

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        check_batch(notes)
        *first, last = portions(notes, lambda note: wire.bytes_of(note.result))
        for some in first:
            await self._link.ask(wire.HEARTBEAT, wire.Heartbeat(worker, lease_ms, tuple(some)))
        return await self._link.ask(wire.HEARTBEAT, wire.Heartbeat(worker, lease_ms, tuple(last)))

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        return await self._link.ask(wire.RETIRE, wire.Retire(worker, reason))

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        check_limit(limit)
        return await self._link.ask(wire.TICK, wire.Tick(limit, keep))

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        check_batch(firings)
        for firing in firings:
            check_specs(firing.specs, self.capabilities)
        verdicts: list[Verdict] = []
        for some in portions(firings, _bytes_of_firing) if firings else ():
            answers: list[Verdict] = await self._link.ask(wire.FIRE, wire.Fire(tuple(some)))
            verdicts += answers
        return verdicts

    def watch(self, topics: Sequence[str]) -> Bell:
        return self._wake.watch(topics)

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        found: list[JobRecord | None] = []
        while len(found) < len(ids):
            some = await self._link.ask(wire.GET, wire.Get(tuple(ids[len(found) :])))
            if not 1 <= len(some) <= len(ids) - len(found):
                raise PackhorseError(
                    f"{self.location.shown!r} answered {quantity(len(some), 'record')}; this is a bug there"
                )
            found += some
        return found

    async def find(self, query: Query) -> Page:
        limit = page_limit(query)
        jobs: list[JobRecord] = []
        cursor = query.cursor
        while True:
            page = await self._link.ask(wire.FIND, wire.Find(replace(query, limit=limit - len(jobs), cursor=cursor)))
            jobs += page.jobs
            if len(jobs) >= limit or page.next is None or page.next == cursor:
                return Page(jobs, page.next)
            cursor = page.next

    async def counts(self) -> dict[str, QueueCounts]:
        return await self._link.ask(wire.COUNTS, wire.Nothing())

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        check_limit(limit)
        return await self._link.ask(wire.WORKFLOWS, wire.Workflows(limit, before))

    async def changes(self, cursor: str | None = None) -> Changes:
        return await self._link.ask(wire.CHANGES, wire.Follow(cursor))

    async def workers(self) -> list[WorkerInfo]:
        return await self._link.ask(wire.WORKERS, wire.Nothing())

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        return await self._link.ask(wire.CANCEL, wire.Steer(tuple(ids))) if ids else []

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        check_batch(reruns)
        answers: list[Steered] = []
        for some in portions(reruns, lambda one: wire.bytes_of(one.payload)) if reruns else ():
            found: list[Steered] = await self._link.ask(wire.RERUN, wire.RerunJobs(tuple(some)))
            answers += found
        return answers

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        return await self._link.ask(wire.DELETE, wire.Steer(tuple(ids))) if ids else []

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        check_changes(changes, self.capabilities)
        return await self._link.ask(wire.QUEUES, wire.ChangeQueues(tuple(changes)))

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        check_batch(changes)
        return await self._link.ask(wire.LIMITS, wire.ChangeLimits(tuple(changes), about))

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        check_batch(changes)
        return await self._link.ask(wire.SCHEDULES, wire.ChangeSchedules(tuple(changes)))

    # ---- move to another store ---------------------------------------------------------------------------

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        check_limit(limit)
        return await self._link.ask(wire.HAND_OVER, wire.HandOver(to, limit, stored))

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        if transfer is not None:
            check_batch(transfer.jobs)
        return await self._link.ask(wire.TAKE_OVER, wire.TakeOver(transfer))


def _bytes_of_settlement(one: Settlement) -> int:
    error = 0 if one.error is None else len(one.error.message) + len(one.error.traceback)
    return wire.bytes_of(one.result) + 2 * error + sum(wire.bytes_of_spec(spec) for spec in one.follow_ups)


def _bytes_of_firing(one: Firing) -> int:
    return wire.bytes_of() + sum(wire.bytes_of_spec(spec) for spec in one.specs)
