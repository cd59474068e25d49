"""Limits as an operator sets and sees them."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...limits import lane_of, merge_limit, opens_at_ms, tokens
from ..base import EACH_KEY, Limit, queue_topic
from ..stored import PENDING, RUNNING
from .placing import columns
from .script import LOCK, OPEN_QUEUES, QUEUES_WITH_LANES, Rows, Script, Statement, Tx

_COLUMNS = "SELECT type, key, rate, period_ms, burst, concurrency, source FROM packhorse.limits"
_ALL = f"{_COLUMNS} ORDER BY type, key"
_ONE = f"{_COLUMNS} WHERE type = $1::text AND key = $2::text"
_SET = """
INSERT INTO packhorse.limits (type, key, rate, period_ms, burst, concurrency, source)
VALUES ($1::text, $2::text, $3::bigint, $4::bigint, $5::bigint, $6::bigint, $7::text)
ON CONFLICT (type, key) DO UPDATE SET rate = excluded.rate, period_ms = excluded.period_ms, burst = excluded.burst,
    concurrency = excluded.concurrency, source = excluded.source
"""
# else the bucket is that of the limit for each key
_CLEAR = """
WITH gone AS (DELETE FROM packhorse.limits WHERE type = $1::text AND key = $2::text RETURNING type, key)
DELETE FROM packhorse.buckets AS b USING gone WHERE b.type = gone.type AND b.key = gone.key
"""
# Jobs keep their lanes until claims move them; what runs counts, also what started before there was a limit.
_LIMITED = """
INSERT INTO packhorse.limited AS t (type, live, by_key, in_lanes)
SELECT n.type, count(l.type) > 0, coalesce(bool_or(l.key <> ''), FALSE), coalesce(bool_or(l.key <> ''), FALSE)
FROM unnest($1::text[]) AS n (type) LEFT JOIN packhorse.limits AS l ON l.type = n.type GROUP BY n.type
ON CONFLICT (type) DO UPDATE SET live = excluded.live, by_key = excluded.by_key,
    in_lanes = t.in_lanes OR excluded.in_lanes
"""
_RUNNING = f"""
SELECT seq, type, key FROM packhorse.jobs WHERE state = {RUNNING} AND type = ANY($1::text[]) ORDER BY seq
FOR NO KEY UPDATE
"""
_LANE = """
UPDATE packhorse.jobs AS j SET lane = m.lane FROM unnest($1::bigint[], $2::text[]) AS m (seq, lane)
WHERE j.seq = m.seq AND j.lane IS DISTINCT FROM m.lane
"""
_WAKE = """
UPDATE packhorse.lanes SET opens_at_ms = NULL, asleep_at_ms = NULL WHERE type = ANY($1::text[])
    AND opens_at_ms IS NOT NULL
"""
_COUNT = f"""
SELECT count(*) FROM packhorse.jobs
WHERE state = {RUNNING} AND lane IS NOT NULL AND (lane = $1::text OR $2::boolean AND starts_with(lane, $1::text))
"""
_BUCKET = "SELECT full_at_ns FROM packhorse.buckets WHERE type = $1::text AND key = $2::text"
# Lanes by key whose limits are gone never sleep. What others told of and no claim has seen yet counts too.
_LEFT = f"""
SELECT EXISTS (SELECT 1 FROM packhorse.lanes WHERE opens_at_ms IS NULL AND type = $1::text)
    OR EXISTS (SELECT 1 FROM packhorse.shown WHERE type = $1::text)
    OR EXISTS (
        SELECT 1 FROM packhorse.jobs
        WHERE state = {RUNNING} AND lane IS NOT NULL AND lane >= $1::text || ':' AND lane < $1::text || ';'
    )
    OR EXISTS (
        SELECT 1 FROM ({QUEUES_WITH_LANES}) AS q WHERE EXISTS (
            SELECT 1 FROM packhorse.jobs
            WHERE state = {PENDING} AND lane IS NOT NULL AND queue = q.queue AND lane = $1::text || ':'
        )
    )
