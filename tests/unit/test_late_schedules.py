"""`packhorse_schedule_late_seconds`: how overdue the slots of schedules are, which else nobody sees until it hurts."""

from __future__ import annotations

import asyncio

from packhorse.backends.base import Keep, ScheduleChange
from packhorse.backends.memory import MemoryBackend, MemoryStore
from packhorse.chance import Chance
from packhorse.clock import ManualClock
from packhorse.job import JobSpec
from packhorse.observe import metrics
from packhorse.observe.meters import Meters
from packhorse.observe.store_gauges import StoreGauges
from packhorse.schedule import make_schedule
from packhorse.worker.ticker import Ticker

KEEP = Keep(succeeded_ms=60_000, failed_ms=60_000, cancelled_ms=60_000)


class Late:
    """A store of schedules, a clock, and what a scrape says."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = MemoryBackend(MemoryStore(self.clock))
        self.gauges = StoreGauges(self._backend, self.clock, Meters())

    async def _backend(self) -> MemoryBackend:
        return self.backend

    async def define(self, name: str, every: str) -> None:
        schedule = make_schedule(name, JobSpec(id="", type="report"), every=every)
        await self.backend.schedules([ScheduleChange(name=name, define=schedule)])

    async def tick(self) -> None:
        ticker = Ticker(self.backend, KEEP, Chance(1), self.clock)
        for _ in range(3):
            await ticker.tick()

    async def after(self, ms: int) -> float:
        """Let time go by; answers how late the metric says it is then, s."""
        self.clock.advance(ms)
        return next(value for metric, _, value in await self.gauges.read() if metric is metrics.SCHEDULE_LATE)


def test_a_slot_that_nobody_fires_gets_later_and_later() -> None:
    async def scenario() -> None:
        late = Late()
        assert await late.after(2_000) == 0  # no schedules
        await late.define("hourly", "1h")
        await late.define("often", "1m")
        await late.tick()
        assert await late.after(10_000) == 0  # nothing is due
        assert await late.after(310_000) >= 300 - 60
        before = await late.after(60_000)
        assert await late.after(60_000) == before + 60
        await late.tick()
        assert await late.after(2_000) == 0

    asyncio.run(scenario())


def test_a_schedule_that_nobody_ever_planned_is_late_since_it_was_defined() -> None:
    async def scenario() -> None:
        late = Late()
        await late.define("often", "1m")
        assert await late.after(400_000) == 400

    asyncio.run(scenario())


def test_a_schedule_that_is_paused_is_never_late() -> None:
    async def scenario() -> None:
        late = Late()
        await late.define("often", "1m")
        await late.tick()
        await late.backend.schedules([ScheduleChange(name="often", paused=True)])
        assert await late.after(3_600_000) == 0

    asyncio.run(scenario())
