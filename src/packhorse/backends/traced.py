"""A worker's backend that makes spans of the claims and settles which pass through it."""

from __future__ import annotations

from collections.abc import Sequence

from ..clock import wall_ns
from ..job import Claimed
from ..observe.run_spans import RunSpans
from .base import Backend, Settlement, Verdict
from .passing import PassingBackend


class TracedBackend(PassingBackend):
    """Does what `inner` does. It has no connection of its own."""

    def __init__(self, inner: Backend, spans: RunSpans) -> None:
        super().__init__(inner)
        self._spans = spans

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        began_ns = wall_ns()
        jobs = await self._inner.claim(queues, limit, lease_ms, worker)
        if jobs:
            self._spans.received(jobs, queues, began_ns)
        return jobs

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        runs = self._spans.ended_of(settlements)
        if not runs:
            return await self._inner.settle(settlements)
        with self._spans.settling(runs):
            return await self._inner.settle(settlements)
