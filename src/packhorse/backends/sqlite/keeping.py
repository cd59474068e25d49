"""Leases and time, inside a transaction: heartbeat, retire, tick."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from ...job import LAPSED, TERMINAL, JobError
from ..base import (
    DUE_TOPIC,
    Keep,
    Lapse,
    Note,
    Pulse,
    Ticked,
    WorkerInfo,
    job_topic,
    lapse_landing,
    queue_topic,
)
from ..stored import CODES, PENDING, RUNNING, SCHEDULED, Row, read_token, to_json
from . import dropping, families, schedules
from .claiming import worker_number
from .ops import WRITE, Transaction
from .reviving import revive
from .rows import insert_chunks, load_by_seq, save

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

# The values are parameters, for a result is bytes; few statements all the same, and the guard is in each.
_STEP = f"""
INSERT INTO steps (seq, name, result)
SELECT j.seq, m.column3, m.column4 FROM (VALUES {{}}) AS m CROSS JOIN jobs AS j ON j.id = m.column1
WHERE j.state = {RUNNING} AND j.token = m.column2
ON CONFLICT (seq, name) DO UPDATE SET result = excluded.result
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
    notes, steps = [], []
    for note in beat.notes:
        token = read_token(note.token)
        if token is not None and note.step is not None:
            steps.append((note.id, token, note.step, note.result))
        if token is not None and (note.progress is not None or note.text is not None):
            progress = repr(float(note.progress)) if note.progress is not None else None
            notes.append((note.id, token, progress, note.text))
    if notes:
        tx.db.execute(_NOTE, (to_json(notes).decode(),))
    if steps:
        insert_chunks(tx.db, _STEP, steps)
        tx.pages += sum(len(result) for *_, result in steps) // 4_096
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


def retire(tx: Transaction, retirement: Retirement) -> list[Lapse]:
    """Remove a worker and lapse what it holds; answers what that was."""
    number = worker_number(retirement.worker)
    tx.db.execute("DELETE FROM workers WHERE no = ?", (number,))
    held = _decode_held(tx.db.execute(_HELD, (number,)).fetchone()[0])
    # In the order of arrival: they take turns anew.
    lapses = _lapse(tx, sorted(seq for seq, *_ in held), retirement.reason)
    families.serve(tx)
    return lapses


def _lapse(tx: Transaction, seqs: Sequence[int], reason: str) -> list[Lapse]:
    """Take jobs from their worker; the write itself checks that they still run under the token just read."""
    rows = load_by_seq(tx.db, seqs)
    lapses = [_lapse_one(tx, row, reason) for row in rows.values()]
    save(tx, rows.values())
    return lapses


def _lapse_one(tx: Transaction, row: Row, reason: str) -> Lapse:
    row.add_error(JobError(attempt=row.attempt, at_ms=tx.now_ms, kind=LAPSED, message=reason))
    row.let_go()
    tx.lapses = True
    state = lapse_landing(row.attempt, row.max_attempts, bool(row.cancel))
    if state in TERMINAL:
        row.end(CODES[state], tx.now_ms)
        tx.topics.add(job_topic(row.id))
    else:
        row.start_over(0, tx)
        tx.topics.add(queue_topic(row.queue))
    return row.lapsed_to(state)


# ---- tick --------------------------------------------------------------------------------------------------


class Tick(msgspec.Struct, frozen=True):
    """The arguments of a tick."""

    limit: int
    keep: Keep


# A scheduled job, or a rate that lets something start again.
NEXT_DUE = f"""
SELECT min(at_ms) FROM (
    SELECT min(due_at_ms) AS at_ms FROM jobs INDEXED BY due WHERE state = {SCHEDULED}
    UNION ALL SELECT min(at_ms) FROM openings
)
"""

