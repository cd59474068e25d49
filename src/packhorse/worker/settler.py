"""From the runner back to the backend: ends of runs, in batches that grow with the load."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from ..backends.base import BATCH_MAX, Backend, Settlement, Verdict
from ..chance import Chance
from ..clock import Clock
from ..errors import Forbidden, PackhorseError, Unavailable
from ..job import Claimed, State
from ..observe.ends import EndCells, count_ends
from ..observe.outage import Outage
from ..outcome import NOT_COMMITTED, Outcome
from ..retry import hear, is_unheard
from ..wording import quantity

if TYPE_CHECKING:
    from .logkeeper import LogKeeper
    from .marks import Marks

log = logging.getLogger("packhorse.settler")

#: Ends of runs held here at most; beyond it claiming stops until the backend takes them again.
BACKLOG_MAX = 2 * BATCH_MAX
_PAUSE_S_MIN = 0.05
_PAUSE_S_MAX = 5.0


class Settler:
    """Settles what runs ended with. Nothing is dropped while the process lives: it tries until the backend answers."""

    def __init__(self, backend: Backend, chance: Chance, clock: Clock, marks: Marks | None = None) -> None:
        self._ends = Lane(backend, chance, clock, self._count, self._tell_room, marks)
        # Of runs that settled in a transaction of theirs: one that was left open holds up nobody else's end.
        self._settled = Lane(backend, chance, clock, self._count_settled, self._tell_room, marks)
        self._lanes: asyncio.TaskGroup | None = None
        self._checking: asyncio.Task[None] | None = None
        self.room = asyncio.Event()
        self.room.set()
        self.applied = 0
        self.stale = 0
        #: Who is told what the store said to a batch; None most of the time.
        self.on_settled: Callable[[Sequence[Settlement], Sequence[Verdict]], None] | None = None

    def keep_logs(self, logs: LogKeeper) -> None:
        """Keep what runs have logged before their ends are settled."""
        self._ends.keep_logs = logs.keep_ended  # of the others the job may be locked by a transaction that is open
        self._ends.forget_logs = self._settled.forget_logs = logs.forget

    def submit(self, settlement: Settlement, cells: EndCells | None = None, number: int | None = None) -> None:
        """Hand over the end of a run, where it is counted once it took effect, and the number of its mark.

        Never blocks; see `room`.
        """
        self._ends.add(settlement, cells, number)

    def expect(self, job: Claimed, outcome: Outcome, settlement: Settlement) -> None:
        """Before `settlement` comes to fail a job for its type: look whether a live worker knows it. Else nothing."""
        if is_unheard(outcome, settlement):
            self._ends.unheard[job.id, job.token] = job

    def check(self, settlement: Settlement, cells: EndCells | None = None, number: int | None = None) -> None:
        """Hand over what the end of a run is to be if the transaction in which it settled itself is not committed."""
        if self._checking is None and self._lanes is not None:  # most workers never need it
            # A context of its own: it goes on after the job whose end was the first.
            self._checking = self._lanes.create_task(self._settled.run(), context=contextvars.Context())
        self._settled.add(settlement, cells, number)

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

    def _count(
        self, batch: Sequence[Settlement], cells: Sequence[EndCells | None], verdicts: Sequence[Verdict]
    ) -> None:
        count_ends(batch, cells, verdicts)
        stale = len(verdicts) - verdicts.count(Verdict.APPLIED)
        self.applied += len(batch) - stale
        if stale:
            self.stale += stale
            lost = [item.id for item, verdict in zip(batch, verdicts, strict=True) if verdict is Verdict.STALE]
            log.warning("the end of %s came too late and was refused: %s", quantity(stale, "run"), ", ".join(lost[:5]))
        if self.on_settled is not None:
            self.on_settled(batch, verdicts)

    def _count_settled(
        self, batch: Sequence[Settlement], cells: Sequence[EndCells | None], verdicts: Sequence[Verdict]
    ) -> None:
        """STALE is what is expected: the run's transaction was committed, and with it the end of the job."""
        count_ends(batch, cells, verdicts)
        for item, ends, verdict in zip(batch, cells, verdicts, strict=True):
            self.applied += 1
            if ends is not None and verdict is Verdict.STALE:
                ends.completed.value += 1
            error = item.error
            is_success = error is not None and error.kind == NOT_COMMITTED.error_kind
            if verdict is Verdict.APPLIED and is_success:
                log.warning("job %s called settle_in, but that transaction was not committed", item.id)
            elif verdict is Verdict.STALE and not is_success:
                how = f"{error.kind}: {error.message}" if error is not None else f"it is to be {item.state}"
                log.warning("job %s has settled in its own transaction, so this changes nothing: %s", item.id, how)
        if self.on_settled is not None:
            self.on_settled(batch, verdicts)


