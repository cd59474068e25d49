"""Cancel, rerun, delete and pause, inside a transaction: rows are read at once, decided on, written at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..base import QueueChange, Rerun, Steered, job_topic, queue_topic, worker_topic
from ..stored import ASKED, CANCELLED, FOR_PARENT, RUNNING, SUCCEEDED, Row, Slot
from . import families, keys
from .changelog import GONE
from .dropping import drop
from .ops import Transaction
from .reviving import revive
from .rows import INLINE_BYTES, load_by_id, numbers, save


def cancel(tx: Transaction, ids: Sequence[str]) -> list[Steered]:
    """Stop jobs, or ask their workers to."""
    rows = load_by_id(tx.db, ids)
    answers = []
    running = []
    for job_id in ids:
        row = rows.get(job_id)
        if row is None:
            answers.append(Steered.MISSING)
        elif row.state >= SUCCEEDED:
            answers.append(Steered.ENDED)
        else:
            row.cancel = ASKED
            row.dirty = True
            if row.state == RUNNING:
                running.append(row)
                answers.append(Steered.REQUESTED)
            else:
                row.end(CANCELLED, tx.now_ms)
                tx.topics.add(job_topic(job_id))
                answers.append(Steered.DONE)
    save(tx, rows.values())
    families.serve(tx)
    if running:
        wanted = numbers({row.worker for row in running if row.worker is not None})
        found = tx.db.execute("SELECT id FROM workers WHERE no IN (SELECT value FROM json_each(?))", (wanted,))
        tx.topics.update(worker_topic(worker) for (worker,) in found)
    return answers


def rerun(tx: Transaction, reruns: Sequence[Rerun]) -> list[Steered]:
    """Start ended jobs over, with the edits asked for, as if one came after the other."""
    answers: list[Steered] = []
    while len(answers) < len(reruns):
        answers += _Reruns(tx, reruns[len(answers) :]).carry_out()
    return answers


class _Reruns:
    """Reruns done together: up to the first that may depend on what one before it does to its family."""

    def __init__(self, tx: Transaction, reruns: Sequence[Rerun]) -> None:
        self.tx = tx
        self.reruns = reruns
        self.rows = load_by_id(tx.db, [request.id for request in reruns])
        slots = [
            slot
            for request in reruns
            if (row := self.rows.get(request.id)) is not None and (slot := _slot(row, request)) is not None
        ]
        self.holders = keys.find_holders(tx.db, slots, tx.now_ms)
        self.taken: set[Slot] = set()
        self.ties = families.look_at(tx, [row.seq for row in self.rows.values() if row.parents])
        self.started: list[Row] = []

    def carry_out(self) -> list[Steered]:
        """Rerun as many as go together, at least one; answers what became of them."""
        answers = []
        for request in self.reruns:
            row = self.rows.get(request.id)
            if row is None:
                answers.append(Steered.MISSING)
                continue
            if self._depends(row, _slot(row, request)):
                break
            answers.append(self._rerun(row, request))
        self._write()
        return answers

    def _depends(self, row: Row, slot: Slot | None) -> bool:
        if slot in self.taken:
            return True
        parents = {one.seq for one in self.started if one.children}
        if not parents or not row.parents:
            return False
        return row.cancel == FOR_PARENT or not self.ties[row.seq].all.isdisjoint(parents)

    def _rerun(self, row: Row, request: Rerun) -> Steered:
        if row.state < SUCCEEDED:
            return Steered.LIVE
        slot = _slot(row, request)
        if slot is not None:
            if slot in self.holders and self.holders[slot].seq != row.seq:
                return Steered.CONFLICT
            self.taken.add(slot)
        _edit(self.tx, row, request)
        row.attempt = row.cancel = 0
        row.started_at_ms = row.finished_at_ms = row.parked_at_ms = None
        families.start_over(self.tx, row, request.delay_ms, self.ties.get(row.seq))
        self.started.append(row)
        return Steered.DONE

    def _write(self) -> None:
        tx, started = self.tx, self.started
        if not started:
            return
        save(tx, started)
        tx.db.execute(
            "UPDATE extras SET result = NULL, progress = NULL, progress_note = NULL "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (numbers(row.seq for row in started),),
        )
        families.tie_again(tx, [self.ties[row.seq] for row in started if row.seq in self.ties])
        keys.take(tx, [(row.queue, row.unique_key, row.id) for row in started if row.unique_key is not None])
        parents = [row.seq for row in started if row.children]
        if parents:
            revive(tx, parents)


def _slot(row: Row, request: Rerun) -> Slot | None:
    if row.unique_key is None:
        return None
    return (request.queue if request.queue is not None else row.queue, row.unique_key)


def _edit(tx: Transaction, row: Row, request: Rerun) -> None:
    if request.queue is not None and request.queue != row.queue:
        if row.unique_key is not None:
            keys.leave(tx, row.queue, row.unique_key, row.seq)
        row.queue = request.queue
    if request.priority is not None:
        row.priority = request.priority
    if request.max_attempts is not None:
        row.max_attempts = request.max_attempts
    if request.payload is not None and request.payload != _read_payload(tx.db, row.seq):
        _write_payload(tx.db, row.seq, request.payload)
        tx.db.execute("DELETE FROM steps WHERE seq = ?", (row.seq,))


def _read_payload(db: sqlite3.Connection, seq: int) -> bytes | None:
    sql = "SELECT coalesce(j.payload, p.payload) FROM jobs AS j LEFT JOIN payloads AS p USING (seq) WHERE seq = ?"
    payload: bytes | None = db.execute(sql, (seq,)).fetchone()[0]
    return payload


def _write_payload(db: sqlite3.Connection, seq: int, payload: bytes) -> None:
    large = len(payload) > INLINE_BYTES
    db.execute("UPDATE jobs SET payload = ? WHERE seq = ?", (None if large else payload, seq))
    if large:
        db.execute("INSERT OR REPLACE INTO payloads (seq, payload) VALUES (?, ?)", (seq, payload))
    else:
        db.execute("DELETE FROM payloads WHERE seq = ?", (seq,))


def delete(tx: Transaction, ids: Sequence[str]) -> list[Steered]:
    """Remove jobs that do not run."""
    rows = load_by_id(tx.db, ids)
    gone: list[int] = []
    buried: list[int] = []
    told: list[str] = []
    answers = []
    for job_id in ids:
        row = rows.get(job_id)
        if row is None:
            answers.append(Steered.MISSING)
        elif row.state == RUNNING:
            answers.append(Steered.LIVE)
        else:
            del rows[job_id]
            told.append(job_id)
            (buried if row.children == 1 else gone).append(row.seq)
            tx.topics.add(job_topic(job_id))
            answers.append(Steered.DONE)
    drop(tx, gone)
    if told and tx.followed:
        tx.tell(GONE, told)
    if buried:
        keys.free(tx, buried)
        families.bury(tx, buried)
        families.serve(tx)
    return answers


def change_queues(tx: Transaction, changes: Sequence[QueueChange]) -> dict[str, QueueChange]:
    """Change settings of queues, then answer all."""
    for change in changes:
        tx.db.execute(
            "INSERT INTO queues (name, paused, capacity) VALUES (?1, coalesce(?2, 0), nullif(?3, 0)) "
            "ON CONFLICT (name) DO UPDATE SET paused = coalesce(?2, paused), "
            "capacity = iif(?3 IS NULL, capacity, nullif(?3, 0))",
            (change.queue, change.paused, change.capacity),
        )
        tx.topics.add(queue_topic(change.queue))
    return read_queues(tx.db)


def read_queues(db: sqlite3.Connection) -> dict[str, QueueChange]:
    """Answer the settings of all queues that have any."""
    found = db.execute("SELECT name, paused, capacity FROM queues ORDER BY name").fetchall()
    return {name: QueueChange(queue=name, paused=bool(paused), capacity=capacity) for name, paused, capacity in found}
