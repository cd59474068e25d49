"""Jobs read and written in bulk: one statement for any number of rows (why: engine.py).

Rows travel as JSON, binary values as hex: SQLite writes one value, msgspec reads it in C. What is large
is fetched on its own, so that no value grows past SQLite's limit of 1,000,000,000 bytes.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ...job import JobError, JobRecord, JobSpec, State, rank
from .ops import Transaction

WAITING, SCHEDULED, PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED = range(1, 8)

STATES = {
    WAITING: State.WAITING,
    SCHEDULED: State.SCHEDULED,
    PENDING: State.PENDING,
    RUNNING: State.RUNNING,
    SUCCEEDED: State.SUCCEEDED,
    FAILED: State.FAILED,
    CANCELLED: State.CANCELLED,
}
CODES = {state: code for code, state in STATES.items()}

#: Payloads up to this many bytes lie in the row of the job, larger ones beside it: a row is rewritten at every move.
INLINE_BYTES = 1_024
#: Results and error histories up to these sizes are read together with the rest, larger ones each on its own.
RESULT_TOGETHER_BYTES = 4_096
ERRORS_TOGETHER_CHARS = 16_384

to_json = msgspec.json.Encoder().encode
_errors_from_json = msgspec.json.Decoder(tuple[JobError, ...]).decode
_tags_from_json = msgspec.json.Decoder(tuple[str, ...]).decode
_meta_from_json = msgspec.json.Decoder(dict[str, str]).decode


def numbers(values: Iterable[int]) -> str:
    """Write whole numbers for `json_each(?)`."""
    return f"[{','.join(map(str, values))}]"


def read_tags(text: str | None) -> tuple[str, ...]:
    """Read the column `tags`."""
    return () if text is None else _tags_from_json(text)


def read_meta(text: str | None) -> dict[str, str] | None:
    """Read the column `meta`."""
    return None if text is None else _meta_from_json(text)


# ---- rows that move ----------------------------------------------------------------------------------------


class Row(msgspec.Struct, array_like=True):
    """What a move may look at and change. The fields are the columns of `_LOAD`, in its order."""

    seq: int
    id: str
    queue: str
    state: int
    attempt: int
    max_attempts: int
    priority: int
    due_at_ms: int
    cancel: int
    worker: int | None
    token: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    parked_at_ms: int | None
    unique_key: str | None
    errors: str | int | None
    # Not columns: what a save is to do, and what it checks.
    result: bytes | None = None
    was_state: int = 0
    was_token: int | None = None
    dirty: bool = False
    extras_dirty: bool = False  # result or errors changed

    def start_over(self, delay_ms: int, now_ms: int) -> None:
        """Make it run again: now, or in `delay_ms`."""
        self.state = SCHEDULED if delay_ms > 0 else PENDING
        self.due_at_ms = now_ms + max(0, delay_ms)
        self.dirty = True

    def end(self, state: int, now_ms: int) -> None:
        """Make it terminal; the unique key is free with the same write, for the index holds live jobs only."""
        self.state = state
        self.finished_at_ms = now_ms
        self.dirty = True

    def let_go(self) -> None:
        """Take it from its worker: the token is void from here on."""
        self.worker = self.token = None
        self.dirty = True


_LOAD = f"""
SELECT CAST(json_group_array(json_array(
    j.seq, j.id, j.queue, j.state, j.attempt, j.max_attempts, j.priority, j.due_at_ms, j.cancel, j.worker, j.token,
    j.started_at_ms, j.finished_at_ms, j.parked_at_ms, j.unique_key,
    iif(length(e.errors) > {ERRORS_TOGETHER_CHARS}, 0, e.errors)
)) AS BLOB)
FROM json_each(?) AS wanted CROSS JOIN jobs AS j ON j.%s = wanted.value LEFT JOIN extras AS e ON e.seq = j.seq
"""
_LOAD_BY_SEQ = _LOAD % "seq"
_LOAD_BY_ID = _LOAD % "id"
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


def add_to_errors(row: Row, error: JobError, add: Any) -> None:
    """Add an error to the history of a row, by the rule `add` of the contract."""
    old: tuple[JobError, ...] = _errors_from_json(row.errors) if isinstance(row.errors, str) else ()
    row.errors = to_json(add(old, error)).decode()
    row.extras_dirty = True


# The guard is in the statement that writes, as the contract asks, though we hold the write lock since the read.
_SAVE = """
UPDATE jobs NOT INDEXED
SET queue = m.value ->> 3, state = m.value ->> 4, rank = m.value ->> 5, attempt = m.value ->> 6,
    max_attempts = m.value ->> 7, priority = m.value ->> 8, due_at_ms = m.value ->> 9, cancel = m.value ->> 10,
    worker = m.value ->> 11, token = m.value ->> 12, started_at_ms = m.value ->> 13, finished_at_ms = m.value ->> 14,
    parked_at_ms = m.value ->> 15
