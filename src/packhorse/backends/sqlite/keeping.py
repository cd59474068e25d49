"""Leases and time, inside a transaction: heartbeat, retire, tick."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from ...job import AGEING_MS, TERMINAL, JobError
from ..base import (
    Keep,
    Note,
    Pulse,
    Ticked,
    WorkerInfo,
    add_error,
    job_topic,
    lapse_landing,
    queue_topic,
)
from .claiming import worker_number
from .moving import read_token
from .ops import WRITE, Transaction
from .rows import (
    CANCELLED,
    CODES,
    FAILED,
    PENDING,
    RUNNING,
    SCHEDULED,
    SUCCEEDED,
    Row,
    add_to_errors,
    drop,
    load_by_seq,
    save,
    to_json,
)

# ---- heartbeat ---------------------------------------------------------------------------------------------


class Beat(msgspec.Struct, frozen=True):
    """The arguments of a heartbeat."""

    worker: WorkerInfo
    lease_ms: int
    notes: tuple[Note, ...]


_HELD = f"""
SELECT CAST(json_group_array(json_array(seq, id, CAST(token AS TEXT), cancel)) AS BLOB)
FROM jobs INDEXED BY running WHERE state = {RUNNING} AND worker = ?
"""
_decode_held = msgspec.json.Decoder(list[tuple[int, str, str, int]]).decode

_BEAT = """
INSERT INTO workers (no, id, info, lease_end_at_ms) VALUES (?, ?, ?, ?)
ON CONFLICT (no) DO UPDATE SET info = excluded.info, lease_end_at_ms = excluded.lease_end_at_ms
"""

_NOTE = f"""
INSERT INTO extras (seq, progress, progress_note)
SELECT j.seq, m.value ->> 2, m.value ->> 3 FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.id = m.value ->> 0
WHERE j.state = {RUNNING} AND j.token = m.value ->> 1
ON CONFLICT (seq) DO UPDATE SET progress = coalesce(excluded.progress, progress),
                                progress_note = coalesce(excluded.progress_note, progress_note)
