"""The operator of a world: cancels, pauses, reruns, deletes, and changes limits, capacities and schedules meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from ...backends.base import Query, QueueChange, Rerun, ScheduleChange
from ...chance import Chance
from ...errors import NotFound, Unavailable
from ...job import State
from .network import Wire
from .work import DECLARED, SCHEDULES, Work

A = TypeVar("A")
T = TypeVar("T")

#: Schedules go on for up to so long after the storm: then each slot must be on time.
_CALM_MS = 4_000


async def insist(chance: Chance, call: Callable[[A], Awaitable[T]], argument: A) -> T:
    """Repeat a call until it is answered."""
    while True:
        try:
            return await call(argument)
        except Unavailable:
            await asyncio.sleep(chance.uniform(0.01, 0.3))


class Operator:
    """Steers what the client enqueued, for a time; then puts everything in order."""

    def __init__(
        self,
        backend: Wire,
        chance: Chance,
        work: Work,
        ids: list[str],
        queues: tuple[str, ...],
        features: frozenset[str],
        *,
        steering: bool,
    ) -> None:
        self._backend = backend
        self._chance = chance
        self._work = work
        self._ids = ids
        self._queues = queues
        self._features = features
        self._actions: list[Callable[[], Awaitable[object]]] = []
        if steering:
            self._actions += [self._cancel] * 5 + [self._rerun] * 2 + [self._pause, self._resume, self._look]
        if features & {"workflows", "steps"} and steering:
            self._actions += [self._rerun, self._rerun_failed, self._rerun_failed, self._rerun_failed]
        for feature, action in (
            ("deletes", self._delete),
            ("limits", self._limit),
            ("capacity", self._capacity),
            ("schedules", self._schedule),
        ):
            if feature in features:
                self._actions += [action] * 4

    async def work(self, busy_ms: int) -> None:
        """Steer for `busy_ms`."""
        loop, chance = asyncio.get_running_loop(), self._chance
        if not self._actions:
            return
        end = loop.time() + busy_ms / 1000
        for feature, action in (
            ("limits", self._limit),
            ("limits", self._limit),
            ("capacity", self._capacity),
            ("schedules", self._define),
        ):
            if feature in self._features:
                await action()
        while loop.time() < end:
            await asyncio.sleep(chance.uniform(0.05, 1.0))
            await chance.choice(self._actions)()
        await self._resume_all()

    async def calm(self) -> None:
        """After the storm: resume what is paused, let schedules run for a while and end them, lift some limits."""
        await self._resume_all()
        if "schedules" in self._features:
            await asyncio.sleep(self._chance.below(_CALM_MS) / 1000)
            await self._end_schedules()
        if "limits" in self._features and self._chance.happens(0.5):
            await self._lift_limits()

    async def _resume_all(self) -> None:
        """Resume every queue that is paused; a resume rings bells, so none that is not."""
        while changes := [
            QueueChange(queue=name, paused=False)
            for name, queue in (await self._insist(self._backend.queues, [])).items()
            if queue.paused
        ]:
            await self._insist(self._backend.queues, changes)

    async def _end_schedules(self) -> None:
        """Remove schedules, or pause them: no slot of them becomes a job any more."""
        while live := [one for one in await self._insist(self._backend.schedules, []) if not one.paused]:
            changes = [
                ScheduleChange(name=one.name, removed=True)
                if not one.source and self._chance.happens(0.5)
                else ScheduleChange(name=one.name, paused=True)
                for one in live
            ]
            await self._insist(self._backend.schedules, changes)

    async def _lift_limits(self) -> None:
        while limits := [one for one in await self._insist(self._backend.limits, []) if not one.source]:
            await self._insist(self._backend.limits, [msgspec.structs.replace(one, cleared=True) for one in limits])

    async def _insist(self, call: Callable[[A], Awaitable[T]], argument: A) -> T:
        return await insist(self._chance, call, argument)

    def _some(self) -> list[str]:
        return [self._chance.choice(self._ids) for _ in range(1 + self._chance.below(3))] if self._ids else []

    # ---- actions ---------------------------------------------------------------------------------------

    async def _cancel(self) -> None:
        if ids := self._some():
            await self._insist(self._backend.cancel, ids)

    async def _rerun(self) -> None:
        chance = self._chance
        delay_ms = chance.choice((0, 0, 1 + chance.below(500)))
        payload = self._payload()
        if ids := self._some():
            await self._insist(
                self._backend.rerun, [Rerun(id=job_id, delay_ms=delay_ms, payload=payload) for job_id in ids]
            )

    def _payload(self) -> bytes | None:
        """Draw the edit of a rerun; None keeps the payload."""
        return b'{"plan": {"kind": "ok", "ms": 1, "times": 1}}' if self._chance.happens(0.2) else None

    async def _rerun_failed(self) -> None:
        """Rerun some of what failed, whose children may wait for that."""
        page = await self._insist(self._backend.find, Query(states=(State.FAILED,), limit=6))
        if page.jobs:
            ids = sorted({self._chance.choice(page.jobs).id for _ in range(3)})
            await self._insist(self._backend.rerun, [Rerun(id=job_id, payload=self._payload()) for job_id in ids])

    async def _delete(self) -> None:
        if ids := self._some():
            await self._insist(self._backend.delete, ids[:1])

    async def _look(self) -> None:
        await self._insist(self._backend.get, self._some())

    async def _pause(self) -> None:
        await self._insist(self._backend.queues, [QueueChange(queue=self._chance.choice(self._queues), paused=True)])

    async def _resume(self) -> None:
        await self._insist(self._backend.queues, [QueueChange(queue=self._chance.choice(self._queues), paused=False)])

    async def _capacity(self) -> None:
        change = QueueChange(queue=self._chance.choice(self._queues), capacity=self._chance.choice((0, 1, 2, 4, 8)))
        await self._insist(self._backend.queues, [change])

    async def _limit(self) -> None:
        await self._insist(self._backend.limits, [self._work.limit()])

    async def _define(self) -> None:
        name = self._chance.choice(SCHEDULES)
        await self._insist(self._backend.schedules, [ScheduleChange(name=name, define=self._work.schedule(name))])

    async def _schedule(self) -> None:
        """Redefine, pause, resume or remove a schedule; mostly while one is being fired."""
        if self._chance.happens(0.7):
            await asyncio.wait([self._backend.waylay("fire")], timeout=1.0)
        name, fate = self._chance.choice(SCHEDULES), self._chance.below(8)
        if fate < 3:
            await self._define()
            return
        name = self._chance.choice((name, name, DECLARED))
        change = ScheduleChange(name=name, removed=True) if fate == 3 else ScheduleChange(name=name, paused=fate < 6)
        try:
            await self._insist(self._backend.schedules, [change])
        except NotFound:
            if name != DECLARED:
                await self._define()
