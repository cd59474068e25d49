"""Cancel, rerun, delete and pause, inside a transaction: rows are read at once, decided on, written at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..base import DUE_TOPIC, QueueChange, Rerun, Steered, job_topic, queue_topic, worker_topic
from .moving import find_holders
from .ops import Transaction
from .rows import CANCELLED, INLINE_BYTES, RUNNING, SUCCEEDED, Row, drop, load_by_id, numbers, save


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
            row.cancel = 1
            row.dirty = True
            if row.state == RUNNING:
                running.append(row)
                answers.append(Steered.REQUESTED)
            else:
                row.end(CANCELLED, tx.now_ms)
                tx.topics.add(job_topic(job_id))
                answers.append(Steered.DONE)
    save(tx, rows.values())
    if running:
        wanted = numbers({row.worker for row in running if row.worker is not None})
        found = tx.db.execute("SELECT id FROM workers WHERE no IN (SELECT value FROM json_each(?))", (wanted,))
        tx.topics.update(worker_topic(worker) for (worker,) in found)
    return answers


def rerun(tx: Transaction, reruns: Sequence[Rerun]) -> list[Steered]:
    """Start ended jobs over, with the edits asked for."""
    rows = load_by_id(tx.db, [request.id for request in reruns])
    slots = [
        slot
        for request in reruns
        if (row := rows.get(request.id)) is not None and (slot := _slot(row, request)) is not None
    ]
    holders = find_holders(tx.db, slots)
    answers = []
    started: list[int] = []
    for request in reruns:
        row = rows.get(request.id)
        if row is None:
            answers.append(Steered.MISSING)
        elif row.state < SUCCEEDED:
            answers.append(Steered.LIVE)
        elif (slot := _slot(row, request)) is not None and slot in holders:
            answers.append(Steered.CONFLICT)
        else:
            if slot is not None:
                holders[slot] = row.id
            _start_over(tx, row, request)
            started.append(row.seq)
            answers.append(Steered.DONE)
    save(tx, rows.values())
    if started:
        tx.db.execute(
            "UPDATE extras SET result = NULL, progress = NULL, progress_note = NULL "
            "WHERE seq IN (SELECT value FROM json_each(?))",
            (numbers(started),),
        )
    return answers


def _slot(row: Row, request: Rerun) -> tuple[str, str] | None:
    if row.unique_key is None:
        return None
    return (request.queue if request.queue is not None else row.queue, row.unique_key)


def _start_over(tx: Transaction, row: Row, request: Rerun) -> None:
    if request.queue is not None:
        row.queue = request.queue
    if request.priority is not None:
        row.priority = request.priority
    if request.max_attempts is not None:
        row.max_attempts = request.max_attempts
    if request.payload is not None:
        _write_payload(tx.db, row.seq, request.payload)
    row.attempt = row.cancel = 0
    row.started_at_ms = row.finished_at_ms = row.parked_at_ms = None
    row.start_over(request.delay_ms, tx.now_ms)
    tx.topics.add(queue_topic(row.queue) if request.delay_ms <= 0 else DUE_TOPIC)


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
    answers = []
    for job_id in ids:
        row = rows.get(job_id)
        if row is None:
            answers.append(Steered.MISSING)
        elif row.state == RUNNING:
            answers.append(Steered.LIVE)
        else:
            gone.append(rows.pop(job_id).seq)
            tx.topics.add(job_topic(job_id))
            answers.append(Steered.DONE)
    drop(tx, gone)
    return answers


def change_queues(tx: Transaction, changes: Sequence[QueueChange]) -> dict[str, QueueChange]:
    """Change settings of queues, then answer all."""
    for change in changes:
        tx.db.execute(
            "INSERT INTO queues (name, paused) VALUES (?1, coalesce(?2, 0)) "
            "ON CONFLICT (name) DO UPDATE SET paused = coalesce(?2, paused)",
            (change.queue, change.paused),
        )
        tx.topics.add(queue_topic(change.queue))
    return read_queues(tx.db)


def read_queues(db: sqlite3.Connection) -> dict[str, QueueChange]:
    """Answer the settings of all queues that have any."""
    found = db.execute("SELECT name, paused FROM queues ORDER BY name")
    return {name: QueueChange(queue=name, paused=bool(paused)) for name, paused in found}
