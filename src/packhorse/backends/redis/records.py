"""Jobs as they are stored: packed for the scripts, and read from what they answer. See `lua/job.lua` for the layout."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from ...errors import InvalidOption, shown
from ...job import LAPSED, Claimed, JobError, JobRecord, JobSpec, State, Unique
from ..base import Lapse, Note, Rerun, Settlement, parent_failed, replaced_by

#: Rises when what is stored changes in a way that an older packhorse cannot read.
SCHEMA = 1

_HEAD = struct.Struct("<BBBBHHqqqqqqqIII")
HEAD_BYTES = _HEAD.size
TOKEN_BYTES = 8

CODES = {state: code for code, state in enumerate(State, 1)}
STATES: dict[int, State] = {code: state for state, code in CODES.items()}

_CANCEL_REQUESTED, _HAS_RESULT = 1, 2
_HAS_KEY, _HAS_UNIQUE, _HAS_AFTER, _CONTINUES, _IN_WORKFLOW, _OF_SCHEDULE = 1, 2, 4, 8, 16, 32
_HAS_TEXTS = _HAS_KEY | _HAS_UNIQUE | _IN_WORKFLOW | _OF_SCHEDULE
_NO_TEXTS = b"\0" * 8

pack = msgspec.msgpack.Encoder().encode
unpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode


class _Body(msgspec.Struct, array_like=True, frozen=True):
    """What no script needs of a job, except `find` the tags."""

    timeout_ms: int
    tags: tuple[str, ...] = ()
    meta: dict[str, str] | None = None
    node: str | None = None
    slot_at_ms: int | None = None


_read_body = msgspec.msgpack.Decoder(_Body).decode


def raw(data: bytes) -> msgspec.Raw:
    """Wrap bytes so that `pack` writes them as text: the server's msgpack knows no bytes."""
    size = len(data)
    if size < 32:
        return msgspec.Raw(bytes((0xA0 | size,)) + data)
    if size < 256:
        return msgspec.Raw(bytes((0xD9, size)) + data)
    if size < 65_536:
        return msgspec.Raw(b"\xda" + size.to_bytes(2, "big") + data)
    return msgspec.Raw(b"\xdb" + size.to_bytes(4, "big") + data)


# ---- packing -----------------------------------------------------------------------------------------------

#: What fits the head of a job; the server's own packing cuts off what is more.
PRIORITY_MAX, ATTEMPTS_MAX = 255, 65_535


def check_numbers(priority: int, attempts: int) -> None:
    """Refuse numbers that do not fit the head of a job."""
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidOption(f"priority: {shown(priority)} must be 0 to {PRIORITY_MAX}")
    if not 0 <= attempts <= ATTEMPTS_MAX:
        raise InvalidOption(f"max_attempts: {shown(attempts)} must be 0 to {ATTEMPTS_MAX}")


def pack_spec(spec: JobSpec) -> tuple[Any, ...]:
    """Answer what a script is told of a new job; see `lua/adding.lua`."""
    check_numbers(spec.priority, spec.max_attempts)
    if spec.tags or spec.meta or spec.node is not None or spec.slot_at_ms is not None:
        body = pack(_Body(spec.timeout_ms, spec.tags, spec.meta, spec.node, spec.slot_at_ms))
    else:
        body = _plain_body(spec.timeout_ms)
    texts = _queue_and_type(spec.queue, spec.type)
    traits, more = 0, None
    if (
        spec.key is None
        and spec.unique is None
        and spec.workflow is None
        and spec.schedule is None
        and not spec.after
        and spec.after_failed == "cancel"
    ):
        texts += _NO_TEXTS
    else:
        traits, more = _traits(spec), _more(spec)
        texts += _texts(spec)
    body_at = HEAD_BYTES + len(texts)
    payload_at = body_at + len(body)
    return (
        spec.id,
        spec.queue,
        spec.type,
        spec.priority,
        spec.max_attempts,
        spec.delay_ms,
        traits,
        raw(texts + body + spec.payload),
        body_at,
        payload_at,
        payload_at + len(spec.payload),
        more,
    )


@lru_cache(maxsize=1_024)
def _queue_and_type(queue: str, job_type: str) -> bytes:
    one, two = queue.encode(), job_type.encode()
    return bytes((len(one),)) + one + bytes((len(two),)) + two


@lru_cache(maxsize=1_024)
def _plain_body(timeout_ms: int) -> bytes:
    return pack(_Body(timeout_ms))


