"""A move of everything from one store to another, while both are used (decision 18).

All that must not be lost is in the two stores: whatever is killed, and whenever, a new `Move` goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from .backends.base import BATCH_MAX, Backend, Keep, Limit, QueueChange, Transfer, Verdict
from .chance import CHANCE
from .clock import SYSTEM_CLOCK, Clock
from .errors import ConfigurationError, Unavailable, Unsupported
from .job import DELAY_MS_MAX, State

T = TypeVar("T")

#: Drops nothing.
KEEP_ALL = Keep(succeeded_ms=DELAY_MS_MAX, failed_ms=DELAY_MS_MAX, cancelled_ms=DELAY_MS_MAX)
#: How long a store may be away in the middle of a move.
PATIENCE_MS = 60_000
#: Between two looks at a source where nothing but running jobs is left.
POLL_MS = 250
#: How often what is left is counted.
COUNT_MS = 1_000
#: A source with nothing that runs and nothing to hand over, and yet something left, is asked this often.
IDLE_ROUNDS_MAX = 20
#: Answers in a row that a later batch is there already, before we believe that no other mover is the reason.
STALE_MAX = 20
#: Ids of jobs that were left out which are kept for the report.
KNOWN_MAX = 1_000


class Moved(msgspec.Struct, kw_only=True):
    """What a move did so far, and what is left at the source."""

    jobs: Counter[State] = msgspec.field(default_factory=Counter)  # handed over, by state
    schedules: int = 0
    limits: int = 0
    queues: int = 0  # whose settings were copied
    known: int = 0  # jobs left out: the target had their ids
    known_ids: list[str] = []  # the first `KNOWN_MAX` of them
    left: dict[State, int] = {}  # at the source, as last counted
    done: bool = False  # nothing is left there

    @property
    def total(self) -> int:
        """Answer how many jobs were handed over."""
        return self.jobs.total()

    @property
    def remaining(self) -> int:
        """Answer how many jobs are left at the source, as last counted."""
        return sum(self.left.values())


class Move:
    """Moves all from `source` to `target`; both are open and belong to the caller.

    `tell` is called after every batch. Raises ConfigurationError where both are one store, Unsupported where one of
    them cannot, Unavailable where one is away for longer than `PATIENCE_MS`.
    """

    def __init__(
        self,
        source: Backend,
        target: Backend,
        *,
        batch: int = BATCH_MAX,
        wait: bool = True,
        tell: Callable[[Moved], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._source = source
        self._target = target
        self._batch = batch
        self._wait = wait
        self._tell = tell or (lambda moved: None)
        self._clock = clock
        self._stop = asyncio.Event()
        self._counted_at_ms: int | None = None
        self.moved = Moved()

    def stop(self) -> None:
        """End soon: what is on its way arrives, nothing more leaves."""
        self._stop.set()

    async def run(self) -> Moved:
        """Move until nothing is left at the source, or nothing but what runs where that is not waited for."""
        for backend, where in ((self._source, "--from"), (self._target, "--to")):
            if not backend.capabilities.transfer:
                raise Unsupported("transfer", f"the store of {where} can take no part in a move")
        here = (await self._patiently(self._source.take_over)).store
        to = (await self._patiently(self._target.take_over)).store
        if here == to:
            raise ConfigurationError("both URLs name the same store; name another one to move to")
        await self._count()
        await self._copy_settings()
        await self._move_jobs(to)
        await self._count()
        return self.moved

    async def _copy_settings(self) -> None:
        """Copy the settings of queues, and limits. Where the target has one of its own, that stays."""
        source, target, moved = self._source, self._target, self.moved
        queues = await self._patiently(source.queues)
        known = await self._patiently(target.queues)
        changes: list[Any] = [change for name, change in queues.items() if name not in known]
        if not target.capabilities.capacity:
            changes = [QueueChange(queue=change.queue, paused=change.paused) for change in changes]
        moved.queues = await self._send(target.queues, changes)
        limits = await self._patiently(source.limits)
        set_already = {(limit.type, limit.key) for limit in await self._patiently(target.limits)}
        wanted: list[Limit] = [limit for limit in limits if (limit.type, limit.key) not in set_already]
        moved.limits = await self._send(target.limits, wanted)

    async def _send(self, verb: Callable[..., Awaitable[Any]], changes: list[Any]) -> int:
        for start in range(0, len(changes), BATCH_MAX):
            await self._patiently(verb, changes[start : start + BATCH_MAX])
        return len(changes)

    async def _move_jobs(self, to: str) -> None:
        stored: int | None = None
        stale = idle = 0
        while True:
            limit = 0 if self._stop.is_set() else self._batch
            transfer = await self._patiently(self._source.hand_over, to, limit, stored)
            arrival = await self._patiently(self._target.take_over, transfer)
            if arrival.verdict is Verdict.STALE:
                # Another mover was quicker: the source knows what is next. Else one of the stores was set back.
                stale += 1
                if stale > STALE_MAX:
                    raise ConfigurationError(
                        "the target has a later batch of this source than the source itself: one of the two was put "
                        "back from a copy; nothing was changed, move to an empty store instead"
                    )
                stored = None
                await self._pause()
                continue
            stale = 0
            stored = transfer.number
            self._note(transfer, arrival.known)
            if transfer.jobs or transfer.schedules:
                idle = 0
                await self._count_now_and_then()
                continue
            if transfer.last:
                self.moved.done = True
                return
            if self._stop.is_set():
                return
            before = self.moved.left
            await self._count()
            running = self.moved.left.get(State.RUNNING, 0)
            idle = 0 if running or self.moved.left != before else idle + 1
            if idle > IDLE_ROUNDS_MAX or (running and not self._wait):
                return
            if running:  # those of a worker that died lapse by a tick, and perhaps no worker is left there to tick
                await self._patiently(self._source.tick, BATCH_MAX, KEEP_ALL)
            await self._pause()

    def _note(self, transfer: Transfer, known: tuple[str, ...]) -> None:
        moved = self.moved
        left = Counter(job.record.state for job in transfer.jobs)
        moved.jobs.update(left)
        moved.left = {state: max(0, count - left[state]) for state, count in moved.left.items()}
        moved.schedules += len(transfer.schedules)
        moved.known += len(known)
        moved.known_ids += known[: KNOWN_MAX - len(moved.known_ids)]
        self._tell(moved)

    async def _count_now_and_then(self) -> None:
        now_ms = self._clock.boot_ms()
        if self._counted_at_ms is None or now_ms - self._counted_at_ms >= COUNT_MS:
            await self._count()

    async def _count(self) -> None:
        left: Counter[State] = Counter()
        for counts in (await self._patiently(self._source.counts)).values():
            left.update(counts.states)
        self.moved.left = {state: left[state] for state in State if left[state]}
        self._counted_at_ms = self._clock.boot_ms()
        self._tell(self.moved)

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CHANCE.uniform(POLL_MS / 2, POLL_MS) / 1000):
                await self._stop.wait()

    async def _patiently(self, verb: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Ask again while a store is away: every verb may be repeated. Raises Unavailable after `PATIENCE_MS`."""
        give_up_at_ms = self._clock.boot_ms() + PATIENCE_MS
        while True:
            try:
                return await verb(*args)
            except Unavailable:
                if self._clock.boot_ms() >= give_up_at_ms or self._stop.is_set():
                    raise
            await self._pause()


def moved_json(moved: Moved) -> dict[str, Any]:
    """Write what a move did as JSON."""
    return {
        "moved": {str(state): moved.jobs[state] for state in State if state is not State.RUNNING},
        "schedules": moved.schedules,
        "limits": moved.limits,
        "queues": moved.queues,
        "known": moved.known,
        "known_ids": list(moved.known_ids),
        "left": {str(state): count for state, count in moved.left.items()},
        "done": moved.done,
    }
