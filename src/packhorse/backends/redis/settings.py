"""Limits and schedules: read, changed by the rules all backends share, and written if nobody else did meanwhile."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from ...errors import NotFound, Unavailable
from ...limits import merge_limit
from ..base import Limit, Schedule, ScheduleChange, define_schedule, pause_schedule
from .link import Link
from .records import pack, pairs, raw, unpack

#: Rounds until a change gives up; each lost one means that somebody else's was made.
_ROUNDS_MAX = 50

_CURSOR = struct.Struct("<qqqB")
_encode_schedule = msgspec.msgpack.Encoder().encode
_decode_schedule = msgspec.msgpack.Decoder(Schedule).decode
_CLEAN: dict[str, Any] = {"paused": False, "revision": 0, "done_ms": 0, "next_ms": None}


def _busy() -> Unavailable:
    return Unavailable(f"others changed the same settings {_ROUNDS_MAX} times meanwhile; try again")


# ---- limits ------------------------------------------------------------------------------------------------


def _limit_name(job_type: str, key: str | None) -> str:
    return job_type if key is None else f"{job_type}:{key}"


def _read_limit(job_type: str, key: str | None, data: bytes) -> Limit:
    rate, period_ms, burst, concurrency, source = unpack(data)
    return Limit(
        type=job_type,
        key=key,
        rate=rate or None,
        period_ms=period_ms,
        burst=burst or None,
        concurrency=concurrency or None,
        source=source,
    )


def _pack_limit(one: Limit) -> bytes:
    return pack((one.rate or 0, one.period_ms, one.burst or 0, one.concurrency or 0, one.source))


def _read_limits(found: Sequence[Any]) -> dict[str, Limit]:
    limits = {}
    for name, data in pairs(found):
        job_type, colon, key = name.decode().partition(":")
        limits[name.decode()] = _read_limit(job_type, key if colon else None, data)
    return limits


def _in_order(limits: dict[str, Limit]) -> list[Limit]:
    return sorted(limits.values(), key=lambda one: (one.type, one.key or ""))


async def change_limits(link: Link, changes: Sequence[Limit]) -> list[Limit]:
    """Change limits, all or none, then answer all."""
    _, _, found = await link.run("limits", ((), ()))
    for _ in range(_ROUNDS_MAX):
        limits = _read_limits(found)
        if not changes:
            return _in_order(limits)
        stored = {name.decode(): data for name, data in pairs(found)}
        read: list[Any] = []
        written: dict[str, tuple[Any, bool, str]] = {}
        for change in changes:
            name = _limit_name(change.type, change.key)
            if name not in written:
                read += [name, raw(stored[name]) if name in stored else False]
            merged = merge_limit(limits.get(name), change)
            limits.pop(name, None)
            if merged is not None:
                limits[name] = merged
            written[name] = (
                raw(_pack_limit(merged)) if merged is not None else False,
                change.key is not None,
                change.type,
            )
        answer = await link.run("limits", (read, [part for name, rest in written.items() for part in (name, *rest)]))
        if answer[0]:
            return _in_order(_read_limits(answer[2]))
        _, _, found = await link.run("limits", ((), ()))
    raise _busy()


async def limits_about(link: Link, job_type: str, key: str | None) -> list[Limit]:
    """Answer the limits that a job of a type and key must pass, with their state now."""
    found = await link.run("gates", (job_type, key))
    limits = []
    for of_key, data, running, opens_in_ms in found:
        limit = _read_limit(job_type, of_key.decode() if of_key is not None else None, data)
        opens = None if opens_in_ms < 0 else opens_in_ms
        limits.append(msgspec.structs.replace(limit, running=running, opens_in_ms=opens))
    return limits


# ---- schedules ---------------------------------------------------------------------------------------------


def read_schedule(data: bytes) -> Schedule:
    """Read a schedule as it is stored: its cursor, then its definition."""
    revision, done_ms, next_ms, paused = _CURSOR.unpack_from(data)
    return msgspec.structs.replace(
        _decode_schedule(data[_CURSOR.size :]),
        revision=revision,
        done_ms=done_ms,
        next_ms=None if next_ms < 0 else next_ms,
        paused=bool(paused),
    )


def pack_schedule(one: Schedule) -> bytes:
    """Write a schedule as it is stored."""
    next_ms = -1 if one.next_ms is None else one.next_ms
    cursor = _CURSOR.pack(one.revision, one.done_ms, next_ms, one.paused)
    return cursor + _encode_schedule(msgspec.structs.replace(one, **_CLEAN))


def _changed(schedules: dict[str, Schedule], changes: Sequence[ScheduleChange], now_ms: int) -> dict[str, Schedule]:
    found = dict(schedules)
    for change in changes:
        if change.define is not None:
            defined = msgspec.structs.replace(change.define, name=change.name)
            found[change.name] = define_schedule(found.get(change.name), defined, now_ms)
        if change.removed:
            found.pop(change.name, None)
        elif change.paused is not None:
            if change.name not in found:
                raise NotFound(f"no schedule {change.name!r}; packhorse schedules list shows what there is")
            found[change.name] = pause_schedule(found[change.name], change.paused, now_ms)
    return found


async def change_schedules(link: Link, changes: Sequence[ScheduleChange]) -> list[Schedule]:
    """Change schedules, all or none, then answer all, by name."""
    _, now_ms, found = await link.run("schedules", ((), ()))
    for _ in range(_ROUNDS_MAX):
        stored = {name.decode(): data for name, data in pairs(found)}
        schedules = {name: read_schedule(data) for name, data in stored.items()}
        if not changes:
            return [schedules[name] for name in sorted(schedules)]
        wanted = _changed(schedules, changes, now_ms)
        read: list[Any] = []
        written: list[Any] = []
        for name in dict.fromkeys(change.name for change in changes):
            read += [name, raw(stored[name]) if name in stored else False]
            one = wanted.get(name)
            if one is None:
                written += [name, False, False]
            elif one != schedules.get(name):
                written += [name, raw(pack_schedule(one)), False if one.paused else one.next_ms or 0]
        answer = await link.run("schedules", (read, written))
        if answer[0]:
            return [read_schedule(data) for _, data in sorted(pairs(answer[2]))]
        _, now_ms, found = await link.run("schedules", ((), ()))
    raise _busy()
