"""From the runner back to the backend: ends of runs, in batches that grow with the load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ..backends.base import BATCH_MAX, Backend, Settlement, Verdict
from ..chance import Chance
from ..errors import PackhorseError, Unavailable
from ..job import State
from ..outcome import NOT_COMMITTED

log = logging.getLogger("packhorse.settler")

#: Ends of runs held here at most; beyond it claiming stops until the backend takes them again.
BACKLOG_MAX = 2 * BATCH_MAX
_PAUSE_S_MIN = 0.05
_PAUSE_S_MAX = 5.0


class Settler:
    """Settles what runs ended with. Nothing is dropped while the process lives: it tries until the backend answers."""

    def __init__(self, backend: Backend, chance: Chance) -> None:
        self._ends = Lane(backend, chance, self._count, self._tell_room)
        # Of runs that settled in a transaction of theirs: one that was left open holds up nobody else's end.
        self._settled = Lane(backend, chance, self._count_settled, self._tell_room)
        self._lanes: asyncio.TaskGroup | None = None
        self._checking: asyncio.Task[None] | None = None
        self.room = asyncio.Event()
        self.room.set()
        self.applied = 0
        self.stale = 0

    def submit(self, settlement: Settlement) -> None:
        """Hand over the end of a run. Never blocks; see `room`."""
        self._ends.add(settlement)

    def check(self, settlement: Settlement) -> None:
        """Hand over what the end of a run is to be if the transaction in which it settled itself is not committed."""
        if self._checking is None and self._lanes is not None:  # most workers never need it
            self._checking = self._lanes.create_task(self._settled.run())
        self._settled.add(settlement)

    @property
    def pending(self) -> int:
        """Ends of runs not yet acknowledged by the backend."""
        return self._ends.pending + self._settled.pending

    def known(self) -> set[tuple[str, str]]:
        """Answer the jobs and tokens not yet acknowledged by the backend."""
        return self._ends.known() | self._settled.known()

    async def run(self) -> None:
        """Settle for ever; cancel it to stop (after `drained`)."""
        async with asyncio.TaskGroup() as self._lanes:
            await self._ends.run()

    async def drained(self) -> None:
        """Wait until everything handed over was acknowledged."""
        await self._ends.idle.wait()
        await self._settled.idle.wait()

    def _tell_room(self) -> None:
        waiting = max(len(self._ends.backlog), len(self._settled.backlog))
        if waiting >= BACKLOG_MAX:
            self.room.clear()
        elif waiting < BACKLOG_MAX // 2:
            self.room.set()

    def _count(self, batch: Sequence[Settlement], verdicts: Sequence[Verdict]) -> None:
        stale = verdicts.count(Verdict.STALE)
        self.applied += len(batch) - stale
        if stale:
            self.stale += stale
            lost = [item.id for item, verdict in zip(batch, verdicts, strict=True) if verdict is Verdict.STALE]
            log.warning("the end of %d runs came too late and was refused: %s", stale, ", ".join(lost[:5]))

    def _count_settled(self, batch: Sequence[Settlement], verdicts: Sequence[Verdict]) -> None:
        """STALE is what is expected: the run's transaction was committed, and with it the end of the job."""
        for item, verdict in zip(batch, verdicts, strict=True):
            self.applied += 1
            error = item.error
            is_success = error is not None and error.kind == NOT_COMMITTED.error_kind
            if verdict is Verdict.APPLIED and is_success:
                log.warning("job %s called settle_in, but that transaction was not committed", item.id)
            elif verdict is Verdict.STALE and not is_success:
                how = f"{error.kind}: {error.message}" if error is not None else f"it is to be {item.state}"
                log.warning("job %s has settled in its own transaction, so this changes nothing: %s", item.id, how)


class Lane:
    """Ends of runs on their way to the backend, one batch at a time, in the order they came."""

    def __init__(
        self,
        backend: Backend,
        chance: Chance,
        count: Callable[[Sequence[Settlement], Sequence[Verdict]], None],
        tell_room: Callable[[], None],
    ) -> None:
        self._backend = backend
        self._chance = chance
        self._count = count
        self._tell_room = tell_room
        self.backlog: list[Settlement] = []
        self._in_flight: list[Settlement] = []
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, settlement: Settlement) -> None:
        """Take the end of a run."""
        self.backlog.append(settlement)
        if len(self.backlog) == 1:
            self.idle.clear()
            self._wake.set()
        elif len(self.backlog) == BACKLOG_MAX:
            self._tell_room()

    @property
    def pending(self) -> int:
        """Ends not yet acknowledged by the backend."""
        return len(self.backlog) + len(self._in_flight)

    def known(self) -> set[tuple[str, str]]:
        """Answer the jobs and tokens not yet acknowledged by the backend."""
        return {(item.id, item.token) for items in (self.backlog, self._in_flight) for item in items}

    async def run(self) -> None:
        """Settle for ever; cancel it to stop."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.backlog:
                batch, self.backlog = self.backlog[:BATCH_MAX], self.backlog[BATCH_MAX:]
                self._in_flight = batch
                await self._settle(batch)
                self._in_flight = []
                self._tell_room()
            self.idle.set()

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
