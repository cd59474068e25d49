"""Cancel, rerun, delete and pause: rows are locked and read at once, decided on, written at once."""

from __future__ import annotations

from collections.abc import Sequence

from ..base import QueueChange, Rerun, Steered, job_topic, queue_topic, worker_topic
from ..stored import ASKED, CANCELLED, FOR_PARENT, RUNNING, SUCCEEDED, Holder, Row, Slot, Ties
from . import families, keys
from .dropping import drop
from .reviving import revive
from .rows import load_by_id, save
from .script import LOCK, Rows, Script, Statement, Tx

_WORKERS = "SELECT id FROM packhorse.workers WHERE no = ANY($1::bigint[])"


def cancel(tx: Tx, ids: Sequence[str]) -> Script[list[Steered]]:
    """Stop jobs, or ask their workers to."""
    yield from tx.begin()
    rows = yield from load_by_id(tx, ids)
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
    yield from save(tx, rows.values())
    yield from families.serve(tx)
    if running:
        workers = list({row.worker for row in running if row.worker is not None})
        tx.topics.update(worker_topic(worker) for (worker,) in (yield from tx.ask(_WORKERS, workers)))
    yield from tx.finish()
    return answers


def rerun(tx: Tx, reruns: Sequence[Rerun]) -> Script[list[Steered]]:
    """Start ended jobs over, with the edits asked for, as if one came after the other."""
    yield from tx.begin()
    answers: list[Steered] = []
    while len(answers) < len(reruns):
        together = _Reruns(tx, reruns[len(answers) :])
        yield from together.look()
        answers += yield from together.carry_out()
    yield from tx.finish()
    return answers


_RESET = """
UPDATE packhorse.jobs SET result = NULL, progress = NULL, progress_note = NULL WHERE seq = ANY($1::bigint[])
"""


class _Reruns:
    """Reruns done together: up to the first that may depend on what one before it does to its family."""

    def __init__(self, tx: Tx, reruns: Sequence[Rerun]) -> None:
        self.tx = tx
        self.reruns = reruns
        self.rows: dict[str, Row] = {}
        self.holders: dict[Slot, Holder] = {}
        self.taken: set[Slot] = set()
        self.ties: dict[int, Ties] = {}
        self.started: list[Row] = []

    def look(self) -> Script[None]:
        """Look up what decides, and lock it."""
        tx = self.tx
        rows = self.rows = yield from load_by_id(tx, [request.id for request in self.reruns])
        edited = [(row, request) for request in self.reruns if (row := rows.get(request.id)) is not None]
        self.holders = yield from keys.find_holders(
            tx, [slot for row, request in edited if (slot := _slot(row, request)) is not None]
        )
        yield from tx.places.know(
            (
                request.queue if request.queue is not None else row.queue,
                row.key,
                request.priority if request.priority is not None else row.priority,
            )
            for row, request in edited
        )
        self.ties = yield from families.look_at(tx, [row.seq for row in rows.values() if row.parents])

    def carry_out(self) -> Script[list[Steered]]:
        """Rerun as many as go together, at least one; answers what became of them."""
        answers = []
        for request in self.reruns:
            row = self.rows.get(request.id)
            if row is None:
                answers.append(Steered.MISSING)
                continue
            if self._depends(row, _slot(row, request)):
                break
            answers.append((yield from self._rerun(row, request)))
        yield from self._write()
        return answers

    def _depends(self, row: Row, slot: Slot | None) -> bool:
        if slot in self.taken:
            return True
        parents = {one.seq for one in self.started if one.children}
        if not parents or not row.parents:
            return False
        return row.cancel == FOR_PARENT or not self.ties[row.seq].all.isdisjoint(parents)

    def _rerun(self, row: Row, request: Rerun) -> Script[Steered]:
        if row.state < SUCCEEDED:
            return Steered.LIVE
        slot = _slot(row, request)
        if slot is not None:
            if slot in self.holders and self.holders[slot].seq != row.seq:
                return Steered.CONFLICT
            self.taken.add(slot)
        yield from _edit(self.tx, row, request)
        row.attempt = row.cancel = 0
        row.started_at_ms = row.finished_at_ms = row.parked_at_ms = None
        families.start_over(self.tx, row, request.delay_ms, self.ties.get(row.seq))
        self.started.append(row)
        return Steered.DONE

    def _write(self) -> Script[None]:
        tx, started = self.tx, self.started
        if not started:
            return
        yield from save(tx, started)
        yield from tx.ask(_RESET, [row.seq for row in started])
        yield from families.tie_again(tx, [self.ties[row.seq] for row in started if row.seq in self.ties])
        yield from keys.take(tx, [(row.queue, row.unique_key, row.id) for row in started if row.unique_key is not None])
        parents = [row.seq for row in started if row.children]
        if parents:
            yield from revive(tx, parents)