DUE = f"""
SELECT CAST(json_group_array(json_array(seq, id, queue, type, key, priority, due_at_ms)) AS BLOB) FROM (
    SELECT * FROM jobs INDEXED BY due WHERE state = {SCHEDULED} AND due_at_ms <= ? ORDER BY due_at_ms, seq LIMIT ?
)
"""
_decode_due = msgspec.json.Decoder(list[tuple[int, str, str, str, str | None, int, int]]).decode
_PROMOTE = f"""
UPDATE jobs NOT INDEXED SET state = {PENDING}, rank = m.value ->> 1, lane = m.value ->> 2 FROM json_each(?) AS m
WHERE jobs.seq = m.value ->> 0 AND jobs.state = {SCHEDULED}
"""
# Buckets that are full again are as new ones.
_FORGET_FULL = """
DELETE FROM buckets WHERE (type, key) IN (
    SELECT type, key FROM buckets INDEXED BY full_buckets WHERE full_at_ns <= ? LIMIT 1000
)
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


_NOTHING_MOVED = Ticked()


def probe(db: sqlite3.Connection, now_ms: int, tick: Tick) -> object:
    """Find out without a transaction whether a tick has anything to do."""
    next_due_at_ms = db.execute(NEXT_DUE).fetchone()[0]
    if (
        (next_due_at_ms is not None and next_due_at_ms <= now_ms)
        or db.execute(HOLDERS, (now_ms,)).fetchone() is not None
        or db.execute("SELECT EXISTS (SELECT 1 FROM workers WHERE lease_end_at_ms <= ?)", (now_ms,)).fetchone()[0]
        or db.execute(families.ANY_LEFT).fetchone()[0]
        or dropping.is_any_old(db, tick.keep, now_ms)
    ):
        return WRITE
    return _ticked(db, now_ms, next_due_at_ms)


def tick(tx: Transaction, tick: Tick) -> Ticked:
    """Move time on, at most `limit` jobs of each kind."""
    now_ms, limit = tx.now_ms, tick.limit
    rung = DUE_TOPIC in tx.topics
    promoted = _promote(tx, limit)
    _ring_opened(tx)
    lapses = _lapse_the_dead(tx, limit)
    tx.db.execute(_FORGET, (now_ms,))
    dropped = dropping.drop_old(tx, tick.keep, limit)
    freed = families.serve_the_rest(tx, limit)
    if tx.families:
        freed += revive(tx, limit=limit - freed)
    more = bool(tx.db.execute(families.ANY_LEFT).fetchone()[0])
    if not rung:
        tx.topics.discard(DUE_TOPIC)  # `next_due_ms` says it
    next_due_at_ms = now_ms if more else tx.db.execute(NEXT_DUE).fetchone()[0]
    tx.pages += (promoted + len(lapses) + dropped) // 4
    moved = Ticked(promoted=promoted, lapses=tuple(lapses), dropped=dropped, freed=freed)
    return _ticked(tx.db, now_ms, next_due_at_ms, moved)


def _promote(tx: Transaction, limit: int) -> int:
    due = _decode_due(tx.db.execute(DUE, (tx.now_ms, limit)).fetchone()[0])
    if not due:
        return 0
    of = tx.places.of
    places = [(seq, *of(queue, kind, key, priority, at_ms)) for seq, _, queue, kind, key, priority, at_ms in due]
    tx.topics.update(queue_topic(queue) for _, _, queue, *_ in due)
    if tx.followed:
        tx.tell(PENDING, [job_id for _, job_id, *_ in due])
    return tx.db.execute(_PROMOTE, (to_json(places).decode(),)).rowcount


def _ring_opened(tx: Transaction) -> None:
    """Ring the queues where a rate lets something start again."""
    opened = tx.db.execute("DELETE FROM openings WHERE at_ms <= ? RETURNING queue", (tx.now_ms,)).fetchall()
    tx.topics.update(queue_topic(queue) for (queue,) in opened)
    if opened:
        tx.db.execute(_FORGET_FULL, (tx.now_ms * 1_000_000,))


def _ticked(db: sqlite3.Connection, now_ms: int, next_due_at_ms: int | None, moved: Ticked = _NOTHING_MOVED) -> Ticked:
    wanting, wants_at_ms = schedules.planned(db, now_ms)
    instants = [instant for instant in (next_due_at_ms, wants_at_ms) if instant is not None]
    next_due_ms = max(0, min(instants) - now_ms) if instants else None
    return msgspec.structs.replace(moved, next_due_ms=next_due_ms, now_ms=now_ms, schedules=wanting)


def _lapse_the_dead(tx: Transaction, limit: int) -> list[Lapse]:
    seqs: list[int] = []
    for (worker,) in tx.db.execute(HOLDERS, (tx.now_ms,)).fetchall():
        if len(seqs) < limit:
            seqs += [seq for (seq,) in tx.db.execute(_HELD_BY, (worker, limit - len(seqs)))]
    return _lapse(tx, seqs, "the lease of the worker ran out") if seqs else []
