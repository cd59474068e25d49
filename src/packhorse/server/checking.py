"""What arrives from another process as values of the contract, checked as if a person had written it.

Callers in this process are trusted to have built jobs with `options` and `codec`. A client at the other end of a
network is not: whatever a store, a page or a log line relies on is looked at again here, in one place, before a verb is
called.
Types are right already (msgspec), lists of the call itself are within `BATCH_MAX`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .. import codec
from ..backends.http import wire
from ..backends.messages import (
    BATCH_MAX,
    CURSOR_CHARS_MAX,
    ERRORS_KEPT_MAX,
    TROUBLE_CHARS_MAX,
    Firing,
    Keep,
    Limit,
    MovedJob,
    Note,
    Query,
    QueueChange,
    Rerun,
    Schedule,
    ScheduleChange,
    Settlement,
    WorkerInfo,
)
from ..backends.rules import check_limit, page_limit
from ..errors import InvalidName, InvalidOption, InvalidPayload, shown
from ..job import (
    AFTER_FAILED,
    AFTER_MAX,
    DELAY_MS_MAX,
    KEY_CHARS_MAX,
    LOG_BYTES_MAX,
    LOG_PREFIX,
    LOGS_KEPT_MAX,
    MAX_ATTEMPTS_MAX,
    META_MAX,
    META_VALUE_CHARS_MAX,
    STEPS_BYTES_MAX,
    STEPS_MAX,
    TAGS_MAX,
    TIMEOUT_MS_MAX,
    TRANSITIONS,
    JobError,
    JobRecord,
    JobSpec,
    State,
    Unique,
    check_name,
)
from ..limits import check_limit_change
from ..options import ON_CONFLICT
from ..outcome import MESSAGE_CHARS_MAX, TRACEBACK_CHARS_MAX
from ..schedule import check_schedule
from . import bounds

#: Instants and counters: what every store keeps, with room to add a few durations.
INSTANT_MS_MAX = 1 << 60
LEASE_MS_MAX = 86_400_000
QUEUES_MAX = 1_000
TYPES_MAX = 10_000
_KIND_CHARS_MAX = 300
_CAPACITY_MAX = 1_000_000_000

_ENDS = TRANSITIONS[State.RUNNING]


def check_arguments(arguments: msgspec.Struct) -> None:
    """Refuse arguments of a verb that no honest caller sends. Raises InvalidOption, InvalidName, InvalidPayload."""
    check = _CHECKS.get(type(arguments))
    if check is None:
        raise TypeError(f"nobody said how {type(arguments).__name__} is checked")
    check(arguments)


def _lease(lease_ms: int) -> None:
    bounds.number(lease_ms, "lease", 1, LEASE_MS_MAX)


# ---- jobs --------------------------------------------------------------------------------------------------


def check_spec(spec: JobSpec) -> None:
    """Refuse a job that `app.enqueue` could not have made."""
    bounds.text(spec.id, "id")
    _job(spec)
    bounds.number(spec.max_attempts, "max_attempts", 1, MAX_ATTEMPTS_MAX)
    bounds.number(spec.delay_ms, "delay", 0, DELAY_MS_MAX)
    if spec.unique is not None:
        _unique(spec.unique)


def _job(job: JobSpec | JobRecord) -> None:
    """Refuse what a new job and one that comes from another store have in common."""
    check_name(job.type, "job type")
    check_name(job.queue, "queue")
    try:
        bounds.plain_json(job.payload)
    except InvalidPayload as error:
        error.args = (f"job {job.id}: {error}",)
        raise
    bounds.number(job.priority, "priority", 0, 9)
    bounds.number(job.timeout_ms, "timeout", 0, TIMEOUT_MS_MAX)
    bounds.count(job.after, "after", AFTER_MAX)
    for parent in job.after:
        bounds.prose(parent, "after", KEY_CHARS_MAX)  # one that cannot exist is an unknown parent, as everywhere
    if job.after_failed not in AFTER_FAILED:
        raise InvalidOption(f"after_failed: {shown(job.after_failed)} must be one of {', '.join(AFTER_FAILED)}")
    bounds.maybe_text(job.key, "key")
    if job.tags:
        bounds.names(job.tags, "tag", TAGS_MAX)
    if job.meta:
        _meta(job.meta)
    bounds.maybe_text(job.workflow, "workflow")
    if job.node is not None:
        check_name(job.node, "node")
    if job.schedule is not None:
        check_name(job.schedule, "schedule")
    bounds.maybe_number(job.slot_at_ms, "slot", -INSTANT_MS_MAX, INSTANT_MS_MAX)


def _meta(meta: Mapping[str, str]) -> None:
    bounds.count(meta, "meta", META_MAX)
    for name, text in meta.items():
        bounds.text(name, "meta entry")
        if len(text) > META_VALUE_CHARS_MAX or "\0" in text:
            raise InvalidOption(f"meta: {name} must be text of up to {META_VALUE_CHARS_MAX} characters, without NUL")


def _unique(unique: Unique) -> None:
    bounds.text(unique.key, "unique")
    bounds.number(unique.for_ms, "unique_for", 0, DELAY_MS_MAX)
    bounds.count(unique.states, "unique_states", len(State))
    if unique.on_conflict not in ON_CONFLICT:
        raise InvalidOption(f"on_conflict: {shown(unique.on_conflict)} must be existing, replace or refuse")


def _error(error: JobError) -> None:
    bounds.number(error.attempt, "attempt", 0, 1_000_000_000)
    bounds.number(error.at_ms, "at", -INSTANT_MS_MAX, INSTANT_MS_MAX)
    bounds.prose(error.kind, "kind of error", _KIND_CHARS_MAX)
    bounds.prose(error.message, "message", MESSAGE_CHARS_MAX)
    bounds.prose(error.traceback, "traceback", TRACEBACK_CHARS_MAX)


# ---- the way of a job --------------------------------------------------------------------------------------


def _enqueue(call: wire.Enqueue) -> None:
    for spec in call.specs:
        check_spec(spec)


def _claim(call: wire.Claim) -> None:
    check_limit(call.limit)
    bounds.names(call.queues, "queue", QUEUES_MAX)
    _lease(call.lease_ms)
    bounds.text(call.worker, "worker")


def _settle(call: wire.Settle) -> None:
    follow_ups = 0
    for one in call.settlements:
        _settlement(one)
        follow_ups += len(one.follow_ups)
    if follow_ups > 10 * BATCH_MAX:
        raise InvalidOption(f"follow-ups: {follow_ups:,} in one call; at most {10 * BATCH_MAX:,}")


def _settlement(one: Settlement) -> None:
    bounds.named(one.id, one.token)
    if one.state not in _ENDS:
        raise InvalidOption(f"state: a running job does not become {one.state}; it may be {', '.join(sorted(_ENDS))}")
    bounds.number(one.delay_ms, "delay", 0, DELAY_MS_MAX)
    bounds.plain_json(one.result, codec.RESULT_BYTES_MAX)
    if one.error is not None:
        _error(one.error)
    bounds.count(one.follow_ups, "follow-ups", BATCH_MAX)
    for spec in one.follow_ups:
        check_spec(spec)


def _heartbeat(call: wire.Heartbeat) -> None:
    _lease(call.lease_ms)
    _worker(call.worker)
    for note in call.notes:
        _note(note)


def _worker(info: WorkerInfo) -> None:
    bounds.text(info.id, "worker")
    if info.host:
        bounds.text(info.host, "host")
    if info.version:
        bounds.text(info.version, "version", 80)
    if info.trouble:
        bounds.text(info.trouble, "trouble", TROUBLE_CHARS_MAX)
    bounds.names(info.queues, "queue", QUEUES_MAX)
    bounds.names(info.types, "job type", TYPES_MAX)
    for what, value in (("pid", info.pid), ("concurrency", info.concurrency), ("busy", info.busy)):
        bounds.number(value, what, 0, 1 << 32)
    for what, value in (
        ("started_at", info.started_at_ms),
        ("lease_left", info.lease_left_ms),
        ("running", info.running),
    ):
        bounds.number(value, what, 0, INSTANT_MS_MAX)


def _note(note: Note) -> None:
    bounds.named(note.id, note.token)
    if note.progress is not None and not (math.isfinite(note.progress) and 0.0 <= note.progress <= 1.0):
        raise InvalidOption(f"progress: {note.progress} must be from 0.0 to 1.0")
    bounds.prose(note.text, "note")
    bounds.prose(note.step, "step", KEY_CHARS_MAX)
    is_log = note.step is not None and note.step.startswith(LOG_PREFIX)
    bounds.plain_json(note.result, LOG_BYTES_MAX if is_log else codec.RESULT_BYTES_MAX)


def _retire(call: wire.Retire) -> None:
    bounds.text(call.worker, "worker")
    bounds.prose(call.reason, "reason")


def _tick(call: wire.Tick) -> None:
    check_limit(call.limit)
    keep: Keep = call.keep
    for what, value in (
        ("keep_succeeded", keep.succeeded_ms),
        ("keep_failed", keep.failed_ms),
        ("keep_cancelled", keep.cancelled_ms),
    ):
        bounds.number(value, what, 0, INSTANT_MS_MAX)


def _fire(call: wire.Fire) -> None:
    for firing in call.firings:
        _firing(firing)


def _firing(firing: Firing) -> None:
    check_name(firing.name, "schedule")
    bounds.number(firing.revision, "revision", 0, INSTANT_MS_MAX)
    for what, value in (("done", firing.done_ms), ("new_done", firing.new_done_ms), ("next", firing.next_ms)):
        bounds.number(value, what, -INSTANT_MS_MAX, INSTANT_MS_MAX)
    bounds.count(firing.specs, "jobs of a firing", BATCH_MAX)
    for spec in firing.specs:
        check_spec(spec)


# ---- look --------------------------------------------------------------------------------------------------


def _ids(call: wire.Get | wire.Steer) -> None:
    for job_id in call.ids:
        bounds.prose(job_id, "id")


def _find(call: wire.Find) -> None:
    query: Query = call.query
    page_limit(query)
    bounds.count(query.states, "states", len(State))
    for what, name in (
        ("queue", query.queue),
        ("type", query.type),
        ("tag", query.tag),
        ("key", query.key),
        ("workflow", query.workflow),
        ("schedule", query.schedule),
    ):
        bounds.prose(name, what, KEY_CHARS_MAX)
    bounds.maybe_number(query.created_from_ms, "created_from", -INSTANT_MS_MAX, INSTANT_MS_MAX)
    bounds.maybe_number(query.created_before_ms, "created_before", -INSTANT_MS_MAX, INSTANT_MS_MAX)
    bounds.prose(query.cursor, "cursor", CURSOR_CHARS_MAX)


def _workflows(call: wire.Workflows) -> None:
    check_limit(call.limit)
    bounds.prose(call.before, "before", KEY_CHARS_MAX)


def _follow(_: wire.Follow) -> None:
    """Let any cursor pass: what is none of the store's is a gap."""


