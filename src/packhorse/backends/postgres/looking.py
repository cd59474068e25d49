"""Get, find, counts and workers. A search through many jobs is cut into windows, so that no statement is long."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...job import AFTER_FAILED, JobRecord, State
from ..base import Page, Query, QueueCounts, WorkerInfo, WorkflowCounts, page_limit, parse_cursor
from ..stored import (
    ASKED,
    CANCELLED,
    CODES,
    FAILED,
    PENDING,
    RUNNING,
    SCHEDULED,
    STATES,
    SUCCEEDED,
    WAITING,
    errors_from_json,
    read_meta,
    read_tags,
    to_json,
)
from .rows import askable
from .script import NOW, Rows, Script, Tx
from .steering import queues_of

#: Jobs looked at in one statement of a search, at most: about 20 ms.
WINDOW = 20_000

_RECORD = """j.seq, j.id, j.type, j.queue, j.state, {payload}, j.priority, j.attempt, j.max_attempts, j.timeout_ms,
    j.created_at_ms, j.due_at_ms, j.started_at_ms, j.finished_at_ms,
    CASE WHEN j.worker IS NOT NULL THEN coalesce((SELECT w.id FROM packhorse.workers AS w WHERE w.no = j.worker),
        'unknown') END,
    j.key, j.tags, j.meta, j.unique_key, j.after, j.after_failed, j.waiting_for, j.workflow, j.node, j.schedule,
    j.slot_at_ms, {result}, j.errors, j.progress, j.progress_note, j.cancel, j.parked_at_ms"""
RECORD = _RECORD.format(payload="j.payload", result="j.result")
#: The same without what may be large.
BRIEF = _RECORD.format(payload="''::bytea", result="NULL::bytea")

GET = f"SELECT {RECORD} FROM packhorse.jobs AS j WHERE j.id = ANY($1::text[]) AND j.state <= {CANCELLED}"
GET_BY_SEQ = f"SELECT {RECORD} FROM packhorse.jobs AS j WHERE j.seq = ANY($1::bigint[])"
_STEPS = "SELECT seq, name, result FROM packhorse.steps WHERE seq = ANY($1::bigint[]) ORDER BY seq, name"
_after_from_json = msgspec.json.Decoder(tuple[str, ...]).decode


def get(tx: Tx, ids: Sequence[str]) -> Script[list[JobRecord | None]]:
    """Look jobs up by id."""
    rows = yield from tx.ask(GET, askable(ids))
    found = {row[1]: _record(row) for row in rows}
    by_seq = {row[0]: found[row[1]] for row in rows}
    yield from _add_steps(tx, by_seq)
    return [found.get(job_id) for job_id in ids]


def _add_steps(tx: Tx, by_seq: dict[int, JobRecord]) -> Script[None]:
    if by_seq:
        for seq, name, result in (yield from tx.ask(_STEPS, list(by_seq))):
            record = by_seq[seq]
            record.steps = {**(record.steps or {}), name: result}


def _record(row: tuple[Any, ...]) -> JobRecord:
    return JobRecord(
        id=row[1],
        type=row[2],
        queue=row[3],
        state=STATES[row[4]],
        payload=row[5],
        priority=row[6],
        attempt=row[7],
        max_attempts=row[8],
        timeout_ms=row[9],
        created_at_ms=row[10],
        due_at_ms=row[11],
        started_at_ms=row[12],
        finished_at_ms=row[13],
        worker=row[14],
        key=row[15],
        tags=read_tags(row[16]),
        meta=read_meta(row[17]),
        unique=row[18],
        after=_after_from_json(row[19]) if row[19] is not None else (),
        after_failed=AFTER_FAILED[row[20]],
        waiting_for=row[21],
        workflow=row[22],
        node=row[23],
        schedule=row[24],
        slot_at_ms=row[25],
        result=row[26],
        errors=errors_from_json(row[27]) if row[27] is not None else (),
        progress=row[28],
        progress_note=row[29].decode() if row[29] is not None else None,
        cancel_requested=row[30] == ASKED,
        parked_at_ms=row[31],
    )


# ---- find --------------------------------------------------------------------------------------------------

#: Where the jobs of a state are found without looking at any other.
_OF_STATE = {
    WAITING: (f"state IN (1, 6) AND state = {WAITING}",),
    SCHEDULED: (f"state = {SCHEDULED}",),
    PENDING: (f"state = {PENDING} AND lane IS NULL", f"state = {PENDING} AND lane IS NOT NULL"),
    RUNNING: (f"state = {RUNNING}",),
    FAILED: (f"state IN (1, 6) AND state = {FAILED}",),
    **{
        code: (f"state >= 5 AND children = 0 AND state = {code}", f"state >= 5 AND children <> 0 AND state = {code}")
        for code in (SUCCEEDED, CANCELLED)
    },
}


def get_by_seq(tx: Tx, seqs: Sequence[int]) -> Script[dict[int, JobRecord]]:
    """Look jobs up by seq, with the results of durable steps."""
    found = {row[0]: _record(row) for row in (yield from tx.ask(GET_BY_SEQ, list(seqs)))}
    yield from _add_steps(tx, found)
    return found


def find(tx: Tx, query: Query) -> Script[Page]:
    """Look jobs up by filter, a page at a time, by seq."""
    limit = page_limit(query)
    source = yield from _source(tx, query)
    filters, values = _filters(query)
    order, beyond, until = ("ASC", ">", "<=") if query.oldest_first else ("DESC", "<", ">=")
    cursor = parse_cursor(query.cursor)
    if cursor is None:
        cursor = -1 if query.oldest_first else 1 << 62
    window = 4 * limit
    found: Rows = []
    while True:
        # The seq that ends this window, none if the rest is smaller than one.
        named = {**values, "cursor": cursor, "window": window}
        edge = yield from _ask(
            tx, f"SELECT seq FROM {source} AND seq {beyond} :cursor ORDER BY seq {order} LIMIT 1 OFFSET :window", named
        )
        inside = f"AND seq {until} :edge" if edge else ""
        named |= {"edge": edge[0][0] if edge else None, "limit": limit + 1 - len(found)}
        found += yield from _ask(
            tx,
            f"SELECT {BRIEF if query.brief else RECORD} FROM (SELECT seq FROM {source} AND seq {beyond} :cursor "
            f"{inside} "
            f"AND {filters} ORDER BY seq {order} LIMIT :limit) AS n JOIN packhorse.jobs AS j ON j.seq = n.seq "
            f"ORDER BY j.seq {order}",
            named,
        )
        if not edge or len(found) > limit:
            break
        cursor = edge[0][0]
        window = min(WINDOW, 4 * window)
    more = len(found) > limit
    return Page([_record(row) for row in found[:limit]], str(found[limit - 1][0]) if more else None)


_CASTS = {
    "cursor": "bigint",
    "window": "bigint",
    "edge": "bigint",
    "limit": "bigint",
    "tag": "text",
    "tag_json": "text",
}
_CASTS |= {"created_from_ms": "bigint", "created_before_ms": "bigint"}


def _ask(tx: Tx, sql: str, named: dict[str, Any]) -> Script[Rows]:
    """Ask with parameters by name: each becomes a number and a cast, those that are not in the text are left out."""
    params: list[Any] = []
    for name in sorted(named, key=len, reverse=True):
        if f":{name}" in sql:
            params.append(named[name])
            sql = sql.replace(f":{name}", f"${len(params)}::{_CASTS.get(name, 'text')}".replace("::", "\a"))
    return (yield from tx.ask(sql.replace("\a", "::"), *params))


def _source(tx: Tx, query: Query) -> Script[str]:
    """Choose what is looked through: an index by seq, the few jobs of rare states, or all jobs by seq."""
    codes = sorted({CODES[State(state)] for state in query.states})
    if query.workflow is not None:
        return "packhorse.jobs WHERE workflow = :workflow"
    if query.schedule is not None:
        return "packhorse.jobs WHERE schedule = :schedule"
    if len(codes) == 1 and codes[0] in {WAITING, FAILED}:
        return f"packhorse.jobs WHERE {_OF_STATE[codes[0]][0]}"
    parts = [part for code in codes for part in _OF_STATE[code]]
    are_rare = bool(parts)
    for part in parts:
        if not are_rare:
            break
        rows = yield from tx.ask(
            f"SELECT count(*) FROM (SELECT 1 FROM packhorse.jobs WHERE {part} LIMIT $1::bigint) AS n", WINDOW + 1
        )
        are_rare = rows[0][0] <= WINDOW
    if are_rare:
        union = " UNION ALL ".join(
            f"SELECT seq, queue, type, key, workflow, schedule, state, tags, created_at_ms FROM packhorse.jobs "
            f"WHERE {part}"
            for part in parts
        )
        return f"({union}) AS jobs WHERE TRUE"
    return f"packhorse.jobs WHERE state <= {CANCELLED}"


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
            values[column] = value.replace("\0", "\ufffd")  # no text here has a NUL, so it finds nothing
    if query.tag is not None:
        # position is quick and lets nothing through that the array would find
        terms.append(
            "(CASE WHEN position(:tag_json in tags) > 0 THEN EXISTS (SELECT 1 FROM "
            "json_array_elements_text(tags::json) AS t "
            "WHERE t = :tag) ELSE FALSE END)"
        )
        values["tag"] = query.tag.replace("\0", "\ufffd")
        values["tag_json"] = to_json(query.tag).decode()
    if query.created_from_ms is not None:
        terms.append("created_at_ms >= :created_from_ms")
        values["created_from_ms"] = query.created_from_ms
    if query.created_before_ms is not None:
        terms.append("created_at_ms < :created_before_ms")
        values["created_before_ms"] = query.created_before_ms
    return " AND ".join(terms), values


# ---- counts and workers ------------------------------------------------------------------------------------

# Each part can be read from one index.
COUNTS = f"""
SELECT queue, state::integer, count(*), NULL::bigint FROM packhorse.jobs
WHERE state >= 5 AND children = 0 AND state <= {CANCELLED} GROUP BY state, queue
UNION ALL
SELECT queue, state::integer, count(*), NULL FROM packhorse.jobs
WHERE state >= 5 AND children <> 0 AND state <= {CANCELLED} GROUP BY state, queue
UNION ALL
SELECT queue, state::integer, count(*), NULL FROM packhorse.jobs WHERE state IN (1, 6)
    AND state = {WAITING} GROUP BY state, queue
