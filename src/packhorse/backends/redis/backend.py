"""The verbs of the contract: each checks what it was given, packs it, and runs one script."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Raw
from msgspec.structs import replace

from ...chance import secret_hex
from ...clock import SYSTEM_CLOCK, Clock, precise_boot_ms
from ...errors import PackhorseError, QueueFull, UniqueConflict, UnknownParent
from ...job import Claimed, JobRecord, JobSpec, State
from ...limits import check_limit_change
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
    parents_first,
    parse_cursor,
)
from ..bells import Bell
from ..grouping import Group
from ..rate_limited import RateLimited
from . import following, looking, settings, transferring
from .link import Link
from .location import parse_url
from .opening import check
from .records import (
    SCHEMA,
    TOKEN_BYTES,
    pack,
    pack_note,
    pack_rerun,
    pack_settlement,
    pack_spec,
    pack_token,
    pairs,
    raw,
    read_claimed,
    read_lapse,
)
from .wake import Wake

if TYPE_CHECKING:
    from ..checkup import Checkup

_VERDICTS = (Verdict.STALE, Verdict.APPLIED)


class RedisBackend(Backend):
    """Jobs on a Redis or Valkey server, under the keys of one prefix."""

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
        transfer=True,
        changes=True,
    )

    def __init__(self, url: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.location = parse_url(url)
        self._clock = clock
        self._link = Link(self.location, clock)
        self._rate_limited = RateLimited()
        self.rate_limited = self._rate_limited.counts
        self._wake = Wake(self._link)
        self._enqueues = Group(self._enqueue_all, len)
        self._settles = Group(self._settle_all, len)
        self._claims: set[asyncio.Task[Any]] = set()
        self._opened = False

    async def open(self) -> None:
        """Connect and check the server; a store that does not exist is made."""
        if self._opened:
            return
        self._link.connect()
        try:
            await check(self._link)
        except BaseException:
            await self._link.disconnect()
            raise
        self._opened = True

    async def close(self) -> None:
        if not self._opened:
            return
        await self._enqueues.finish()
        await self._settles.finish()
        while self._claims:
            await asyncio.wait(self._claims)
        self._opened = False
        await self._wake.close()
        await self._link.disconnect()

    async def migrate(self) -> int:
        """Answer the schema's number; there is no older one to migrate from."""
        return SCHEMA

    async def checkup(self) -> Checkup:
        from .checkup import checkup

        link = Link(self.location, self._clock)
        link.connect()
        try:
            return await checkup(link, self._clock)
        finally:
            await link.disconnect()

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        check_specs(specs, self.capabilities)
        if not specs:
            return []
        order = parents_first(specs)
        ordered = specs if order is None else [specs[number] for number in order]
        there: list[Any] = await self._enqueues.ask([Raw(pack(pack_spec(spec))) for spec in ordered])
        answers = [Enqueued(spec.id, True) for spec in ordered]
        for place, job_id in pairs(there):
            answers[place - 1] = Enqueued(job_id.decode(), False)
        if order is None:
            return answers
        found = dict(zip(order, answers, strict=True))
        return [found[number] for number in range(len(specs))]

    async def _enqueue_all(self, calls: list[Sequence[Raw]]) -> list[Any]:
        answers = await self._link.run("enqueue", calls)
        return [_refusal(answer) or answer for answer in answers]

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        """Take pending jobs. Where there are none, the lease stays as it was."""
        check_limit(limit)
        if limit == 0 or not queues:
            return []
        task = asyncio.get_running_loop().create_task(self._claim(queues, limit, lease_ms, worker))
        self._claims.add(task)
        task.add_done_callback(self._claims.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._release)
            raise

    async def _claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        token = secret_hex(TOKEN_BYTES)  # chance, not a counter: a failover may lose a counter's last steps
        info = raw(_pack_info(WorkerInfo(id=worker, queues=tuple(queues))))
        found = await self._link.run("claim", (tuple(queues), limit, lease_ms, worker, pack_token(token), info))
        if found and not found[-2]:
            self._note_shut(found.pop())
            found.pop()
        return [read_claimed(job_id, text, token) for job_id, text in pairs(found)]

    def _note_shut(self, shut: Sequence[bytes]) -> None:
        for job_type, at_ms in pairs(shut):
            if int(at_ms):
                self._rate_limited.note_type(job_type.decode(), int(at_ms))
            else:
                self._rate_limited.note_lane(job_type.decode())

    def _release(self, task: asyncio.Task[list[Claimed]]) -> None:
        """Give jobs back that were claimed for a caller who was cancelled meanwhile."""
        claimed = task.result() if not task.cancelled() and task.exception() is None else []
        if claimed and self._link.is_open:
            args = ([job.id for job in claimed], pack_token(claimed[0].token))
            release = asyncio.get_running_loop().create_task(self._link.run("release", args))
            self._claims.add(release)
            release.add_done_callback(self._claims.discard)
            release.add_done_callback(_forget)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        check_settlements(settlements, self.capabilities)
        if not settlements:
            return []
        packed = [Raw(pack(pack_settlement(_parents_first(one)))) for one in settlements]
        answer: list[Verdict] = await self._settles.ask(packed)
        return answer

    async def _settle_all(self, calls: list[Sequence[Raw]]) -> list[Any]:
        verdicts = iter(await self._link.run("settle", [one for settlements in calls for one in settlements]))
        return [[_VERDICTS[next(verdicts)] for _ in settlements] for settlements in calls]

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        check_batch(notes)
        args = (worker.id, lease_ms, raw(_pack_info(worker)), [pack_note(note) for note in notes])
        held, cancel = await self._link.run("heartbeat", args)
        return Pulse(
            held={job_id.decode(): token.hex() for job_id, token in pairs(held)},
            cancel=frozenset(job_id.decode() for job_id in cancel),
        )

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        return [read_lapse(one) for one in await self._link.run("retire", (worker, reason))]

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        check_limit(limit)
        promoted, lapsed, dropped, freed, next_due_ms, now_ms, due = await self._link.run(
            "tick", (limit, keep.succeeded_ms, keep.failed_ms, keep.cancelled_ms)
        )
        schedules = [settings.read_schedule(data) for _, data in pairs(due) if data is not None]
        return Ticked(
            promoted=promoted,
            lapses=tuple(read_lapse(one) for one in lapsed),
            dropped=dropped,
            freed=freed,
            next_due_ms=None if next_due_ms < 0 else next_due_ms,
            now_ms=now_ms,
            schedules=tuple(sorted(schedules, key=lambda one: one.name)),
        )

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        check_batch(firings)
        for firing in firings:
            check_specs(firing.specs, self.capabilities)
        if not firings:
            return []
        packed = [
            (one.name, one.revision, one.done_ms, one.new_done_ms, one.next_ms, [pack_spec(spec) for spec in specs])
            for one in firings
            for specs in (_ordered(one.specs),)
        ]
        return [_VERDICTS[code] for code in await self._link.run("fire", packed)]

    def watch(self, topics: Sequence[str]) -> Bell:
        return self._wake.watch(topics)

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        return await looking.get(self._link, ids)

    async def find(self, query: Query) -> Page:
        page_limit(query)
        parse_cursor(query.cursor)
        return await looking.find(self._link, query, precise_boot_ms)

    async def counts(self) -> dict[str, QueueCounts]:
        return await looking.counts(self._link)

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        check_limit(limit)
        return await looking.workflows(self._link, limit, before)

    async def changes(self, cursor: str | None = None) -> Changes:
        return await following.changes(self._link, cursor)

    async def workers(self) -> list[WorkerInfo]:
        return await looking.workers(self._link)

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        return await self._steer("cancel", ids)

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        return await self._steer("rerun", [pack_rerun(one) for one in reruns])

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        return await self._steer("delete", ids)

    async def _steer(self, verb: str, items: Sequence[Any]) -> list[Steered]:
        check_batch(items)
        if not items:
            return []
        return [Steered(answer.decode()) for answer in await self._link.run(verb, items)]

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        check_changes(changes, self.capabilities)
        found = await self._link.run("queues", [(one.queue, one.paused, one.capacity) for one in changes])
        return looking.read_queues(found)

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        check_batch(changes)
        for change in changes:
            check_limit_change(change)
        if changes or about is None:
            answer = await settings.change_limits(self._link, changes)
            if about is None:
                return answer
        return await settings.limits_about(self._link, *about)

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        check_batch(changes)
        return await settings.change_schedules(self._link, changes)

    # ---- move to another store ---------------------------------------------------------------------------

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        check_limit(limit)
        return await transferring.hand_over(self._link, to, limit, stored)

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        if transfer is not None:
            check_batch(transfer.jobs)
        return await transferring.take_over(self._link, transfer)


def _ordered(specs: Sequence[JobSpec]) -> Sequence[JobSpec]:
    order = parents_first(specs)
    return specs if order is None else [specs[number] for number in order]


def _parents_first(one: Settlement) -> Settlement:
    """Put the follow-ups of a settlement in the order they are looked at."""
    if not one.follow_ups:
        return one
    return replace(one, follow_ups=tuple(_ordered(one.follow_ups)))


def _refusal(answer: list[Any]) -> PackhorseError | None:
    """Answer the error that refuses a call; None: it was stored."""
    if not answer or answer[0] != -1:
        return None
    kind, one, *two = answer[1:]
    if kind == b"unique":
        return UniqueConflict(one.decode(), two[0].decode())
    if kind == b"parent":
        return UnknownParent(one.decode())
    return QueueFull(one.decode(), two[0])


def _pack_info(info: WorkerInfo) -> bytes:
    return pack(info)


def _forget(task: asyncio.Task[Any]) -> None:
    """Whatever became of it: the lease of the worker brings the jobs back as well."""
    if not task.cancelled():
        task.exception()


__all__ = ["RedisBackend", "State"]