# ---- steer -------------------------------------------------------------------------------------------------


def _rerun(call: wire.RerunJobs) -> None:
    for one in call.reruns:
        _rerun_one(one)


def _rerun_one(one: Rerun) -> None:
    bounds.prose(one.id, "id", KEY_CHARS_MAX)
    bounds.number(one.delay_ms, "delay", 0, DELAY_MS_MAX)
    bounds.plain_json(one.payload)
    if one.queue is not None:
        check_name(one.queue, "queue")
    bounds.maybe_number(one.priority, "priority", 0, 9)
    bounds.maybe_number(one.max_attempts, "max_attempts", 1, MAX_ATTEMPTS_MAX)


def _queues(call: wire.ChangeQueues) -> None:
    for change in call.changes:
        _queue_change(change)


def _queue_change(change: QueueChange) -> None:
    check_name(change.queue, "queue")
    bounds.maybe_number(change.capacity, "capacity", 0, _CAPACITY_MAX)


def _limits(call: wire.ChangeLimits) -> None:
    for change in call.changes:
        _limit(change)
    if call.about is not None:
        bounds.prose(call.about[0], "job type", KEY_CHARS_MAX)
        bounds.prose(call.about[1], "key", KEY_CHARS_MAX)


def _limit(change: Limit) -> None:
    check_limit_change(change)
    _source(change.source)
    bounds.number(change.running, "running", 0, INSTANT_MS_MAX)
    bounds.maybe_number(change.opens_in_ms, "opens_in", 0, INSTANT_MS_MAX)


