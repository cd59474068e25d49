"""What happens to a job after a run: the whole retry policy, as one pure function."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .backends.base import Settlement, WorkerInfo
from .chance import Chance
from .job import Claimed, JobError, State
from .outcome import UNKNOWN_TYPE, Kind, Outcome

#: How long a job that no worker knows is offered around before it fails: time for a rolling release.
PARK_MS = 600_000
#: The pause after each offer grows with the time already parked, between these bounds.
#: Short, for each offer may go to a worker of the old release again: with 1 new worker beside 20 old ones, 120 offers
#: in ten minutes all miss it once in 350 times, 24 offers (a longest pause of 30 s) three times in ten.
PARK_DELAY_MS_MIN = 250
PARK_DELAY_MS_MAX = 5_000


class Backoff(msgspec.Struct, frozen=True):
    """Delays between attempts: exponential from `base_ms`, at most `max_ms`, with full jitter."""

    base_ms: int = 1_000
    max_ms: int = 600_000

    def delay_ms(self, attempt: int, chance: Chance) -> int:
        """Answer the delay after the run number `attempt` failed.

        Full jitter (a number between 0 and the exponential) spreads retries widest; Brooker, "Exponential
        Backoff And Jitter", 2015.
        """
        ceiling = min(self.max_ms, self.base_ms << min(attempt - 1, 40))
        return int(chance.uniform(0, ceiling))


def decide(
    job: Claimed, outcome: Outcome, backoff: Backoff, chance: Chance, now_ms: int, park_ms: int = PARK_MS
) -> Settlement:
    """Turn the end of a run into the settlement of its attempt. `park_ms`: how long a job may be parked; see `hear`."""
    match outcome.kind:
        case Kind.SUCCEEDED:
            return Settlement(id=job.id, token=job.token, state=State.SUCCEEDED, result=outcome.result)
        case Kind.RELEASED:
            parked = job.parked_at_ms is not None  # a release is no reason to start the parking over
            return Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True, park=parked)
        case Kind.SNOOZE:
            delay_ms = outcome.delay_ms or 0
            return Settlement(id=job.id, token=job.token, state=_again(delay_ms), delay_ms=delay_ms, refund=True)
        case Kind.UNKNOWN:
            return _park(job, outcome, now_ms, park_ms)
        case Kind.CANCELLED:
            return Settlement(id=job.id, token=job.token, state=State.CANCELLED, error=_error(job, outcome, now_ms))
    error = _error(job, outcome, now_ms)
    if outcome.kind is Kind.PERMANENT or job.attempt >= job.max_attempts:
        return Settlement(id=job.id, token=job.token, state=State.FAILED, error=error)
    delay_ms = outcome.delay_ms if outcome.delay_ms is not None else backoff.delay_ms(job.attempt, chance)
    return Settlement(id=job.id, token=job.token, state=_again(delay_ms), delay_ms=delay_ms, error=error)


def names_type(worker: WorkerInfo, queue: str, job_type: str) -> bool:
    """Answer whether a worker takes from `queue` and says that it knows `job_type`; one without types says nothing."""
    return queue in worker.queues and job_type in worker.types


def is_unheard(outcome: Outcome, settlement: Settlement) -> bool:
    """Answer whether `settlement` would fail a job for a type nobody knows: before that, see `hear`."""
    return settlement.state is State.FAILED and outcome.kind is Kind.UNKNOWN and outcome.error_kind == UNKNOWN_TYPE


def hear(job: Claimed, failure: Settlement, workers: Iterable[WorkerInfo], holder: str | None = None) -> Settlement:
    """Answer `failure`, or park the job on: one of the live `workers` may be busy for long and knows its type.

    `holder`, the worker that does not know the type after all, has no say where it names that type itself.
    """
    naming = {worker.id for worker in workers if names_type(worker, job.queue, job.type)}
    if not naming or holder in naming:
        return failure
    return Settlement(
        id=job.id, token=job.token, state=State.SCHEDULED, delay_ms=PARK_DELAY_MS_MAX, refund=True, park=True
    )


def _again(delay_ms: int) -> State:
    return State.SCHEDULED if delay_ms > 0 else State.PENDING


def _park(job: Claimed, outcome: Outcome, now_ms: int, park_ms: int) -> Settlement:
    # Both instants are the store's: this machine's clock may be hours off (rule 4; simulator seed 10001).
    parked_ms = job.ready_at_ms - job.parked_at_ms if job.parked_at_ms is not None else 0
    if parked_ms >= park_ms:
        return Settlement(
            id=job.id, token=job.token, state=State.FAILED, refund=True, error=_error(job, outcome, now_ms)
        )
    delay_ms = min(max(parked_ms, PARK_DELAY_MS_MIN), PARK_DELAY_MS_MAX, max(1, park_ms - parked_ms))
    return Settlement(id=job.id, token=job.token, state=State.SCHEDULED, delay_ms=delay_ms, refund=True, park=True)


def _error(job: Claimed, outcome: Outcome, now_ms: int) -> JobError:
    return JobError(
        attempt=job.attempt,
        at_ms=now_ms,
        kind=outcome.error_kind,
        message=outcome.message,
        traceback=outcome.traceback,
    )