class Lane:
    """Ends of runs on their way to the backend, one batch at a time, in the order they came."""

    def __init__(
        self,
        backend: Backend,
        chance: Chance,
        clock: Clock,
        count: Callable[[Sequence[Settlement], Sequence[EndCells | None], Sequence[Verdict]], None],
        tell_room: Callable[[], None],
        marks: Marks | None,
    ) -> None:
        self._backend = backend
        self._chance = chance
        self._outage = Outage(log, clock, "settle jobs")
        self._count = count
        self._tell_room = tell_room
        self.backlog: list[Settlement] = []
        self._cells: list[EndCells | None] = []  # of each in the backlog
        self._marks = marks
        self._numbers: list[int | None] = []  # of their marks
        self.unheard: dict[tuple[str, str], Claimed] = {}  # see `retry.hear`; of what is in the backlog or in flight
        self._in_flight: list[Settlement] = []
        self.keep_logs: Callable[[Sequence[Settlement]], Awaitable[None]] | None = None
        self.forget_logs: Callable[[Sequence[Settlement]], None] | None = None
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, settlement: Settlement, cells: EndCells | None, number: int | None) -> None:
        """Take the end of a run."""
        self.backlog.append(settlement)
        self._cells.append(cells)
        self._numbers.append(number)
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
                cells, self._cells = self._cells[:BATCH_MAX], self._cells[BATCH_MAX:]
                numbers, self._numbers = self._numbers[:BATCH_MAX], self._numbers[BATCH_MAX:]
                self._in_flight = batch
                await self._settle(batch, cells)
                self._in_flight = []
                if self._marks is not None:
                    self._marks.over([number for number in numbers if number is not None])
                if self.forget_logs is not None:
                    self.forget_logs(batch)
                self._tell_room()
            self.idle.set()

    async def _settle(self, batch: list[Settlement], cells: list[EndCells | None]) -> None:
        pause_s = _PAUSE_S_MIN
        while True:
            try:
                if self.unheard:
                    batch = await self._heard(batch)
                if self.keep_logs is not None:
                    await self.keep_logs(batch)
                verdicts = await self._backend.settle(batch)
            except (Unavailable, Forbidden) as error:  # rights that were taken away are for somebody to give back
                self._outage.failed(error)
                await asyncio.sleep(self._chance.uniform(0, pause_s))
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)
            except PackhorseError as error:
                self._outage.over()
                if len(batch) == 1:
                    # Refused for what it carries: the attempt ends as a failure, so that the job does not hang.
                    batch = [_as_failure(batch[0], error)]
                    continue
                for settlement, ends in zip(batch, cells, strict=True):
                    await self._settle([settlement], [ends])
                return
            else:
                self._outage.over()
                self._count(batch, cells, verdicts)
                return

    async def _heard(self, batch: list[Settlement]) -> list[Settlement]:
        """Answer the batch with those parked on whose type a live worker knows. Raises Unavailable, Forbidden."""
        if not any((item.id, item.token) in self.unheard for item in batch):
            return batch
        try:
            workers = await self._backend.workers()
        except (Unavailable, Forbidden):
            raise
        except PackhorseError as error:
            log.warning("cannot ask which workers know a type; its jobs fail unheard: %s", error)
            workers = []
        jobs = [self.unheard.pop((item.id, item.token), None) for item in batch]
        return [item if job is None else hear(job, item, workers) for job, item in zip(jobs, batch, strict=True)]


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
