"""The verbs of the contract: each checks what it was given and has its script run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ...chance import secret_hex
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import ConfigurationError, Unavailable
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
    job_topic,
    page_limit,
    parse_cursor,
)
from ..bells import Bell
from . import adding, arriving, binding, claiming, departing, keeping, limit_rows, looking, moving, schedules, steering
from .connection import Connection, connect, is_lock_wait, parse_url
from .following import Following
from .grouping import ALONE, Grouping
from .pool import Pool
from .schema import check_schema, establish, migrate
from .script import NOTIFY, QUEUES_WITH_LANES, Rows, Script, Statement, Store, Tx
from .wake import Wake, write_payload

if TYPE_CHECKING:
    from ..checkup import Checkup

T = TypeVar("T")

log = logging.getLogger("packhorse.postgres")

#: Jobs of a worker that retires may be locked: for a moment, by a heartbeat of its own that keeps a step; or by
#: somebody's open transaction, for which nobody waits: a later tick takes them.
_RETIRE_AGAIN = 10
_RETIRE_PAUSE_S = 0.01


class PostgresBackend(Backend):
    """Jobs in one schema of a PostgreSQL database."""

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
        self._clock = clock
        first_token = int(secret_hex(8), 16) >> 2  # 62 bits that nobody else starts from, then counted up
        self._wake: Wake
        self._store = Store(self.location.schema, first_token, self._payload)
        self.rate_limited = self._store.rate_limited.counts
        self._wake = Wake(self._store.channel, self._connect, self._notify)
        self._bound = Store(self.location.schema, first_token, write_payload)
        self._pool = Pool(self.location)
        self._following = Following(self._store, self._pool.start, self._now_ms)
        self._grouping = Grouping(self._add_plain)
        self._home: binding.Home | None = None
        self._known = binding.Known()
        self._was_open = False  # once there was a schema, none is made in its place

    # ---- connection ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; a schema that does not exist is made, unless it was there when this backend was first opened."""
        db = await self._try(self._connect())
        try:
            if self._was_open:
                await self._try(check_schema(db, self._store, self.location))
            else:
                await self._try(establish(db, self._store, self.location))
            self._home = await self._try(binding.home_of(db))
        finally:
            await db.close()
        self._was_open = True
        self._pool.open()
        self._wake.open()

    async def close(self) -> None:
        await self._grouping.finish()
        await self._wake.close()
        await self._pool.close()

    async def migrate(self) -> int:
        db = await self._try(self._connect())
        try:
            return await self._try(migrate(db, self._store, self.location))
        finally:
            await db.close()

    async def checkup(self) -> Checkup:
        from .checkup import checkup

        db = await self._try(self._connect())
        try:
            return await self._try(checkup(db, self.location.schema, self._clock))
        finally:
            await db.close()

    def bind(self, connection: object) -> Bound:
        if self._home is None:
            raise ConfigurationError("this backend is not open; call open() first")
        shown = self.location.shown
        join = binding.Join(self._bound, self.capabilities, self._now_ms, self._home, shown, self._known)
        return binding.bind(join, connection)

    async def _connect(self) -> Connection:
        async with asyncio.timeout(self.location.timeout_ms / 1000):
            return await connect(self.location)

    async def _try(self, action: Awaitable[T]) -> T:
        try:
            return await action
        except Exception as error:
            raise self._pool.explained(error)  # noqa: B904  # it names its cause

    def _payload(self, topics: Iterable[str]) -> str | None:
        return self._wake.payload(topics)

    def _now_ms(self) -> int | None:
        """Answer the time to be sent; None: the server's counts."""
        return None if self._clock is SYSTEM_CLOCK else self._clock.now_ms()

    # ---- running scripts -------------------------------------------------------------------------------

    async def _run(self, script: Callable[[Tx], Script[T]], *, urgent: bool = False) -> T:
        """Run a script that moves jobs, then ring."""
        used: list[Tx] = []

        def make() -> Script[T]:
            used.append(Tx(self._store, self._now_ms()))
            return script(used[-1])

        answer = await self._pool.start(make, urgent=urgent)
        self._wake.ring(used[-1].topics, told=used[-1].told)
        return answer

    async def _notify(self, payload: str) -> None:
        statement = Statement(NOTIFY, (self._store.channel, payload), last=True)
        await self._pool.start(lambda: _ask(statement))

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        check_specs(specs, self.capabilities)
        if not specs:
            return []
        if all(adding.is_plain(spec) for spec in specs):
            answers = await (self._add_plain(specs) if len(specs) >= ALONE else self._grouping.add(specs))
            if answers is not None:
                return answers
        return await self._run(lambda tx: adding.enqueue(tx, specs))

    async def _add_plain(self, specs: Sequence[JobSpec]) -> list[Enqueued] | None:
        now_ms, topics = self._now_ms(), adding.topics_of(specs)
        payload = self._wake.payload(topics)
        answers = await self._pool.start(lambda: adding.add_plain(self._store, now_ms, specs, payload))
        if answers is not None:
            self._wake.ring(topics, told=payload is not None)
        return answers

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        """Take pending jobs. Where there are none, the lease is renewed only if a third of it is gone."""
        check_limit(limit)
        claim = claiming.Claim(tuple(dict.fromkeys(queues)), limit, lease_ms, worker)
        now_ms = self._now_ms()
        claimed = await self._pool.start(lambda: claiming.take(self._store, now_ms, claim), self._release)
        if claimed is not None:
            return claimed
        used: list[Tx] = []

        def make() -> Script[list[Claimed]]:
            used.append(Tx(self._store, self._now_ms()))
            return claiming.take_limited(used[-1], claim)

        claimed = await self._pool.start(make, self._release)
        self._wake.ring(used[-1].topics, told=used[-1].told)
        return claimed

    def _release(self, claimed: list[Claimed] | None) -> None:
        """Give jobs back that were claimed for a caller who was cancelled meanwhile."""
        if claimed and self._pool.is_open:
            future = self._pool.start(lambda: claiming.release(Tx(self._store, self._now_ms()), claimed))
            future.add_done_callback(_forget)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        check_settlements(settlements, self.capabilities)
        if not settlements:
            return []
        plain = [one for one in settlements if moving.is_plain(one)]
        if len({one.id for one in settlements}) < len(settlements):
            plain = []  # the first of two settlements counts, so they go one after the other
        settled: set[str] = set()
        if plain:
            now_ms, topics = self._now_ms(), [job_topic(one.id) for one in plain]
            payload = self._wake.payload(topics)
            settled, frees = await self._pool.start(
                lambda: moving.succeed(self._store, now_ms, plain, payload), urgent=True
            )
            self._wake.ring(topics, told=payload is not None)
            if frees:
                await self._ring_lanes()
        rest = [one for one in settlements if one.id not in settled]
        verdicts = iter(await self._settle(rest))
        return [Verdict.APPLIED if one.id in settled else next(verdicts) for one in settlements]

    async def _settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """Settle in two steps: what waits for somebody's transaction keeps no others of the batch from their end."""
        if len(settlements) < 2:
            return await self._run(lambda tx: moving.settle(tx, settlements)) if settlements else []
        found = await self._run(lambda tx: moving.settle_free(tx, settlements))
        left = [one for one, verdict in zip(settlements, found, strict=True) if verdict is None]
        rest = iter(await self._run(lambda tx: moving.settle(tx, left)) if left else ())
        return [verdict or next(rest) for verdict in found]

    async def _ring_lanes(self) -> None:
        """A job of a limited type ended: ring the queues where others may start now."""
        sql = self._store.sql(QUEUES_WITH_LANES)
        topics = {f"queue:{queue}" for (queue,) in await self._pool.start(lambda: _ask(Statement(sql, last=True)))}
        self._wake.ring(topics, told=False)

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        check_batch(notes)
        beat, now_ms = keeping.Beat(worker, lease_ms, tuple(notes)), self._now_ms()
        return await self._pool.start(lambda: keeping.heartbeat(self._store, now_ms, beat), urgent=True)

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        lapses, left = await self._run(lambda tx: keeping.retire(tx, worker, reason), urgent=True)
        for _ in range(_RETIRE_AGAIN):
            if not left:
                break
            await asyncio.sleep(_RETIRE_PAUSE_S)
            more, left = await self._run(lambda tx: keeping.retire(tx, worker, reason), urgent=True)
            lapses += more
        return lapses

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        check_limit(limit)
        tick, now_ms = keeping.Tick(limit, keep), self._now_ms()
        probed = await self._pool.start(lambda: keeping.probe(self._store, now_ms, tick))
        self._wake.ring(probed.topics, told=False)
        if probed.ticked is not None:
            return probed.ticked
        done: keeping.Moved = {}
        for name, part in keeping.PARTS.items():
            if name in probed.todo:
                try:
                    done |= await self._run(lambda tx, part=part: part(tx, tick))  # type: ignore[misc]
                except Unavailable as error:
                    if not is_lock_wait(error):
                        raise
                    log.warning("a part of a tick is put off: %s", error)  # the next tick does it
        return msgspec.structs.replace(await self._run(keeping.look_ahead), **done)

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        check_batch(firings)
        for firing in firings:
            check_specs(firing.specs, self.capabilities)
        if not firings:
            return []
        if len({firing.name for firing in firings}) < len(firings):
            return await self._run(lambda tx: schedules.fire(tx, firings))
        # One that waits for a unique key keeps no others from firing.
        alone = {firing.name for firing in firings if any(spec.unique is not None for spec in firing.specs)}
        together = [firing for firing in firings if firing.name not in alone]
        verdicts: dict[str, Verdict] = {}
        failure: Unavailable | None = None
        for group in (together, *([firing] for firing in firings if firing.name in alone)):
            if group:
                try:
                    answers = await self._run(lambda tx, group=group: schedules.fire(tx, group))  # type: ignore[misc]
                except Unavailable as error:
                    if not is_lock_wait(error):
                        raise
                    failure = error
                else:
                    verdicts.update((firing.name, answer) for firing, answer in zip(group, answers, strict=True))
        if failure is not None:
            raise failure
        return [verdicts[firing.name] for firing in firings]

    def watch(self, topics: Sequence[str]) -> Bell:
        return self._wake.watch(topics)

    # ---- move to another store ---------------------------------------------------------------------------

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        check_limit(limit)
        asked = departing.Departure(to, limit, stored)
        return await self._run(lambda tx: departing.hand_over(tx, asked))

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        if transfer is not None:
            check_batch(transfer.jobs)
        return await self._run(lambda tx: arriving.take_over(tx, transfer))

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        check_batch(ids)
        return await self._run(lambda tx: looking.get(tx, ids))

    async def find(self, query: Query) -> Page:
        page_limit(query)
        parse_cursor(query.cursor)
        return await self._run(lambda tx: looking.find(tx, query))

    async def counts(self) -> dict[str, QueueCounts]:
        return await self._run(looking.counts)

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        check_limit(limit)
        return await self._run(lambda tx: looking.workflows(tx, limit, before))

    async def changes(self, cursor: str | None = None) -> Changes:
        return await self._following.changes(cursor)

    async def workers(self) -> list[WorkerInfo]:
        return await self._run(looking.workers)

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        return await self._run(lambda tx: steering.cancel(tx, ids)) if ids else []

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        check_batch(reruns)
        return await self._run(lambda tx: steering.rerun(tx, reruns)) if reruns else []

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        check_batch(ids)
        return await self._run(lambda tx: steering.delete(tx, ids)) if ids else []

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        check_changes(changes, self.capabilities)
        if not changes:
            return await self._run(steering.read_queues)
        return await self._run(lambda tx: steering.change_queues(tx, changes))

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        check_batch(changes)
        for change in changes:
            check_limit_change(change)
        if changes:
            answer = await self._run(lambda tx: limit_rows.change_limits(tx, changes))
            if about is None:
                return answer
        if about is not None:
            return await self._run(lambda tx: limit_rows.limits_about(tx, *about))
        return await self._run(limit_rows.read_limits)

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        check_batch(changes)
        if not changes:
            return await self._run(schedules.read_all)
        return await self._run(lambda tx: schedules.change(tx, changes))


def _ask(statement: Statement) -> Script[Rows]:
    return (yield statement)


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