def _traits(spec: JobSpec) -> int:
    traits = _HAS_KEY if spec.key is not None else 0
    traits |= _HAS_UNIQUE if spec.unique is not None else 0
    traits |= _HAS_AFTER if spec.after else 0
    traits |= _CONTINUES if spec.after_failed == "continue" else 0
    traits |= _IN_WORKFLOW if spec.workflow is not None else 0
    return traits | (_OF_SCHEDULE if spec.schedule is not None else 0)


def _texts(spec: JobSpec) -> bytes:
    unique = b""
    if spec.unique is not None:
        unique = struct.pack("<Bq", _bits(spec.unique.states), spec.unique.for_ms) + spec.unique.key.encode()
    parts = ((spec.key or "").encode(), unique, (spec.workflow or "").encode(), (spec.schedule or "").encode())
    return b"".join(struct.pack("<H", len(part)) + part for part in parts)


def _bits(states: Sequence[State]) -> int:
    bits = 0
    for state in states:
        bits |= 1 << (CODES[State(state)] - 1)
    return bits


state_bits = _bits


def _more(spec: JobSpec) -> tuple[Any, ...]:
    unique = spec.unique
    return (
        spec.key,
        unique.key if unique is not None else None,
        _bits(unique.states) if unique is not None else None,
        unique.for_ms if unique is not None else None,
        unique.on_conflict if unique is not None else None,
        spec.after or None,
        spec.workflow,
        spec.schedule,
    )


def pack_settlement(one: Settlement) -> tuple[Any, ...]:
    """Answer what a script is told of a settlement; see `lua/settle.lua`."""
    error = one.error
    return (
        one.id,
        pack_token(one.token),
        CODES[one.state],
        one.delay_ms,
        raw(one.result) if one.result is not None else None,
        raw(pack_error(error)) if error is not None else None,
        one.refund,
        one.park,
        [pack_spec(spec) for spec in one.follow_ups] or None,
    )


def pack_error(error: JobError) -> bytes:
    """Write an entry of a job's history as it is stored."""
    return pack((error.attempt, error.at_ms, error.kind, error.message, error.traceback))


def pack_token(token: str) -> msgspec.Raw:
    """Answer a token as it is stored; one that cannot be ours fits no job."""
    try:
        data = bytes.fromhex(token)
    except ValueError:
        data = b""
    return raw(data if data.hex() == token else b"")


def pack_note(note: Note) -> tuple[Any, ...]:
    """Answer what a script is told of a note; see `lua/heartbeat.lua`."""
    progress = repr(float(note.progress)) if note.progress is not None else None
    return (note.id, pack_token(note.token), progress, note.text, note.step, raw(note.result))


def pack_rerun(one: Rerun) -> tuple[Any, ...]:
    """Answer what a script is told of a rerun; see `lua/rerun.lua`."""
    check_numbers(one.priority or 0, one.max_attempts or 0)
    payload = raw(one.payload) if one.payload is not None else None
    return (one.id, one.delay_ms, payload, one.queue, one.priority, one.max_attempts)


# ---- reading -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4_096)
def _name(data: bytes) -> str:
    """Names of queues and types repeat: one text for all jobs of them."""
    return data.decode()


def _read_texts(text: bytes, traits: int) -> tuple[str, str, list[str | None]]:
    """Answer queue and type; and key, unique key, workflow and schedule, None where there is none."""
    at = HEAD_BYTES + 1
    end = at + text[at - 1]
    queue = _name(text[at:end])
    at = end + 1
    end = at + text[end]
    job_type = _name(text[at:end])
    if not traits & _HAS_TEXTS:
        return queue, job_type, [None, None, None, None]
    others: list[str | None] = []
    for flag in (_HAS_KEY, _HAS_UNIQUE, _IN_WORKFLOW, _OF_SCHEDULE):
        at = end + 2
        end = at + text[at - 2] + 256 * text[at - 1]
        start = at + 9 if flag == _HAS_UNIQUE else at  # its states and window come first
        others.append(text[start:end].decode() if traits & flag else None)
    return queue, job_type, others


