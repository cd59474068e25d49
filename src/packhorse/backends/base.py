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
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import Unsupported
from ..job import Claimed, JobRecord, JobSpec
from .bells import Bell
from .bound import Bound
from .messages import (
    ABSENT_KEPT_MS,
    BATCH_MAX,
    CHANGES_KEPT_MS,
    CHANGES_MAX,
    DUE_TOPIC,
    EACH_KEY,
    ERRORS_KEPT_MAX,
    SCHEDULES_A_TICK,
    TRANSFER_BYTES_MAX,
    Arrival,
    Capabilities,
    Change,
    Changes,
    Enqueued,
    Firing,
    Keep,
    Lapse,
    Limit,
    MovedJob,
    Note,
    Page,
    Pulse,
    Query,
    QueueChange,
    QueueCounts,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    Steered,
    Ticked,
    Tie,
    Transfer,
    Verdict,
    WorkerInfo,
    WorkflowCounts,
    job_topic,
    queue_topic,
    read_transfer,
    worker_topic,
    write_transfer,
)
from .rules import (
    REPLACEABLE,
    add_error,
    check_batch,
    check_changes,
    check_family,
    check_limit,
    check_settlements,
    check_specs,
    define_schedule,
    holds_key,
    landing,
    lapse_landing,
    may_fire,
    merge_schedule,
    page_limit,
    parent_failed,
    parents_first,
    parse_cursor,
    pause_schedule,
    replaced_by,
    wants_planning,
)

if TYPE_CHECKING:
    from .checkup import Checkup

__all__ = [
    "ABSENT_KEPT_MS",
    "BATCH_MAX",
    "CHANGES_KEPT_MS",
    "CHANGES_MAX",
    "DUE_TOPIC",
    "EACH_KEY",
    "ERRORS_KEPT_MAX",
    "NOT_COUNTED",
    "REPLACEABLE",
    "SCHEDULES_A_TICK",
    "TRANSFER_BYTES_MAX",
    "Arrival",
    "Backend",
    "Bound",
    "Capabilities",
    "Change",
    "Changes",
    "Enqueued",
    "Firing",
    "Keep",
    "Lapse",
    "Limit",
    "MovedJob",
    "Note",
    "Page",
    "Pulse",
    "Query",
    "QueueChange",
    "QueueCounts",
    "Rerun",
    "Schedule",
    "ScheduleChange",
    "Settlement",
    "Steered",
    "Ticked",
    "Tie",
    "Transfer",
    "Verdict",
    "WorkerInfo",
    "WorkflowCounts",
    "add_error",
    "check_batch",
    "check_changes",
    "check_family",
    "check_limit",
    "check_settlements",
    "check_specs",
    "define_schedule",
    "holds_key",
    "job_topic",
    "landing",
    "lapse_landing",
    "may_fire",
    "merge_schedule",
    "page_limit",
    "parent_failed",
    "parents_first",
    "parse_cursor",
    "pause_schedule",
    "queue_topic",
    "read_transfer",
    "replaced_by",
    "wants_planning",
    "worker_topic",
    "write_transfer",
]


#: What a backend that does not count how often rates held jobs back says of it.
NOT_COUNTED: Mapping[str, int] = MappingProxyType({})


