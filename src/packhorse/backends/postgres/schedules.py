"""Schedules: changed, handed out to be planned, and turned into jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ...errors import NotFound
from ..base import (
    DUE_TOPIC,
    Firing,
    Schedule,
    ScheduleChange,
    Verdict,
    define_schedule,
    may_fire,
    merge_schedule,
    pause_schedule,
)
from ..stored import to_json
from . import families
from .adding import add
from .placing import columns
from .script import Script, Tx

_ALL = "SELECT definition FROM packhorse.schedules ORDER BY name"
# The lock of all schedules guards changes and firings: the definition is JSON, which no condition of a write could look
# into.
NAMED = "SELECT definition FROM packhorse.schedules WHERE name = ANY($1::text[]) ORDER BY name FOR UPDATE"
PLANNED = """
SELECT definition FROM packhorse.schedules WHERE wants_at_ms IS NOT NULL AND wants_at_ms <= $1::bigint
ORDER BY wants_at_ms LIMIT $2::bigint
"""
_LEAVING = "SELECT definition FROM packhorse.schedules ORDER BY name LIMIT $1::bigint FOR UPDATE"
NEXT = "SELECT min(wants_at_ms) FROM packhorse.schedules WHERE wants_at_ms IS NOT NULL"
_SAVE = """
INSERT INTO packhorse.schedules (name, definition, wants_at_ms)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, wants_at_ms = excluded.wants_at_ms
"""
_REMOVE = "DELETE FROM packhorse.schedules WHERE name = ANY($1::text[])"
_decode = msgspec.json.Decoder(Schedule).decode


def read_all(tx: Tx) -> Script[list[Schedule]]:
    """Answer all schedules, by name."""
    return [_decode(text) for (text,) in (yield from tx.ask(_ALL))]


def change(tx: Tx, changes: Sequence[ScheduleChange]) -> Script[list[Schedule]]:
    """Change schedules, all or none, then answer all."""
    yield from tx.lock(tx.store.lock_key("schedules"))
    yield from tx.begin()
    found = yield from _read(tx, [one.name for one in changes])
    for one in changes:
        if one.define is not None:
            defined = msgspec.structs.replace(one.define, name=one.name)
            found[one.name] = define_schedule(found.get(one.name), defined, tx.now_ms)
        if one.removed:
            found.pop(one.name, None)
        elif one.paused is not None:
            if one.name not in found:
                raise NotFound(f"no schedule {one.name!r}; packhorse schedules list shows what there is")
            found[one.name] = pause_schedule(found[one.name], one.paused, tx.now_ms)
    yield from tx.ask(_REMOVE, [one.name for one in changes if one.name not in found])
    yield from _save(tx, found.values())
    tx.topics.add(DUE_TOPIC)
    answer = yield from read_all(tx)
    yield from tx.finish()
    return answer


def fire(tx: Tx, firings: Sequence[Firing]) -> Script[list[Verdict]]:
    """Turn slots into jobs, where the schedule stands where they were planned from."""
    yield from tx.begin()
    found = yield from _read(tx, [firing.name for firing in firings])
    verdicts = []
    moved: dict[str, Schedule] = {}
    for firing in firings:
        schedule = found.get(firing.name)
        if schedule is None or not may_fire(schedule, firing):
            verdicts.append(Verdict.STALE)
            continue
        found[firing.name] = moved[firing.name] = msgspec.structs.replace(
            schedule, done_ms=firing.new_done_ms, next_ms=firing.next_ms
        )
        if firing.specs:
            yield from add(tx, firing.specs)
        verdicts.append(Verdict.APPLIED)
    yield from _save(tx, moved.values())
    yield from families.serve(tx)
    yield from tx.finish()
    return verdicts


def hand_over(tx: Tx, limit: int) -> Script[tuple[Schedule, ...]]:
    """Let schedules leave, at most `limit`."""
    yield from tx.lock(tx.store.lock_key("schedules"))
    leaving = [_decode(text) for (text,) in (yield from tx.ask(_LEAVING, limit))]
    if leaving:
        yield from tx.ask(_REMOVE, [one.name for one in leaving])
    return tuple(leaving)


def take_over(tx: Tx, arriving: Sequence[Schedule]) -> Script[None]:
    """Store schedules that come from another store."""
    if arriving:
        yield from tx.lock(tx.store.lock_key("schedules"))
        found = yield from _read(tx, [one.name for one in arriving])
        yield from _save(tx, [merge_schedule(found.get(one.name), one) for one in arriving])
        tx.topics.add(DUE_TOPIC)


def planned(tx: Tx, limit: int) -> Script[tuple[tuple[Schedule, ...], int | None]]:
    """Answer the schedules that want planning now, and when the next does or did."""
    wants_at_ms = (yield from tx.ask(NEXT))[0][0]
    if wants_at_ms is None or wants_at_ms > tx.now_ms:
        return (), wants_at_ms
    wanting = [_decode(text) for (text,) in (yield from tx.ask(PLANNED, tx.now_ms, limit))]
    return tuple(sorted(wanting, key=lambda one: one.name)), wants_at_ms


def _read(tx: Tx, names: Sequence[str]) -> Script[dict[str, Schedule]]:
    found = [_decode(text) for (text,) in (yield from tx.ask(NAMED, list(dict.fromkeys(names))))]
    return {one.name: one for one in found}


def _save(tx: Tx, schedules: Iterable[Schedule]) -> Script[None]:
    rows = [
        (one.name, to_json(one).decode(), None if one.paused else one.next_ms if one.next_ms is not None else 0)
        for one in schedules
    ]
    if rows:
        yield from tx.ask(_SAVE, *columns(rows))