def _slot(row: Row, request: Rerun) -> Slot | None:
    if row.unique_key is None:
        return None
    return (request.queue if request.queue is not None else row.queue, row.unique_key)


# Another payload: the results of durable steps were of the old one.
_PAYLOAD = """
WITH edited AS (
    UPDATE packhorse.jobs SET payload = $2::bytea WHERE seq = $1::bigint AND payload <> $2::bytea RETURNING seq
)
DELETE FROM packhorse.steps AS s USING edited WHERE s.seq = edited.seq
"""


def _edit(tx: Tx, row: Row, request: Rerun) -> Script[None]:
    if request.queue is not None and request.queue != row.queue:
        if row.unique_key is not None:
            yield from keys.leave(tx, row.queue, row.unique_key, row.seq)
        row.queue = request.queue
    if request.priority is not None:
        row.priority = request.priority
    if request.max_attempts is not None:
        row.max_attempts = request.max_attempts
    if request.payload is not None:
        yield from tx.ask(_PAYLOAD, row.seq, request.payload)


_GONE = "SELECT packhorse.tell($1::text[], '{0}', $2::bigint)"


def delete(tx: Tx, ids: Sequence[str]) -> Script[list[Steered]]:
    """Remove jobs that do not run."""
    yield from tx.begin()
    rows = yield from load_by_id(tx, ids)
    gone: list[int] = []
    buried: list[int] = []
    hidden: list[str] = []  # the ids of those
    answers = []
    for job_id in ids:
        row = rows.get(job_id)
        if row is None:
            answers.append(Steered.MISSING)
        elif row.state == RUNNING:
            answers.append(Steered.LIVE)
        else:
            del rows[job_id]
            if row.children == 1:
                buried.append(row.seq)
                hidden.append(job_id)
            else:
                gone.append(row.seq)
            tx.topics.add(job_topic(job_id))
            answers.append(Steered.DONE)
    yield from drop(tx, gone)
    if buried:
        yield from tx.ask(_GONE, hidden, tx.now_ms)
        yield from keys.free(tx, buried)
        yield from families.bury(tx, buried)
        yield from families.serve(tx)
    yield from tx.finish()
    return answers


_CHANGE = """
INSERT INTO packhorse.queues AS q (name, paused, capacity)
VALUES ($1::text, coalesce($2::boolean, FALSE), nullif($3::bigint, 0))
ON CONFLICT (name) DO UPDATE SET paused = coalesce($2::boolean, q.paused),
    capacity = CASE WHEN $3::bigint IS NULL THEN q.capacity ELSE nullif($3::bigint, 0) END
"""
READ_QUEUES = "SELECT name, paused, capacity FROM packhorse.queues ORDER BY name"


def change_queues(tx: Tx, changes: Sequence[QueueChange]) -> Script[dict[str, QueueChange]]:
    """Change settings of queues, then answer all. Waits for claims under way: what it says holds from now."""
    yield Statement(tx.store.sql(LOCK), (tx.store.lock_key("gate"),))
    for change in changes:
        yield from tx.ask(_CHANGE, change.queue, change.paused, change.capacity)
        tx.topics.add(queue_topic(change.queue))
    found = queues_of((yield from tx.ask(READ_QUEUES)))
    yield from tx.finish()
    return found


def read_queues(tx: Tx) -> Script[dict[str, QueueChange]]:
    """Answer the settings of all queues that have any."""
    return queues_of((yield from tx.ask(READ_QUEUES)))


def queues_of(rows: Rows) -> dict[str, QueueChange]:
    """Make settings of rows of `READ_QUEUES`."""
    return {name: QueueChange(queue=name, paused=paused, capacity=capacity) for name, paused, capacity in rows}
