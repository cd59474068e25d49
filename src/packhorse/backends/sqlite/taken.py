"""A pending job as a claim reads it."""

from __future__ import annotations

import msgspec


class Taken(msgspec.Struct, array_like=True, gc=False):
    """The columns of `COLUMNS`, in its order."""

    seq: int
    rank: int
    type: str
    key: str | None
    lane: str | None
    id: str
    payload: str | None
    attempt: int
    max_attempts: int
    timeout_ms: int
    priority: int
    created_at_ms: int
    due_at_ms: int
    parked_at_ms: int | None
    tags: str | None
    meta: str | None
    workflow: str | None


#: What a claim reads of each job, from rows of `jobs`.
COLUMNS = """CAST(json_group_array(json_array(
    seq, rank, type, key, lane, id, iif(payload IS NULL, NULL, hex(payload)), attempt, max_attempts, timeout_ms,
    priority, created_at_ms, due_at_ms, parked_at_ms, tags, meta, workflow
)) AS BLOB)"""
decode_taken = msgspec.json.Decoder(list[Taken]).decode
