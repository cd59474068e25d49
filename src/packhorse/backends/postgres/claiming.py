"""Claim: one statement where no limit has to be asked."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from ...job import AGEING_MS, Claimed, State
from ..base import Settlement, WorkerInfo
from ..stored import PENDING, RUNNING, read_meta, read_tags, to_json
from .limit_rows import tidy
from .limiting import Choice
from .moving import settle
from .placing import FLOOR, LOWEST
from .rows import IS_PENDING
from .script import LOCK, LOCK_SHARED, NOW, Script, Statement, Store, Tx


class Claim(msgspec.Struct, frozen=True):
    """The arguments of a claim."""

    queues: tuple[str, ...]
    limit: int
    lease_ms: int
    worker: str


#: What a claim answers of each job, from a row `j` of jobs.
COLUMNS = """j.id, j.type, j.payload, j.attempt, j.max_attempts, j.timeout_ms, j.queue, j.priority, j.created_at_ms,
    j.due_at_ms, j.parked_at_ms, j.key, j.tags, j.meta, j.workflow, j.rank, j.seq"""

# The lease, on a row {0} of the time, where jobs were claimed or a third of it is gone: so an idle worker that
# heartbeats writes nothing by asking, and one that only claims keeps its lease.
LEASE = """
    INSERT INTO packhorse.leases (worker, end_at_ms)
    SELECT $4::bigint, {now_ms} + $6::bigint FROM facts AS f
    WHERE {jobs} OR NOT EXISTS (
        SELECT 1 FROM (SELECT end_at_ms - {now_ms} AS left_ms FROM packhorse.leases WHERE worker = $4::bigint
            ORDER BY no DESC LIMIT 1) AS l
        WHERE l.left_ms * 3 > $6::bigint * 2 AND l.left_ms <= $6::bigint
    )
    RETURNING worker
"""
NEW_WORKER = """
    INSERT INTO packhorse.workers (no, id, info) SELECT $4::bigint, $7::text, $8::text
    WHERE EXISTS (SELECT 1 FROM leased) AND NOT EXISTS (SELECT 1 FROM packhorse.workers WHERE no = $4::bigint)
    ON CONFLICT DO NOTHING
