"""Why a job is where it is: from facts to causes. Pure; the facts are gathered by `why_facts`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .backends.messages import EACH_KEY, Limit, WorkerInfo
from .job import LAPSED, PARENT_FAILED, REPLACED, TERMINAL, JobRecord, State
from .rates import rate_text
from .retry import names_type
from .wording import age, quantity, when

_BAD = (State.FAILED, State.CANCELLED)
_ERROR_CHARS_SHOWN = 200


#: What each code means. A code does not change; new ones may be added.
CODES = {
    "queue_paused": "its queue is paused",
    "rate_limit": "a rate of its type or key lets none start until then",
    "concurrency_limit": "as many of its type or key run as may; `jobs` are some of them",
    "no_worker": "no worker is alive",
    "no_worker_for_queue": "no live worker takes from its queue",
    "no_worker_for_type": "no live worker of its queue knows its type",
    "all_busy": "all slots of the workers of its queue are taken",
    "parked": "no worker that claimed it could run it; until then one may come that can, then it fails; not for its "
    "type while a live worker knows that",
    "in_line": "other pending jobs have a better place",
    "ready": "nothing: the next claim takes it",
    "due": "it is due then",
    "retry_due": "an attempt failed, the next is due then",
    "waiting_for_parents": "its parents have not ended; `jobs` are some of them",
    "parent_held": "a parent is held itself; `jobs` begins with the parent",
    "parent_ended_badly": "a parent failed or was cancelled: the next tick cancels it",
    "parents_ended": "its parents have ended: the next tick frees it",
    "running": "it runs",
    "worker_in_trouble": "its worker has it and does not get on: its event loop is blocked, or it was stopped",
    "cancel_requested": "it runs, was asked to stop and has not stopped",
    "lease_ran_out": "its worker is gone: the next tick makes it good",
    "succeeded": "it succeeded",
    "failed": "it failed for good",
    "cancelled": "an operator or a program cancelled it",
    "cancelled_by_handler": "its handler cancelled it",
    "cancelled_by_parent": "a parent ended badly; `jobs` are such parents",
    "replaced": "another job took its unique key; `jobs` is that one",
    "unique_conflict": "another live job holds its unique key, so it cannot be rerun; `jobs` is that one",
}


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that holds a job, or the way it ended; what would free it, and when that is by itself.

    `code` is for programs and does not change. `jobs` are the ids of others that have to do with it.
    """

    code: str
    text: str
    remedy: str = ""
    until_ms: int | None = None
    jobs: tuple[str, ...] = ()


class ShutLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that lets no job start now, with ids of some that run under it."""

    limit: Limit
    running_ids: tuple[str, ...] = ()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that has to do with where a job stands, as far as it matters in its state."""

    job: JobRecord
    now_ms: int
    park_ms: int
    paused: bool = False
    shut: tuple[ShutLimit, ...] = ()
    workers: tuple[WorkerInfo, ...] = ()
    before: int = 0  # pending jobs of its queue with a better place
    before_more: bool = False  # there may be more of them: not all were looked at
    parents: tuple[JobRecord, ...] = ()  # some that have not ended or ended badly
    parent_causes: dict[str, Cause] = msgspec.field(default_factory=dict)  # what holds them, by id
    holder: str | None = None  # a live job with its unique key


def explain(facts: Facts) -> list[Cause]:
    """Answer the causes, the most decisive first. There is always at least one."""
    match facts.job.state:
        case State.PENDING:
            return _pending(facts)
        case State.SCHEDULED:
            return [_due(facts), *_parked(facts), *_paused(facts), *_workers(facts)]
        case State.WAITING:
            return [*_waiting(facts), *_paused(facts), *_workers(facts)]
        case State.RUNNING:
            return list(_running(facts))
        case _:
            return list(_ended(facts))


# ---- not started yet -------------------------------------------------------------------------------------


def _pending(facts: Facts) -> list[Cause]:
    found = [*_paused(facts), *_limits(facts), *_workers(facts), *_parked(facts)]
    if facts.before:
        queue, least = facts.job.queue, "at least " if facts.before_more else ""
        better = quantity(facts.before, f"pending job of queue {queue} has", f"pending jobs of queue {queue} have")
        about = " (about: keys take turns)" if facts.job.key is not None else ""
        found.append(
            Cause(
                code="in_line",
                text=f"{least}{better} a better place{about}",
                remedy="wait, add workers, or enqueue it with a better priority",
            )
        )
    elif not found:
        found.append(Cause(code="ready", text="it is next in its queue: the next claim takes it"))
    return found


def _paused(facts: Facts) -> Iterator[Cause]:
    queue = facts.job.queue
    if facts.paused:
        yield Cause(
            code="queue_paused", text=f"queue {queue} is paused", remedy=f"resume it: packhorse queues resume {queue}"
        )


