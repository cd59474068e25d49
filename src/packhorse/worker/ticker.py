"""Moves time on in the store: due jobs become pending, lapsed leases are made good, slots of schedules become jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..backends.base import BATCH_MAX, DUE_TOPIC, SCHEDULES_A_TICK, Backend, Firing, Keep, Lapse, Schedule, Ticked
from ..chance import Chance
from ..clock import Clock
from ..errors import PackhorseError
from ..observe.outage import Outage
from ..schedule import plan
from ..wording import quantity
from .lapses import LEASE_OVER, say_lapses

log = logging.getLogger("packhorse.ticker")

#: At least this long between two ticks, however often something due is added.
_GAP_MS_MIN = 20
#: At most this long, so that a dead worker's lapse is seen soon after its lease ran out.
_GAP_MS_MAX = 1_000
#: Something is due but could not be moved: somebody's open transaction holds it. Do not ask all the time.
_STUCK_GAP_MS = 100
#: A schedule that cannot be planned here stays due for others who may know its zone. Do not look all the time.
_BROKEN_GAP_MS = 250
#: When only such schedules come any more, they are put off by this much, so that others get their turn.
_BROKEN_PUT_OFF_MS = 60_000
#: Names of such schedules that are remembered, to log each once.
_BROKEN_KEPT_MAX = 10_000


class Ticker:
    """Ticks. Any number of workers do; each tick is idempotent.

    What its ticks take from lost workers, it says in the log and gives to `on_lapses`: nobody else hears of it.
    """

    def __init__(
        self,
        backend: Backend,
        keep: Keep,
        chance: Chance,
        clock: Clock,
        on_lapses: Callable[[Sequence[Lapse]], None] | None = None,
    ) -> None:
        self._backend = backend
        self._on_lapses = on_lapses
        self._keep = keep
        self._chance = chance
        self._clock = clock
        self._outage = Outage(log, clock, "tick")
        self._broken: dict[str, int] = {}  # schedules that cannot be planned here: name → revision

    async def run(self) -> None:
        """Tick for ever; cancel it to stop."""
        while True:
            try:
                with self._backend.watch([DUE_TOPIC]) as bell:
                    while True:
                        gap_ms = await self.tick()
                        self._outage.over()
                        started_ms = self._clock.boot_ms()
                        await bell.wait(gap_ms)
                        rest_ms = min(_GAP_MS_MIN, gap_ms) - (self._clock.boot_ms() - started_ms)
                        if rest_ms > 0:
                            await asyncio.sleep(rest_ms / 1000)
            except PackhorseError as error:
                self._outage.failed(error)
                await asyncio.sleep(self._chance.uniform(0.1, 1.0))

    async def tick(self) -> int:
        """Tick once; answers after how many ms the next is wanted."""
        ticked = await self._backend.tick(BATCH_MAX, self._keep)
        if ticked.lapsed:
            lapsed = quantity(ticked.lapsed, "job whose worker was lost is", "jobs whose worker was lost are")
            log.warning("%s made good", lapsed)
            say_lapses(ticked.lapses, LEASE_OVER)
            if self._on_lapses is not None:
                self._on_lapses(ticked.lapses)
        fired = await self._fire(ticked)
        if max(ticked.promoted, ticked.lapsed, ticked.dropped, ticked.freed) >= BATCH_MAX:
            return 1
        if fired:
            return _GAP_MS_MIN  # the next tick knows what is due after these
        due_ms = _GAP_MS_MAX if ticked.next_due_ms is None else ticked.next_due_ms
        if due_ms == 0 and not (ticked.promoted or ticked.lapsed or ticked.dropped or ticked.freed):
            due_ms = _STUCK_GAP_MS
        return max(_BROKEN_GAP_MS if ticked.schedules else 1, min(due_ms, _GAP_MS_MAX))

    # ---- schedules -------------------------------------------------------------------------------------

    async def _fire(self, ticked: Ticked) -> bool:
        """Turn the slots that are due into jobs; answers whether anything was to be moved.

        The store's time decides what is due (FAILURES B36). Where another ticker was quicker, that is as good.
        """
        crowded = len(ticked.schedules) >= SCHEDULES_A_TICK
        planned = [self._plan(schedule, ticked.now_ms, crowded) for schedule in ticked.schedules]
        firings = [firing for firing in planned if firing is not None]
        for batch in _batches(firings):
            await self._backend.fire(batch)
        return bool(firings)

    def _plan(self, schedule: Schedule, now_ms: int, crowded: bool) -> Firing | None:
        """Plan one schedule. One that cannot be planned is logged once and stops no other."""
        try:
            firing = plan(schedule, now_ms)
        except Exception as error:  # whatever somebody put into the store, perhaps with newer time zones
            if self._broken.get(schedule.name) != schedule.revision:
                log.error("schedule %s cannot be planned by this worker: %s", schedule.name, error)
                if len(self._broken) >= _BROKEN_KEPT_MAX:
                    self._broken.clear()
                self._broken[schedule.name] = schedule.revision
            return _put_off(schedule, now_ms) if crowded else None
        if self._broken.pop(schedule.name, None) is not None:
            log.info("schedule %s can be planned again", schedule.name)
        return firing


def _put_off(schedule: Schedule, now_ms: int) -> Firing:
    """Let a schedule come again later; no slot of it is passed over."""
    return Firing(
        name=schedule.name,
        revision=schedule.revision,
        done_ms=schedule.done_ms,
        new_done_ms=schedule.done_ms,
        next_ms=now_ms + _BROKEN_PUT_OFF_MS,
    )


def _batches(firings: Iterable[Firing]) -> Iterator[list[Firing]]:
    """Divide firings into calls of at most 1,000 jobs."""
    batch: list[Firing] = []
    jobs = 0
    for firing in firings:
        if batch and jobs + len(firing.specs) > BATCH_MAX:
            yield batch
            batch, jobs = [], 0
        batch.append(firing)
        jobs += len(firing.specs)
    if batch:
        yield batch
