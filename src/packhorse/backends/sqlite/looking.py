"""Get, find, counts and workers: reads of the reader thread, each statement a short snapshot of its own.

A snapshot that stays open keeps checkpoints from finishing and the WAL growing, so a search through many
jobs is cut into windows.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from ...job import JobRecord, State
from ..base import Page, Query, QueueCounts, WorkerInfo, WorkflowCounts, page_limit, parse_cursor
from ..stored import CANCELLED, CODES, FAILED, PENDING, RUNNING, SCHEDULED, STATES, SUCCEEDED, WAITING, to_json
from .records import BRIEF_RECORDS, RECORDS, RECORDS_JOIN, read_records, read_steps
from .steering import read_queues

#: Jobs looked at in one statement of a search, at most: about 10 ms.
WINDOW = 20_000

_GET = f"{RECORDS} json_each(?) AS wanted CROSS JOIN jobs AS j ON j.id = wanted.value {RECORDS_JOIN}"
_GET += f" WHERE j.state <= {CANCELLED}"


def get(db: sqlite3.Connection, ids: Sequence[str]) -> list[JobRecord | None]:
    """Look jobs up by id."""
    records = read_records(db, _GET, (to_json(ids).decode(),))
    read_steps(db, records)
    found = {record.id: record for _, record in records}
    return [found.get(job_id) for job_id in ids]


# ---- find --------------------------------------------------------------------------------------------------

#: Where the jobs of a state are found without looking at any other.
_OF_STATE = {
    WAITING: f"jobs INDEXED BY listed WHERE state IN (1, 6) AND state = {WAITING}",
    SCHEDULED: f"jobs INDEXED BY due WHERE state = {SCHEDULED}",
    PENDING: f"(SELECT seq FROM jobs INDEXED BY ready WHERE state = {PENDING} AND lane IS NULL UNION ALL "
    f"SELECT seq FROM jobs INDEXED BY laned WHERE state = {PENDING} AND lane IS NOT NULL)",
    RUNNING: f"jobs INDEXED BY running WHERE state = {RUNNING}",
    **{code: f"jobs INDEXED BY ended WHERE state >= {SUCCEEDED} AND state = {code}" for code in (5, 6, 7)},
}


def find(db: sqlite3.Connection, query: Query) -> Page:
    """Look jobs up by filter, a page at a time, by seq."""
    limit = page_limit(query)
    records = BRIEF_RECORDS if query.brief else RECORDS
    source = _source(db, query)
    filters, values = _filters(query)
    order, beyond, until = ("ASC", ">", "<=") if query.oldest_first else ("DESC", "<", ">=")
    values["cursor"] = parse_cursor(query.cursor)
    values["cursor"] = (-1 if query.oldest_first else 1 << 62) if values["cursor"] is None else values["cursor"]
    values["window"] = 4 * limit
    found: list[tuple[int, JobRecord]] = []
    while True:
        # The seq that ends this window, None if the rest is smaller than one.
        edge = db.execute(
            f"SELECT seq FROM {source} AND seq {beyond} :cursor ORDER BY seq {order} LIMIT 1 OFFSET :window", values
        ).fetchone()
        inside = "" if edge is None else f"AND seq {until} :edge"
        values["edge"] = None if edge is None else edge[0]
        values["limit"] = limit + 1 - len(found)
        part = read_records(
            db,
            f"{records} (SELECT seq FROM {source} AND seq {beyond} :cursor {inside} AND {filters} "
            f"ORDER BY seq {order} LIMIT :limit) AS wanted CROSS JOIN jobs AS j ON j.seq = wanted.seq {RECORDS_JOIN}",
            values,
        )
        found += sorted(part, key=lambda pair: pair[0], reverse=not query.oldest_first)
        if edge is None or len(found) > limit:
            break
        values["cursor"] = edge[0]
        values["window"] = min(WINDOW, 4 * values["window"])
    more = len(found) > limit
    return Page([record for _, record in found[:limit]], str(found[limit - 1][0]) if more else None)


def _source(db: sqlite3.Connection, query: Query) -> str:
    """Choose what is looked through: an index by seq, the few jobs of rare states, or all jobs by seq."""
    codes = sorted({CODES[State(state)] for state in query.states})
    if query.workflow is not None:
        return "jobs INDEXED BY of_workflow WHERE workflow = :workflow"
    if query.schedule is not None:
        return "jobs INDEXED BY of_schedule WHERE schedule = :schedule"
    if len(codes) == 1 and codes[0] in {WAITING, FAILED}:
        return f"jobs INDEXED BY listed WHERE state IN (1, 6) AND state = {codes[0]}"
    if codes and all(_is_rare(db, code) for code in codes):
        union = " UNION ALL ".join(f"SELECT seq FROM {_OF_STATE[code]}" for code in codes)
        return f"jobs NOT INDEXED WHERE seq IN ({union})"
    return f"jobs NOT INDEXED WHERE state <= {CANCELLED}"


def _is_rare(db: sqlite3.Connection, code: int) -> bool:
    """Tell, from the index alone, whether a state has so few jobs that sorting them beats looking through all."""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM {_OF_STATE[code]} LIMIT {WINDOW + 1})"
    return bool(db.execute(sql).fetchone()[0] <= WINDOW)


def _filters(query: Query) -> tuple[str, dict[str, Any]]:
    """Write the WHERE of a query: names are ours, all that came from outside are parameters (C9)."""
    terms = ["TRUE"]
    values: dict[str, Any] = {}
    if query.states:
        terms.append(f"state IN ({','.join(str(CODES[State(state)]) for state in query.states)})")
    for column, value in (
        ("queue", query.queue),
        ("type", query.type),
        ("key", query.key),
        ("workflow", query.workflow),
        ("schedule", query.schedule),
    ):
        if value is not None:
            terms.append(f"{column} = :{column}")
            values[column] = value
    if query.tag is not None:
        # instr is quick and lets nothing through that json_each would find
        terms.append("instr(tags, :tag_json) AND EXISTS (SELECT 1 FROM json_each(tags) WHERE value = :tag)")
        values["tag"] = query.tag
        values["tag_json"] = to_json(query.tag).decode()
    if query.created_from_ms is not None:
        terms.append("created_at_ms >= :created_from_ms")
        values["created_from_ms"] = query.created_from_ms
    if query.created_before_ms is not None:
        terms.append("created_at_ms < :created_before_ms")
        values["created_before_ms"] = query.created_before_ms
    return " AND ".join(terms), values


# ---- counts and workers ------------------------------------------------------------------------------------

# Each part reads one index and no job.
COUNTS = f"""
SELECT queue, state, count(*), NULL FROM jobs INDEXED BY ended
WHERE state >= {SUCCEEDED} AND state <= {CANCELLED} GROUP BY state, queue
UNION ALL
SELECT queue, {WAITING}, count(*), NULL FROM jobs INDEXED BY listed
WHERE state IN (1, 6) AND state = {WAITING} GROUP BY queue
UNION ALL
SELECT queue, {SCHEDULED}, count(*), NULL FROM jobs INDEXED BY due WHERE state = {SCHEDULED} GROUP BY queue
UNION ALL
SELECT queue, {RUNNING}, count(*), NULL FROM jobs INDEXED BY running WHERE state = {RUNNING} GROUP BY queue
UNION ALL
SELECT queue, {PENDING}, count(*), min(due_at_ms)
FROM jobs INDEXED BY ready WHERE state = {PENDING} AND lane IS NULL GROUP BY queue
UNION ALL
SELECT queue, {PENDING}, count(*), min(due_at_ms)
FROM jobs INDEXED BY laned WHERE state = {PENDING} AND lane IS NOT NULL GROUP BY queue
"""


def counts(db: sqlite3.Connection, now_ms: int) -> dict[str, QueueCounts]:
    """Count jobs by queue and state."""
    settings = read_queues(db)
    found: dict[str, dict[int, int]] = {name: {} for name in settings}
    oldest: dict[str, int] = {}
    for queue, code, count, due_at_ms in db.execute(COUNTS):
        of_queue = found.setdefault(queue, {})
        of_queue[code] = of_queue.get(code, 0) + count
        if due_at_ms is not None:
            oldest[queue] = min(due_at_ms, oldest.get(queue, due_at_ms))
    return {
        name: QueueCounts(
            states={STATES[code]: found[name][code] for code in sorted(found[name])},
            oldest_pending_ms=max(0, now_ms - oldest[name]) if name in oldest else None,
            paused=bool(name in settings and settings[name].paused),
        )
        for name in sorted(found)
    }


# One step in the index for each workflow, not for each of its jobs; then the jobs of those on the page.
WORKFLOWS = """
WITH RECURSIVE page (id) AS (
    SELECT max(workflow) FROM jobs INDEXED BY of_workflow WHERE workflow IS NOT NULL AND (?1 IS NULL OR workflow < ?1)
    UNION ALL
    SELECT (SELECT max(workflow) FROM jobs INDEXED BY of_workflow WHERE workflow IS NOT NULL AND workflow < page.id)
    FROM page WHERE page.id IS NOT NULL LIMIT ?2
)
SELECT page.id, j.state, count(*), min(j.created_at_ms)
FROM page CROSS JOIN jobs AS j INDEXED BY of_workflow ON j.workflow = page.id
WHERE page.id IS NOT NULL GROUP BY page.id, j.state
"""


def workflows(db: sqlite3.Connection, limit: int, before: str | None) -> list[WorkflowCounts]:
    """Count the jobs of workflows by state, newest id first."""
    if limit <= 0:
        return []
    found: dict[str, dict[int, int]] = {}
    created: dict[str, int] = {}
    for name, code, count, created_at_ms in db.execute(WORKFLOWS, (before, limit)).fetchall():
        found.setdefault(name, {})[code] = count
        created[name] = min(created_at_ms, created.get(name, created_at_ms))
    return [
        WorkflowCounts(
            id=name,
            states={STATES[code]: found[name][code] for code in sorted(found[name])},
            created_at_ms=created[name],
        )
        for name in sorted(found, reverse=True)
    ]


_WORKERS = f"""
SELECT info, lease_end_at_ms - ?1, (SELECT count(*) FROM jobs WHERE state = {RUNNING} AND worker = workers.no)
FROM workers WHERE lease_end_at_ms > ?1 ORDER BY id
"""
_decode_info = msgspec.json.Decoder(WorkerInfo).decode


def workers(db: sqlite3.Connection, now_ms: int) -> list[WorkerInfo]:
    """List the workers whose lease is live."""
    return [
        msgspec.structs.replace(_decode_info(info), lease_left_ms=left_ms, running=running)
        for info, left_ms, running in db.execute(_WORKERS, (now_ms,))
    ]
