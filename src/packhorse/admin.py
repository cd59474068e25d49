"""The operator's verbs, one class for every shell.

A shell (command line, HTTP, page) reads text with `read_query`, calls `Admin`, and writes the answer with the
`*_json` function of `admin_json`. So a name is checked, and a job looks, the same everywhere.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from .admin_failed import FailedGroups, group_failed, in_group
from .admin_json import (
    answers_json,
    error_text,
    health_json,
    job_json,
    page_json,
    purged_json,
    queue_json,
    stats_json,
    sweep_json,
    why_json,
    worker_json,
)
from .admin_limits import AdminLimits
from .admin_schedules import AdminSchedules
from .admin_text import read_query, read_states
from .admin_values import Answer, Health, Progress, Purged, QueueView, Stats, Sweep
from .admin_workflows import AdminWorkflows
from .backends.base import BATCH_MAX, Backend, Page, Query, QueueChange, QueueCounts, Rerun, Steered, WorkerInfo
from .backends.checkup import WRITES, Level
from .clock import SYSTEM_CLOCK, Clock
from .errors import ConfigurationError, InvalidName, InvalidOption, NotFound, Refused, Unavailable
from .job import DELAY_MS_MAX, LIVE, TERMINAL, JobRecord, State, check_name
from .limiting import set_capacity
from .shapes import instant_json, list_json
from .story import Story, story_of
from .why_facts import Explained, look_into

__all__ = [
    "CANCELLABLE",
    "DELETABLE",
    "HEALTH_TIMEOUT_MS",
    "PURGE_WALKS_MAX",
    "RERUNNABLE",
    "Admin",
    "Answer",
    "Health",
    "Progress",
    "Purged",
    "QueueView",
    "Stats",
    "Sweep",
    "answers_json",
    "error_text",
    "health_json",
    "instant_json",
    "job_json",
    "list_json",
    "page_json",
    "purged_json",
    "queue_json",
    "read_query",
    "read_states",
    "stats_json",
    "sweep_json",
    "why_json",
    "worker_json",
]

#: What a filter without `states` means: all that the verb can act upon, except that a rerun takes failed jobs only,
#: because nobody who reruns a queue wants its successes again.
CANCELLABLE = tuple(state for state in State if state in LIVE)
DELETABLE = tuple(state for state in State if state is not State.RUNNING)
RERUNNABLE = (State.FAILED,)

#: A purge walks the queue again until a walk finds nothing. Producers that go on adding must not keep it for ever.
PURGE_WALKS_MAX = 10

#: A health check that waits longer than this tells its caller nothing new.
HEALTH_TIMEOUT_MS = 5_000


Verb = Callable[[Sequence[str]], Awaitable[list[Steered]]]


class Admin:
    """What an operator can see and do. `backend` is open and belongs to the caller, who closes it."""

    def __init__(self, backend: Backend, clock: Clock = SYSTEM_CLOCK) -> None:
        self._backend = backend
        self._clock = clock
        #: The verbs on schedules.
        self.schedules = AdminSchedules(backend, clock)
        #: The verbs on limits.
        self.limits = AdminLimits(backend)
        #: The verbs on workflows.
        self.workflows = AdminWorkflows(backend)

    # ---- look ------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """Answer how many jobs are in each state, in all and by queue. Raises Unavailable."""
        queues = await self._backend.counts()
        total: Counter[State] = Counter()
        for counts in queues.values():
            total.update(counts.states)
        return Stats({state: total[state] for state in State}, queues)

    async def health(self, *, thorough: bool = False) -> Health:
        """Answer whether the store does, within `HEALTH_TIMEOUT_MS`. Never raises for a store that does not.

        Where it is `thorough` the store's server is asked, too, whether it takes writes: for one who writes nothing
        himself, and so would not know.
        """
        asked_ms = self._clock.boot_ms()
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_MS / 1000):
                workers = await self._backend.workers()
                latency_ms = self._clock.boot_ms() - asked_ms
                queues = await self._backend.counts()
                refusals = await self._refusals() if thorough else ()
        except TimeoutError:
            return Health(status="UNAVAILABLE", problems=(f"no answer within {HEALTH_TIMEOUT_MS / 1000:g} s",))
        except Unavailable as error:
            return Health(status="UNAVAILABLE", problems=(str(error),))
        served = {queue for worker in workers for queue in worker.queues}
        return Health(
            status="UNAVAILABLE" if refusals else "OK",
            latency_ms=latency_ms,
            workers=len(workers),
            pending=sum(counts.states.get(State.PENDING, 0) for counts in queues.values()),
            problems=(*refusals, *_queue_problems(queues, served)),
        )

    async def _refusals(self) -> Sequence[str]:
        """Answer why the store takes no writes; nothing where it does, or where this caller may not ask."""
        try:
            found = (await self._backend.checkup()).findings
        except (Refused, ConfigurationError):
            return ()
        return [
            f"{each.check}: {each.value}: {each.meaning}; {each.remedy}"
            for each in found
            if each.check in WRITES and each.level is Level.BROKEN
        ]

    async def find(self, query: Query) -> Page:
        """Answer one page of the jobs that match. Raises InvalidOption for a limit or cursor out of bounds."""
        return await self._backend.find(query)

    async def list_failed(self, query: Query) -> Page:
        """Answer one page of the dead letter queue: the jobs that match and have failed for good."""
        return await self._backend.find(msgspec.structs.replace(query, states=RERUNNABLE))

    async def group_failed(
        self, query: Query, *, progress: Progress | None = None, jobs_max: int | None = None
    ) -> FailedGroups:
        """Answer the dead letter queue by what went wrong: the failed jobs that match, grouped by their last error.

        All of them, or the newest `jobs_max`.
        """
        return await group_failed(self._backend, query, progress, jobs_max=jobs_max)

    async def show(self, job_id: str) -> JobRecord:
        """Answer all that is kept of a job. Raises NotFound."""
        record = (await self._backend.get([job_id]))[0] if _may_be_an_id(job_id) else None
        if record is None:
            raise _no_job(job_id)
        return record

    async def log(self, job_id: str) -> Story:
        """Answer what happened to a job, with what its runs logged. Raises NotFound."""
        return story_of(await self.show(job_id))

    async def why(self, job_id: str, *, park_ms: int = 600_000) -> Explained:
        """Answer what holds a job now and what would free it, or how it ended. Raises NotFound.

        `park_ms` is the workers' own setting: how long a job that none can run is kept.
        """
        found = await look_into(self._backend, job_id, self._clock.now_ms(), park_ms) if _may_be_an_id(job_id) else None
        if found is None:
            raise _no_job(job_id)
        return found

    async def workers(self) -> list[WorkerInfo]:
        """Answer the workers that are alive."""
        return await self._backend.workers()

    async def queues(self) -> list[QueueView]:
        """Answer every queue that has jobs or settings, by name."""
        settings = await self._backend.queues()
        counts = await self._backend.counts()
        return [
            QueueView(
                queue=name,
                counts=counts.get(name) or QueueCounts(states={}, paused=bool(settings[name].paused)),
                capacity=settings[name].capacity if name in settings else None,
            )
            for name in sorted(counts.keys() | settings.keys())
        ]

    async def queue(self, name: str) -> QueueView:
        """Answer one queue. Raises NotFound for one that has neither jobs nor settings."""
        check_name(name, "queue")
        for view in await self.queues():
            if view.queue == name:
                return view
        raise NotFound(f"no queue {name!r}: nothing was enqueued into it yet, or all of it was dropped")

    # ---- steer -----------------------------------------------------------------------------------------

    async def cancel(self, ids: Iterable[str]) -> list[Answer]:
        """Stop jobs by id: DONE will never start (again), REQUESTED runs and its worker will be told."""
        return await self._by_id(ids, self._backend.cancel)

    async def cancel_matching(self, query: Query, *, dry_run: bool = False, progress: Progress | None = None) -> Sweep:
        """Stop every live job that matches. Raises InvalidOption if `query` names ended states only."""
        states = _narrow(query.states, CANCELLABLE, "an ended job cannot be cancelled; delete or rerun it")
        return await self._sweep(query, states, self._backend.cancel, dry_run, progress)

    async def rerun(self, ids: Iterable[str], *, delay_ms: int = 0) -> list[Answer]:
        """Start ended jobs over, with all their attempts; LIVE for one that has not ended."""
        return await self._by_id(ids, self._rerunner(delay_ms))

    async def edit(self, change: Rerun) -> Answer:
        """Start an ended job over with another payload, queue, priority or attempts, under the same id.

        LIVE for one that has not ended, CONFLICT where another live job holds its unique key.
        """
        if change.queue is not None:
            check_name(change.queue, "queue")
        return (await self._by_id([change.id], lambda _: self._backend.rerun([change])))[0]

    async def rerun_matching(
        self,
        query: Query,
        *,
        delay_ms: int = 0,
        rate: tuple[int, int] | None = None,
        group: str | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Sweep:
        """Start over every ended job that matches; failed ones only, unless `query` names other states.

        `group` is the fingerprint of a group of failed jobs. With a `rate`, starts and a period in ms, the oldest is
        due first and each other so much later that no more come in a period: the store does the waiting.
        """
        refusal = "only ended jobs can be rerun; cancel the others first"
        states = _narrow(query.states, tuple(TERMINAL), refusal) if query.states else RERUNNABLE
        if rate is not None:
            query = await self._up_to_now(query, states)
        rerun = self._rerunner(delay_ms, rate)
        return await self._sweep(query, states, rerun, dry_run, progress, group=group, oldest_first=rate is not None)

    async def delete(self, ids: Iterable[str]) -> list[Answer]:
        """Remove jobs and all that is kept of them; LIVE for one that runs."""
        return await self._by_id(ids, self._backend.delete)

    async def delete_matching(
        self, query: Query, *, group: str | None = None, dry_run: bool = False, progress: Progress | None = None
    ) -> Sweep:
        """Remove every job that matches and does not run; `group` is the fingerprint of a group of failed jobs."""
        states = _narrow(query.states, DELETABLE, "a running job cannot be deleted; cancel it first")
        return await self._sweep(query, states, self._backend.delete, dry_run, progress, group=group)

    async def purge(
        self, queue: str, states: Sequence[State] | None = None, *, progress: Progress | None = None
    ) -> Purged:
        """Remove the jobs of a queue, in batches of 1,000, until none is left but those that run.

        Of those `states`, at least one; raises InvalidOption for none of them.

        Walks the queue again as long as a walk removes something, so that a job which was between two states is not
        missed; at most `PURGE_WALKS_MAX` times, so that a busy producer cannot keep it for ever (then `added` > 0).
        """
        query = Query(queue=check_name(queue, "queue"))
        if states is not None and not states:
            raise InvalidOption("state: none is named; leave it out for all jobs that do not run")
        chosen = _narrow(states or (), DELETABLE, "a running job cannot be deleted; cancel it first")
        deleted = 0
        for _ in range(PURGE_WALKS_MAX):
            sweep = await self._sweep(query, chosen, self._backend.delete, False, progress, base=deleted)
            deleted += sweep.answers[Steered.DONE]
            if not sweep.answers[Steered.DONE]:
                break
        counts = (await self._backend.counts()).get(queue, QueueCounts(states={}))
        return Purged(
            deleted=deleted,
            running=counts.states.get(State.RUNNING, 0),
            added=sum(counts.states.get(state, 0) for state in chosen),
        )

    async def pause(self, queues: Iterable[str]) -> None:
        """Stop claims from queues; what runs goes on. Takes effect at the next claim; repeating is harmless."""
        await self._set_paused(queues, True)

    async def resume(self, queues: Iterable[str]) -> None:
        """Let queues be claimed from again."""
        await self._set_paused(queues, False)

    async def set_capacity(self, queue: str, capacity: int) -> None:
        """Let a queue hold at most so many pending jobs, 0: any number. Raises InvalidOption, Unsupported."""
        await set_capacity(self._backend, queue, capacity)

    async def _set_paused(self, queues: Iterable[str], paused: bool) -> None:
        changes = [QueueChange(queue=check_name(queue, "queue"), paused=paused) for queue in dict.fromkeys(queues)]
        await self._backend.queues(changes)

    # ---- how verbs are applied -------------------------------------------------------------------------

    def _rerunner(self, delay_ms: int, rate: tuple[int, int] | None = None) -> Verb:
        """Answer the verb that starts jobs over; with a rate, the nth of all its calls so much later."""
        starts, period_ms = rate or (1, 0)
        numbers = itertools.count()

        def rerun(ids: Sequence[str]) -> Awaitable[list[Steered]]:
            delays = [delay_ms + next(numbers) * period_ms // starts for _ in ids]
            return self._backend.rerun(
                [Rerun(id=job_id, delay_ms=min(ms, DELAY_MS_MAX)) for job_id, ms in zip(ids, delays, strict=True)]
            )

        return rerun

    async def _up_to_now(self, query: Query, states: tuple[State, ...]) -> Query:
        """Leave out jobs enqueued from now on, or a walk that goes on to newer ones might never end."""
        newest = msgspec.structs.replace(
            query, states=states, brief=True, limit=1, oldest_first=False, cursor=None, created_before_ms=None
        )
        before_ms = [job.created_at_ms + 1 for job in (await self._backend.find(newest)).jobs]
        if query.created_before_ms is not None:
            before_ms.append(query.created_before_ms)
        return msgspec.structs.replace(query, created_before_ms=min(before_ms, default=None))

    async def _by_id(self, ids: Iterable[str], verb: Verb) -> list[Answer]:
        """Apply a verb to each id once, in batches. What cannot be an id is MISSING without asking the store."""
        unique = list(dict.fromkeys(ids))
        asked = [job_id for job_id in unique if _may_be_an_id(job_id)]
        answers: dict[str, Steered] = {}
        for start in range(0, len(asked), BATCH_MAX):
            batch = asked[start : start + BATCH_MAX]
            answers.update(zip(batch, await verb(batch), strict=True))
        return [Answer(job_id, answers.get(job_id, Steered.MISSING)) for job_id in unique]

    async def _sweep(
        self,
        query: Query,
        states: tuple[State, ...],
        verb: Verb,
        dry_run: bool,
        progress: Progress | None,
        base: int = 0,
        *,
        group: str | None = None,
        oldest_first: bool = False,
    ) -> Sweep:
        """Walk the jobs that match, newest first: those enqueued after the walk began are not met, so it ends.

        A page has neither payloads nor results: 1,000 jobs of 1 MiB are not read for their ids.
        """
        sweep = Sweep(dry_run=dry_run)
        belongs = None if group is None else in_group(group)
        if belongs is not None:
            states = _narrow(states if query.states else (), RERUNNABLE, "only failed jobs are in groups")
        query = msgspec.structs.replace(
            query, states=states, brief=True, limit=BATCH_MAX, oldest_first=oldest_first, cursor=None
        )
        seen = 0
        while True:
            page = await self._backend.find(query)
            ids = [job.id for job in page.jobs if belongs is None or belongs(job)]
            seen += len(page.jobs)
            sweep.matched += len(ids)
            if ids and not dry_run:
                sweep.answers.update(await verb(ids))
            if progress is not None:
                progress(base + seen)
            if page.next is None:
                return sweep
            query = msgspec.structs.replace(query, cursor=page.next)


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"no job {job_id[:128]!r}: never enqueued here, deleted, or kept long enough and dropped")


def _may_be_an_id(job_id: str) -> bool:
    try:
        check_name(job_id, "job")
    except InvalidName:
        return False
    return True


def _narrow(states: Sequence[State], allowed: tuple[State, ...], refusal: str) -> tuple[State, ...]:
    """Answer the states a verb goes through: those asked for, or all it can act upon."""
    if not states:
        return allowed
    chosen = tuple(state for state in states if state in allowed)
    if len(chosen) < len(states):
        raise InvalidOption(f"state: {', '.join(state for state in states if state not in allowed)}: {refusal}")
    return chosen


def _queue_problems(queues: dict[str, QueueCounts], served: set[str]) -> Iterable[str]:
    for name, counts in queues.items():
        pending = counts.states.get(State.PENDING, 0)
        if not pending:
            continue
        if counts.paused:
            yield f"queue {name}: {pending} pending and paused; resume it with: packhorse queues resume {name}"
        elif name not in served:
            yield f"queue {name}: {pending} pending, no live worker takes them; start: packhorse worker APP -q {name}"
