"""Claim, inside a transaction."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from ...job import AGEING_MS, Claimed, State
from ..base import Settlement, WorkerInfo
from ..stored import PENDING, RUNNING, read_meta, read_tags, to_json
from .limit_rows import tidy
from .limiting import Choice
from .moving import settle
from .ops import WRITE, Transaction
from .rows import numbers
from .taken import COLUMNS, Taken, decode_taken


class Claim(msgspec.Struct, frozen=True):
    """The arguments of a claim."""

    queues: tuple[str, ...]
    limit: int
    lease_ms: int
    worker: str


# Why not UPDATE … WHERE seq IN (SELECT … LIMIT) RETURNING: its rows come back one step at a time, and every
# step gives the interpreter lock away (engine.py). Under the write lock, reading first and then writing the
# same rows is just as atomic, and it answers in the order of the index, which RETURNING does not promise.
# The subquery ends at the LIMIT in the index `ready`, whatever the backlog: test_claim_reads_the_ready_index.
# Where there are limits the answer is 1 and no jobs: `limiting` chooses.
TAKE = f"""
SELECT {COLUMNS}, EXISTS (SELECT 1 FROM limited)
FROM (
    SELECT * FROM jobs INDEXED BY ready
    WHERE state = {PENDING} AND lane IS NULL AND queue = ?1 AND NOT EXISTS (SELECT 1 FROM limited)
        AND NOT EXISTS (SELECT 1 FROM queues WHERE name = ?1 AND paused)
    ORDER BY rank, seq LIMIT ?2
)
"""

_MARK = f"""
UPDATE jobs NOT INDEXED SET state = {RUNNING}, attempt = attempt + 1, worker = ?, token = ?, started_at_ms = ?
WHERE seq IN (SELECT value FROM json_each(?)) AND state = {PENDING}
"""

_ANY = f"""
SELECT NOT EXISTS (SELECT 1 FROM queues WHERE name = ?1 AND paused) AND (
    EXISTS (SELECT 1 FROM jobs INDEXED BY ready WHERE state = {PENDING} AND lane IS NULL AND queue = ?1)
    OR EXISTS (SELECT 1 FROM jobs INDEXED BY laned WHERE state = {PENDING} AND lane IS NOT NULL AND queue = ?1)
)
"""

_LEASE = """
INSERT INTO workers (no, id, info, lease_end_at_ms) VALUES (?, ?, ?, ?)
ON CONFLICT (no) DO UPDATE SET lease_end_at_ms = excluded.lease_end_at_ms
"""


def worker_number(worker: str) -> int:
    """Answer the number a worker has in running jobs: 62 bits of a hash, the same in every process."""
    return int.from_bytes(blake2b(worker.encode(), digest_size=8).digest()) >> 2


def probe(db: sqlite3.Connection, now_ms: int, claim: Claim) -> object:
    """Find out without a transaction whether a claim has anything to write.

    It has nothing if no job is ready and the worker's lease was renewed within the last third of `lease_ms`:
    so an idle worker that heartbeats writes nothing by asking, and one that only claims keeps its lease.
    """
    for queue in claim.queues:
        if claim.limit > 0 and db.execute(_ANY, (queue,)).fetchone()[0]:
            return WRITE
    return [] if _lease_is_fresh(db, now_ms, claim) else WRITE


def _lease_is_fresh(db: sqlite3.Connection, now_ms: int, claim: Claim) -> bool:
    found = db.execute("SELECT lease_end_at_ms FROM workers WHERE no = ?", (worker_number(claim.worker),)).fetchone()
    return found is not None and claim.lease_ms * 2 < (found[0] - now_ms) * 3 and found[0] - now_ms <= claim.lease_ms


def take(tx: Transaction, claim: Claim) -> list[Claimed]:
    """Turn the best ready jobs to running, and renew the worker's lease."""
    number, worker = tx.new_token(), worker_number(claim.worker)
    token = str(number)  # one for all jobs of the claim: it is always checked together with the id
    claimed: list[Claimed] = []
    for queue in claim.queues:
        left = claim.limit - len(claimed)
        if left <= 0:
            break
        choice: Choice | None = None
        taken: list[Taken] = []
        if not tx.hints.limits:
            text, limited = tx.db.execute(TAKE, (queue, left)).fetchone()
            tx.hints.limits = bool(limited)
            taken = decode_taken(text)
        if tx.hints.limits:
            choice = Choice(tx, queue, left)
            taken = choice.make()
        if taken:
            marked = tx.db.execute(_MARK, (worker, number, tx.now_ms, numbers([one.seq for one in taken]))).rowcount
            assert marked == len(taken), f"{marked} of {len(taken)} jobs claimed under the write lock"
            if tx.followed:
                tx.tell(RUNNING, [one.id for one in taken])
            turns = [one.rank - one.priority * AGEING_MS for one in taken if one.key is not None]
            if turns:
                tx.places.claimed(queue, max(turns))
        if choice is not None:
            choice.left(taken)
            if choice.untidy and len(taken) < left:
                tidy(tx)
        claimed += [_claimed(tx.db, one, token, queue) for one in taken]
    if claimed or not _lease_is_fresh(tx.db, tx.now_ms, claim):
        info = to_json(WorkerInfo(id=claim.worker, queues=claim.queues)).decode()
        tx.db.execute(_LEASE, (worker, claim.worker, info, tx.now_ms + claim.lease_ms))
    return claimed


def _claimed(db: sqlite3.Connection, one: Taken, token: str, queue: str) -> Claimed:
    if one.payload is not None:
        payload = bytes.fromhex(one.payload)
    else:
        payload = db.execute("SELECT payload FROM payloads WHERE seq = ?", (one.seq,)).fetchone()[0]
    return Claimed(
        one.id,
        token,
        one.type,
        payload,
        one.attempt + 1,
        one.max_attempts,
        one.timeout_ms,
        queue,
        one.priority,
        one.created_at_ms,
        one.due_at_ms,
        one.parked_at_ms,
        one.key,
        read_tags(one.tags),
        read_meta(one.meta),
        one.workflow,
    )


def release(tx: Transaction, claimed: Sequence[Claimed]) -> None:
    """Give back jobs whose claimer went away while it waited: nobody knows that it holds them."""
    settle(tx, [Settlement(id=job.id, token=job.token, state=State.PENDING, refund=True) for job in claimed])
