"""What a runner tells of its runs: each is timed and counted; those who asked are told of it, in order.

The way of a run that succeeds is the hot path: it costs a look into a dict, and its duration is put down to be counted
with others. All else happens in `ended`, for runs that somebody wants to hear of.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Protocol

import msgspec

from ..backends.base import Settlement
from ..job import Claimed
from ..outcome import Kind, Outcome
from . import metrics
from .ends import EndCells
from .meters import Sheet

log = logging.getLogger("packhorse.worker")


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The end of a run: what it came to, what becomes of the job, when by the boot clock."""

    job: Claimed
    outcome: Outcome
    settlement: Settlement
    started_ns: int
    ended_ns: int
    error: BaseException | None = None  # where the handler raised in this process
    trace_id: str | None = None  # 32 hexadecimal digits, where the run was traced

    @property
    def duration_ms(self) -> float:
        """How long it ran."""
        return (self.ended_ns - self.started_ns) / 1e6


class Listener(Protocol):
    """Who wants to hear of runs."""

    def ended(self, end: Ended) -> None:
        """Hear of an end. Must not wait."""


class RunCells:
    """What is counted of the runs of one queue and type, and of what became of their jobs."""

    __slots__ = ("ends", "failure", "seconds", "success", "successes_ns")

    def __init__(self, sheet: Sheet, queue: str, job_type: str) -> None:
        self.ends = EndCells(sheet, queue, job_type)
        self.seconds = sheet.histogram(metrics.JOB_SECONDS_BY_QUEUE, queue, job_type)
        self.success = sheet.number(metrics.RUNS, job_type, "success")
        self.failure = sheet.number(metrics.RUNS, job_type, "failure")
        #: Durations of runs that succeeded and are not counted yet: on the way of every job, so only put down.
        self.successes_ns: list[int] = []

    def count(self) -> None:
        """Count the successes that were put down."""
        durations_ns, self.successes_ns = self.successes_ns, []
        self.success.value += len(durations_ns)
        self.seconds.observe_all(durations_ns)

    def failed(self, duration_ns: int) -> None:
        """Count a run that failed."""
        self.seconds.observe(duration_ns)
        self.failure.value += 1


#: Ends that are no runs of a handler, or none that says anything about it.
UNCOUNTED = frozenset({Kind.RELEASED, Kind.UNKNOWN, Kind.SNOOZE, Kind.CANCELLED})


class Runs:
    """The runs of one runner, as it tells of them."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        #: Those who hear of all ends but plain successes.
        self.listeners: list[Listener] = []
        #: Those who hear of plain successes too. None most of the time: then a success costs nothing here.
        self.success_listeners: list[Listener] = []
        self._cells: dict[tuple[str, str], RunCells] = {}
        self._passing: list[RunCells] = []
        self._has_said = False
        self._lost = sheet.number(metrics.LEASES_LOST)

    def cells(self, queue: str, job_type: str, *, lasting: bool = False) -> RunCells:
        """Answer what is counted of a queue and type, to be used at once.

        `lasting` is for somebody who keeps them, as a handler does for each queue of its worker.
        """
        cells = self._cells.get((queue, job_type))
        if cells is None:
            cells = RunCells(self.sheet, queue, job_type)
            if lasting or self.sheet.bounds.tells_apart(queue, job_type):
                self._cells[queue, job_type] = cells
            else:  # they share cells with others, and must not fill this up: the next asks again
                self._passing.append(cells)
        return cells

    def tell_success(self, end: Ended) -> None:
        """Tell of a plain success, whose duration was put down already. Only if there are `success_listeners`."""
        self._tell(self.success_listeners, end)

    def _tell(self, listeners: list[Listener], end: Ended) -> None:
        """Tell of an end. What goes wrong there (a log line runs code of the program) must not cost the job its end."""
        for listener in listeners:
            try:
                listener.ended(end)
            except Exception:
                if not self._has_said:
                    self._has_said = True
                    with suppress(Exception):  # it may be just that which fails
                        log.exception("cannot tell of the end of a run; this is said once")

    def count(self) -> None:
        """Count what was put down. Before the sheet is read, and often: some milliseconds of runs at a time."""
        for cells in self._cells.values():
            if cells.successes_ns:
                cells.count()
        while self._passing:
            self._passing.pop().count()

    def ended(self, end: Ended) -> RunCells:
        """Count any other end, and answer where what becomes of the job is counted."""
        cells = self.cells(end.job.queue, end.job.type)
        if end.outcome.kind not in UNCOUNTED:
            cells.failed(end.ended_ns - end.started_ns)
        self._tell(self.listeners, end)
        return cells

    def lost(self) -> None:
        """Count a run that was stopped because its job was lost."""
        self._lost.value += 1
