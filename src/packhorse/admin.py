"""The operator's verbs, one class for every shell, and the one JSON shape of each thing they answer.

A shell (command line, HTTP, page) reads text with `read_query`, calls `Admin`, and writes the answer with the
`*_json` function beside it. So a name is checked, and a job looks, the same everywhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from . import codec
from .backends.base import BATCH_MAX, Backend, Page, Query, QueueChange, QueueCounts, Rerun, Steered, WorkerInfo
from .clock import SYSTEM_CLOCK, Clock, to_rfc3339
from .errors import InvalidName, InvalidOption, InvalidPayload, NotFound, Unavailable
from .job import KEY_CHARS_MAX, LIVE, TERMINAL, JobError, JobRecord, State, check_name
from .options import read_instant_ms

#: What a filter without `states` means: all that the verb can act upon, except that a rerun takes failed jobs only,
#: because nobody who reruns a queue wants its successes again.
CANCELLABLE = tuple(state for state in State if state in LIVE)
DELETABLE = tuple(state for state in State if state is not State.RUNNING)
RERUNNABLE = (State.FAILED,)

#: A purge walks the queue again until a walk finds nothing. Producers that go on adding must not keep it for ever.
PURGE_WALKS_MAX = 10

#: A health check that waits longer than this tells its caller nothing new.
HEALTH_TIMEOUT_MS = 5_000

CURSOR_CHARS_MAX = 256
UNDECODABLE_BYTES_SHOWN = 64

#: Called with the number of jobs seen so far.
Progress = Callable[[int], None]


class Stats(msgspec.Struct, frozen=True):
    """Jobs by state, in all and for each queue."""

    states: dict[State, int]
    queues: dict[str, QueueCounts]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the store answers (`status` OK or UNAVAILABLE), how fast, and what an operator should look at."""

    status: str
    latency_ms: int | None = None
    workers: int = 0
    pending: int = 0
    problems: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """What is true of one job after a verb."""

    id: str
    answer: Steered


class Sweep(msgspec.Struct, kw_only=True):
    """What a verb did to all jobs that matched a filter. A dry run only counts."""

    matched: int = 0
    dry_run: bool = False
    answers: Counter[Steered] = msgspec.field(default_factory=Counter)


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs a purge deleted, and how many of the queue are there still: `running` ones, and those `added`."""

    deleted: int
    running: int
    added: int = 0


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as an operator sees it: its counts and its settings."""

    queue: str
    counts: QueueCounts
    capacity: int | None = None