FROM json_each(?) AS m
WHERE jobs.seq = m.value ->> 0 AND jobs.state = m.value ->> 1 AND jobs.token IS m.value ->> 2
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
            rank(row.due_at_ms, row.priority),
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
        )
        for row in dirty
    ]
    written = tx.db.execute(_SAVE, (to_json(moves).decode(),)).rowcount
    assert written == len(dirty), f"{written} of {len(dirty)} rows moved under the write lock"
    save_extras(tx, [(row.seq, row.result, row.errors) for row in dirty if row.extras_dirty])
    for row in dirty:
        row.was_state, row.was_token, row.dirty, row.extras_dirty = row.state, row.token, False, False


def save_extras(tx: Transaction, extras: Sequence[tuple[int, bytes | None, Any]]) -> None:
    """Write results and error histories; progress stays."""
    insert_chunks(
        tx.db,
        "INSERT INTO extras (seq, result, errors) VALUES {} ON CONFLICT (seq) DO UPDATE SET result = excluded.result, "
        "errors = excluded.errors",
        extras,
    )
    tx.pages += sum(len(result or b"") + len(errors or "") for _, result, errors in extras) // 4_096


def drop(tx: Transaction, seqs: Sequence[int]) -> None:
    """Remove jobs and all that is kept of them."""
    if seqs:
        wanted = (numbers(seqs),)
        for table in ("jobs", "extras", "payloads"):
            tx.db.execute(f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))", wanted)


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


# ---- new rows ----------------------------------------------------------------------------------------------

_NEW = (
    "INSERT INTO jobs (id, type, queue, state, rank, due_at_ms, created_at_ms, priority, max_attempts, timeout_ms, "
    "payload) VALUES {}"
)
_NEW_WITH_ALL = (
    "INSERT INTO jobs (id, type, queue, state, rank, due_at_ms, created_at_ms, priority, max_attempts, timeout_ms, "
    "payload, key, tags, meta, unique_key, workflow, schedule, slot_at_ms) VALUES {}"
)


def insert(tx: Transaction, specs: Iterable[JobSpec]) -> None:
    """Store new jobs; an id or unique key that is taken is an IntegrityError."""
    plain: list[tuple[Any, ...]] = []
    full: list[tuple[Any, ...]] = []
    large: list[tuple[str, bytes]] = []
    size = 0
    now_ms = tx.now_ms
    for spec in specs:
        payload: bytes | None = spec.payload
        assert payload is not None
        size += len(payload)
        if len(payload) > INLINE_BYTES:
            large.append((spec.id, payload))
            payload = None
        due_at_ms = now_ms + max(0, spec.delay_ms)
        head = (
            spec.id,
            spec.type,
            spec.queue,
            SCHEDULED if spec.delay_ms > 0 else PENDING,
            rank(due_at_ms, spec.priority),
            due_at_ms,
            now_ms,
            spec.priority,
            spec.max_attempts,
            spec.timeout_ms,
            payload,
        )
        if _is_plain(spec) and not full:  # once one is not plain all are written as such, in their order
            plain.append(head)
        else:
            full.append(head + _rest(spec))
    insert_chunks(tx.db, _NEW, plain)
    insert_chunks(tx.db, _NEW_WITH_ALL, full)
    for job_id, payload in large:
        tx.db.execute("INSERT INTO payloads SELECT seq, ? FROM jobs WHERE id = ?", (payload, job_id))
    tx.pages += size // 4_096


def _is_plain(spec: JobSpec) -> bool:
    return (
        spec.key is None
        and not spec.tags
        and spec.meta is None
        and spec.unique is None
        and spec.workflow is None
        and spec.schedule is None
        and spec.slot_at_ms is None
    )