def read_claimed(job_id: bytes, text: bytes, token: str) -> Claimed:
    """Read a job that was just claimed, from what it was before: its attempt is counted here."""
    _, _, traits, priority, attempt, most, _, created, due, _, _, parked, _, body_at, payload_at, result_at = (
        _HEAD.unpack_from(text)
    )
    queue, job_type, (key, _, workflow, _) = _read_texts(text, traits)
    body = _read_body(text[body_at:payload_at])
    return Claimed(
        job_id.decode(),
        token,
        job_type,
        text[payload_at:result_at],
        attempt + 1,
        most,
        body.timeout_ms,
        queue,
        priority,
        created,
        due,
        parked or None,
        key,
        body.tags,
        body.meta,
        workflow,
    )


def read_lapse(found: Sequence[Any]) -> Lapse:
    """Read what `lua/running.lua` tells of a job that lapsed."""
    job_id, queue, job_type, attempt, most, state = found
    return Lapse(
        id=job_id.decode(),
        queue=queue.decode(),
        type=job_type.decode(),
        attempt=attempt,
        max_attempts=most,
        state=STATES[state],
    )


def read_record(found: Sequence[Any], *, brief: bool = False) -> JobRecord:
    """Read what `lua/records.lua` tells of a job."""
    job_id, text, held, errors, after, waits, notes, steps = found
    state, flags, traits, priority, attempt, most, _, created, due, started, finished, parked, _, *places = (
        _HEAD.unpack_from(text)
    )
    body_at, payload_at, result_at = places
    queue, job_type, (key, unique, workflow, schedule) = _read_texts(text, traits)
    body = _read_body(text[body_at:payload_at])
    return JobRecord(
        id=job_id.decode(),
        type=job_type,
        queue=queue,
        state=STATES[state],
        payload=b"" if brief else text[payload_at:result_at],
        priority=priority,
        attempt=attempt,
        max_attempts=most,
        timeout_ms=body.timeout_ms,
        created_at_ms=created,
        due_at_ms=due,
        started_at_ms=started or None,
        finished_at_ms=finished or None,
        worker=held[TOKEN_BYTES:].decode() if held else None,
        key=key,
        tags=body.tags,
        meta=body.meta,
        unique=unique,
        after=tuple(unpack(after)) if after else (),
        after_failed="continue" if traits & _CONTINUES else "cancel",
        waiting_for=waits,
        workflow=workflow,
        node=body.node,
        schedule=schedule,
        slot_at_ms=body.slot_at_ms,
        result=text[result_at:] if flags & _HAS_RESULT and not brief else None,
        errors=tuple(_read_error(one) for one in errors or ()),
        progress=float(notes[0]) if notes and notes[0] is not None else None,
        progress_note=notes[1].decode() if notes and notes[1] is not None else None,
        cancel_requested=bool(flags & _CANCEL_REQUESTED),
        parked_at_ms=parked or None,
        steps=_read_steps(steps) if steps else None,
    )


def read_unique(text: bytes) -> Unique | None:
    """Read the rule of a job's unique key. What it did on a conflict is not kept: that was when it was stored."""
    traits = text[2]
    if not traits & _HAS_UNIQUE:
        return None
    at = HEAD_BYTES
    for _ in range(2):  # queue and type
        at += 1 + text[at]
    at += 2 + int.from_bytes(text[at : at + 2], "little")  # key
    size = int.from_bytes(text[at : at + 2], "little")
    bits, for_ms = struct.unpack_from("<Bq", text, at + 2)
    return Unique(
        key=text[at + 11 : at + 2 + size].decode(),
        for_ms=for_ms,
        states=tuple(state for state, code in CODES.items() if bits >> (code - 1) & 1),
    )


def _read_steps(found: Sequence[bytes]) -> dict[str, bytes]:
    return {name.decode(): result for name, result in pairs(found)}


def pairs(found: Sequence[Any] | dict[Any, Any]) -> list[tuple[Any, Any]]:
    """Answer a flat list of pairs, as scripts answer hashes, as pairs."""
    if isinstance(found, dict):
        return list(found.items())
    return list(zip(found[::2], found[1::2], strict=True))


def _read_error(data: bytes) -> JobError:
    """Read an entry of a job's history; the rules all backends share make words of what the store itself noted."""
    kind, *rest = unpack(data)
    if kind == "parent":
        parent, code, at_ms = rest
        return parent_failed(parent, STATES[code], at_ms)
    if kind == "replaced":
        return replaced_by(*rest)
    if kind == "lapse":
        attempt, reason, at_ms = rest
        return JobError(attempt=attempt, at_ms=at_ms, kind=LAPSED, message=reason)
    at_ms, name, message, trace = rest
    return JobError(attempt=kind, at_ms=at_ms, kind=name, message=message, traceback=trace)
