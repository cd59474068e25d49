"""Jobs to look at: everything a store keeps of them, read in bulk."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from ...job import AFTER_FAILED, JobRecord
from ..stored import ASKED, STATES, errors_from_json, read_meta, read_tags
from .rows import ERRORS_TOGETHER_CHARS, RESULT_TOGETHER_BYTES, numbers

#: Ids of parents up to this size are read together with the rest.
AFTER_TOGETHER_CHARS = 16_384

_after_from_json = msgspec.json.Decoder(tuple[str, ...]).decode


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
    parked_at_ms: int | None
    result: str | int | None
    errors: str | int | None
    progress: str | None
    progress_note: str | None
    cancel: int
    node: str | None
    after_failed: int | None
    waiting_for: int | None
    after: str | int | None


_RECORDS = f"""
SELECT CAST(json_group_array(json_array(
    j.seq, j.id, j.type, j.queue, j.state, %s, j.priority, j.attempt,
    j.max_attempts, j.timeout_ms, j.created_at_ms, j.due_at_ms, j.started_at_ms, j.finished_at_ms,
    iif(j.worker IS NULL, NULL, coalesce(w.id, 'unknown')), j.key, j.tags, j.meta, j.unique_key, j.workflow,
    j.schedule, j.slot_at_ms, j.parked_at_ms, %s,
    iif(length(e.errors) <= {ERRORS_TOGETHER_CHARS}, e.errors, length(e.errors)), e.progress, e.progress_note, j.cancel,
    f.node, f.after_failed, f.waiting_for,
    iif(length(a.after) <= {AFTER_TOGETHER_CHARS}, a.after, length(a.after))
)) AS BLOB) FROM
"""
#: To be followed by a source `wanted` of seqs or ids and its join to `j`; ends with `RECORDS_JOIN`.
RECORDS = _RECORDS % (
    "iif(j.payload IS NULL, NULL, hex(j.payload))",
    f"iif(length(e.result) <= {RESULT_TOGETHER_BYTES}, hex(e.result), length(e.result))",
)
#: The same without what may be large.
BRIEF_RECORDS = _RECORDS % ("''", "NULL")
RECORDS_JOIN = """
 LEFT JOIN extras AS e ON e.seq = j.seq LEFT JOIN workers AS w ON w.no = j.worker
 LEFT JOIN families AS f ON f.seq = j.seq LEFT JOIN parents AS a ON a.seq = j.seq
"""
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
    after = look.after
    if isinstance(after, int):
        after = apart("SELECT after FROM parents WHERE seq = ?")
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
        after=_after_from_json(after) if isinstance(after, str) else (),
        after_failed=AFTER_FAILED[look.after_failed or 0],
        waiting_for=look.waiting_for or 0,
        workflow=look.workflow,
        node=look.node,
        schedule=look.schedule,
        slot_at_ms=look.slot_at_ms,
        result=apart("SELECT result FROM extras WHERE seq = ?")
        if isinstance(result, int)
        else bytes.fromhex(result)
        if result is not None
        else None,
        errors=errors_from_json(errors) if isinstance(errors, str) else (),
        progress=float(look.progress) if look.progress is not None else None,
        progress_note=look.progress_note,
        cancel_requested=look.cancel == ASKED,
        parked_at_ms=look.parked_at_ms,
    )


# ---- durable steps -----------------------------------------------------------------------------------------

_STEPS = f"""
SELECT CAST(json_group_array(json_array(
    s.seq, s.name, iif(length(s.result) <= {RESULT_TOGETHER_BYTES}, hex(s.result), NULL)
)) AS BLOB) FROM json_each(?) AS wanted CROSS JOIN steps AS s ON s.seq = wanted.value
"""
_decode_steps = msgspec.json.Decoder(list[tuple[int, str, str | None]]).decode


def read_steps(db: sqlite3.Connection, records: list[tuple[int, JobRecord]]) -> None:
    """Fill in the results of durable steps."""
    if not records:
        return
    by_seq = dict(records)
    wanted = numbers(by_seq)
    for seq, name, text in _decode_steps(db.execute(_STEPS, (wanted,)).fetchone()[0]):
        if text is not None:
            result = bytes.fromhex(text)
        else:
            found = db.execute("SELECT result FROM steps WHERE seq = ? AND name = ?", (seq, name)).fetchone()
            if found is None:  # dropped since
                continue
            result = found[0]
        record = by_seq[seq]
        if record.steps is None:
            record.steps = {}
        record.steps[name] = result