def _limits(facts: Facts) -> Iterator[Cause]:
    for shut in facts.shut:
        limit = shut.limit
        name = _limit_name(limit, facts.job.key)
        option = "" if limit.key is None else " --each-key" if limit.key == EACH_KEY else f" --key {limit.key}"
        raise_it = f"raise it: packhorse limits set {limit.type}{option}"
        if limit.opens_in_ms is not None:
            until_ms = facts.now_ms + limit.opens_in_ms
            rate = rate_text(limit.rate or 1, limit.period_ms)
            yield Cause(
                code="rate_limit",
                text=f"{name} allows {rate}; it opens at {when(until_ms, facts.now_ms)}",
                remedy=f"wait, or {raise_it} --rate …",
                until_ms=until_ms,
            )
        else:
            yield Cause(
                code="concurrency_limit",
                text=f"{name} allows {limit.concurrency} at once and {quantity(limit.running, 'runs', 'run')}",
                remedy=f"wait for one to end, or {raise_it} --concurrency …",
                jobs=shut.running_ids,
            )


def _limit_name(limit: Limit, key: str | None) -> str:
    if limit.key is None:
        return f"the limit of the type {limit.type}"
    return f"the limit of key {key} of the type {limit.type}"


def _workers(facts: Facts) -> Iterator[Cause]:
    job = facts.job
    start = f"packhorse worker APP -q {job.queue}"
    if not facts.workers:
        yield Cause(code="no_worker", text="no worker is alive", remedy=f"start one: {start}")
        return
    ours = [worker for worker in facts.workers if job.queue in worker.queues]
    if not ours:
        others = quantity(len(facts.workers), "takes", "take")
        yield Cause(
            code="no_worker_for_queue",
            text=f"no live worker takes from queue {job.queue}; {others} from others",
            remedy=f"start one: {start}",
        )
        return
    knowing = [worker for worker in ours if not worker.types or job.type in worker.types]
    if not knowing:
        yield Cause(
            code="no_worker_for_type",
            text=f"of {quantity(len(ours), 'live worker')} of queue {job.queue} none knows the type {job.type}",
            remedy=f"start a worker of the app that has the task {job.type}",
        )
    elif job.state is State.PENDING and all(0 < worker.concurrency <= worker.running for worker in knowing):
        slots = sum(worker.concurrency for worker in knowing)
        yield Cause(
            code="all_busy",
            text=f"all slots of queue {job.queue} are taken: {slots:,} of {quantity(len(knowing), 'live worker')}",
            remedy="wait for a job to end, add workers, or raise their concurrency",
        )


def _parked(facts: Facts) -> Iterator[Cause]:
    if facts.job.parked_at_ms is not None:
        job, until_ms = facts.job, facts.job.parked_at_ms + facts.park_ms
        fails = f"it fails at {when(until_ms, facts.now_ms)}"
        if any(names_type(worker, job.queue, job.type) for worker in facts.workers):
            fails += ", but not for its type as long as a live worker knows that"
        yield Cause(
            code="parked",
            text=f"the workers that claimed it do not know its type {facts.job.type} or cannot read its payload, "
            f"since {when(facts.job.parked_at_ms, facts.now_ms)}; {fails}",
            remedy=f"start a worker of the app that has the task {facts.job.type}",
            until_ms=until_ms,
        )


def _due(facts: Facts) -> Cause:
    job = facts.job
    due = when(job.due_at_ms, facts.now_ms)
    if job.attempt > 0 and job.parked_at_ms is None:
        text = f"attempt {job.attempt} of {job.max_attempts} failed{_last_error(job)}; the next is due at {due}"
        return Cause(code="retry_due", text=text, remedy="wait", until_ms=job.due_at_ms)
    remedy = "wait" if job.due_at_ms > facts.now_ms else "the next tick makes it pending; live workers tick"
    return Cause(code="due", text=f"it is due at {due}", remedy=remedy, until_ms=job.due_at_ms)


def _waiting(facts: Facts) -> Iterator[Cause]:
    job = facts.job
    live = [parent for parent in facts.parents if parent.state not in TERMINAL]
    for parent in facts.parents:
        if parent.state in _BAD and job.after_failed == "cancel":
            yield Cause(
                code="parent_ended_badly",
                text=f"its parent {parent.id} ({parent.type}) ended as {parent.state}: the next tick cancels this job",
                remedy=f"rerun the parent: packhorse jobs rerun {parent.id}",
                jobs=(parent.id,),
            )
    if not live:
        yield Cause(
            code="parents_ended", text="its parents have ended: the next tick frees it", remedy="a live worker ticks"
        )
        return
    named = ", ".join(f"{parent.id} ({parent.type}, {parent.state})" for parent in live)
    more = job.waiting_for - len(live)
    parents = quantity(len(job.after), "parent")
    left = quantity(job.waiting_for, f"of its {parents} has", f"of its {parents} have")
    yield Cause(
        code="waiting_for_parents",
        text=f"{left} not ended: {named}" + (f" and {more} more" if more > 0 else ""),
        remedy="wait for them, or see what holds them: packhorse jobs why ID",
        jobs=tuple(parent.id for parent in live),
    )
    for parent in live:
        cause = facts.parent_causes.get(parent.id)
        if cause is not None and cause.code not in {"ready", "running"}:
            yield Cause(
                code="parent_held",
                text=f"parent {parent.id}: {cause.text}",
                remedy=cause.remedy,
                until_ms=cause.until_ms,
                jobs=(parent.id, *cause.jobs),
            )