class Admin:
    """What an operator can see and do. `backend` is open and belongs to the caller, who closes it."""

    def __init__(self, backend: Backend, clock: Clock = SYSTEM_CLOCK) -> None:
        self._backend = backend
        self._clock = clock

    # ---- look ------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """Answer how many jobs are in each state, in all and by queue. Raises Unavailable."""
        queues = await self._backend.counts()
        total: Counter[State] = Counter()
        for counts in queues.values():
            total.update(counts.states)
        return Stats({state: total[state] for state in State}, queues)

    async def health(self) -> Health:
        """Answer whether the store does, within `HEALTH_TIMEOUT_MS`. Never raises for a store that does not."""
        asked_ms = self._clock.boot_ms()
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_MS / 1000):
                workers = await self._backend.workers()
                latency_ms = self._clock.boot_ms() - asked_ms
                queues = await self._backend.counts()
        except TimeoutError:
            return Health(status="UNAVAILABLE", problems=(f"no answer within {HEALTH_TIMEOUT_MS / 1000:g} s",))
        except Unavailable as error:
            return Health(status="UNAVAILABLE", problems=(str(error),))
        served = {queue for worker in workers for queue in worker.queues}
        return Health(
            status="OK",
            latency_ms=latency_ms,
            workers=len(workers),
            pending=sum(counts.states.get(State.PENDING, 0) for counts in queues.values()),
            problems=tuple(_queue_problems(queues, served)),
        )

    async def find(self, query: Query) -> Page:
        """Answer one page of the jobs that match. Raises InvalidOption for a limit or cursor out of bounds."""
        return await self._backend.find(query)

    async def list_failed(self, query: Query) -> Page:
        """Answer one page of the dead letter queue: the jobs that match and have failed for good."""
        return await self._backend.find(msgspec.structs.replace(query, states=RERUNNABLE))

    async def show(self, job_id: str) -> JobRecord:
        """Answer all that is kept of a job. Raises NotFound."""
        record = (await self._backend.get([job_id]))[0] if _may_be_an_id(job_id) else None
        if record is None:
            raise NotFound(f"no job {job_id[:128]!r}: never enqueued here, deleted, or kept long enough and dropped")
        return record

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

    async def rerun_matching(
        self, query: Query, *, delay_ms: int = 0, dry_run: bool = False, progress: Progress | None = None
    ) -> Sweep:
        """Start over every ended job that matches; failed ones only, unless `query` names other states."""
        refusal = "only ended jobs can be rerun; cancel the others first"
        states = _narrow(query.states, tuple(TERMINAL), refusal) if query.states else RERUNNABLE
        return await self._sweep(query, states, self._rerunner(delay_ms), dry_run, progress)

    async def delete(self, ids: Iterable[str]) -> list[Answer]:
        """Remove jobs and all that is kept of them; LIVE for one that runs."""
        return await self._by_id(ids, self._backend.delete)

    async def delete_matching(self, query: Query, *, dry_run: bool = False, progress: Progress | None = None) -> Sweep:
        """Remove every job that matches and does not run."""
        states = _narrow(query.states, DELETABLE, "a running job cannot be deleted; cancel it first")
        return await self._sweep(query, states, self._backend.delete, dry_run, progress)

    async def purge(self, queue: str, states: Sequence[State] = (), *, progress: Progress | None = None) -> Purged:
        """Remove the jobs of a queue, in batches of 1,000, until none is left but those that run.

        Walks the queue again as long as a walk removes something, so that a job which was between two states is not
        missed; at most `PURGE_WALKS_MAX` times, so that a busy producer cannot keep it for ever (then `added` > 0).
        """
        query = Query(queue=check_name(queue, "queue"))
        chosen = _narrow(states, DELETABLE, "a running job cannot be deleted; cancel it first")
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

    async def _set_paused(self, queues: Iterable[str], paused: bool) -> None:
        changes = [QueueChange(queue=check_name(queue, "queue"), paused=paused) for queue in dict.fromkeys(queues)]
        await self._backend.queues(changes)

    # ---- how verbs are applied -------------------------------------------------------------------------

    def _rerunner(self, delay_ms: int) -> Callable[[Sequence[str]], Awaitable[list[Steered]]]:
        def rerun(ids: Sequence[str]) -> Awaitable[list[Steered]]:
            return self._backend.rerun([Rerun(id=job_id, delay_ms=delay_ms) for job_id in ids])

        return rerun

    async def _by_id(
        self, ids: Iterable[str], verb: Callable[[Sequence[str]], Awaitable[list[Steered]]]
    ) -> list[Answer]:
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
        verb: Callable[[Sequence[str]], Awaitable[list[Steered]]],
        dry_run: bool,
        progress: Progress | None,
        base: int = 0,
    ) -> Sweep:
        """Walk the jobs that match, newest first: those enqueued after the walk began are not met, so it ends."""
        sweep = Sweep(dry_run=dry_run)
        query = msgspec.structs.replace(query, states=states, limit=BATCH_MAX, oldest_first=False, cursor=None)
        while True:
            page = await self._backend.find(query)
            ids = [job.id for job in page.jobs]
            sweep.matched += len(ids)
            if ids and not dry_run:
                sweep.answers.update(await verb(ids))
            if progress is not None:
                progress(base + sweep.matched)
            if page.next is None:
                return sweep
            query = msgspec.structs.replace(query, cursor=page.next)


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


# ---- reading what an operator typed ----------------------------------------------------------------------


def read_states(words: Iterable[str]) -> tuple[State, ...]:
    """Read states, each word one or several joined by commas. Raises InvalidOption."""
    names = [name.strip() for word in words for name in word.split(",")]
    known = {str(state): state for state in State}
    for name in names:
        if name not in known:
            raise InvalidOption(f"state: {name[:40]!r} must be one of {', '.join(known)}")
    return tuple(dict.fromkeys(known[name] for name in names))


def read_query(
    *,
    states: Iterable[str] = (),
    queue: str | None = None,
    job_type: str | None = None,
    tag: str | None = None,
    key: str | None = None,
    created_from: str | None = None,
    created_before: str | None = None,
    oldest_first: bool = False,
    limit: int = 100,
    cursor: str | None = None,
) -> Query:
    """Read a filter from text. Raises InvalidName or InvalidOption before anything reaches a store (FAILURES C9, C10).

    `created_from` and `created_before` are instants with an offset; `limit` is 1 to 1,000.
    """
    if not 1 <= limit <= BATCH_MAX:
        raise InvalidOption(f"limit: {limit} must be from 1 to {BATCH_MAX}")
    if key is not None and not (1 <= len(key) <= KEY_CHARS_MAX and key.isprintable()):
        raise InvalidOption(f"key: {key[:40]!r} must be 1 to {KEY_CHARS_MAX} printable characters")
    if cursor is not None and not (1 <= len(cursor) <= CURSOR_CHARS_MAX and cursor.isascii() and cursor.isprintable()):
        raise InvalidOption(f"cursor: {cursor[:40]!r} is not a cursor; use the `next` of the page before")
    return Query(
        states=read_states(states),
        queue=None if queue is None else check_name(queue, "queue"),
        type=None if job_type is None else check_name(job_type, "job type"),
        tag=None if tag is None else check_name(tag, "tag"),
        key=key,
        created_from_ms=None if created_from is None else read_instant_ms(created_from, "created_from"),
        created_before_ms=None if created_before is None else read_instant_ms(created_before, "created_before"),
        oldest_first=oldest_first,
        limit=limit,
        cursor=cursor,
    )


# ---- JSON shapes -----------------------------------------------------------------------------------------