UNION ALL
SELECT queue, state::integer, count(*), NULL FROM packhorse.jobs WHERE state = {SCHEDULED} GROUP BY state, queue
UNION ALL
SELECT queue, state::integer, count(*), NULL FROM packhorse.jobs WHERE state = {RUNNING} GROUP BY state, queue
UNION ALL
SELECT queue, {PENDING}, count(*), min(due_at_ms) FROM packhorse.jobs WHERE state = {PENDING} GROUP BY queue
"""
_NOW = f"SELECT {NOW.format('$1')}"


def counts(tx: Tx) -> Script[dict[str, QueueCounts]]:
    """Count jobs by queue and state."""
    now_ms = (yield from tx.ask(_NOW, tx.sent_now_ms))[0][0]
    settings = queues_of((yield from tx.ask("SELECT name, paused, capacity FROM packhorse.queues")))
    found: dict[str, dict[int, int]] = {name: {} for name in settings}
    oldest: dict[str, int] = {}
    for queue, code, count, due_at_ms in (yield from tx.ask(COUNTS)):
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
WITH RECURSIVE page (id, no) AS (
    (SELECT workflow, 1 FROM packhorse.jobs
     WHERE workflow IS NOT NULL AND ($1::text IS NULL OR workflow < $1::text) ORDER BY workflow DESC LIMIT 1)
    UNION ALL
    SELECT n.workflow, page.no + 1 FROM page, LATERAL (
        SELECT j.workflow FROM packhorse.jobs AS j WHERE j.workflow IS NOT NULL AND j.workflow < page.id
        ORDER BY j.workflow DESC LIMIT 1
    ) AS n WHERE page.no < $2::bigint
)
SELECT page.id, j.state::integer, count(*), min(j.created_at_ms)
FROM page JOIN packhorse.jobs AS j ON j.workflow = page.id GROUP BY page.id, j.state
"""


