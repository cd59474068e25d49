"""From how a run ended to its settlement, and to those who count and hear of ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import outcome as outcomes
from ..backends.base import Settlement
from ..chance import Chance
from ..clock import Clock
from ..context import Context
from ..job import Claimed, JobSpec, State
from ..observe.runs import Ended, Runs
from ..outcome import Kind, Outcome
from ..retry import Backoff, decide
from .handler import Handler
from .options import WorkerOptions
from .settler import Settler

if TYPE_CHECKING:
    from ..observe.run_spans import RunSpans

_NO_BACKOFF = Backoff()
# On the way of every job; before Python 3.12 a look at an enum's member takes 0.1 us, which is 2 % of a job in memory.
_SUCCEEDED = Kind.SUCCEEDED
_UNKNOWN = Kind.UNKNOWN
_STATE_SUCCEEDED = State.SUCCEEDED


class Ending:
    """Hands the ends of runs to the settler, and tells of them."""

    def __init__(
        self,
        settler: Settler,
        observer: Runs,
        spans: RunSpans | None,
        options: WorkerOptions,
        clock: Clock,
        chance: Chance,
    ) -> None:
        self._settler = settler
        self._observer = observer
        self._spans = spans
        self._options = options
        self._clock = clock
        self._chance = chance
        #: Runs that ended.
        self.count = 0
        #: Whether the last job was one this worker cannot run: others should have the first try at the next.
        self.parked_last = False

    def finish(
        self,
        job: Claimed,
        number: int,
        handler: Handler | None,
        outcome: Outcome,
        ctx: Context | None,
        started_ns: int,
        error: BaseException | None = None,
    ) -> None:
        """End a run that started at `started_ns`, boot clock; `number` is that of its mark.

        `handler` is None where the job's type has none here.
        """
        ended_ns = self._clock.boot_ns()
        self.count += 1
        kind = outcome.kind
        self.parked_last = kind is _UNKNOWN
        settled = ctx is not None and ctx.settled
        if kind is _SUCCEEDED and handler is not None:
            follow_ups: tuple[JobSpec, ...] = tuple(ctx.follow_ups) if ctx is not None and ctx.follow_ups else ()
            settlement = Settlement(
                id=job.id, token=job.token, state=_STATE_SUCCEEDED, result=outcome.result, follow_ups=follow_ups
            )
            if settled:  # in a transaction of its own: this counts only if that was not committed
                settlement = self._decide(job, handler, outcomes.NOT_COMMITTED)
            cells = handler.cells.get(job.queue)
            if cells is None:
                cells = handler.cells[job.queue] = self._observer.cells(job.queue, job.type, lasting=True)
            cells.successes_ns.append(ended_ns - started_ns)
            spans, trace_id = self._spans, None
            if spans is not None and spans.open:
                trace_id = self._end_span(job, outcome, ended_ns - started_ns)
            if self._observer.success_listeners:
                self._observer.tell_success(Ended(job, outcome, settlement, started_ns, ended_ns, None, trace_id))
        else:
            settlement = self._decide(job, handler, outcome)
            trace_id = self._end_span(job, outcome, ended_ns - started_ns)
            cells = self._observer.ended(Ended(job, outcome, settlement, started_ns, ended_ns, error, trace_id))
        if settled:
            self._settler.check(settlement, cells.ends, number)
        else:
            self._settler.submit(settlement, cells.ends, number)

    def lose(self, job: Claimed) -> None:
        """End a run whose job is not ours any more: nothing is settled."""
        self.count += 1
        self._observer.lost()
        self.end_span_as(job, "LeaseLost")

    def release(self, job: Claimed, number: int) -> None:
        """Give back a job that was not started; it costs no attempt."""
        release = decide(job, outcomes.RELEASED, _NO_BACKOFF, self._chance, 0)
        self._settler.submit(release, self._observer.cells(job.queue, job.type).ends, number)

    def end_span_as(self, job: Claimed, how: str) -> None:
        """End the span of a run, if it is traced, that ends otherwise than by an outcome."""
        if self._spans is not None:
            self._spans.end_otherwise(job, how)

    def _end_span(self, job: Claimed, outcome: Outcome, duration_ns: int) -> str | None:
        """End the span of a traced run; answers the id of its trace."""
        if self._spans is None or not self._spans.open:
            return None
        return self._spans.end(job, outcome, self._observer.cells(job.queue, job.type).seconds, duration_ns)

    def _decide(self, job: Claimed, handler: Handler | None, outcome: Outcome) -> Settlement:
        backoff = handler.task.backoff if handler is not None else _NO_BACKOFF
        settlement = decide(job, outcome, backoff, self._chance, self._clock.now_ms(), self._options.park_ms)
        self._settler.expect(job, outcome, settlement)
        return settlement