"""


def change_limits(tx: Tx, changes: Sequence[Limit]) -> Script[list[Limit]]:
    """Change limits, then answer all. Claims wait for it and it for them: what it says holds from now."""
    gate, limits = tx.store.lock_key("gate"), tx.store.lock_key("limits")
    yield Statement(tx.store.sql(LOCK), (limits,), ahead=(Statement(tx.store.sql(LOCK), (gate,)),))
    yield from tx.begin()
    for change in changes:
        name = (change.type, change.key or "")
        merged = merge_limit((yield from _read_one(tx, *name)), change)
        if merged is None:
            yield from tx.ask(_CLEAR, *name)
        else:
            values = (merged.rate, merged.period_ms, merged.burst, merged.concurrency, merged.source)
            yield from tx.ask(_SET, *name, *values)
    types = sorted({change.type for change in changes})
    yield from tx.ask(_LIMITED, types)
    yield from tx.ask(_WAKE, types)
    yield from tx.begin()  # anew, for what is limited now
    running = yield from tx.ask(_RUNNING, types)
    lanes = [(seq, lane_of(job_type, key, tx.limited)) for seq, job_type, key in running]
    if lanes:
        yield from tx.ask(_LANE, *columns(lanes))
    yield from tidy(tx)
    for queues in (OPEN_QUEUES, QUEUES_WITH_LANES):
        tx.topics.update(queue_topic(queue) for (queue,) in (yield from tx.ask(queues)))
    found = yield from read_limits(tx)
    yield from tx.finish()
    return found


_UNTIDY = "SELECT type, live FROM packhorse.limited WHERE NOT live OR in_lanes AND NOT by_key"
_OUT_OF_LANES = "UPDATE packhorse.limited SET in_lanes = by_key WHERE type = $1::text"
_FORGET = "DELETE FROM packhorse.limited WHERE type = $1::text"


def tidy(tx: Tx) -> Script[None]:
    """Forget the types whose limits are gone and whose lanes are empty."""
    for job_type, live in (yield from tx.ask(_UNTIDY)):
        if (yield from tx.ask(_LEFT, job_type))[0][0]:
            continue
        yield from tx.ask(_OUT_OF_LANES if live else _FORGET, job_type)


# A job may have been stored in a lane by a transaction that began before the type was forgotten. One step in the index
# for each type of each queue.
_FOUND = f"""
WITH RECURSIVE found (queue, lane) AS (
    (SELECT queue, lane FROM packhorse.jobs WHERE state = {PENDING} AND lane IS NOT NULL ORDER BY queue, lane LIMIT 1)
    UNION ALL
    SELECT n.queue, n.lane FROM found, LATERAL (
        SELECT queue, lane FROM packhorse.jobs
        WHERE state = {PENDING} AND lane IS NOT NULL AND (queue, lane) >= (found.queue, split_part(found.lane, ':',
            1) || ';')
        ORDER BY queue, lane LIMIT 1
    ) AS n
)
"""
ANY_FORGOTTEN = f"""EXISTS (
    {_FOUND} SELECT 1 FROM found
    WHERE NOT EXISTS (SELECT 1 FROM packhorse.limited AS t WHERE t.type = split_part(found.lane, ':', 1))
)"""
REMEMBER_LANES = f"""
{_FOUND}
INSERT INTO packhorse.limited (type, live, by_key, in_lanes)
SELECT DISTINCT split_part(lane, ':', 1), FALSE, FALSE, TRUE FROM found
ON CONFLICT DO NOTHING
"""


def read_limits(tx: Tx) -> Script[list[Limit]]:
    """Answer all limits, by type and key."""
    return [_limit(row) for row in (yield from tx.ask(_ALL))]


def limits_about(tx: Tx, job_type: str, key: str | None) -> Script[list[Limit]]:
    """Answer the limits that a job of a type and key must pass, with their state."""
    yield from tx.begin()
    found = [(yield from _read_one(tx, job_type, ""))]
    if key is not None:
        own = yield from _read_one(tx, job_type, key)
        found.append(own or (yield from _read_one(tx, job_type, EACH_KEY)))
    states = []
    for limit in found:
        if limit is not None:
            states.append((yield from _state(tx, limit, key)))
    return states


def _state(tx: Tx, limit: Limit, key: str | None) -> Script[Limit]:
    by_key = limit.key is not None
    lane = f"{limit.type}:{key}" if by_key else f"{limit.type}:"
    running = (yield from tx.ask(_COUNT, lane, not by_key))[0][0]
    opens_in_ms: int | None = 0
    if limit.concurrency is not None and running >= limit.concurrency:
        opens_in_ms = None
    elif limit.rate is not None:
        bucket: Rows = yield from tx.ask(_BUCKET, limit.type, (key or "") if by_key else "")
        full_at_ns = bucket[0][0] if bucket else 0
        if tokens(limit, full_at_ns, tx.now_ms) <= 0:
            opens_in_ms = opens_at_ms(limit, full_at_ns, tx.now_ms) - tx.now_ms
    return msgspec.structs.replace(limit, running=running, opens_in_ms=opens_in_ms)


def _read_one(tx: Tx, job_type: str, key: str) -> Script[Limit | None]:
    rows = yield from tx.ask(_ONE, job_type, key)
    return _limit(rows[0]) if rows else None


def _limit(row: tuple[Any, ...]) -> Limit:
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
