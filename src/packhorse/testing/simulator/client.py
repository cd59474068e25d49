"""The client of a world: enqueues jobs and workflows, and repeats every call until it is answered."""

from __future__ import annotations

import asyncio

from ...chance import Chance
from ...errors import QueueFull, Refused
from ...job import JobSpec
from .network import Wire
from .operator import Operator, insist
from .work import NODES_MAX, Work

#: How often a batch is tried on a full queue, before its jobs are tried one by one.
_TRIES = 3


class Client:
    """One process that never fails; the network between it and the store does."""

    def __init__(
        self,
        wire: Wire,
        chance: Chance,
        work: Work,
        acknowledged: set[str],
        *,
        jobs: int,
        busy_ms: int,
        queues: tuple[str, ...],
        features: frozenset[str],
        steering: bool,
    ) -> None:
        self.loop = wire.loop
        self._backend = wire
        self._chance = chance
        self._work = work
        self._acknowledged = acknowledged
        self._jobs = jobs
        self._busy_ms = busy_ms
        self._features = features
        self._ids: list[str] = []
        self.operator = Operator(wire, chance, work, self._ids, queues, features, steering=steering)

    async def work(self) -> None:
        """Enqueue all jobs within `busy_ms`, and steer them meanwhile."""
        steering = asyncio.get_running_loop().create_task(self.operator.work(self._busy_ms))
        left = self._jobs
        while left > 0:
            flow = "workflows" in self._features and left > 1 and self._chance.happens(0.5)
            count = 2 + self._chance.below(NODES_MAX - 1) if flow else self._chance.choice((1, 1, 2, 4, 9))
            count = min(left, count)
            left -= count
            await asyncio.sleep(self._chance.below(max(1, self._busy_ms * count // self._jobs)) / 1000)
            await self._enqueue(self._work.workflow(count, self._ids) if flow else self._work.batch(count))
        await steering

    async def _enqueue(self, specs: list[JobSpec]) -> None:
        """Enqueue until it is answered. A refusal is an answer: a full queue is tried again, not for ever."""
        for _ in range(_TRIES):
            try:
                answers = await insist(self._chance, self._backend.enqueue, specs)
            except QueueFull:
                await asyncio.sleep(self._chance.uniform(0.05, 0.5))
            except Refused:
                return  # a unique key that is to be refused, or a parent that was deleted
            else:
                for answer in answers:
                    self._acknowledged.add(answer.id)
                    self._ids.append(answer.id)
                return
        if len(specs) > 1 and not any(spec.after for spec in specs):
            for spec in specs:
                await self._enqueue([spec])