def workflows(tx: Tx, limit: int, before: str | None) -> Script[list[WorkflowCounts]]:
    """Count the jobs of workflows by state, newest id first."""
    if limit <= 0:
        return []
    found: dict[str, dict[int, int]] = {}
    created: dict[str, int] = {}
    before = before.replace("\0", "") if before is not None else None
    for name, code, count, created_at_ms in (yield from tx.ask(WORKFLOWS, before, limit)):
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
WITH facts AS MATERIALIZED (SELECT {NOW.format("$1")} AS now_ms)
SELECT w.info, l.end_at_ms - f.now_ms, (SELECT count(*) FROM packhorse.jobs WHERE state = {RUNNING} AND worker = w.no)
FROM facts AS f, packhorse.workers AS w CROSS JOIN LATERAL (
    SELECT end_at_ms FROM packhorse.leases WHERE worker = w.no ORDER BY no DESC LIMIT 1
) AS l WHERE l.end_at_ms > f.now_ms ORDER BY w.id
"""
_decode_info = msgspec.json.Decoder(WorkerInfo).decode


def workers(tx: Tx) -> Script[list[WorkerInfo]]:
    """List the workers whose lease is live."""
    return [
        msgspec.structs.replace(_decode_info(info), lease_left_ms=left_ms, running=running)
        for info, left_ms, running in (yield from tx.ask(_WORKERS, tx.sent_now_ms))
    ]