def job_json(record: JobRecord) -> dict[str, Any]:
    """Answer the one JSON of a job (DESIGN section 9). `error` is the last one, null once the job has succeeded."""
    last = record.errors[-1] if record.errors and record.state is not State.SUCCEEDED else None
    return {
        "id": record.id,
        "type": record.type,
        "queue": record.queue,
        "state": str(record.state),
        "priority": record.priority,
        "attempt": record.attempt,
        "max_attempts": record.max_attempts,
        "key": record.key,
        "tags": list(record.tags),
        "payload": _value(record.payload),
        "result": None if record.result is None else _value(record.result),
        "error": None if last is None else error_text(last),
        "errors": [_error_json(error) for error in record.errors],
        "progress": record.progress,
        "unique": record.unique,
        "after": list(record.after),
        "workflow": record.workflow,
        "schedule": record.schedule,
        "slot": instant_json(record.slot_at_ms),
        "worker": record.worker,
        "timeout_ms": record.timeout_ms,
        "created_at": instant_json(record.created_at_ms),
        "due_at": instant_json(record.due_at_ms),
        "started_at": instant_json(record.started_at_ms),
        "finished_at": instant_json(record.finished_at_ms),
    }


def error_text(error: JobError) -> str:
    """Answer an error as one text, `ValueError: no such address`."""
    return f"{error.kind}: {error.message}"


def _error_json(error: JobError) -> dict[str, Any]:
    return {
        "attempt": error.attempt,
        "at": instant_json(error.at_ms),
        "kind": error.kind,
        "message": error.message,
        "traceback": error.traceback,
    }


def _value(data: bytes) -> Any:
    """Answer stored JSON as a value. What is not JSON must not keep the other jobs of a page from being shown."""
    try:
        return codec.decode(data)
    except (InvalidPayload, RecursionError):
        shown = bytes(data[:UNDECODABLE_BYTES_SHOWN]).hex()
        return {"undecodable": shown + ("…" if len(data) > UNDECODABLE_BYTES_SHOWN else "")}


def instant_json(instant_ms: int | None) -> str | None:
    """Answer an instant as RFC 3339 in UTC; None stays None."""
    if instant_ms is None:
        return None
    try:
        return to_rfc3339(instant_ms)
    except (ValueError, OverflowError, OSError):  # a year past 9999, which a store can hold and RFC 3339 cannot say
        return f"{instant_ms} ms"


def list_json(items: Iterable[dict[str, Any]], next_cursor: str | None = None) -> dict[str, Any]:
    """Answer the one JSON of a list: `items`, and the cursor of the `next` page or null."""
    return {"items": list(items), "next": next_cursor}


def page_json(page: Page) -> dict[str, Any]:
    """Answer the JSON of a page of jobs."""
    return list_json(map(job_json, page.jobs), page.next)


def _counts_json(counts: QueueCounts) -> dict[str, Any]:
    return {
        "states": {str(state): counts.states.get(state, 0) for state in State},
        "oldest_pending_ms": counts.oldest_pending_ms,
        "paused": counts.paused,
    }


def stats_json(stats: Stats) -> dict[str, Any]:
    """Answer `{"states": {state: jobs}, "queues": {queue: {"states", "oldest_pending_ms", "paused"}}}`."""
    return {
        "states": {str(state): count for state, count in stats.states.items()},
        "queues": {name: _counts_json(counts) for name, counts in stats.queues.items()},
    }


def health_json(health: Health) -> dict[str, Any]:
    """Answer the JSON of a health check; `status` is OK or UNAVAILABLE."""
    from . import __version__

    return {
        "status": health.status,
        "service": "packhorse",
        "version": __version__,
        "latency_ms": health.latency_ms,
        "workers": health.workers,
        "pending": health.pending,
        "problems": list(health.problems),
    }


def queue_json(view: QueueView) -> dict[str, Any]:
    """Answer the JSON of a queue."""
    return {"queue": view.queue, **_counts_json(view.counts), "capacity": view.capacity}


def worker_json(worker: WorkerInfo) -> dict[str, Any]:
    """Answer the JSON of a live worker."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "queues": list(worker.queues),
        "types": list(worker.types),
        "concurrency": worker.concurrency,
        "busy": worker.busy,
        "running": worker.running,
        "started_at": instant_json(worker.started_at_ms),
        "lease_left_ms": worker.lease_left_ms,
        "version": worker.version,
    }


def answers_json(answers: Iterable[Answer]) -> dict[str, Any]:
    """Answer what became of each id: `{"id", "answer"}`; the answers are the words of `Steered`."""
    return list_json({"id": answer.id, "answer": str(answer.answer)} for answer in answers)


def sweep_json(sweep: Sweep) -> dict[str, Any]:
    """Answer how many jobs matched and what became of them."""
    return {
        "matched": sweep.matched,
        "dry_run": sweep.dry_run,
        **{str(answer): sweep.answers[answer] for answer in Steered},
    }


def purged_json(queue: str, purged: Purged) -> dict[str, Any]:
    """Answer what a purge did to `queue`."""
    return {"queue": queue, "deleted": purged.deleted, "running": purged.running, "added": purged.added}
