"""Moves to and from other stores: what the scripts hand over and take over, as values (decision 18)."""

from __future__ import annotations

from typing import Any

from ...chance import CHANCE
from ...clock import SYSTEM_CLOCK
from ...errors import ConfigurationError
from ...job import JobRecord, JobSpec
from ..base import Arrival, MovedJob, Tie, Transfer, Verdict
from .link import Link
from .records import CODES, check_numbers, pack_error, pack_spec, pairs, raw, read_record, read_unique
from .settings import pack_schedule, read_schedule

_CANCEL_REQUESTED, _HAS_RESULT, _HAS_ERRORS, _HAS_NOTES = 1, 2, 8, 16


#: What a record and the spec it was made from have in common.
_SPEC_FIELDS = sorted(set(JobSpec.__struct_fields__) & set(JobRecord.__struct_fields__) - {"unique"})


def _new_identity() -> str:
    return CHANCE.id(SYSTEM_CLOCK.now_ms())


async def hand_over(link: Link, to: str, limit: int, stored: int | None) -> Transfer:
    """Let jobs and schedules go to the store `to`."""
    source, *rest = await link.run("hand_over", (to, limit, stored, _new_identity()))
    if not rest:
        raise ConfigurationError("jobs of this store are on their way to another one; finish that move first")
    number, last, jobs, schedules = rest
    return Transfer(
        source=source.decode(),
        number=number,
        jobs=tuple(_read_moved(*one) for one in jobs),
        schedules=tuple(read_schedule(data) for data in schedules),
        last=bool(last),
    )


def _read_moved(record: list[Any], ties: list[bytes]) -> MovedJob:
    return MovedJob(
        record=read_record(record),
        unique=read_unique(record[1]),
        parents={name.decode(): Tie(tie.decode()) for name, tie in pairs(ties)},
    )


async def take_over(link: Link, transfer: Transfer | None) -> Arrival:
    """Store what another store handed over."""
    batch = _pack_transfer(transfer) if transfer is not None else None
    store, *rest = await link.run("take_over", (_new_identity(), batch))
    if not rest:
        return Arrival(store=store.decode())
    applied, *found = rest
    if not applied:
        return Arrival(store=store.decode(), verdict=Verdict.STALE)
    jobs, known = found
    return Arrival(store=store.decode(), jobs=jobs, known=tuple(job_id.decode() for job_id in known))


def _pack_transfer(transfer: Transfer) -> dict[str, Any]:
    schedules: list[Any] = []
    for one in transfer.schedules:
        schedules += [one.name, raw(pack_schedule(one))]
    return {
        "source": transfer.source,
        "number": transfer.number,
        "last": transfer.last,
        "jobs": [_pack_moved(one) for one in transfer.jobs],
        "schedules": schedules,
    }


def _pack_moved(moved: MovedJob) -> dict[str, Any]:
    """Answer what a script is told of a job that arrives; see `lua/take_over.lua`."""
    one, unique = moved.record, moved.unique
    check_numbers(one.priority, one.attempt)
    spec = JobSpec(unique=unique, **{name: getattr(one, name) for name in _SPEC_FIELDS})
    *_, traits, rest, body_at, payload_at, result_at, more = pack_spec(spec)
    key, unique_key, states, for_ms, _, _, workflow, schedule = more or (None,) * 8
    notes, steps = _pack_notes(one)
    flags = (_CANCEL_REQUESTED if one.cancel_requested else 0) | (_HAS_RESULT if one.result is not None else 0)
    flags |= (_HAS_ERRORS if one.errors else 0) | (_HAS_NOTES if notes or steps else 0)
    return {
        "id": one.id,
        "queue": one.queue,
        "type": one.type,
        "priority": one.priority,
        "attempt": one.attempt,
        "attempts_max": one.max_attempts,
        "state": CODES[one.state],
        "created": one.created_at_ms,
        "due": one.due_at_ms,
        "started": one.started_at_ms or 0,
        "finished": one.finished_at_ms or 0,
        "parked": one.parked_at_ms or 0,
        "flags": flags,
        "traits": traits,
        "rest": rest,
        "body_at": body_at,
        "payload_at": payload_at,
        "result_at": result_at,
        "result": raw(one.result) if one.result is not None else None,
        "key": key,
        "unique": unique_key,
        "unique_states": states,
        "unique_ms": for_ms,
        "workflow": workflow,
        "schedule": schedule,
        "errors": [raw(pack_error(error)) for error in one.errors],
        "notes": notes,
        "steps": steps,
        "after": one.after,
        "parents": [part for name, tie in moved.parents.items() for part in (name, tie.value)],
    }


def _pack_notes(one: JobRecord) -> tuple[list[str], list[Any]]:
    """Answer progress and note, and the results of steps, as names and values."""
    notes: list[str] = []
    if one.progress is not None:
        notes += ["progress", repr(float(one.progress))]
    if one.progress_note is not None:
        notes += ["note", one.progress_note]
    steps: list[Any] = []
    for name, result in (one.steps or {}).items():
        steps += [name, raw(result)]
    return notes, steps
