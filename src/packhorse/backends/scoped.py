"""A store of which only some queues can be seen: for callers whose token is for these alone (FAILURES C19).

What is of another queue looks as if it did not exist. What would change it, or the store as a whole, is refused. Jobs
of other queues may be parents or children of one's own, if who may use both made them so: then they decide its way as
ever. Whose a job is, is looked up before the move: it may be on its way to another queue by a rerun just then.

Workers have names of the scope's own inside the store (`_worker`): a name is all it takes to beat or to retire a
worker, and a beat answers the tokens of what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NoReturn

import msgspec

from ..chance import is_named_id, named_id
from ..errors import IdempotencyConflict, NotFound, OutOfScope, UnknownParent, Unsupported
from ..job import DELAY_MS_MAX, Claimed, JobRecord, JobSpec, State
from .base import (
    BATCH_MAX,
    Arrival,
    Backend,
    Bound,
    Changes,
    Enqueued,
    Firing,
    Keep,
    Lapse,
    Limit,
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
    Transfer,
    Verdict,
    WorkerInfo,
    WorkflowCounts,
    check_batch,
    check_settlements,
    check_specs,
    queue_topic,
    worker_topic,
)
from .bells import Bell
from .checkup import Checkup
from .passing import PassingBackend
from .scoped_pages import find_in

#: Jobs that are read at a time to learn their queues: each may carry 2 MiB.
_JOBS_A_LOOK = 32

#: Jobs of other queues that are as quickly read as a look into one more queue.
_WORKFLOW_JOBS_A_LOOK = 20

#: Workflows that are looked through for those that have jobs in one's own queues.
WORKFLOWS_LOOKED_AT_MAX = 1_000

#: How long jobs are kept is not for one queue's caller to say: its ticks drop nothing.
_DROPS_NOTHING = Keep(succeeded_ms=DELAY_MS_MAX, failed_ms=DELAY_MS_MAX, cancelled_ms=DELAY_MS_MAX)

_QUEUE_TOPIC = queue_topic("")
_WORKER_TOPIC = worker_topic("")


class ScopedBackend(PassingBackend):
    """The store `inner` as one sees it who may use `queues` only. Raises OutOfScope for what concerns another."""

    def __init__(
        self,
        inner: Backend,
        queues: frozenset[str],
        on_foreign_lapses: Callable[[Sequence[Lapse]], None] | None = None,
    ) -> None:
        """Show `queues`. `on_foreign_lapses` hears what ticks take in other queues: the caller is not to see it."""
        super().__init__(inner)
        self._on_foreign_lapses = on_foreign_lapses
        self._queues = queues
        self._suffix = "." + named_id("scope", *sorted(queues))[-12:]
        self.capabilities = msgspec.structs.replace(inner.capabilities, bind=False, transfer=False, changes=False)

    # ---- connection ------------------------------------------------------------------------------------

    async def migrate(self) -> int:
        """Refuse: the schema is everybody's."""
        self._refuse("the schema of the store")

    async def checkup(self) -> Checkup:
        """Refuse: the server is everybody's."""
        self._refuse("a look at the server")

    def bind(self, connection: object) -> Bound:
        """Refuse: a transaction of the caller's reaches all of the store."""
        raise Unsupported("bind", "a caller for some queues only cannot take part in transactions")

    # ---- the way of a job ------------------------------------------------------------------------------

    async def enqueue(self, specs: Sequence[JobSpec]) -> list[Enqueued]:
        """Store jobs of one's own queues. UnknownParent for a parent of another queue, as for one that is not there.

        An idempotency key that was used in another queue is IdempotencyConflict.
        """
        check_specs(specs, self.capabilities)
        self._check_queues(specs)
        await self._check_schedule_labels(specs)
        named = {spec.id for spec in specs if is_named_id(spec.id)}
        foreign = await self._foreign({parent for spec in specs for parent in spec.after} | named)
        for spec in specs:
            if spec.id in foreign:
                raise IdempotencyConflict(spec.id)
            self._refuse_parents(spec, foreign)
        return await self._inner.enqueue(specs)

    async def claim(self, queues: Sequence[str], limit: int, lease_ms: int, worker: str) -> list[Claimed]:
        for queue in queues:
            self._check(queue)
        return await self._inner.claim(queues, limit, lease_ms, self._worker(worker))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Verdict]:
        """End attempts of jobs in one's own queues; STALE for others. Follow-ups stay in one's own queues, too.

        A token alone says nothing: most stores count them, so who was given one can guess the next.
        """
        check_settlements(settlements, self.capabilities)
        follow_ups = [spec for settlement in settlements for spec in settlement.follow_ups]
        self._check_queues(follow_ups)
        await self._check_schedule_labels(follow_ups)
        foreign = await self._foreign({parent for spec in follow_ups for parent in spec.after})
        for spec in follow_ups:
            self._refuse_parents(spec, foreign)
        own = await self._own([settlement.id for settlement in settlements])
        verdicts = iter(await self._inner.settle([each for each in settlements if each.id in own]))
        return [next(verdicts) if each.id in own else Verdict.STALE for each in settlements]

    async def heartbeat(self, worker: WorkerInfo, lease_ms: int, notes: Sequence[Note] = ()) -> Pulse:
        """Keep a worker's lease, and the notes of what this very worker holds: no guessed token writes to others."""
        check_batch(notes)
        own = tuple(queue for queue in worker.queues if queue in self._queues)
        inner = msgspec.structs.replace(worker, id=self._worker(worker.id), queues=own)
        pulse = await self._inner.heartbeat(inner, lease_ms)
        held = [note for note in notes if pulse.held.get(note.id) == note.token]
        return await self._inner.heartbeat(inner, lease_ms, held) if held else pulse

    async def retire(self, worker: str, reason: str) -> list[Lapse]:
        return await self._inner.retire(self._worker(worker), reason)

    async def tick(self, limit: int, keep: Keep) -> Ticked:
        """Move time on for all queues: it only does what the next tick of anybody would do. Drops nothing.

        Answers one's own schedules, and names the lapses of one's own queues, only.
        """
        ticked = await self._inner.tick(limit, _DROPS_NOTHING)
        foreign = [lapse for lapse in ticked.lapses if lapse.queue not in self._queues]
        if foreign and self._on_foreign_lapses is not None:
            self._on_foreign_lapses(foreign)
        return msgspec.structs.replace(
            ticked,
            lapses=tuple(lapse for lapse in ticked.lapses if lapse.queue in self._queues),
            schedules=tuple(self._own_schedules(ticked.schedules)),
        )

    async def fire(self, firings: Sequence[Firing]) -> list[Verdict]:
        """Turn slots of one's own schedules into jobs; STALE for one of another queue, as if it did not exist."""
        check_batch(firings)
        own = {schedule.name for schedule in await self.schedules()} if firings else set()
        mine = [firing for firing in firings if firing.name in own]
        for firing in mine:
            self._check_queues(firing.specs)
            for spec in firing.specs:
                if spec.schedule not in {None, firing.name} or spec.after:
                    self._refuse("a slot that is not the schedule's own")
        fired = iter(await self._inner.fire(mine))
        return [next(fired) if firing.name in own else Verdict.STALE for firing in firings]

    def watch(self, topics: Sequence[str]) -> Bell:
        """Answer a bell for these topics, without those of other queues."""
        return self._inner.watch([topic for each in topics if (topic := self._topic(each)) is not None])

    # ---- look ------------------------------------------------------------------------------------------

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        found = await self._inner.get(ids)
        return [
            self._shown(record) if record is not None and record.queue in self._queues else None for record in found
        ]

    async def find(self, query: Query) -> Page:
        """Look jobs up in one's own queues. In several, the order is that of the instants they were created at."""
        if query.queue is None and len(self._queues) == 1:
            query = msgspec.structs.replace(query, queue=min(self._queues))
        if query.queue is None:
            page = await find_in(self._inner, self._queues, query)
        elif query.queue in self._queues:
            page = await self._inner.find(query)
        else:
            page = Page([], None)
        return Page([self._shown(record) for record in page.jobs], page.next)

    async def counts(self) -> dict[str, QueueCounts]:
        return {queue: counts for queue, counts in (await self._inner.counts()).items() if queue in self._queues}

    async def workflows(self, limit: int = 100, before: str | None = None) -> list[WorkflowCounts]:
        """Count the jobs of workflows in one's own queues, newest first.

        Looks at the next 1,000 workflows of the store for those that have any; what is further back is not listed.
        """
        found: list[WorkflowCounts] = []
        for _ in range(WORKFLOWS_LOOKED_AT_MAX // 100):
            page = await self._inner.workflows(100, before)
            for counts in page:
                if own := await self._own_counts(counts):
                    found.append(own)
                if len(found) == limit:
                    return found
            if len(page) < 100:
                break
            before = page[-1].id
        return found

    async def changes(self, cursor: str | None = None) -> Changes:
        """Refuse: a change does not say of which queue it is."""
        raise Unsupported("changes", "follow GET /api/v1/events, which knows the queues")

    async def workers(self) -> list[WorkerInfo]:
        """List the workers that take from one's own queues; of those that also take from others, not the types."""
        found = []
        for worker in await self._inner.workers():
            own = tuple(queue for queue in worker.queues if queue in self._queues)
            if own or worker.id.endswith(self._suffix):
                types = worker.types if len(own) == len(worker.queues) else ()
                name = worker.id.removesuffix(self._suffix)
                found.append(msgspec.structs.replace(worker, id=name, queues=own, types=types))
        return found

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Sequence[str]) -> list[Steered]:
        own = await self._own(ids)
        answers = iter(await self._inner.cancel([job_id for job_id in ids if job_id in own]))
        return [next(answers) if job_id in own else Steered.MISSING for job_id in ids]

    async def rerun(self, reruns: Sequence[Rerun]) -> list[Steered]:
        """Start ended jobs over, in one's own queues."""
        for rerun in reruns:
            if rerun.queue is not None:
                self._check(rerun.queue)
        own = await self._own([rerun.id for rerun in reruns])
        answers = iter(await self._inner.rerun([rerun for rerun in reruns if rerun.id in own]))
        return [next(answers) if rerun.id in own else Steered.MISSING for rerun in reruns]

    async def delete(self, ids: Sequence[str]) -> list[Steered]:
        own = await self._own(ids)
        answers = iter(await self._inner.delete([job_id for job_id in ids if job_id in own]))
        return [next(answers) if job_id in own else Steered.MISSING for job_id in ids]

    async def queues(self, changes: Sequence[QueueChange] = ()) -> dict[str, QueueChange]:
        for change in changes:
            self._check(change.queue)
        return {queue: found for queue, found in (await self._inner.queues(changes)).items() if queue in self._queues}

    async def limits(
        self, changes: Sequence[Limit] = (), *, about: tuple[str, str | None] | None = None
    ) -> list[Limit]:
        """Answer limits. They hold over all queues, so to change one is refused."""
        if changes:
            self._refuse("a limit")
        return await self._inner.limits(about=about)

    async def schedules(self, changes: Sequence[ScheduleChange] = ()) -> list[Schedule]:
        """Change schedules of one's own queues, all or none, then answer these.

        A name that is taken in another queue is refused: that it is taken cannot be kept a secret.
        """
        if not changes:
            return self._own_schedules(await self._inner.schedules())
        check_batch(changes)
        queue_of = {schedule.name: schedule.spec.queue for schedule in await self._inner.schedules()}
        foreign = {name for name, queue in queue_of.items() if queue not in self._queues}
        passed = []
        for change in changes:
            if change.define is not None:
                self._check_queues([change.define.spec])
                if change.name in foreign or change.define.spec.after:
                    self._refuse(f"the name of the schedule {change.name!r}")
            if change.name not in foreign:
                passed.append(change)
            elif change.paused is not None:
                raise NotFound(f"no schedule {change.name!r}; packhorse schedules list shows what there is")
        return self._own_schedules(await self._inner.schedules(passed))

    # ---- move to another store ---------------------------------------------------------------------------

    async def hand_over(self, to: str, limit: int, stored: int | None = None) -> Transfer:
        """Refuse: it takes the whole store."""
        raise Unsupported("transfer", "a caller for some queues only cannot move the store")

    async def take_over(self, transfer: Transfer | None = None) -> Arrival:
        """Refuse: it brings the whole of another store."""
        raise Unsupported("transfer", "a caller for some queues only cannot move a store here")

    # ---- whose is it -----------------------------------------------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        raise OutOfScope(self._queues, None, what)

    def _check(self, queue: str) -> None:
        if queue not in self._queues:
            raise OutOfScope(self._queues, queue)

    def _check_queues(self, specs: Iterable[JobSpec]) -> None:
        for spec in specs:
            self._check(spec.queue)

    async def _check_schedule_labels(self, specs: Iterable[JobSpec]) -> None:
        """Refuse jobs that pass for those of another queue's schedule: with overlap='skip' they would hold it up."""
        labels = {spec.schedule for spec in specs if spec.schedule is not None}
        if labels and not labels <= {schedule.name for schedule in await self.schedules()}:
            self._refuse("a job of that schedule")

    async def _queues_of(self, ids: Collection[str]) -> dict[str, str]:
        """Answer the queues of the jobs that are there, by id."""
        found: dict[str, str] = {}
        wanted = sorted(ids)
        for start in range(0, len(wanted), _JOBS_A_LOOK):
            for record in await self._inner.get(wanted[start : start + _JOBS_A_LOOK]):
                if record is not None:
                    found[record.id] = record.queue
        return found

    async def _foreign(self, ids: Collection[str]) -> set[str]:
        """Answer those that name jobs of other queues."""
        return {job_id for job_id, queue in (await self._queues_of(ids)).items() if queue not in self._queues}

    def _refuse_parents(self, spec: JobSpec, foreign: Collection[str]) -> None:
        for parent in spec.after:
            if parent in foreign:
                raise UnknownParent(parent)

    async def _own(self, ids: Sequence[str]) -> set[str]:
        """Answer those that name jobs of one's own queues."""
        check_batch(ids)
        return {job_id for job_id, queue in (await self._queues_of(set(ids))).items() if queue in self._queues}

    def _own_schedules(self, schedules: Iterable[Schedule]) -> list[Schedule]:
        return [schedule for schedule in schedules if schedule.spec.queue in self._queues]

    async def _own_counts(self, counts: WorkflowCounts) -> WorkflowCounts | None:
        """Answer what one sees of a workflow; None where none of its jobs is in one's own queues."""
        states: dict[State, int] = {}
        created: list[int] = []
        # Of a small one all jobs are read at once: many queues would be many looks, for each of 1,000 workflows.
        is_small = sum(counts.states.values()) <= _WORKFLOW_JOBS_A_LOOK * len(self._queues)
        for queue in [None] if is_small else sorted(self._queues):
            query: Query | None = Query(workflow=counts.id, queue=queue, brief=True, limit=BATCH_MAX)
            while query is not None:
                page = await self._inner.find(query)
                for job in page.jobs:
                    if job.queue in self._queues:
                        states[job.state] = states.get(job.state, 0) + 1
                        created.append(job.created_at_ms)
                query = None if page.next is None else msgspec.structs.replace(query, cursor=page.next)
        if not created:
            return None
        return WorkflowCounts(id=counts.id, states=states, created_at_ms=min(created))

    def _worker(self, worker: str) -> str:
        return worker + self._suffix

    def _shown(self, record: JobRecord) -> JobRecord:
        if record.worker is not None and record.worker.endswith(self._suffix):
            record.worker = record.worker.removesuffix(self._suffix)
        return record

    def _topic(self, topic: str) -> str | None:
        if topic.startswith(_QUEUE_TOPIC):
            return topic if topic.removeprefix(_QUEUE_TOPIC) in self._queues else None
        return topic + self._suffix if topic.startswith(_WORKER_TOPIC) else topic
