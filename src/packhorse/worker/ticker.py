"""Moves time on in the store: due jobs become pending, lapsed leases are made good, old jobs are dropped."""

from __future__ import annotations

import asyncio
import logging

from ..backends.base import BATCH_MAX, DUE_TOPIC, Backend, Keep
from ..chance import Chance
from ..clock import Clock
from ..errors import PackhorseError

log = logging.getLogger("packhorse.ticker")

#: At least this long between two ticks, however often something due is added.
_GAP_MS_MIN = 20
#: At most this long, so that a dead worker's lapse is seen soon after its lease ran out.
_GAP_MS_MAX = 1_000


class Ticker:
    """Ticks. Any number of workers do; each tick is idempotent."""

    def __init__(self, backend: Backend, keep: Keep, chance: Chance, clock: Clock) -> None:
        self._backend = backend
        self._keep = keep
        self._chance = chance
        self._clock = clock

    async def run(self) -> None:
        """Tick for ever; cancel it to stop."""
        while True:
            try:
                with self._backend.watch([DUE_TOPIC]) as bell:
                    while True:
                        gap_ms = await self.tick()
                        started_ms = self._clock.boot_ms()
                        await bell.wait(gap_ms)
                        rest_ms = min(_GAP_MS_MIN, gap_ms) - (self._clock.boot_ms() - started_ms)
                        if rest_ms > 0:
                            await asyncio.sleep(rest_ms / 1000)
            except PackhorseError as error:
                log.warning("cannot tick, trying again: %s", error)
                await asyncio.sleep(self._chance.uniform(0.1, 1.0))

    async def tick(self) -> int:
        """Tick once; answers after how many ms the next is wanted."""
        ticked = await self._backend.tick(BATCH_MAX, self._keep)
        if ticked.lapsed:
            log.warning("%d jobs whose worker was lost are made good", ticked.lapsed)
        if max(ticked.promoted, ticked.lapsed, ticked.dropped) >= BATCH_MAX:
            return 1
        if ticked.next_due_ms is None:
            return _GAP_MS_MAX
        return max(1, min(ticked.next_due_ms, _GAP_MS_MAX))
