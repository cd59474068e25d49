"""What crosses the contract: the arguments and answers of `Backend`, as values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ..job import JobError, JobRecord, JobSpec, State, Unique

#: Items in one call. Large enough that the cost of the call vanishes, small enough that no call
#: holds a server for long: 1,000 rows are about 20 ms on SQLite (bench, 2026-11-22).
BATCH_MAX = 1_000

#: Characters of a cursor of `find`: those of one store are short, a view of several queues joins as many.
CURSOR_CHARS_MAX = 2_048

#: Error records kept for each job: the first and the latest. A job may have 1,000 attempts.
ERRORS_KEPT_MAX = 50

#: Schedules that one tick hands out to be planned.
SCHEDULES_A_TICK = 100

#: Bytes of payloads, results, steps and errors in one `Transfer`, about; a job that is larger travels alone.
TRANSFER_BYTES_MAX = 8 * 1024 * 1024

#: How long a store remembers the id of a job that it handed over, ms: a day, as a succeeded job by default.
ABSENT_KEPT_MS = 86_400_000

#: How long a store goes on writing changes down after somebody asked for them, and how long it keeps them, ms.
CHANGES_KEPT_MS = 60_000

#: Changes in one answer; who is further behind than that begins anew.
CHANGES_MAX = 10_000

#: As the key of a limit: each key of the type has the limit for itself.
EACH_KEY = "*"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do. Docs and errors are made from it; the conformance suite believes nothing else."""

    durable: bool  # an acknowledged enqueue survives kill -9 of this process
    shared: bool  # other processes see the same jobs
    priorities: bool = True
    unique: bool = True
    unique_windows: bool = False  # keys held by time or by chosen states, and on_conflict='replace'
    dependencies: bool = False  # `after`
    limits: bool = False  # rate and concurrency
    fair: bool = False  # keys share a queue fairly
    schedules: bool = False
    capacity: bool = False
    steps: bool = False  # a job remembers the results of its durable steps
    bind: bool = False  # enqueue inside the caller's own transaction
    transfer: bool = False  # hand jobs over to another store and take them over from one
    changes: bool = False  # tell what changed since somebody asked


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
    """What a run wants remembered, kept only while `token` holds the job.

    `progress` is 0.0 to 1.0. `step` names a durable step and `result` is what it came to, kept until the job is gone
    or rerun with another payload. An answer that shows the job held under `token` means: this is kept.

    A `step` that begins with `~`, as no step's name can, is what the worker itself remembers of a job: `~log.3` is what
    an attempt logged. To a backend it is a step like any other; its `result` is written anew as the run goes on.
    """

    id: str
    token: str
    progress: float | None = None
    text: str | None = None
    step: str | None = None
    result: bytes = b"null"


#: Characters of `WorkerInfo.trouble`.
TROUBLE_CHARS_MAX = 500


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
    trouble: str = ""  # what its keeper sees wrong with it now, as that a handler blocks its event loop
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


