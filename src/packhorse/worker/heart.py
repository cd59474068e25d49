"""Keeps a worker's lease from inside its event loop, and learns which jobs were lost or are to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

from ..backends.base import BATCH_MAX, Backend, Note, Pulse, WorkerInfo, worker_topic
from ..clock import Clock
from ..errors import PackhorseError
from ..observe.outage import Outage
from .lease import Lease
from .runner import Runner

log = logging.getLogger("packhorse.heart")

#: While jobs run, look for cancellations and send progress this often.
_BUSY_MS = 1_000
_GAP_MS_MIN = 100


class Heart:
    """Beats when the lease is a quarter old, when a job has progress to tell, and while jobs run.

    `spare` is for a runner whose keeper beats for it: then only progress and an old lease are reasons.
    """

    def __init__(
        self,
        backend: Backend,
        info: WorkerInfo,
        lease: Lease,
        runner: Runner,
        clock: Clock,
        on_pulse: Callable[[Mapping[str, str], Collection[str], int], None],
        *,
        spare: bool = False,
    ) -> None:
        self._backend = backend
        self._info = info
        self._lease = lease
        self._runner = runner
        self._clock = clock
        self._on_pulse = on_pulse
        self._spare = spare
        self._outage = Outage(log, clock, "renew the lease")
        runner.renew = self.beat

    async def run(self) -> None:
        """Beat for ever; cancel it to stop. A backend that is away is tried again: leases may lapse meanwhile."""
        with self._backend.watch([worker_topic(self._info.id)]) as bell:
            while True:
                with suppress(PackhorseError):
                    if self._due():
                        await self.beat()
                rung = await bell.wait(min(_BUSY_MS, self._lease.lease_ms // 4))
                if rung and not self._spare:
                    await self._beat_soon()

    async def _beat_soon(self) -> None:
        with suppress(PackhorseError):
            if self._runner.holding:
                await self.beat()
        await asyncio.sleep(_GAP_MS_MIN / 1000)

    def _due(self) -> bool:
        if self._lease.age_ms() * 4 >= self._lease.lease_ms or self._runner.notes:
            return True
        return bool(self._runner.holding) and not self._spare

    async def beat(self) -> None:
        """Renew the lease now. Says in the log why it cannot, and raises that."""
        try:
            pulse, sent_ms = await self.send()
        except PackhorseError as error:
            self._outage.failed(error)
            raise
        self.act(pulse, sent_ms)

    async def send(self, steps: Sequence[Note] = ()) -> tuple[Pulse, int]:
        """Renew the lease, with these notes and the progress there is; answers when it was sent, boot clock."""
        sent_ms = self._clock.boot_ms()
        self._info.busy = self._runner.busy
        notes = self._runner.notes.take(BATCH_MAX - len(steps))
        try:
            pulse = await self._backend.heartbeat(self._info, self._lease.lease_ms, [*steps, *notes])
        except BaseException:  # who waited may have given up, too: the progress is told with the next one
            self._runner.notes.put_back(notes)
            raise
        self._lease.renewed(sent_ms)
        self._outage.over()
        return pulse, sent_ms

    def act(self, pulse: Pulse, sent_ms: int) -> None:
        """Stop what was lost and what is to be cancelled."""
        self._on_pulse(pulse.held, pulse.cancel, sent_ms)
