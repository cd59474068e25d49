"""Schedules, inside a transaction: changed, handed out to be planned, and turned into jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from ...errors import NotFound
from ..base import (
    DUE_TOPIC,
    SCHEDULES_A_TICK,
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
from .ops import Transaction

_ALL = "SELECT CAST(json_group_array(json(definition)) AS BLOB) FROM schedules"
NAMED = f"{_ALL} WHERE name IN (SELECT value FROM json_each(?))"  # noqa: S608  # a constant
PLANNED = """
SELECT CAST(json_group_array(json(definition)) AS BLOB) FROM (
    SELECT definition FROM schedules WHERE name IN (
        SELECT name FROM schedules INDEXED BY planned
        WHERE wants_at_ms IS NOT NULL AND wants_at_ms <= ? ORDER BY wants_at_ms LIMIT ?
    )
)
"""
NEXT = "SELECT min(wants_at_ms) FROM schedules INDEXED BY planned WHERE wants_at_ms IS NOT NULL"
_SAVE = """
INSERT INTO schedules (name, definition, wants_at_ms)
SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE TRUE
ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, wants_at_ms = excluded.wants_at_ms
"""
_decode = msgspec.json.Decoder(list[Schedule]).decode


def read_all(db: sqlite3.Connection) -> list[Schedule]:
    """Answer all schedules, by name."""
    return sorted(_decode(db.execute(_ALL).fetchone()[0]), key=lambda one: one.name)


def change(tx: Transaction, changes: Sequence[ScheduleChange]) -> list[Schedule]:
    """Change schedules, all or none, then answer all."""
    found = _read(tx.db, [one.name for one in changes])
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
    gone = to_json([one.name for one in changes if one.name not in found]).decode()
    tx.db.execute("DELETE FROM schedules WHERE name IN (SELECT value FROM json_each(?))", (gone,))
    _save(tx, found.values())
    tx.topics.add(DUE_TOPIC)
    return read_all(tx.db)


def fire(tx: Transaction, firings: Sequence[Firing]) -> list[Verdict]:
    """Turn slots into jobs, where the schedule stands where they were planned from."""
    found = _read(tx.db, [firing.name for firing in firings])
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
            add(tx, firing.specs)
        verdicts.append(Verdict.APPLIED)
    _save(tx, moved.values())
    families.serve(tx)
    return verdicts


def hand_over(tx: Transaction, limit: int) -> tuple[Schedule, ...]:
    """Let schedules leave, at most `limit`."""
    leaving = read_all(tx.db)[:limit]
    gone = to_json([one.name for one in leaving]).decode()
    tx.db.execute("DELETE FROM schedules WHERE name IN (SELECT value FROM json_each(?))", (gone,))
    return tuple(leaving)


def take_over(tx: Transaction, arriving: Sequence[Schedule]) -> None:
    """Store schedules that come from another store."""
    if arriving:
        found = _read(tx.db, [one.name for one in arriving])
        _save(tx, [merge_schedule(found.get(one.name), one) for one in arriving])
        tx.topics.add(DUE_TOPIC)


def planned(db: sqlite3.Connection, now_ms: int) -> tuple[tuple[Schedule, ...], int | None]:
    """Answer the schedules that want planning now, and when the next does or did."""
    wants_at_ms = db.execute(NEXT).fetchone()[0]
    if wants_at_ms is None or wants_at_ms > now_ms:
        return (), wants_at_ms
    wanting = _decode(db.execute(PLANNED, (now_ms, SCHEDULES_A_TICK)).fetchone()[0])
    return tuple(sorted(wanting, key=lambda one: one.name)), wants_at_ms


def _read(db: sqlite3.Connection, names: Sequence[str]) -> dict[str, Schedule]:
    return {one.name: one for one in _decode(db.execute(NAMED, (to_json(names).decode(),)).fetchone()[0])}


def _save(tx: Transaction, schedules: Iterable[Schedule]) -> None:
    rows = [
        (one.name, to_json(one).decode(), None if one.paused else one.next_ms if one.next_ms is not None else 0)
        for one in schedules
    ]
    if rows:
        tx.db.execute(_SAVE, (to_json(rows).decode(),))