"""


def heartbeat(tx: Transaction, beat: Beat) -> Pulse:
    """Renew a lease, keep notes of what it still holds, and answer what that is."""
    worker = beat.worker
    number = worker_number(worker.id)
    tx.db.execute(_BEAT, (number, worker.id, to_json(worker).decode(), tx.now_ms + beat.lease_ms))
    notes = []
    for note in beat.notes:
        token = read_token(note.token)
        if token is not None:
            progress = repr(float(note.progress)) if note.progress is not None else None
            notes.append((note.id, token, progress, note.text))
    if notes:
        tx.db.execute(_NOTE, (to_json(notes).decode(),))
    held = _decode_held(tx.db.execute(_HELD, (number,)).fetchone()[0])
    return Pulse(
        held={job_id: token for _, job_id, token, _ in held},
        cancel=frozenset(job_id for _, job_id, _, cancel in held if cancel),
    )


# ---- lapse -------------------------------------------------------------------------------------------------


class Retirement(msgspec.Struct, frozen=True):
    """The arguments of retire."""

    worker: str
    reason: str


def retire(tx: Transaction, retirement: Retirement) -> int:
    """Remove a worker and lapse what it holds."""
    number = worker_number(retirement.worker)
    tx.db.execute("DELETE FROM workers WHERE no = ?", (number,))
    held = _decode_held(tx.db.execute(_HELD, (number,)).fetchone()[0])
    _lapse(tx, [seq for seq, *_ in held], retirement.reason)
    return len(held)


def _lapse(tx: Transaction, seqs: Sequence[int], reason: str) -> None:
    """Take jobs from their worker; the write itself checks that they still run under the token just read."""
    rows = load_by_seq(tx.db, seqs)
    for row in rows.values():
        _lapse_one(tx, row, reason)
    save(tx, rows.values())


def _lapse_one(tx: Transaction, row: Row, reason: str) -> None:
    add_to_errors(row, JobError(attempt=row.attempt, at_ms=tx.now_ms, kind="LeaseLapsed", message=reason), add_error)
    row.let_go()
    state = lapse_landing(row.attempt, row.max_attempts, bool(row.cancel))
    if state in TERMINAL:
        row.end(CODES[state], tx.now_ms)
        tx.topics.add(job_topic(row.id))
    else:
        row.start_over(0, tx.now_ms)
        tx.topics.add(queue_topic(row.queue))


# ---- tick --------------------------------------------------------------------------------------------------


class Tick(msgspec.Struct, frozen=True):
    """The arguments of a tick."""

    limit: int
    keep: Keep


NEXT_DUE = f"SELECT min(due_at_ms) FROM jobs INDEXED BY due WHERE state = {SCHEDULED}"

_DUE = (
    f"SELECT seq FROM jobs INDEXED BY due WHERE state = {SCHEDULED} AND due_at_ms <= ? ORDER BY due_at_ms, seq LIMIT ?"
)
_DUE_QUEUES = f"SELECT DISTINCT queue FROM jobs WHERE seq IN ({_DUE})"
_PROMOTE = f"""
UPDATE jobs NOT INDEXED SET state = {PENDING}, rank = due_at_ms + priority * {AGEING_MS}
WHERE seq IN ({_DUE}) AND state = {SCHEDULED}
"""

# One step in the index for each worker, not for each of its jobs.
HOLDERS = f"""
WITH RECURSIVE holder (no) AS (
    SELECT min(worker) FROM jobs INDEXED BY running WHERE state = {RUNNING}
    UNION ALL
    SELECT (SELECT min(worker) FROM jobs INDEXED BY running WHERE state = {RUNNING} AND worker > holder.no)
    FROM holder WHERE holder.no IS NOT NULL
)
SELECT no FROM holder WHERE no IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM workers AS w WHERE w.no = holder.no AND w.lease_end_at_ms > ?)
"""
_HELD_BY = f"SELECT seq FROM jobs INDEXED BY running WHERE state = {RUNNING} AND worker = ? ORDER BY seq LIMIT ?"
_FORGET = f"""
DELETE FROM workers WHERE lease_end_at_ms <= ? AND NOT EXISTS (
    SELECT 1 FROM jobs INDEXED BY running WHERE state = {RUNNING} AND worker = workers.no
)
"""

KEPT = f"""
SELECT CAST(json_group_array(seq) AS BLOB) FROM (
    SELECT seq FROM jobs INDEXED BY ended WHERE state >= {SUCCEEDED} AND state = ? AND finished_at_ms <= ?
    ORDER BY finished_at_ms LIMIT ?
)
"""
_decode_seqs = msgspec.json.Decoder(list[int]).decode


def probe(db: sqlite3.Connection, now_ms: int, tick: Tick) -> object:
    """Find out without a transaction whether a tick has anything to do."""
    next_due_at_ms = db.execute(NEXT_DUE).fetchone()[0]
    if (
        (next_due_at_ms is not None and next_due_at_ms <= now_ms)
        or db.execute(HOLDERS, (now_ms,)).fetchone() is not None
        or db.execute("SELECT EXISTS (SELECT 1 FROM workers WHERE lease_end_at_ms <= ?)", (now_ms,)).fetchone()[0]
        or any(_old(db, state, now_ms - keep_ms, 1) for state, keep_ms in _kept_ms(tick.keep))
    ):
        return WRITE
    return Ticked(next_due_ms=_wait_ms(next_due_at_ms, now_ms))


def tick(tx: Transaction, tick: Tick) -> Ticked:
    """Move time on, at most `limit` jobs of each kind."""
    now_ms, limit = tx.now_ms, tick.limit
    tx.topics.update(queue_topic(queue) for (queue,) in tx.db.execute(_DUE_QUEUES, (now_ms, limit)))
    promoted = tx.db.execute(_PROMOTE, (now_ms, limit)).rowcount
    lapsed = _lapse_the_dead(tx, limit)
    tx.db.execute(_FORGET, (now_ms,))
    dropped = 0
    for state, keep_ms in _kept_ms(tick.keep):
        seqs = _old(tx.db, state, now_ms - keep_ms, limit - dropped)
        drop(tx, seqs)
        dropped += len(seqs)
    next_due_at_ms = tx.db.execute(NEXT_DUE).fetchone()[0]
    tx.pages += (promoted + lapsed + dropped) // 4
    return Ticked(promoted=promoted, lapsed=lapsed, dropped=dropped, next_due_ms=_wait_ms(next_due_at_ms, now_ms))


def _lapse_the_dead(tx: Transaction, limit: int) -> int:
    seqs: list[int] = []
    for (worker,) in tx.db.execute(HOLDERS, (tx.now_ms,)).fetchall():
        if len(seqs) < limit:
            seqs += [seq for (seq,) in tx.db.execute(_HELD_BY, (worker, limit - len(seqs)))]
    if seqs:
        _lapse(tx, seqs, "the lease of the worker ran out")
    return len(seqs)


def _old(db: sqlite3.Connection, state: int, until_ms: int, limit: int) -> list[int]:
    return _decode_seqs(db.execute(KEPT, (state, until_ms, limit)).fetchone()[0]) if limit > 0 else []


def _kept_ms(keep: Keep) -> Iterable[tuple[int, int]]:
    return (SUCCEEDED, keep.succeeded_ms), (FAILED, keep.failed_ms), (CANCELLED, keep.cancelled_ms)


def _wait_ms(next_due_at_ms: int | None, now_ms: int) -> int | None:
    return None if next_due_at_ms is None else max(0, next_due_at_ms - now_ms)
