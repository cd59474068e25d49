"""Limits as an operator sets and sees them, inside a transaction."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from ...limits import lane_of, merge_limit, opens_at_ms, tokens
from ..base import EACH_KEY, Limit, queue_topic
from ..stored import PENDING, RUNNING, to_json
from .ops import Transaction
from .placing import OPEN_QUEUES, QUEUES_WITH_LANES

_COLUMNS = "SELECT type, key, rate, period_ms, burst, concurrency, source FROM limits"
_SET = """
INSERT INTO limits (type, key, rate, period_ms, burst, concurrency, source) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (type, key) DO UPDATE SET rate = excluded.rate, period_ms = excluded.period_ms, burst = excluded.burst,
    concurrency = excluded.concurrency, source = excluded.source
"""
# Jobs keep their lanes until claims move them; what runs counts, also what started before there was a limit.
_LIMITED = """
INSERT INTO limited (type, live, by_key, in_lanes)
SELECT ?1, count(*) > 0, coalesce(max(key <> ''), 0), coalesce(max(key <> ''), 0) FROM limits WHERE type = ?1
ON CONFLICT (type) DO UPDATE SET live = excluded.live, by_key = excluded.by_key,
    in_lanes = max(in_lanes, excluded.in_lanes)
"""
_RUNNING = f"""
SELECT CAST(json_group_array(json_array(seq, type, key)) AS BLOB) FROM jobs INDEXED BY running
WHERE state = {RUNNING} AND type IN (SELECT value FROM json_each(?))
"""
_decode_running = msgspec.json.Decoder(list[tuple[int, str, str | None]]).decode
_LANE = "UPDATE jobs NOT INDEXED SET lane = m.value ->> 1 FROM json_each(?) AS m WHERE jobs.seq = m.value ->> 0"
_WAKE = "UPDATE lanes SET opens_at_ms = NULL, asleep_at_ms = NULL WHERE type = ? AND opens_at_ms IS NOT NULL"
_COUNT = f"""
SELECT count(*) FROM jobs INDEXED BY running
WHERE state = {RUNNING} AND lane IS NOT NULL AND substr(lane, 1, length(?1)) = ?1
"""
# Lanes by key whose limits are gone never sleep, so the index of those that may be looked at has them all.
_LEFT = f"""
SELECT EXISTS (SELECT 1 FROM lanes INDEXED BY lanes_open WHERE opens_at_ms IS NULL AND type = ?1)
    OR EXISTS (
        SELECT 1 FROM jobs INDEXED BY running
        WHERE state = {RUNNING} AND lane IS NOT NULL AND substr(lane, 1, length(?1) + 1) = ?1 || ':'
    )
    OR EXISTS (
        SELECT 1 FROM ({QUEUES_WITH_LANES}) AS q WHERE EXISTS (
            SELECT 1 FROM jobs INDEXED BY laned
            WHERE state = {PENDING} AND lane IS NOT NULL AND queue = q.queue AND lane = ?1 || ':'
        )
    )
"""


def change_limits(tx: Transaction, changes: Sequence[Limit]) -> list[Limit]:
    """Change limits, then answer all."""
    for change in changes:
        name = (change.type, change.key or "")
        merged = merge_limit(_read_one(tx.db, *name), change)
        if merged is None:
            if tx.db.execute("DELETE FROM limits WHERE type = ? AND key = ?", name).rowcount:
                # else the bucket is that of the limit for each key
                tx.db.execute("DELETE FROM buckets WHERE type = ? AND key = ?", name)
        else:
            values = (merged.rate, merged.period_ms, merged.burst, merged.concurrency, merged.source)
            tx.db.execute(_SET, (*name, *values))
    types = sorted({change.type for change in changes})
    for job_type in types:
        tx.db.execute(_LIMITED, (job_type,))
        tx.db.execute(_WAKE, (job_type,))
    tx.places.forget()
    running = _decode_running(tx.db.execute(_RUNNING, (to_json(types).decode(),)).fetchone()[0])
    lanes = [(seq, lane_of(job_type, key, tx.places.limited)) for seq, job_type, key in running]
    if lanes:
        tx.db.execute(_LANE, (to_json(lanes).decode(),))
    tidy(tx)
    for queues in (OPEN_QUEUES, QUEUES_WITH_LANES):
        tx.topics.update(queue_topic(queue) for (queue,) in tx.db.execute(queues))
    return read_limits(tx.db)


def tidy(tx: Transaction) -> None:
    """Forget the types whose limits are gone and whose lanes are empty."""
    found = tx.db.execute("SELECT type, live FROM limited WHERE NOT live OR in_lanes > by_key").fetchall()
    for job_type, live in found:
        if tx.db.execute(_LEFT, (job_type,)).fetchone()[0]:
            continue
        if live:
            tx.db.execute("UPDATE limited SET in_lanes = by_key WHERE type = ?", (job_type,))
        else:
            tx.db.execute("DELETE FROM limited WHERE type = ?", (job_type,))


def read_limits(db: sqlite3.Connection) -> list[Limit]:
    """Answer all limits, by type and key."""
    return [_limit(row) for row in db.execute(f"{_COLUMNS} ORDER BY type, key")]


def limits_about(db: sqlite3.Connection, job_type: str, key: str | None, now_ms: int) -> list[Limit]:
    """Answer the limits that a job of a type and key must pass, with their state."""
    found = [_read_one(db, job_type, "")]
    if key is not None:
        found.append(_read_one(db, job_type, key) or _read_one(db, job_type, EACH_KEY))
    return [_state(db, limit, key, now_ms) for limit in found if limit is not None]


def _state(db: sqlite3.Connection, limit: Limit, key: str | None, now_ms: int) -> Limit:
    by_key = limit.key is not None
    lane = f"{limit.type}:{key}" if by_key else f"{limit.type}:"
    (running,) = db.execute(f"{_COUNT} AND (?2 OR lane = ?1)", (lane, not by_key)).fetchone()
    opens_in_ms: int | None = 0
    if limit.concurrency is not None and running >= limit.concurrency:
        opens_in_ms = None
    elif limit.rate is not None:
        name = (limit.type, key if by_key else "")
        bucket = db.execute("SELECT full_at_ns FROM buckets WHERE type = ? AND key = ?", name).fetchone()
        full_at_ns = bucket[0] if bucket is not None else 0
        if tokens(limit, full_at_ns, now_ms) <= 0:
            opens_in_ms = opens_at_ms(limit, full_at_ns, now_ms) - now_ms
    return msgspec.structs.replace(limit, running=running, opens_in_ms=opens_in_ms)


def _read_one(db: sqlite3.Connection, job_type: str, key: str) -> Limit | None:
    row = db.execute(f"{_COLUMNS} WHERE type = ? AND key = ?", (job_type, key)).fetchone()
    return _limit(row) if row is not None else None


def _limit(row: tuple[str, str, int | None, int, int | None, int | None, str]) -> Limit:
    job_type, key, rate, period_ms, burst, concurrency, source = row
    return Limit(
        type=job_type,
        key=key or None,
        rate=rate,
        period_ms=period_ms,
        burst=burst,
        concurrency=concurrency,
        source=source,
    )