def _rest(spec: JobSpec) -> tuple[Any, ...]:
    return (
        spec.key,
        to_json(spec.tags).decode() if spec.tags else None,
        to_json(spec.meta).decode() if spec.meta is not None else None,
        spec.unique.key if spec.unique is not None else None,
        spec.workflow,
        spec.schedule,
        spec.slot_at_ms,
    )


# ---- rows to look at ---------------------------------------------------------------------------------------


class _Look(msgspec.Struct, array_like=True):
    seq: int
    id: str
    type: str
    queue: str
    state: int
    payload: str | None
    priority: int
    attempt: int
    max_attempts: int
    timeout_ms: int
    created_at_ms: int
    due_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    worker: str | None
    key: str | None
    tags: str | None
    meta: str | None
    unique: str | None
    workflow: str | None
    schedule: str | None
    slot_at_ms: int | None
    result: str | int | None
    errors: str | int | None
    progress: str | None
    progress_note: str | None
    cancel: int


#: To be followed by a source `wanted` of seqs or ids and its join to `j`; ends with `RECORDS_JOIN`.
RECORDS = f"""
SELECT CAST(json_group_array(json_array(
    j.seq, j.id, j.type, j.queue, j.state, iif(j.payload IS NULL, NULL, hex(j.payload)), j.priority, j.attempt,
    j.max_attempts, j.timeout_ms, j.created_at_ms, j.due_at_ms, j.started_at_ms, j.finished_at_ms,
    iif(j.worker IS NULL, NULL, coalesce(w.id, 'unknown')), j.key, j.tags, j.meta, j.unique_key, j.workflow,
    j.schedule, j.slot_at_ms, iif(length(e.result) <= {RESULT_TOGETHER_BYTES}, hex(e.result), length(e.result)),
    iif(length(e.errors) <= {ERRORS_TOGETHER_CHARS}, e.errors, length(e.errors)), e.progress, e.progress_note, j.cancel
)) AS BLOB) FROM
"""
RECORDS_JOIN = " LEFT JOIN extras AS e ON e.seq = j.seq LEFT JOIN workers AS w ON w.no = j.worker"
_decode_looks = msgspec.json.Decoder(list[_Look]).decode


def read_records(db: sqlite3.Connection, sql: str, values: Any) -> list[tuple[int, JobRecord]]:
    """Run a statement made of `RECORDS`; answers seq and record of each job, in no order."""
    looks = _decode_looks(db.execute(sql, values).fetchone()[0])
    return [(look.seq, _record(db, look)) for look in looks]


def _record(db: sqlite3.Connection, look: _Look) -> JobRecord:
    def apart(sql: str) -> Any:
        found = db.execute(sql, (look.seq,)).fetchone()
        return found[0] if found is not None else None

    payload = look.payload
    result, errors = look.result, look.errors
    if isinstance(errors, int):
        errors = apart("SELECT errors FROM extras WHERE seq = ?")
    return JobRecord(
        id=look.id,
        type=look.type,
        queue=look.queue,
        state=STATES[look.state],
        payload=bytes.fromhex(payload)
        if payload is not None
        else apart("SELECT payload FROM payloads WHERE seq = ?") or b"",
        priority=look.priority,
        attempt=look.attempt,
        max_attempts=look.max_attempts,
        timeout_ms=look.timeout_ms,
        created_at_ms=look.created_at_ms,
        due_at_ms=look.due_at_ms,
        started_at_ms=look.started_at_ms,
        finished_at_ms=look.finished_at_ms,
        worker=look.worker,
        key=look.key,
        tags=read_tags(look.tags),
        meta=read_meta(look.meta),
        unique=look.unique,
        workflow=look.workflow,
        schedule=look.schedule,
        slot_at_ms=look.slot_at_ms,
        result=apart("SELECT result FROM extras WHERE seq = ?")
        if isinstance(result, int)
        else bytes.fromhex(result)
        if result is not None
        else None,
        errors=_errors_from_json(errors) if isinstance(errors, str) else (),
        progress=float(look.progress) if look.progress is not None else None,
        progress_note=look.progress_note,
        cancel_requested=bool(look.cancel),
    )
