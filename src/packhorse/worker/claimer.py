"""From the backend to the runner: claims as much as will soon be started, and no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ..backends.base import BATCH_MAX, Backend, queue_topic
from ..chance import Chance
from ..clock import Clock
from ..errors import PackhorseError
from ..job import Claimed, State
from ..observe.outage import Outage
from .lease import Lease
from .options import WorkerOptions
from .runner import Runner
from .settler import Settler
from .weights import weighted_order

log = logging.getLogger("packhorse.claimer")

#: A runner holds no more unstarted jobs than it can start within this time (DESIGN section 5, rule 8).
AHEAD_MS = 100
_PAUSE_S_MIN = 0.05
_PAUSE_S_MAX = 2.0
#: A worker that just parked a job lets others go first for this long. test_b26_…
_YIELD_S = (0.02, 0.1)


class Claimer:
    """Claims for one runner: batches of one when idle, up to 1,000 under load."""

    def __init__(
        self,
        backend: Backend,
        runner: Runner,
        settler: Settler,
        lease: Lease,
        worker: str,
        options: WorkerOptions,
        clock: Clock,
        chance: Chance,
    ) -> None:
        self._backend = backend
        self._runner = runner
        self._settler = settler
        self._lease = lease
        self._worker = worker
        self._options = options
        self._clock = clock
        self._chance = chance
        self._outage = Outage(log, clock, "claim")
        self._rate_per_ms = 0.0
        self._measured_ms = clock.boot_ms()
        self._measured_ended = 0
        self.claims = 0
        #: When the claim now on its way was sent (boot clock); None while there is none.
        self.claiming_since_ms: int | None = None
        #: Set when a burst found nothing left to do.
        self.exhausted = asyncio.Event()

    async def run(self) -> None:
        """Claim for ever; cancel it to stop claiming."""
        pause_s = _PAUSE_S_MIN
        while True:
            try:
                with self._backend.watch([queue_topic(queue) for queue in self._options.queues]) as bell:
                    while True:
                        await self._settler.room.wait()
                        await self._runner.has_room(self._wanted)
                        if not self._settler.room.is_set():
                            continue  # it filled up while there was no room here
                        if await self._claim():
                            pause_s = _PAUSE_S_MIN
                            continue
                        if self._options.burst and await self._nothing_left():
                            self.exhausted.set()
                        await bell.wait(self._options.poll_interval_ms)
                        if self._runner.parked_last:
                            # The job it cannot run is offered again: whoever rings first must not always take it.
                            await asyncio.sleep(self._chance.uniform(*_YIELD_S))
            except PackhorseError as error:
                self._outage.failed(error)
                await asyncio.sleep(self._chance.uniform(pause_s / 2, pause_s))
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)

    async def _claim(self) -> bool:
        sent_ms = self.claiming_since_ms = self._clock.boot_ms()
        call = asyncio.ensure_future(
            self._backend.claim(self._queues(), self._wanted(), self._options.lease_ms, self._worker)
        )
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            # Told to stop with a claim on its way: its jobs are ours already, so that they can be released.
            await asyncio.wait([call])
            if call.exception() is None:
                self._take(call.result(), sent_ms)
            raise
        finally:
            self.claiming_since_ms = None
        self._outage.over()
        return self._take(call.result(), sent_ms)

    def _queues(self) -> Sequence[str]:
        """Answer the queues in the order of this claim."""
        options = self._options
        return weighted_order(options.queues, options.weights, self._chance) if options.weights else options.queues

    def _take(self, jobs: list[Claimed], sent_ms: int) -> bool:
        self.claims += 1
        if not jobs:
            return False
        self._lease.renewed(sent_ms)
        self._runner.feed(jobs, sent_ms)
        return True

    def _wanted(self) -> int:
        """Answer how many jobs to claim now; 0 while enough are here."""
        runner = self._runner
        self._measure()
        if runner.stuck:
            self._rate_per_ms = 0.0  # every slot is taken by a slow job: how fast others were does not count
        target = min(BATCH_MAX, runner.free_slots + int(self._rate_per_ms * AHEAD_MS))
        unstarted = runner.unstarted
        # Half a target is worth a claim: smaller claims cost the same and carry less.
        return target - unstarted if unstarted * 2 <= target else 0

    def _measure(self) -> None:
        now_ms = self._clock.boot_ms()
        elapsed_ms = now_ms - self._measured_ms
        if elapsed_ms < 20:
            return
        # Ends, not starts: how fast the slots fill up says nothing about how fast they get free again.
        ended = self._runner.ended
        rate = (ended - self._measured_ended) / elapsed_ms
        # A rise counts at once, a fall by half each time: a pause in the work is not a slower handler.
        self._rate_per_ms = max(rate, (self._rate_per_ms + rate) / 2)
        self._measured_ms = now_ms
        self._measured_ended = ended

    async def _nothing_left(self) -> bool:
        """Wait for what was started, then answer whether these queues have nothing that may be claimed."""
        await self._runner.quiet(self._options.poll_interval_ms)
        await self._settler.drained()
        if self._runner.holding:
            return False
        counts = await self._backend.counts()
        ours = [counts[name] for name in self._options.queues if name in counts]
        return not any(queue.states.get(State.PENDING) for queue in ours if not queue.paused)
