"""The client of a world: enqueues, cancels, pauses and reruns, and repeats every call until it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from ...backends.base import QueueChange, Rerun
from ...chance import Chance
from ...clock import Clock
from ...errors import Unavailable
from ...job import JobSpec, Unique
from .handlers import draw_plan
from .network import Wire

A = TypeVar("A")
T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class Client:
    """One process that never fails; the network between it and the store does."""

    def __init__(
        self,
        wire: Wire,
        clock: Clock,
        chance: Chance,
        acknowledged: set[str],
        *,
        jobs: int,
        queues: tuple[str, ...],
        busy_ms: int,
        lease_ms: int,
        steering: bool,
    ) -> None:
        self.loop = wire.loop
        self._backend = wire
        self._clock = clock
        self._chance = chance
        self._acknowledged = acknowledged
        self._jobs = jobs
        self._queues = queues
        self._busy_ms = busy_ms
        self._lease_ms = lease_ms
        self._steering = steering
        self._ids: list[str] = []

    async def work(self) -> None:
        """Enqueue all jobs within `busy_ms`, and steer them meanwhile."""
        steering = asyncio.get_running_loop().create_task(self._steer())
        left = self._jobs
        while left > 0:
            count = min(left, self._chance.choice((1, 1, 2, 4, 9)))
            left -= count
            await asyncio.sleep(self._chance.below(max(1, self._busy_ms * count // self._jobs)) / 1000)
            specs = [self._draw_spec() for _ in range(count)]
            answers = await self._insist(self._backend.enqueue, specs)
            for answer in answers:
                self._acknowledged.add(answer.id)
                self._ids.append(answer.id)
        await steering

    async def resume_all(self) -> None:
        """Resume every queue that is paused; a resume rings bells, so none that is not."""
        while changes := [
            QueueChange(queue=name, paused=False)
            for name, queue in (await self._insist(self._backend.queues, [])).items()
            if queue.paused
        ]:
            await self._insist(self._backend.queues, changes)

    async def _insist(self, call: Callable[[A], Awaitable[T]], argument: A) -> T:
        while True:
            try:
                return await call(argument)
            except Unavailable:
                await asyncio.sleep(self._chance.uniform(0.01, 0.3))

    def _draw_spec(self) -> JobSpec:
        chance = self._chance
        plan = draw_plan(chance, self._lease_ms)
        kind = plan["kind"]
        job_id = chance.id(self._clock.now_ms())
        job_type = "work"
        payload: dict[str, Any] = {"plan": plan}
        if kind in {"ok", "nap", "flaky", "yields", "deaf-ok"} and chance.happens(0.4):
            job_type = "plain"
            payload["job"] = job_id
        elif chance.happens(0.06):
            job_type = "rare"
        elif chance.happens(0.03):
            payload["plan"] = "not a plan"
        return JobSpec(
            id=job_id,
            type=job_type,
            payload=_encode(payload),
            queue=chance.choice(self._queues),
            priority=chance.choice((2, 5, 5, 5, 8)),
            max_attempts=chance.choice((1, 2, 3, 4)),
            timeout_ms=500 + chance.below(2_000) if kind == "endless" else chance.choice((0, 700, 2_500, 8_000)),
            delay_ms=chance.choice((0, 0, 0, 1 + chance.below(2_500))),
            unique=Unique(key=chance.choice("uvw")) if chance.happens(0.15) else None,
            meta={"kind": kind},
        )

    async def _steer(self) -> None:
        """Cancel, pause, resume and rerun until the busy time is over."""
        if not self._steering:
            return
        loop, chance = asyncio.get_running_loop(), self._chance
        end = loop.time() + self._busy_ms / 1000
        while loop.time() < end:
            await asyncio.sleep(chance.uniform(0.05, 1.0))
            ids = [chance.choice(self._ids) for _ in range(1 + chance.below(3))] if self._ids else []
            queue, verb = chance.choice(self._queues), chance.below(10)
            if verb < 5 and ids:
                await self._insist(self._backend.cancel, ids)
            elif verb < 7 and ids:
                await self._insist(self._backend.rerun, [Rerun(id=job_id) for job_id in ids])
            elif verb < 9:
                await self._insist(self._backend.queues, [QueueChange(queue=queue, paused=verb == 7)])
            else:
                await self._insist(self._backend.get, ids)
        await self.resume_all()
