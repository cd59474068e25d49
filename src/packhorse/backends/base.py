"""THE CONTRACT: all that a backend must do, and the only file its author must read.

A backend keeps jobs and moves them between the states of `packhorse.job.TRANSITIONS`. It decides
nothing: when to retry, how long to wait and what is poison is decided above and arrives here as a
`Settlement`. What a backend must get right is that every move is **one atomic, guarded write**.

Rules for every verb
    * At most `BATCH_MAX` items a call; more is `InvalidOption`, raised by the helpers below.
    * The backend's own clock judges due times and leases. Callers pass durations, never instants.
    * A move checks id, state and token in the same statement that writes. Zero rows is `STALE`.
    * A call that cannot reach its server raises `Unavailable` within bounded time. The caller then
      does not know whether it was done, so every verb may be repeated: ids are made by the client,
      tokens name one claim, and steering verbs answer with what is true now.
    * What a backend cannot do raises `Unsupported(flag)`; nothing is ever silently ignored.
    * Cancelling a call (asyncio) leaves it done or not done, never half done.

A lease belongs to a worker, not to a job (decision 3): one write a heartbeat keeps any number of
jobs, and the store need not touch a job to say that its worker lives. The token belongs to the job.

How to check a backend: `packhorse.testing.conformance` runs every rule of this file against a URL.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from ..errors import InvalidOption, Unsupported
from ..job import TERMINAL, Claimed, JobError, JobRecord, JobSpec, State, Unique
from .bells import Bell

#: Items in one call. Large enough that the cost of the call vanishes, small enough that no call
#: holds a server for long: 1,000 rows are about 20 ms on SQLite (bench, 2026-11-22).
BATCH_MAX = 1_000

#: Error records kept for each job: the first and the latest. A job may have 1,000 attempts.
ERRORS_KEPT_MAX = 50


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do. Docs and errors are made from it; the conformance suite believes nothing else."""

    durable: bool  # an acknowledged enqueue survives kill -9 of this process
    shared: bool  # other processes see the same jobs
    priorities: bool = True
    unique: bool = True
    unique_windows: bool = False  # keys held by time or by chosen states, and on_conflict='replace'
    dependencies: bool = False  # `after`
    limits: bool = False  # rate and concurrency
    schedules: bool = False
    capacity: bool = False
    bind: bool = False  # enqueue inside the caller's own transaction


class Enqueued(msgspec.Struct, frozen=True, gc=False):
    """The answer for one spec: `created` is False where a job of that id or unique key was there already."""

    id: str
    created: bool


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The end of one attempt, decided above. `state` is where the job goes:

    succeeded (with `result`), failed, cancelled; scheduled (due in `delay_ms`: a retry or a snooze);
    pending (released). A job that goes on is scheduled if `delay_ms` is above 0 and pending if not, whichever of the
    two was named. `refund` gives the attempt back. `park` marks the job as unknown here, so that
    the time since the first parking can be judged. `error` is added to the job's history.
    """

    id: str
    token: str
    state: State
    delay_ms: int = 0
    result: bytes | None = None
    error: JobError | None = None
    refund: bool = False
    park: bool = False
    follow_ups: tuple[JobSpec, ...] = ()


class Verdict(StrEnum):
    """What became of a settlement."""

    APPLIED = "applied"
    STALE = "stale"  # another claim owns the job now, or it has ended: nothing was changed


class Note(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Progress of a running job, kept only while `token` holds it. `progress` is 0.0 to 1.0."""

    id: str
    token: str
    progress: float | None = None
    text: str | None = None


class WorkerInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Who holds leases. `id` is new at every start, so a restarted worker never looks like the old one."""

    id: str
    host: str = ""
    pid: int = 0
    queues: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    concurrency: int = 0
    busy: int = 0
    started_at_ms: int = 0
    version: str = ""
    # Set by the backend when it answers:
    lease_left_ms: int = 0
    running: int = 0


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a heartbeat. What a worker believes to hold and is not in `held` is LOST."""

    held: dict[str, str]  # job id → token
    cancel: frozenset[str]  # ids of held jobs that somebody asked to stop


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How long ended jobs are kept, ms since they ended."""

    succeeded_ms: int = 86_400_000
    failed_ms: int = 30 * 86_400_000
    cancelled_ms: int = 86_400_000


class Ticked(msgspec.Struct, frozen=True, kw_only=True):
    """What a tick moved, in jobs, and when the next is due (None: nothing is scheduled)."""

    promoted: int = 0
    lapsed: int = 0
    dropped: int = 0
    next_due_ms: int | None = None


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A filter for `find`. All given fields must match; newest jobs first unless `oldest_first`."""

    states: tuple[State, ...] = ()
    queue: str | None = None
    type: str | None = None
    tag: str | None = None
    key: str | None = None
    created_from_ms: int | None = None
    created_before_ms: int | None = None
    oldest_first: bool = False
    limit: int = 100
    cursor: str | None = None


class Page(msgspec.Struct, frozen=True):
    """Jobs of one page and the cursor of the next (None: this was the last)."""

    jobs: list[JobRecord]
    next: str | None


class QueueCounts(msgspec.Struct, kw_only=True):
    """Jobs of one queue by state, and the age of the oldest pending one, ms (None: none is pending)."""

    states: dict[State, int]
    oldest_pending_ms: int | None = None
    paused: bool = False


class QueueChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change to a queue's settings; None leaves a setting as it is. `capacity` 0 lifts the limit."""

    queue: str
    paused: bool | None = None
    capacity: int | None = None


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on a type, or on a type and key: `rate` starts per `period_ms` with `burst`, `concurrency` at once."""

    type: str
    key: str | None = None
    rate: int | None = None
    period_ms: int = 1_000
    burst: int | None = None
    concurrency: int | None = None
    cleared: bool = False  # as a change: remove the limit


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring job. Slots are unique keys, so any number of workers may tick. See packhorse.schedule."""

    name: str
    spec: JobSpec
    cron: str | None = None
    every_ms: int | None = None
    tz: str = "UTC"
    missed: str = "latest"
    overlap: str = "allow"
    jitter_ms: int = 0
    paused: bool = False
    removed: bool = False  # as a change: remove the schedule


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's rerun of an ended job, with edits; None keeps what the job has."""

    id: str
    delay_ms: int = 0
    payload: bytes | None = None
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None


class Steered(StrEnum):
    """What is true of one job after `cancel`, `rerun` or `delete`."""

    DONE = "done"
    REQUESTED = "requested"  # it runs; its worker will be told to stop it
    ENDED = "ended"  # it had ended already: nothing to cancel
    LIVE = "live"  # it has not ended: cannot be rerun; it runs: cannot be deleted
    CONFLICT = "conflict"  # another live job holds its unique key
    MISSING = "missing"


def queue_topic(queue: str) -> str:
    """Name what rings when a job of `queue` may have become pending."""
    return f"queue:{queue}"


def job_topic(job_id: str) -> str:
    """Name what rings when the job may have ended."""
    return f"job:{job_id}"


def worker_topic(worker: str) -> str:
    """Name what rings when a job the worker holds was asked to stop."""
    return f"worker:{worker}"


#: Rings when something due was added, so that a ticker may have to wake earlier than it planned.
DUE_TOPIC = "due"