"""

# A materialised CTE and UPDATE .. FROM, never WHERE seq IN (SELECT .. LIMIT): there the planner may run the LIMIT once
# for each row and claim too many. test_claim_never_exceeds_its_limit. Each priority is looked at from its floor on, so
# that the entries of jobs claimed before are not stepped over, and the best of all are taken. A job is locked for each
# priority that has any: the others are free again at the end. Where there are limits the answer is 'false' and no jobs:
# limiting.py chooses.
TAKE = f"""
WITH facts AS MATERIALIZED (
    SELECT {NOW.format("$1")} AS now_ms, NOT EXISTS (SELECT 1 FROM packhorse.limited) AS is_open
), found AS MATERIALIZED (
    SELECT j.seq
    FROM facts AS f CROSS JOIN unnest($2::text[]) WITH ORDINALITY AS q (queue, no) CROSS JOIN generate_series(0,
        9) AS p (priority)
    CROSS JOIN LATERAL (
        SELECT j.seq, j.rank FROM packhorse.jobs AS j
        WHERE j.state = {PENDING} AND j.lane IS NULL AND j.queue = q.queue AND j.priority = p.priority
            AND j.rank >= {FLOOR.format(now_ms="f.now_ms")}
        ORDER BY j.rank, j.seq LIMIT $3::bigint FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
    WHERE f.is_open AND NOT EXISTS (SELECT 1 FROM packhorse.queues AS s WHERE s.name = q.queue AND s.paused)
    ORDER BY q.no, j.rank, j.seq LIMIT $3::bigint
), taken AS (
    UPDATE packhorse.jobs AS j
    SET state = {RUNNING}, attempt = j.attempt + 1, worker = $4::bigint, token = $5::bigint, started_at_ms = f.now_ms
    FROM found, facts AS f WHERE j.seq = found.seq AND {IS_PENDING}
    RETURNING {COLUMNS}
), leased AS ({LEASE.format(now_ms="f.now_ms", jobs="EXISTS (SELECT 1 FROM taken)")}), known AS ({NEW_WORKER}),
    fronts AS (
    UPDATE packhorse.fronts AS f SET front_ms = t.turn_ms
    FROM (SELECT queue, max(rank - priority * {AGEING_MS}) AS turn_ms
        FROM taken WHERE key IS NOT NULL GROUP BY queue) AS t,
        unnest($2::text[], $9::bigint[]) AS q (queue, lock)
    WHERE f.queue = t.queue AND q.queue = t.queue AND f.front_ms < t.turn_ms AND pg_try_advisory_xact_lock(q.lock)
), floors AS (
    INSERT INTO packhorse.floors (queue, priority, floor, at_ms)
    SELECT t.queue, t.priority, {LOWEST}, 0 FROM (SELECT DISTINCT queue, priority FROM taken) AS t WHERE NOT EXISTS (
        SELECT 1 FROM packhorse.floors AS f WHERE f.queue = t.queue AND f.priority = t.priority
    )
    ON CONFLICT DO NOTHING
)
SELECT f.is_open, t.*, (
    SELECT CASE WHEN count(*) > 0 THEN packhorse.tell(array_agg(id), '{{{RUNNING}}}', (SELECT now_ms FROM facts)) END
    FROM taken
)
FROM facts AS f LEFT JOIN taken AS t ON TRUE
"""


def worker_number(worker: str) -> int:
    """Answer the number a worker has in running jobs: 62 bits of a hash, the same in every process."""
    return int.from_bytes(blake2b(worker.encode("utf-8", "replace"), digest_size=8).digest()) >> 2


def arguments(store: Store, claim: Claim, queues: Sequence[str], limit: int, token: int) -> tuple[Any, ...]:
    """Answer the parameters of `TAKE` but the first."""
    info = to_json(WorkerInfo(id=claim.worker, queues=claim.queues)).decode()
    locks = [store.lock_key("front", queue) for queue in queues]
    return list(queues), limit, worker_number(claim.worker), token, claim.lease_ms, claim.worker, info, locks


def take(store: Store, now_ms: int | None, claim: Claim) -> Script[list[Claimed] | None]:
    """Turn the best ready jobs to running, and renew the worker's lease; None: there are limits to be asked.

    First from the queue that comes first, then from the others at once. The gate is passed in a statement before the
    look: a pause waits for claims under way, and those that wait for it see it.
    """
    token = store.new_token()
    gate = Statement(store.sql(LOCK_SHARED), (store.lock_key("gate"),))
    sql = store.sql(TAKE)
    claimed: list[Claimed] = []
    for queues in (claim.queues[:1], claim.queues[1:]):
        left = claim.limit - len(claimed)
        if not queues or left < 0 or (claimed and left == 0):
            continue
        values = (now_ms, *arguments(store, claim, queues, left, token))
        rows = yield Statement(sql, values, ahead=(gate,), last=True)
        if not rows[0][0]:
            return claimed or None
        if rows[0][1] is not None:
            claimed += in_order([row[1:] for row in rows], queues, str(token))
    return claimed


def in_order(rows: list[tuple[Any, ...]], queues: Sequence[str], token: str) -> list[Claimed]:
    """Make what is claimed of rows of `COLUMNS`, best first."""
    if len(queues) > 1:
        places = {queue: place for place, queue in enumerate(queues)}
        rows.sort(key=lambda row: (places[row[6]], row[15], row[16]))
    elif len(rows) > 1:
        rows.sort(key=_place)
    return [
        Claimed(
            row[0],
            token,
            row[1],
            row[2],
            row[3],
            row[4],
            row[5],
            row[6],
            row[7],
            row[8],
            row[9],
            row[10],
            row[11],
            read_tags(row[12]),
            read_meta(row[13]),
            row[14],
        )
        for row in rows
    ]


def _place(row: tuple[Any, ...]) -> tuple[int, int]:
    return row[15], row[16]


# ---- where there are limits --------------------------------------------------------------------------------

_MARK = f"""
WITH taken AS (
    UPDATE packhorse.jobs AS j
    SET state = {RUNNING}, attempt = j.attempt + 1, worker = $2::bigint, token = $3::bigint, started_at_ms = $4::bigint
    WHERE j.seq = ANY($1::bigint[]) AND {IS_PENDING}
    RETURNING {COLUMNS}
)
SELECT t.*, (SELECT packhorse.tell(array_agg(id), '{{{RUNNING}}}', $4::bigint) FROM taken) FROM taken AS t
"""
_LEASE = f"""
WITH facts AS (SELECT $1::bigint AS now_ms, $2::boolean AS jobs, $3::bigint, $5::bigint),
leased AS ({LEASE.format(now_ms="f.now_ms", jobs="f.jobs")}), known AS ({NEW_WORKER})
SELECT 1 FROM leased
"""
_MOVE_FRONT = """
UPDATE packhorse.fronts SET front_ms = $2::bigint
WHERE queue = $1::text AND front_ms < $2::bigint AND pg_try_advisory_xact_lock($3::bigint)
"""


def take_limited(tx: Tx, claim: Claim) -> Script[list[Claimed]]:
    """Claim where types have limits: one claim at a time counts what runs and starts more."""
    gate, limits = tx.store.lock_key("gate"), tx.store.lock_key("limits")
    yield Statement(tx.store.sql(LOCK), (limits,), ahead=(Statement(tx.store.sql(LOCK_SHARED), (gate,)),))
    yield from tx.begin()
    number = tx.store.new_token()
    claimed: list[Claimed] = []
    for queue in dict.fromkeys(claim.queues):
        left = claim.limit - len(claimed)
        if left <= 0:
            break
        choice = Choice(tx, queue, left)
        chosen = yield from choice.make()
        rows: list[tuple[Any, ...]] = []
        if chosen:
            seqs = [one.seq for one in chosen]
            rows = yield from tx.ask(_MARK, seqs, worker_number(claim.worker), number, tx.now_ms)
            assert len(rows) == len(seqs), f"{len(rows)} of {len(seqs)} locked jobs claimed"
            turns = [row[15] - row[7] * AGEING_MS for row in rows if row[11] is not None]
            if turns:
                yield from tx.ask(_MOVE_FRONT, queue, max(turns), tx.store.lock_key("front", queue))
        yield from choice.left(chosen)
        if choice.untidy and len(chosen) < left:
            yield from tidy(tx)
        claimed += in_order(rows, (queue,), str(number))
    worker, info = worker_number(claim.worker), to_json(WorkerInfo(id=claim.worker, queues=claim.queues)).decode()
    yield from tx.ask(_LEASE, tx.now_ms, bool(claimed), 0, worker, 0, claim.lease_ms, claim.worker, info)
    yield from tx.finish()
    return claimed


def release(tx: Tx, claimed: Sequence[Claimed]) -> Script[None]:
    """Give back jobs whose claimer went away while it waited: nobody knows that it holds them."""
    yield from settle(tx, [Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True) for job in claimed])