def _source(source: str) -> None:
    if source:
        bounds.text(source, "source", 2 * KEY_CHARS_MAX)


def _schedules(call: wire.ChangeSchedules) -> None:
    for change in call.changes:
        _schedule_change(change)


def _schedule_change(change: ScheduleChange) -> None:
    check_name(change.name, "schedule")
    if change.define is not None:
        if change.define.name != change.name:
            raise InvalidName(f"the schedule {change.name} cannot be defined as {shown(change.define.name)}")
        check_schedule(change.define)
        _schedule(change.define)


def _schedule(schedule: Schedule) -> None:
    """Refuse a schedule that does not fit into a store. Whether its times make sense is not asked here."""
    check_name(schedule.name, "schedule")
    check_spec(msgspec.structs.replace(schedule.spec, id=schedule.spec.id or "-"))  # a template may have none
    bounds.maybe_text(schedule.cron, "cron")
    bounds.maybe_number(schedule.every_ms, "every", 1, INSTANT_MS_MAX)
    for what, word in (("tz", schedule.tz), ("missed", schedule.missed), ("overlap", schedule.overlap)):
        bounds.text(word, what)
    _source(schedule.source)
    for what, value in (("jitter", schedule.jitter_ms), ("revision", schedule.revision)):
        bounds.number(value, what, 0, INSTANT_MS_MAX)
    bounds.number(schedule.done_ms, "done", -INSTANT_MS_MAX, INSTANT_MS_MAX)
    bounds.maybe_number(schedule.next_ms, "next", -INSTANT_MS_MAX, INSTANT_MS_MAX)


