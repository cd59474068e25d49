"""The worker's lines about runs: each end a line, or a few of each second and the rest in one sum.

`log_jobs`: `some` writes up to LINES_MAX a second of each level one by one, and says in one line what the rest of the
second came to; `all` writes every one; `none` only failures for good. While successes are not written one by one
nobody is told of them: their number is the difference of what is counted anyway.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter

from ..clock import Clock
from ..job import Claimed, State
from ..outcome import Kind
from ..wording import age, quantity
from . import metrics
from .log_format import TRACEBACK
from .meters import Number
from .runs import Ended, Runs

log = logging.getLogger("packhorse.jobs")
# A program that has configured no logging hears of its jobs by other means than bare messages on stderr.
log.addHandler(logging.NullHandler())

#: Lines a second of one level that are written one by one.
LINES_MAX = 20
WINDOW_MS = 1_000
#: Types that are named in a sum; the others are counted together.
_TYPES_MAX = 5


class JobLines:
    """Writes what a runner tells of its runs. `close` it when the runner ends."""

    def __init__(self, runs: Runs, worker: str, clock: Clock, log_jobs: str) -> None:
        self._runs = runs
        self._worker = worker
        self._clock = clock
        self._all = log_jobs == "all"
        self._only_failures = log_jobs == "none"
        self._loop = asyncio.get_running_loop()
        self._window: asyncio.TimerHandle | None = None  # None: nothing has happened since the last one
        self._began_ms = 0
        self._written: Counter[int] = Counter()  # lines of this window, by level
        self._rest: dict[int, Counter[tuple[str, str]]] = {}  # by level: (what, type)
        self._singly: Counter[str] = Counter()  # successes of this window that were written, by type
        self._successes: dict[str, float] = {}  # by type, at the start of the window
        runs.listeners.append(self)
        if not self._only_failures:
            runs.success_listeners.append(self)

    def close(self) -> None:
        """Write the last sum, and hear of no more."""
        if self._window is not None:
            self._window.cancel()
            self._sum_up()
        self._runs.listeners = [listener for listener in self._runs.listeners if listener is not self]
        self._detach()

    # ---- each end --------------------------------------------------------------------------------------

    def ended(self, end: Ended) -> None:
        """Write a line about an end, or count it for the sum."""
        level, what, text = _told(end)
        if (self._only_failures and level < logging.ERROR) or not log.isEnabledFor(level):
            if level == logging.INFO and what == "succeeded":  # nobody reads them: as if there were none
                self._detach()
            return
        if not self._all:
            self._open_window(self._label(end.job.type) if what == "succeeded" else None)
            if self._written[level] >= LINES_MAX:
                if what == "succeeded":
                    self._detach()
                else:
                    self._rest.setdefault(level, Counter())[what, self._label(end.job.type)] += 1
                return
            self._written[level] += 1
            if what == "succeeded":
                self._singly[self._label(end.job.type)] += 1
                if self._written[level] >= LINES_MAX:
                    self._detach()
        fields = fields_of(end.job, self._worker)
        fields["duration_ms"] = end.duration_ms
        if end.trace_id is not None:
            fields["trace_id"] = end.trace_id
        if what not in {"succeeded", "given back"}:
            error = end.settlement.error
            kind, message = (error.kind, error.message) if error is not None else ("", end.outcome.message)
            fields["error"] = f"{kind}: {message}" if kind else message
            if level >= logging.ERROR and error is not None and error.traceback:  # of the others the job has it
                fields[TRACEBACK] = error.traceback
        log.log(level, "%s", text, extra=fields)

    def _label(self, job_type: str) -> str:
        return self._runs.sheet.bounds.job_type(job_type)

    # ---- the window ------------------------------------------------------------------------------------

    def _open_window(self, succeeded: str | None = None) -> None:
        """Begin a window, if none is; with a success of that type, which is counted already."""
        if self._window is None:
            self._began_ms = self._clock.boot_ms()
            self._successes = self._count_successes()
            if succeeded is not None:
                self._successes[succeeded] = self._successes.get(succeeded, 0) - 1
            # A context of its own: the timer is nobody's job.
            self._window = self._loop.call_later(WINDOW_MS / 1000, self._end_window, context=contextvars.Context())

    def _end_window(self) -> None:
        if self._sum_up():  # as busy as before: what comes next is in a window again, from its first on
            self._open_window()
        if not self._only_failures and self not in self._runs.success_listeners:
            self._runs.success_listeners = [*self._runs.success_listeners, self]

    def _sum_up(self) -> bool:
        """Say what was not written one by one, and end the window; answers whether there was such."""
        lasted_ms = self._clock.boot_ms() - self._began_ms
        span = "the last second" if lasted_ms < WINDOW_MS * 3 // 2 else f"the last {age(lasted_ms)}"
        told = False
        for level, rest in sorted(self._rest.items()):
            for what in sorted({what for what, _ in rest}):
                told |= _sum(
                    level, what, Counter({job_type: n for (w, job_type), n in rest.items() if w == what}), span
                )
        rose = Counter(
            {
                job_type: int(count - self._successes.get(job_type, 0)) - self._singly[job_type]
                for job_type, count in self._count_successes().items()
            }
        )
        if not self._only_failures and not self._all and log.isEnabledFor(logging.INFO):
            told |= _sum(logging.INFO, "succeeded", +rose, span)
        self._window = None
        self._written.clear()
        self._rest.clear()
        self._singly.clear()
        return told

    def _count_successes(self) -> dict[str, float]:
        """Answer how many runs have succeeded, by type: counted on the way of every job already."""
        self._runs.count()
        return {
            labels[0]: cell.value
            for (name, labels), cell in self._runs.sheet.cells.items()
            if name == metrics.RUNS.name and labels[1] == "success" and isinstance(cell, Number)
        }

    def _detach(self) -> None:
        # Another list, not another content: somebody may be going through it.
        self._runs.success_listeners = [one for one in self._runs.success_listeners if one is not self]


def fields_of(job: Claimed, worker: str) -> dict[str, object]:
    """Answer what a line about a job carries, for `extra=`."""
    return {
        "job_id": job.id,
        "job_type": job.type,
        "queue": job.queue,
        "attempt": job.attempt,
        "worker": worker,
    }


def _told(end: Ended) -> tuple[int, str, str]:
    """Answer the level of an end, what it is in a sum, and its line."""
    job, settlement = end.job, end.settlement
    match end.outcome.kind:
        case Kind.SUCCEEDED:
            return logging.INFO, "succeeded", "job succeeded"
        case Kind.RELEASED:
            return logging.DEBUG, "given back", "job is given back, it costs no attempt"
        case Kind.CANCELLED:
            return logging.WARNING, "cancelled", "job is cancelled"
        case Kind.SNOOZE:
            text = f"job is put off by its handler for {_delay(settlement.delay_ms)}, it costs no attempt"
            return logging.INFO, "put off", text
    if settlement.park:
        return logging.WARNING, "parked", "job is parked for a worker that can run it"
    how = "timed out" if end.outcome.error_kind == "TimedOut" else "failed"
    if settlement.state is State.FAILED:
        runs = "its only attempt" if job.max_attempts == 1 else f"attempt {job.attempt} of {job.max_attempts}"
        return logging.ERROR, f"{how} for good", f"job {how} for good, {runs}"
    when = f"in {_delay(settlement.delay_ms)}" if settlement.delay_ms > 0 else "at once"
    again = f"attempt {job.attempt + 1} of {job.max_attempts}"
    return logging.WARNING, f"{how} and {{are}} tried again", f"job {how} and is tried again {when}, {again}"


def _delay(delay_ms: int) -> str:
    if delay_ms < 1_000:
        return f"{delay_ms} ms"
    return f"{delay_ms / 1000:.1f} s" if delay_ms < 60_000 else age(delay_ms)


def _sum(level: int, what: str, by_type: Counter[str], span: str) -> bool:
    count = sum(by_type.values())
    if not count:
        return False
    named = [f"{job_type} {some:,}" for job_type, some in by_type.most_common(_TYPES_MAX)]
    if len(by_type) > _TYPES_MAX:
        named.append(quantity(len(by_type) - _TYPES_MAX, "other type"))
    said = _VERBS.get(what, what).format(are="is" if count == 1 else "are", were="was" if count == 1 else "were")
    log.log(level, "%s %s in %s: %s", quantity(count, "more job"), said, span, ", ".join(named))
    return True


_VERBS = {
    "succeeded": "succeeded",
    "cancelled": "{were} cancelled",
    "put off": "{were} put off",
    "parked": "{were} parked",
    "given back": "{were} given back",
}