class Backend(ABC):
    """One connection to a store of jobs, used from one event loop."""

    capabilities: Capabilities

    # ---- connection ------------------------------------------------------------------------------------

    @abstractmethod
    async def open(self) -> None:
        """Connect and check the schema version. Never migrates, never creates over something that was deleted.

        Raises SchemaMismatch, ConfigurationError, Unavailable. Opening twice is harmless.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was asked and disconnect. Idempotent; jobs still claimed lapse with their worker's lease."""

    async def migrate(self) -> int:
        """Bring the schema to this version and answer its number. Safe while workers run; repeating is harmless."""
        return 0

    # ---- the way of a job ------------------------------------------------------------------------------

    @abstractmethod
    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        """Store jobs: all of them or, with an error, none. Answers in the order given.

        `pending` if `delay_ms` is 0, else `scheduled`; `waiting` with unfinished parents. Repeating an id
        answers `created=False`, so a call whose reply was lost can simply be made again. A live unique key
        answers with its holder's id. An answer means: durable as the capabilities say.
        Raises UniqueConflict, QueueFull, Unsupported.
        """

    @abstractmethod
    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        """Take up to `limit` pending jobs, best rank first within a queue, queues in the order given.

        Each goes to one claimer only, turns `running`, counts an attempt and gets a token that was never
        used before. A claim that yields jobs gives the worker the whole lease from now; an empty one may leave
        it as it was. Never blocks; a paused queue yields nothing.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """End attempts. Each is APPLIED if the job runs under that very token, else STALE and changes nothing.

        Follow-ups are stored if and only if the settlement is APPLIED, in the same move; so is the unique key
        freed, before them. A follow-up whose own key is held is left out: its effect is there already. A job
        that was asked to stop goes to `cancelled` where it would have gone to `scheduled` or `pending`.
        """

    @abstractmethod
    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        """Keep a worker's lease for `lease_ms` from now and record the notes of jobs it still holds.

        A lease that ran out but was not acted upon yet is kept alive; jobs already taken away are just not
        in `held`. Call at most every `lease_ms / 3`.
        """

    @abstractmethod
    async def retire(self, worker: str, reason: str) -> int:
        """End a worker's lease now and lapse what it still holds; answers how many jobs that were.

        For a keeper that saw its runner die, and for a worker that stops. Unknown workers answer 0.
        """

    @abstractmethod
    async def tick(self, limit: int, keep: Keep) -> Ticked:
        """Move time on: due → pending, lapsed → pending or failed, kept long enough → dropped.

        Lapsed are running jobs whose worker's lease ran out or who have no such worker at all; the write
        itself checks that again. A lapsed job goes to `cancelled` if that was asked, to `failed` if it has no
        attempts left, else to `pending`, and the lapse is added to its errors. At most `limit` jobs of each
        kind. Any worker, any time, any number of them at once.
        """

    @abstractmethod
    def watch(self, topics: Sequence[str]) -> Bell:
        """Answer a bell that rings when something of `topics` may have happened since this call.

        A hint: it may ring early and may ring for nothing; it may miss, so callers poll as well.
        """

    # ---- look ------------------------------------------------------------------------------------------

    @abstractmethod
    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        """Look jobs up by id, in the order given; None where there is none."""

    @abstractmethod
    async def find(self, query: Query) -> Page:
        """Look jobs up by filter, a page at a time. A walk along the cursor never repeats a job."""

    @abstractmethod
    async def counts(self) -> dict[str, QueueCounts]:
        """Count jobs by queue and state. Queues with settings but without jobs are listed too."""

    @abstractmethod
    async def workers(self) -> list[WorkerInfo]:
        """List the workers whose lease is live."""

    # ---- steer -----------------------------------------------------------------------------------------

    @abstractmethod
    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        """Stop jobs: DONE means it will never start (again); REQUESTED that its worker will be told."""

    @abstractmethod
    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        """Start ended jobs over: `attempt` is 0 again, the result is gone, the errors stay."""

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        """Remove jobs and all that is kept of them. Running ones answer LIVE and stay."""

    @abstractmethod
    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        """Change settings of queues, then answer those of all that have any. Takes effect at the next claim."""

    async def limits(self, changes: Sequence[Limit] = ()) -> list[Limit]:
        """Change rate and concurrency limits, then answer all. Takes effect at the next claim."""
        if changes:
            raise Unsupported("limits")
        return []

    async def schedules(self, changes: Sequence[Schedule] = ()) -> list[Schedule]:
        """Change schedules, then answer all. Takes effect at the next tick."""
        if changes:
            raise Unsupported("schedules")
        return []


# ---- rules that every backend shares, kept here so that none of them has its own -------------------------


def check_batch(items: Sequence[object]) -> None:
    """Refuse a call with more than `BATCH_MAX` items."""
    if len(items) > BATCH_MAX:
        raise InvalidOption(f"{len(items)} items in one call; send at most {BATCH_MAX}")


def check_limit(limit: int) -> None:
    """Refuse a claim or tick of more than `BATCH_MAX` jobs, or of a negative number."""
    if not 0 <= limit <= BATCH_MAX:
        raise InvalidOption(f"a limit of {limit} jobs; ask for 0 to {BATCH_MAX}")


def check_specs(specs: Sequence[JobSpec], capabilities: Capabilities) -> None:
    """Refuse what this backend cannot keep, before anything of the call is stored."""
    check_batch(specs)
    for spec in specs:
        if spec.after and not capabilities.dependencies:
            raise Unsupported("dependencies", "enqueue the job from its parent's handler with ctx.then()")
        if spec.unique is not None:
            _check_unique(spec.unique, capabilities)


def _check_unique(unique: Unique, capabilities: Capabilities) -> None:
    if not capabilities.unique:
        raise Unsupported("unique")
    if not capabilities.unique_windows and unique != Unique(key=unique.key, on_conflict=unique.on_conflict):
        raise Unsupported("unique_windows", "a unique key is held until its job ends")
    if not capabilities.unique_windows and unique.on_conflict == "replace":
        raise Unsupported("unique_windows", "use on_conflict='existing' or 'refuse'")


def check_settlements(settlements: Sequence[Settlement], capabilities: Capabilities) -> None:
    """Refuse settlements whose follow-ups this backend cannot keep."""
    check_batch(settlements)
    for settlement in settlements:
        if settlement.follow_ups:
            check_specs(settlement.follow_ups, capabilities)


def check_changes(changes: Sequence[QueueChange], capabilities: Capabilities) -> None:
    """Refuse queue settings this backend cannot keep."""
    check_batch(changes)
    if not capabilities.capacity and any(change.capacity is not None for change in changes):
        raise Unsupported("capacity")


def page_limit(query: Query) -> int:
    """Answer how many jobs a page may have: what was asked, from 1 to `BATCH_MAX`."""
    if not 1 <= query.limit <= BATCH_MAX:
        raise InvalidOption(f"a page has 1 to {BATCH_MAX} jobs, not {query.limit}")
    return query.limit


def parse_cursor(cursor: str | None) -> int | None:
    """Read a cursor that is a sequence number; raise InvalidOption for anything else."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise InvalidOption(f"{cursor[:40]!r} is not a cursor; use the `next` of the page before")
    return int(cursor)


def landing(settlement: Settlement, cancel_requested: bool) -> State:
    """Answer the state a settled job goes to: one that was asked to stop does not run again."""
    if cancel_requested and settlement.state not in TERMINAL:
        return State.CANCELLED
    return settlement.state


def lapse_landing(attempt: int, max_attempts: int, cancel_requested: bool) -> State:
    """Answer the state a lapsed job goes to. The attempt was counted at claim and stays counted."""
    if cancel_requested:
        return State.CANCELLED
    return State.FAILED if attempt >= max_attempts else State.PENDING


def add_error(errors: tuple[JobError, ...], error: JobError) -> tuple[JobError, ...]:
    """Add to a job's history, keeping the first and the latest `ERRORS_KEPT_MAX - 1`."""
    if len(errors) < ERRORS_KEPT_MAX:
        return (*errors, error)
    return (errors[0], *errors[2:], error)