class Backend(ABC):
    """One connection to a store of jobs, used from one event loop.

    `rate_limited` says by type how often claims of this connection left pending jobs of it because its rate, or that of
    their key, was spent: once each time it is spent, not for each claim that meets it; concurrency does not count. At
    most 1,000 types, and only ever more. `backends.rate_limited` keeps it. NOT_COUNTED: others do, or nobody.
    """

    capabilities: Capabilities
    rate_limited: Mapping[str, int] = NOT_COUNTED

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

    async def checkup(self) -> Checkup:
        """Look at the server's own settings for `packhorse doctor`. On a backend that is not open; changes nothing.

        Raises ConfigurationError, Unavailable where the server cannot be asked.
        """
        from .checkup import Checkup

        return Checkup()

    def bind(self, connection: object) -> Bound:
        """Answer verbs that take part in the caller's own transaction on `connection`, to the same store.

        From any thread; nothing is sent before the first verb. Raises InvalidOption for a connection of another
        kind or to another store, Unsupported.
        """
        raise Unsupported("bind", "enqueue after the commit, or use SQLite or PostgreSQL")

    # ---- the way of a job ------------------------------------------------------------------------------

    @abstractmethod
    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        """Store jobs: all of them or, with an error, none. Answers in the order given.

        `pending` if `delay_ms` is 0, else `scheduled`; `waiting` while parents (`after`) have not ended, and the delay
        counts from their end. A parent that ended badly decides by `after_failed` at once. Repeating an id
        answers `created=False`, so a call whose reply was lost can simply be made again. A held unique key
        answers with its holder's id. A job with a key gets its place by `packhorse.job.fair_turn`, whenever it becomes
        pending. An answer means: durable as the capabilities say.
        `after` may name a spec of the same call; where that one's unique key was held it means the holder.
        Raises UniqueConflict, UnknownParent, QueueFull (more new jobs than a queue's capacity leaves room for beside
        its pending ones; those that wait for an instant or for parents are let in), InvalidOption (a cycle),
        Unsupported.
        """

    @abstractmethod
    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        """Take up to `limit` pending jobs, best rank first within a queue, queues in the order given.

        Each goes to one claimer only, turns `running`, counts an attempt and gets a token that was never
        used before. A claim that yields jobs gives the worker the whole lease from now; an empty one may leave
        it as it was. Never blocks; a paused queue yields nothing. A limit of 0 takes nothing, and asks whether
        one may claim: raises what any claim from these queues would (Forbidden, OutOfScope, where there are rights).

        No more of a type, or of a type and key, than its limits let start now (`packhorse.limits`), over all workers;
        what they hold back delays nothing else, and costs the claim nothing. A job that runs counts, whoever runs it,
        until it is settled or lapses. When a limit opens, a tick or the verb that opened it rings the queue.
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """End attempts. Each is APPLIED if the job runs under that very token, else STALE and changes nothing.

        Follow-ups are stored if and only if the settlement is APPLIED, in the same move; so is the unique key
        freed, before them. A follow-up whose own key is held is left out, unless it replaces the holder: its effect is
        there already. No capacity holds for them; one of an unknown parent is stored as if that had failed. A job that
        was asked to stop goes to `cancelled` where it would have gone to `scheduled` or `pending`.

        Children of a job that ended, here or by any other verb: the last parent to end frees them, each once; one that
        ended badly cancels those with `after_failed="cancel"`, and theirs in turn. In the same move for the first
        `BATCH_MAX`, the others by the next ticks.
        """

    @abstractmethod
    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        """Keep a worker's lease for `lease_ms` from now and record the notes of jobs it still holds, durably.

        A lease that ran out but was not acted upon yet is kept alive; jobs already taken away are just not
        in `held`. Call at most every `lease_ms / 3`.
        """

    @abstractmethod
    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        """End a worker's lease now and lapse what it still holds; answers which jobs that were, in no certain order.

        For a keeper that saw its runner die, and for a worker that stops. Unknown workers answer none.
        """

    @abstractmethod
    async def tick(self, limit: int, keep: Keep) -> Ticked:
        """Move time on: due → pending, lapsed → pending or failed, kept long enough → dropped.

        Lapsed are running jobs whose worker's lease ran out or who have no such worker at all; the write
        itself checks that again. A lapsed job goes to `cancelled` if that was asked, to `failed` if it has no
        attempts left, else to `pending`, and the lapse is added to its errors. A job is not dropped while a child of it
        lives. At most `limit` jobs of each kind. Any worker, any time, any number of them at once.

        Each lapse is named in one answer only, of the tick or `retire` that made it, so that whoever gets it may count
        and tell it; with an answer that is lost nobody hears of it. Children that end because of a lapse are not named.

        Also answers the schedules that want planning, and rings the queues whose limits opened.
        """

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        """Turn slots of schedules into jobs, each firing in one guarded write; STALE: another was quicker.

        A spec whose id is there already or whose unique key is held is left out.
        """
        if firings:
            raise Unsupported("schedules")
        return []

    @abstractmethod
    def watch(self, topics: Sequence[str]) -> Bell:
        """Answer a bell that rings when something of `topics` may have happened since this call.

        A hint: it may ring early and may ring for nothing; it may miss, so callers poll as well.
        """

    # ---- look ------------------------------------------------------------------------------------------

    @abstractmethod
    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        """Look jobs up by id, in the order given; None where there is none. With the results of durable steps."""

    @abstractmethod
    async def find(self, query: Query) -> Page:
        """Look jobs up by filter, a page at a time. A walk along the cursor never repeats a job."""

    @abstractmethod
    async def counts(self) -> dict[str, QueueCounts]:
        """Count jobs by queue and state. Queues with settings but without jobs are listed too."""

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        """Count the jobs of workflows by state, newest id first; `before` goes on after the last of a page."""
        return []

    async def changes(self, cursor: str | None = None) -> Changes:
        """Answer which jobs moved to another state since `cursor`, at most `CHANGES_MAX` of them; None: from now on.

        A store writes changes down only while somebody asks: from the first call on, until none came for
        `CHANGES_KEPT_MS`. Then every move is told that was committed after the call which answered the cursor, once and
        whoever made it, but for jobs that another store took over or handed over. They are kept for `CHANGES_KEPT_MS`;
        with more than `CHANGES_MAX` to tell, or where some are gone, the answer has none and `gap`, and goes on from
        now. A cursor that is not one of this store is a gap too. Raises Unsupported.
        """
        raise Unsupported("changes")

    @abstractmethod
    async def workers(self) -> list[WorkerInfo]:
        """List the workers whose lease is live."""

    # ---- steer -----------------------------------------------------------------------------------------

    @abstractmethod
    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        """Stop jobs: DONE means it will never start (again); REQUESTED that its worker will be told."""

    @abstractmethod
    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        """Start ended jobs over: `attempt` is 0 again, the result is gone, the errors stay.

        One that has parents which live waits for them. Children that were cancelled because of it wait again, and
        theirs in turn, unless another parent of theirs ended badly or another job holds their unique key.
        """

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        """Remove jobs and all that is kept of them. Running ones answer LIVE and stay.

        For the children of one that had not ended it counts as cancelled.
        """

    @abstractmethod
    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        """Change settings of queues, then answer those of all that have any. Takes effect at the next claim."""

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        """Change rate and concurrency limits, then answer all, by type and key. Takes effect at the next claim.

        With `about`, a type and a key, answer only those that a job of these must pass, with their state now. Raises
        InvalidOption.
        """
        if changes:
            raise Unsupported("limits")
        return []

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        """Change schedules, all or none, then answer all, by name. Takes effect at the next tick.

        Raises NotFound where one that does not exist is to be paused; removing it is harmless.
        """
        if changes:
            raise Unsupported("schedules")
        return []

    # ---- move to another store ---------------------------------------------------------------------------

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        """Let up to `limit` jobs that do not run, and the schedules, go to the store `to`; answers them.

        From then on nobody here can claim, find, steer, tick or drop them. They are kept in transit, durably, and the
        same batch is answered again until a call says with `stored` that it is safe there, by its number: then it is
        forgotten, in the same move that hands the next one over. An empty answer, with the number that the next batch
        would at least have, means that nothing is in transit any more. One batch is in transit at a time, from
        `TRANSFER_BYTES_MAX` on a smaller one; ConfigurationError if it goes to another store than `to`.

        Jobs that wait go first: none that could end leaves while a child of it waits here. The id of a job that
        left is remembered for `ABSENT_KEPT_MS`, and while a child of it lives here: enqueueing it again answers
        `created=False`, and it counts as a parent that lives. Its unique key is free.
        """
        raise Unsupported("transfer")

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        """Store what another store handed over, durably but not live yet; the batch before it becomes live now.

        So a job is live here only once its source has forgotten it: a source goes on to the next number when it has.
        The same number again changes nothing, a lower one is STALE, an empty batch only makes live what was held.
        Without a transfer this answers the identity of the store, which never changes.

        A job comes to life as it left: its state, instants, errors, and what it knows of its parents, wherever these
        are by now. One that is here counts as it stands here, one that is not is waited for; it counts as cancelled
        when the `last` batch of that source came without it. A child that was cancelled because of a parent which was
        rerun while one of the two was elsewhere is revived when both are here.

        A job of an id that is here already is left out. One whose key is held here comes all the same: nobody else gets
        the key before both have ended. No capacity holds. A schedule of a name that is here gets the later of both
        cursors: `merge_schedule`.
        """
        raise Unsupported("transfer")
