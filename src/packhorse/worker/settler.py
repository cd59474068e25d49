"""From the runner back to the backend: ends of runs, in batches that grow with the load."""

from __future__ import annotations

import asyncio
import logging

from ..backends.base import BATCH_MAX, Backend, Settlement, Verdict
from ..chance import Chance
from ..errors import PackhorseError, Unavailable
from ..job import State

log = logging.getLogger("packhorse.settler")

#: Ends of runs held here at most; beyond it claiming stops until the backend takes them again.
BACKLOG_MAX = 2 * BATCH_MAX
_PAUSE_S_MIN = 0.05
_PAUSE_S_MAX = 5.0


class Settler:
    """Settles what runs ended with. Nothing is dropped while the process lives: it tries until the backend answers."""

    def __init__(self, backend: Backend, chance: Chance) -> None:
        self._backend = backend
        self._chance = chance
        self._backlog: list[Settlement] = []
        self._in_flight: list[Settlement] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.room = asyncio.Event()
        self.room.set()
        self.applied = 0
        self.stale = 0
        self.failed = 0

    def submit(self, settlement: Settlement) -> None:
        """Hand over the end of a run. Never blocks; see `room`."""
        self._backlog.append(settlement)
        if len(self._backlog) == 1:
            self._idle.clear()
            self._wake.set()
        elif len(self._backlog) == BACKLOG_MAX:
            self.room.clear()

    @property
    def pending(self) -> int:
        """Ends of runs not yet acknowledged by the backend."""
        return len(self._backlog) + len(self._in_flight)

    def known(self) -> set[tuple[str, str]]:
        """Answer the jobs and tokens not yet acknowledged by the backend."""
        return {(item.id, item.token) for items in (self._backlog, self._in_flight) for item in items}

    async def run(self) -> None:
        """Settle for ever; cancel it to stop (after `drained`)."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._backlog:
                batch, self._backlog = self._backlog[:BATCH_MAX], self._backlog[BATCH_MAX:]
                self._in_flight = batch
                await self._settle(batch)
                self._in_flight = []
                if len(self._backlog) < BACKLOG_MAX // 2:
                    self.room.set()
            self._idle.set()

    async def drained(self) -> None:
        """Wait until everything handed over was acknowledged."""
        await self._idle.wait()

    async def _settle(self, batch: list[Settlement]) -> None:
        pause_s = _PAUSE_S_MIN
        while True:
            try:
                verdicts = await self._backend.settle(batch)
            except Unavailable as error:
                log.warning("cannot settle %d jobs, trying again: %s", len(batch), error)
                await asyncio.sleep(self._chance.uniform(0, pause_s))
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)
            except PackhorseError as error:
                if len(batch) == 1:
                    # Refused for what it carries: the attempt ends as a failure, so that the job does not hang.
                    batch = [_as_failure(batch[0], error)]
                    continue
                for settlement in batch:
                    await self._settle([settlement])
                return
            else:
                self._count(batch, verdicts)
                return

    def _count(self, batch: list[Settlement], verdicts: list[Verdict]) -> None:
        stale = verdicts.count(Verdict.STALE)
        self.applied += len(batch) - stale
        if stale:
            self.stale += stale
            lost = [item.id for item, verdict in zip(batch, verdicts, strict=True) if verdict is Verdict.STALE]
            log.warning("the end of %d runs came too late and was refused: %s", stale, ", ".join(lost[:5]))


def _as_failure(settlement: Settlement, error: PackhorseError) -> Settlement:
    from ..job import JobError

    if settlement.state is State.FAILED and not settlement.follow_ups:
        raise error  # nothing left to leave out: a backend that refuses this breaks its contract
    return Settlement(
        id=settlement.id,
        token=settlement.token,
        state=State.FAILED,
        error=JobError(attempt=0, at_ms=0, kind=type(error).__name__, message=f"its outcome was refused: {error}"),
    )
