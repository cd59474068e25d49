"""Jobs that move, read under a lock and written back in bulk: one statement for any number of rows."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..stored import ABSENT, PENDING, RUNNING, SCHEDULED, SUCCEEDED, Row
from .placing import columns
from .script import Script, Tx

#: Conditions on jobs that are found by id or seq. Written so that no partial index fits them: the planner, which knows
#: little of a table that changes so fast, would now and then read the whole of such an index for each job.
IS_RUNNING = f"j.state + 0 = {RUNNING}"
IS_PENDING = f"j.state + 0 = {PENDING}"
IS_SCHEDULED = f"j.state + 0 = {SCHEDULED}"

_COLUMNS = """
j.seq, j.id, j.type, j.key, j.queue, j.state, j.rank, j.lane, j.attempt, j.max_attempts, j.priority, j.created_at_ms,
j.due_at_ms, j.cancel, j.worker, j.token, j.started_at_ms, j.finished_at_ms, j.parked_at_ms, j.unique_key, j.children,
j.errors, j.parents, j.waiting_for, j.after_failed, j.held_by
"""
# Locked in the order of seq, so that two who move the same jobs do not wait for each other. What is read is the newest
# version, also where a lock had to be waited for.
LOAD_BY_SEQ = f"""
SELECT {_COLUMNS} FROM packhorse.jobs AS j WHERE j.seq = ANY($1::bigint[]) ORDER BY j.seq FOR NO KEY UPDATE
"""
LOAD_FREE = f"{LOAD_BY_SEQ.rstrip()} SKIP LOCKED"
LOAD_BY_ID = f"""
SELECT {_COLUMNS} FROM packhorse.jobs AS j WHERE j.id = ANY($1::text[]) AND j.state < {ABSENT} ORDER BY j.seq
    FOR NO KEY UPDATE
"""
LOAD_FREE_BY_ID = f"{LOAD_BY_ID.rstrip()} SKIP LOCKED"


def askable(ids: Iterable[str]) -> list[str]:
    """Answer the ids that the server can be asked for; no job has one with a NUL."""
    return [job_id for job_id in ids if "\0" not in job_id]


def load_by_seq(tx: Tx, seqs: Iterable[int], *, only_free: bool = False) -> Script[dict[int, Row]]:
    """Lock and read rows by seq; those that are not there are not in the answer.

    `only_free`: nor those that somebody else has locked.
    """
    wanted = list(seqs)
    if not wanted:
        return {}
    return {row.seq: row for row in (yield from _load(tx, LOAD_FREE if only_free else LOAD_BY_SEQ, wanted))}


def load_by_id(tx: Tx, ids: Iterable[str], *, only_free: bool = False) -> Script[dict[str, Row]]:
    """Lock and read rows by id; as `load_by_seq`."""
    wanted = askable(ids)
    if not wanted:
        return {}
    return {row.id: row for row in (yield from _load(tx, LOAD_FREE_BY_ID if only_free else LOAD_BY_ID, wanted))}


def _load(tx: Tx, sql: str, wanted: Sequence[int] | Sequence[str]) -> Script[list[Row]]:
    rows = [Row(*found) for found in (yield from tx.ask(sql, wanted))]
    for row in rows:
        row.was_state = row.state
        row.was_token = row.token
    # Whatever moves a row may make it pending, and then has to know the turns of its key.
    yield from tx.places.know((row.queue, row.key, row.priority) for row in rows if row.key is not None)
    return rows


# The guard is in the statement that writes, as the contract asks, though the rows are locked since the read.
SAVE = """
WITH saved AS (
    UPDATE packhorse.jobs AS j
    SET queue = m.queue, state = m.state, rank = m.rank, attempt = m.attempt, max_attempts = m.max_attempts,
        priority = m.priority, due_at_ms = m.due_at_ms, cancel = m.cancel, worker = m.worker, token = m.token,
        started_at_ms = m.started_at_ms, finished_at_ms = m.finished_at_ms, parked_at_ms = m.parked_at_ms,
        lane = m.lane,
        errors = CASE WHEN m.extras THEN m.errors ELSE j.errors END,
        result = CASE WHEN m.extras THEN m.result ELSE j.result END,
        waiting_for = m.waiting_for, held_by = m.held_by
    FROM unnest(
        $1::bigint[], $2::smallint[], $3::bigint[], $4::text[], $5::smallint[], $6::bigint[], $7::integer[],
        $8::integer[], $9::smallint[], $10::bigint[], $11::smallint[], $12::bigint[], $13::bigint[], $14::bigint[],
        $15::bigint[], $16::bigint[], $17::text[], $18::boolean[], $19::text[], $20::bytea[], $21::integer[],
        $22::bigint[]
    ) AS m (
        seq, was_state, was_token, queue, state, rank, attempt, max_attempts, priority, due_at_ms, cancel, worker,
        token, started_at_ms, finished_at_ms, parked_at_ms, lane, extras, errors, result, waiting_for, held_by
    )
    WHERE j.seq = m.seq AND j.state = m.was_state AND j.token IS NOT DISTINCT FROM m.was_token
    RETURNING j.id, j.state, j.state <> m.was_state AS has_moved
)
SELECT count(*), CASE WHEN bool_or(has_moved) THEN packhorse.tell(
    array_agg(id) FILTER (WHERE has_moved), array_agg(state) FILTER (WHERE has_moved), $23::bigint
) END
FROM saved
"""


def save(tx: Tx, rows: Iterable[Row]) -> Script[None]:
    """Write the rows that changed."""
    dirty = [row for row in rows if row.dirty]
    if not dirty:
        return
    moves = [
        (
            row.seq,
            row.was_state,
            row.was_token,
            row.queue,
            row.state,
            row.rank,
            row.attempt,
            row.max_attempts,
            row.priority,
            row.due_at_ms,
            row.cancel,
            row.worker,
            row.token,
            row.started_at_ms,
            row.finished_at_ms,
            row.parked_at_ms,
            row.lane,
            row.extras_dirty,
            row.errors,
            row.result,
            row.waiting_for,
            row.held_by,
        )
        for row in dirty
    ]
    [(written, _)] = yield from tx.ask(SAVE, *columns(moves), tx.now_ms)
    assert written == len(dirty), f"{written} of {len(dirty)} locked rows moved"
    tx.ended += [row.seq for row in dirty if row.state >= SUCCEEDED > row.was_state]
    for row in dirty:
        row.was_state, row.was_token = row.state, row.token
        row.dirty = row.extras_dirty = row.family_dirty = False