# ---- running ---------------------------------------------------------------------------------------------


def _running(facts: Facts) -> Iterator[Cause]:
    job = facts.job
    worker = next((worker for worker in facts.workers if worker.id == job.worker), None)
    since = when(job.started_at_ms, facts.now_ms) if job.started_at_ms is not None else "?"
    if worker is None:
        yield Cause(
            code="lease_ran_out",
            text=f"its worker {job.worker} gave no sign of life and its lease ran out; it ran since {since}. The next "
            "tick starts it over, or ends it with its last attempt",
            remedy="nothing; if it stays like this, no worker is alive to tick: packhorse worker APP",
        )
        return
    if job.cancel_requested:
        yield Cause(
            code="cancel_requested",
            text=f"it was asked to stop and has not stopped yet; its worker {worker.id} hears of it with its next "
            "sign of life",
            remedy="wait; a handler in a thread must look at ctx.cancelled",
        )
    progress = "" if job.progress is None else f", {job.progress:.0%} done"
    note = "" if not job.progress_note else f" ({job.progress_note})"
    if worker.trouble:
        yield Cause(
            code="worker_in_trouble",
            text=f"its worker does not get on: {worker.trouble}",
            remedy=f"see where it is, on {worker.host or 'its machine'}: packhorse stacks {worker.pid}",
        )
    yield Cause(
        code="running",
        text=f"it runs on {worker.host or '?'} (pid {worker.pid}, worker {worker.id}) since {since}, attempt "
        f"{job.attempt} of {job.max_attempts}{progress}{note}; the lease holds another {age(worker.lease_left_ms)}",
        remedy=f"wait, or stop it: packhorse jobs cancel {job.id}",
    )


# ---- ended -----------------------------------------------------------------------------------------------


def _ended(facts: Facts) -> Iterator[Cause]:
    job = facts.job
    at = when(job.finished_at_ms, facts.now_ms) if job.finished_at_ms is not None else "?"
    rerun = f"start it over: packhorse jobs rerun {job.id}"
    match job.state:
        case State.SUCCEEDED:
            yield Cause(code="succeeded", text=f"it succeeded with attempt {job.attempt} at {at}", remedy=rerun)
        case State.FAILED:
            left = "" if job.attempt >= job.max_attempts else ", for good"
            yield Cause(
                code="failed",
                text=f"it failed with attempt {job.attempt} of {job.max_attempts}{left} at {at}{_last_error(job)}",
                remedy=f"{rerun}; with another payload: packhorse jobs edit {job.id}",
            )
        case _:
            yield _cancelled(facts, at, rerun)
    if facts.holder is not None:
        yield Cause(
            code="unique_conflict",
            text=f"a rerun is refused: job {facts.holder} holds its unique key {job.unique!r}",
            remedy=f"wait for that job to end, or cancel it: packhorse jobs cancel {facts.holder}",
            jobs=(facts.holder,),
        )


def _cancelled(facts: Facts, at: str, rerun: str) -> Cause:
    job = facts.job
    last = job.errors[-1] if job.errors else None
    bad = [parent for parent in facts.parents if parent.state in _BAD]
    if last is not None and last.kind == PARENT_FAILED and job.attempt == 0:
        jobs = tuple(parent.id for parent in bad)
        rerun = f"rerun the parent: packhorse jobs rerun {jobs[0]}" if jobs else rerun
        return Cause(
            code="cancelled_by_parent",
            text=f"it was cancelled at {at}: {_short(last.message)}",
            remedy=rerun,
            jobs=jobs,
        )
    if last is not None and last.kind == REPLACED:
        # The message names the job: `replaced_by` of backends/rules.py.
        by = tuple(word for word in last.message.split() if len(word) == 36 and word.count("-") == 4)
        return Cause(code="replaced", text=f"it was cancelled at {at}: {_short(last.message)}", jobs=by)
    if last is not None and last.kind == "Cancel" and last.attempt == job.attempt:
        return Cause(
            code="cancelled_by_handler",
            text=f"its handler cancelled it at {at}: {_short(last.message)}",
            remedy=rerun,
        )
    before = _last_error(job, " before it") if last is not None and last.kind != "Cancelled" else ""
    return Cause(code="cancelled", text=f"it was cancelled by an operator or a program at {at}{before}", remedy=rerun)


def _last_error(job: JobRecord, before: str = "") -> str:
    if not job.errors:
        return ""
    last = job.errors[-1]
    if last.kind == LAPSED:
        return f"{before}: its worker was lost ({_short(last.message)})"
    return f"{before}: {last.kind}: {_short(last.message)}"


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _ERROR_CHARS_SHOWN else line[: _ERROR_CHARS_SHOWN - 1] + "…"