class Lapse(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job that was taken from its worker in `attempt`, told to the one caller whose call took it.

    `state` is where it went: PENDING, to run again; FAILED or CANCELLED: the lapse ended it.
    """

    id: str
    queue: str
    type: str
    attempt: int
    max_attempts: int
    state: State


class Ticked(msgspec.Struct, frozen=True, kw_only=True):
    """What a tick moved, in jobs, and when the next is due (None: nothing is scheduled).

    `lapses` names jobs that were taken from lost workers, in no certain order; a view of some queues, those of these.
    `schedules` are those that want planning, at most `SCHEDULES_A_TICK`: not paused, and their next slot is not worked
    out or is due by the store's clock, which is `now_ms`.
    """

    promoted: int = 0
    lapses: tuple[Lapse, ...] = ()
    dropped: int = 0
    freed: int = 0  # children told of the end of a parent: by this tick, or too many for an earlier move
    next_due_ms: int | None = None
    now_ms: int = 0
    schedules: tuple[Schedule, ...] = ()

    @property
    def lapsed(self) -> int:
        """How many jobs lapsed."""
        return len(self.lapses)


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A filter for `find`. All given fields must match; newest jobs first unless `oldest_first`."""

    states: tuple[State, ...] = ()
    queue: str | None = None
    type: str | None = None
    tag: str | None = None
    key: str | None = None
    workflow: str | None = None
    schedule: str | None = None
    created_from_ms: int | None = None
    created_before_ms: int | None = None
    oldest_first: bool = False
    brief: bool = False  # leave out what may be large: payload (b"") and result (None)
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
    """A limit on starts of jobs of a type, over all queues and workers.

    `rate` starts per `period_ms`, as a token bucket of `burst` (None: what 100 ms give, at least 1); `concurrency` jobs
    at once. `key` None limits the type as a whole, a text the jobs of that key, `EACH_KEY` every key alone (a limit for
    the very key goes before it); a job must pass both that of its type and that of its key. `source` says who set it:
    "" an operator, else the app's code, which never overrides an operator.

    As a change: None leaves a part as it is, 0 lifts it, `cleared` removes the limit. A new rate brings its own
    period and burst.
    """

    type: str
    key: str | None = None
    rate: int | None = None
    period_ms: int = 1_000
    burst: int | None = None
    concurrency: int | None = None
    source: str = ""
    cleared: bool = False
    # Set by the backend when it is asked about the limits of one type and key:
    running: int = 0
    opens_in_ms: int | None = None  # 0: a job may start now; None: when a running one ends


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring job, defined by `cron` in the time zone `tz` or by `every_ms`. See packhorse.schedule.

    `spec` is a template, its id is ignored. `source` says who defined it: "" an operator, else the app's code.
    """

    name: str
    spec: JobSpec
    cron: str | None = None
    every_ms: int | None = None
    tz: str = "UTC"
    missed: str = "latest"
    overlap: str = "allow"
    jitter_ms: int = 0
    source: str = ""
    # Set by the backend when it answers:
    paused: bool = False
    revision: int = 0  # rises with each change of the definition
    done_ms: int = 0  # slots up to this instant are dealt with
    next_ms: int | None = None  # the next slot, as the planner worked it out; None: not worked out yet


class ScheduleChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change to a schedule. `define` makes or redefines it, `paused` stops or restarts it, `removed` removes it.

    A new definition, other times, and a restart begin with the store's now: slots before it are nobody's business.
    """

    name: str
    define: Schedule | None = None
    paused: bool | None = None
    removed: bool = False


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """Slots of a schedule turned into jobs. It takes effect if the schedule stands where it was planned from.

    That is: it exists, is not paused, and has this `revision` and `done_ms`. Then `specs` are stored like follow-ups,
    and it stands at `new_done_ms` with `next_ms` as its next slot.
    """

    name: str
    revision: int
    done_ms: int
    new_done_ms: int
    next_ms: int
    specs: tuple[JobSpec, ...] = ()


class Change(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A move of one job: where it stands since `at_ms` by the store's clock (None: it is gone from the store)."""

    id: str
    state: State | None
    at_ms: int


class Changes(msgspec.Struct, frozen=True):
    """What changed, in an order that is right for each job, and the cursor to go on from.

    `gap`: changes after the cursor that was given are lost, so who follows has to look anew.
    """

    changes: list[Change]
    cursor: str
    gap: bool = False


class WorkflowCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow: how many of its jobs are in each state, and when the first of them was stored."""

    id: str
    states: dict[State, int]
    created_at_ms: int


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's rerun of an ended job, with edits; None keeps what the job has.

    It keeps the results of its durable steps, unless the payload is another one.
    """

    id: str
    delay_ms: int = 0
    payload: bytes | None = None
    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None


class Tie(StrEnum):
    """What a job knows of a parent."""

    WAITS = "waits"  # it waits for its end
    TOLD = "told"  # it was told of its end
    HELD = "held"  # it is cancelled because of it, and revived with it


class MovedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job on its way to another store.

    `record` is what `get` answers, steps too; it never runs. `unique` is the rule of its key. `parents` are those of
    its parents that its store knows, here or handed over before it.
    """

    record: JobRecord
    unique: Unique | None = None
    parents: dict[str, Tie] = {}


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of jobs and schedules on their way from the store `source` to another (decision 18).

    `number` rises from batch to batch. `last`: nothing is left at the source, not even what runs.
    """

    source: str
    number: int
    jobs: tuple[MovedJob, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    last: bool = False


#: A batch as one value of bytes, which is how a store may keep it.
write_transfer = msgspec.msgpack.Encoder().encode
read_transfer = msgspec.msgpack.Decoder(Transfer).decode


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a `Transfer` at the store `store`.

    STALE: a later batch of the same source is here already, so this one was refused. `jobs` were made live by this
    call, `known` are ids among them that this store had before: its own job stays, the other is gone.
    """

    store: str
    verdict: Verdict = Verdict.APPLIED
    jobs: int = 0
    known: tuple[str, ...] = ()


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