# ---- move to another store ---------------------------------------------------------------------------------


def _hand_over(call: wire.HandOver) -> None:
    check_limit(call.limit)
    bounds.text(call.to, "store")
    bounds.maybe_number(call.stored, "stored", 0, INSTANT_MS_MAX)


def _take_over(call: wire.TakeOver) -> None:
    transfer = call.transfer
    if transfer is None:
        return
    bounds.text(transfer.source, "store")
    bounds.number(transfer.number, "number", 0, INSTANT_MS_MAX)
    bounds.count(transfer.jobs, "jobs", BATCH_MAX)
    bounds.count(transfer.schedules, "schedules", 10 * BATCH_MAX)
    for moved in transfer.jobs:
        _moved(moved)
    for schedule in transfer.schedules:
        _schedule(schedule)


def _moved(moved: MovedJob) -> None:
    record = moved.record
    bounds.text(record.id, "id")
    _job(record)
    if record.state is State.RUNNING:
        raise InvalidOption(f"job {record.id} runs; what runs ends where it runs")
    bounds.number(record.max_attempts, "max_attempts", 1, MAX_ATTEMPTS_MAX)
    bounds.number(record.attempt, "attempt", 0, 1_000_000_000)
    bounds.number(record.waiting_for, "waiting_for", 0, AFTER_MAX)
    for at_ms in (
        record.created_at_ms,
        record.due_at_ms,
        record.started_at_ms,
        record.finished_at_ms,
        record.parked_at_ms,
    ):
        bounds.maybe_number(at_ms, "instant", -INSTANT_MS_MAX, INSTANT_MS_MAX)
    bounds.maybe_text(record.worker, "worker")
    bounds.maybe_text(record.unique, "unique")
    bounds.plain_json(record.result, codec.RESULT_BYTES_MAX)
    bounds.count(record.errors, "errors", ERRORS_KEPT_MAX)
    for error in record.errors:
        _error(error)
    if record.progress is not None and not math.isfinite(record.progress):
        raise InvalidOption(f"progress: {record.progress} must be from 0.0 to 1.0")
    bounds.prose(record.progress_note, "note")
    _steps(record.steps or {})
    if moved.unique is not None:
        _unique(moved.unique)
    bounds.count(moved.parents, "parents", AFTER_MAX)
    for parent in moved.parents:
        bounds.text(parent, "parent")


def _steps(steps: Mapping[str, bytes]) -> None:
    logs = {name: log for name, log in steps.items() if name.startswith(LOG_PREFIX)}
    bounds.count(logs, "logs", LOGS_KEPT_MAX)
    bounds.count(steps, "steps", STEPS_MAX + len(logs))
    for name in steps:
        bounds.prose(name, "step", KEY_CHARS_MAX)
    if sum(map(len, logs.values())) > LOGS_KEPT_MAX * LOG_BYTES_MAX:
        raise InvalidOption(f"steps: each of a job's logs may have {LOG_BYTES_MAX:,} bytes")
    if sum(map(len, steps.values())) - sum(map(len, logs.values())) > STEPS_BYTES_MAX:
        raise InvalidOption(f"steps: their results may have {STEPS_BYTES_MAX:,} bytes in all")
    for result in steps.values():
        bounds.plain_json(result, codec.RESULT_BYTES_MAX)


def _nothing(_: wire.Nothing) -> None:
    """There is nothing to check."""


_CHECKS: dict[type[msgspec.Struct], Callable[[Any], None]] = {
    wire.Nothing: _nothing,
    wire.Enqueue: _enqueue,
    wire.Claim: _claim,
    wire.Settle: _settle,
    wire.Heartbeat: _heartbeat,
    wire.Retire: _retire,
    wire.Tick: _tick,
    wire.Fire: _fire,
    wire.Get: _ids,
    wire.Find: _find,
    wire.Workflows: _workflows,
    wire.Follow: _follow,
    wire.Steer: _ids,
    wire.RerunJobs: _rerun,
    wire.ChangeQueues: _queues,
    wire.ChangeLimits: _limits,
    wire.ChangeSchedules: _schedules,
    wire.HandOver: _hand_over,
    wire.TakeOver: _take_over,
}
