"""Jobs that move, read and written in bulk: one statement for any number of rows (why: engine.py).

Rows travel as JSON, binary values as hex: SQLite writes one value, msgspec reads it in C. What is large
is fetched on its own, so that no value grows past SQLite's limit of 1,000,000,000 bytes.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..stored import ABSENT, SUCCEEDED, Row, moved, to_json
from .ops import Transaction

#: Payloads up to this many bytes lie in the row of the job, larger ones beside it: a row is rewritten at every move.
INLINE_BYTES = 1_024
#: Results and error histories up to these sizes are read together with the rest, larger ones each on its own.
RESULT_TOGETHER_BYTES = 4_096
ERRORS_TOGETHER_CHARS = 16_384


def numbers(values: Iterable[int]) -> str:
    """Write whole numbers for `json_each(?)`."""
    return f"[{','.join(map(str, values))}]"


# ---- rows that move ----------------------------------------------------------------------------------------


_LOAD = f"""
SELECT CAST(json_group_array(json_array(
    j.seq, j.id, j.type, j.key, j.queue, j.state, j.rank, j.lane, j.attempt, j.max_attempts,
    j.priority, j.created_at_ms,
    j.due_at_ms, j.cancel, j.worker, j.token, j.started_at_ms, j.finished_at_ms, j.parked_at_ms, j.unique_key,
    j.children, iif(length(e.errors) > {ERRORS_TOGETHER_CHARS}, 0, e.errors),
    coalesce(f.parents, 0), coalesce(f.waiting_for, 0), coalesce(f.after_failed, 0), f.held_by
)) AS BLOB)
FROM json_each(?) AS wanted CROSS JOIN jobs AS j ON j.%s = wanted.value LEFT JOIN extras AS e ON e.seq = j.seq
LEFT JOIN families AS f ON f.seq = j.seq
"""
_LOAD_BY_SEQ = _LOAD % "seq"
_LOAD_BY_ID = f"{_LOAD % 'id'}WHERE j.state < {ABSENT}"
_decode_rows = msgspec.json.Decoder(list[Row]).decode


def load_by_seq(db: sqlite3.Connection, seqs: Iterable[int]) -> dict[int, Row]:
    """Read rows by seq; those that are not there are not in the answer."""
    return {row.seq: row for row in _load(db, _LOAD_BY_SEQ, numbers(seqs))}


def load_by_id(db: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Row]:
    """Read rows by id; those that are not there are not in the answer."""
    return {row.id: row for row in _load(db, _LOAD_BY_ID, to_json(ids).decode())}


def _load(db: sqlite3.Connection, sql: str, wanted: str) -> list[Row]:
    rows = _decode_rows(db.execute(sql, (wanted,)).fetchone()[0])
    for row in rows:
        row.was_state = row.state
        row.was_token = row.token
        if row.errors == 0:
            row.errors = db.execute("SELECT errors FROM extras WHERE seq = ?", (row.seq,)).fetchone()[0]
    return rows


# The guard is in the statement that writes, as the contract asks, though we hold the write lock since the read.
_SAVE = """
UPDATE jobs NOT INDEXED
SET queue = m.value ->> 3, state = m.value ->> 4, rank = m.value ->> 5, attempt = m.value ->> 6,
    max_attempts = m.value ->> 7, priority = m.value ->> 8, due_at_ms = m.value ->> 9, cancel = m.value ->> 10,
    worker = m.value ->> 11, token = m.value ->> 12, started_at_ms = m.value ->> 13, finished_at_ms = m.value ->> 14,
    parked_at_ms = m.value ->> 15, lane = m.value ->> 16
FROM json_each(?) AS m
WHERE jobs.seq = m.value ->> 0 AND jobs.state = m.value ->> 1 AND jobs.token IS m.value ->> 2
"""


_SAVE_FAMILIES = """
UPDATE families SET waiting_for = m.value ->> 1, held_by = m.value ->> 2
FROM json_each(?) AS m WHERE families.seq = m.value ->> 0
"""


def save(tx: Transaction, rows: Iterable[Row]) -> None:
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
        )
        for row in dirty
    ]
    written = tx.db.execute(_SAVE, (to_json(moves).decode(),)).rowcount
    assert written == len(dirty), f"{written} of {len(dirty)} rows moved under the write lock"
    save_extras(tx, [(row.seq, row.result, row.errors) for row in dirty if row.extras_dirty])
    families = [(row.seq, row.waiting_for, row.held_by) for row in dirty if row.family_dirty]
    if families:
        tx.db.execute(_SAVE_FAMILIES, (to_json(families).decode(),))
    tx.ended += [row.seq for row in dirty if row.state >= SUCCEEDED > row.was_state]
    if tx.followed:
        for state, ids in moved(dirty).items():
            tx.tell(state, ids)
    for row in dirty:
        row.was_state, row.was_token = row.state, row.token
        row.dirty = row.extras_dirty = row.family_dirty = False


def save_extras(tx: Transaction, extras: Sequence[tuple[int, bytes | None, Any]]) -> None:
    """Write results and error histories; progress stays."""
    insert_chunks(
        tx.db,
        "INSERT INTO extras (seq, result, errors) VALUES {} ON CONFLICT (seq) DO UPDATE SET result = excluded.result, "
        "errors = excluded.errors",
        extras,
    )
    tx.pages += sum(len(result or b"") + len(errors or "") for _, result, errors in extras) // 4_096


_chunk_sql: dict[tuple[str, int], str] = {}


def insert_chunks(db: sqlite3.Connection, sql: str, rows: Sequence[Sequence[Any]], places: str = "") -> None:
    """Insert rows a few hundred at a time; `places` is how one row is written, if not as values only.

    Few sizes, so that SQLite prepares few statements; 256 rows of 20 values are far below its limit of 32,766.
    """
    start, count = 0, len(rows)
    for size in (256, 64, 16, 4, 1):
        while count - start >= size:
            values: list[Any] = []
            for row in rows[start : start + size]:
                values += row
            statement = _chunk_sql.get((sql, size))
            if statement is None:
                row_places = places or f"({','.join('?' * len(rows[start]))})"
                statement = _chunk_sql[sql, size] = sql.format(",".join([row_places] * size))
            db.execute(statement, values)
            start += size
