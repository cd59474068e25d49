"""Moves from another store (decision 18): a batch is held as it came, then becomes jobs."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...job import AFTER_FAILED, TERMINAL, State
from ..base import (
    DUE_TOPIC,
    Arrival,
    MovedJob,
    Tie,
    Transfer,
    Verdict,
    holds_key,
    job_topic,
    queue_topic,
    read_transfer,
    write_transfer,
)
from ..stored import (
    ABSENT,
    ASKED,
    CANCELLED,
    CODES,
    FAILED,
    FOR_PARENT,
    HELD,
    TOLD,
    UNTIL_IT_ENDS,
    WAITS,
    mask_of,
    to_json,
)
from . import families, keys, schedules
from .departing import identify
from .placing import columns
from .reviving import revive
from .script import Again, Script, Tx

_MARK_OF = "SELECT number, batch FROM packhorse.arrivals WHERE store = $1::text"
_LIVE = "UPDATE packhorse.arrivals SET batch = NULL WHERE store = $1::text"
_HOLD = """
INSERT INTO packhorse.arrivals (store, number, batch) VALUES ($1::text, $2::bigint, $3::bytea)
ON CONFLICT (store) DO UPDATE SET number = excluded.number, batch = excluded.batch
"""


def take_over(tx: Tx, transfer: Transfer | None) -> Script[Arrival]:
    """Make the batch before live, and hold this one."""
    yield from tx.lock(tx.store.lock_key("transfer"))
    yield from tx.begin()
    store = yield from identify(tx)
    if transfer is None:
        return Arrival(store=store)
    source, number = transfer.source, transfer.number
    found = yield from tx.ask(_MARK_OF, source)
    mark, held = found[0] if found else (0, None)
    is_empty = not transfer.jobs and not transfer.schedules
    if not is_empty and number < mark:
        return Arrival(store=store, verdict=Verdict.STALE)
    jobs = 0
    known: list[str] = []
    if held is not None and mark < number:
        before = read_transfer(held)
        known = yield from _arrive(tx, before)
        jobs = len(before.jobs) - len(known)
        yield from tx.ask(_LIVE, source)
    if not is_empty and number > mark:
        yield from tx.ask(_HOLD, source, number, write_transfer(transfer))
    if transfer.last:
        yield from _give_up(tx, source)
    yield from tx.finish()
    return Arrival(store=store, jobs=jobs, known=tuple(known))


def _arrive(tx: Tx, transfer: Transfer) -> Script[list[str]]:
    """Make a batch live; answers the ids that were here before."""
    here = yield from families.find(tx, [moved.record.id for moved in transfer.jobs], locked=True)
    known = [job_id for job_id, one in here.items() if one.state != ABSENT]
    arriving = [
        moved for moved in transfer.jobs if moved.record.id not in here or here[moved.record.id].state == ABSENT
    ]
    if arriving:
        gone = [one.seq for one in here.values() if one.state == ABSENT]
        if gone:
            yield from tx.ask(_REMOVE, gone)
        seqs = yield from _insert(tx, arriving, {one.id: one.seq for one in here.values()})
        yield from _take_keys(tx, arriving)
        yield from _tie(tx, arriving, seqs, transfer.source)
        yield from families.serve(tx)
        _ring(tx, arriving)
        yield from _revive(tx, arriving)
    yield from schedules.take_over(tx, transfer.schedules)
    return known


_RERUN = f"""
SELECT seq FROM packhorse.jobs WHERE id = ANY($1::text[]) AND children <> 0
AND state NOT IN ({FAILED}, {CANCELLED}, {ABSENT})
"""


def _revive(tx: Tx, arriving: Sequence[MovedJob]) -> Script[None]:
    """Revive children whose parents were rerun while one of the two was here and the other was not."""
    if not tx.families:
        return
    parents = {moved.record.id for moved in arriving}
    parents |= {parent for moved in arriving for parent, tie in moved.parents.items() if tie is Tie.HELD}
    rerun = [seq for (seq,) in (yield from tx.ask(_RERUN, sorted(parents)))]
    if rerun:
        yield from revive(tx, rerun)


def _ring(tx: Tx, arriving: Sequence[MovedJob]) -> None:
    for moved in arriving:
        record = moved.record
        if record.state in TERMINAL:
            tx.topics.add(job_topic(record.id))
        elif record.state is State.PENDING:
            tx.topics.add(queue_topic(record.queue))
        elif record.state is State.SCHEDULED:
            tx.topics.add(DUE_TOPIC)


# ---- rows --------------------------------------------------------------------------------------------------

# Room for jobs that were absent. Who waits for them stays tied to the seq that they get again.
_REMOVE = """
WITH jobs AS (DELETE FROM packhorse.jobs WHERE seq = ANY($1::bigint[])),
expected AS (DELETE FROM packhorse.expected WHERE seq = ANY($1::bigint[]))
DELETE FROM packhorse.edges WHERE child = ANY($1::bigint[])
"""
_INSERT = """
INSERT INTO packhorse.jobs (
    seq, id, type, queue, state, rank, lane, due_at_ms, created_at_ms, priority, attempt, max_attempts, timeout_ms,
    cancel, started_at_ms, finished_at_ms, parked_at_ms, slot_at_ms, key, unique_key, unique_for_ms, unique_states,
    workflow, schedule, tags, meta, payload, result, errors, progress, progress_note, node, after, after_failed, parents
)
SELECT coalesce(m.seq, nextval('packhorse.jobs_seq_seq')), m.id, m.type, m.queue, m.state, m.rank, m.lane, m.due_at_ms,
    m.created_at_ms, m.priority, m.attempt, m.max_attempts, m.timeout_ms, m.cancel, m.started_at_ms, m.finished_at_ms,
    m.parked_at_ms, m.slot_at_ms, m.key, m.unique_key, m.unique_for_ms, m.unique_states, m.workflow, m.schedule, m.tags,
    m.meta, m.payload, m.result, m.errors, m.progress, m.progress_note, m.node, m.after, m.after_failed, m.parents
FROM unnest(
    $1::bigint[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::text[], $8::bigint[],
    $9::bigint[], $10::smallint[], $11::integer[], $12::integer[], $13::bigint[], $14::smallint[], $15::bigint[],
    $16::bigint[], $17::bigint[], $18::bigint[], $19::text[], $20::text[], $21::bigint[], $22::smallint[], $23::text[],
    $24::text[], $25::text[], $26::text[], $27::bytea[], $28::bytea[], $29::text[], $30::double precision[],
    $31::bytea[], $32::text[], $33::text[], $34::smallint[], $35::integer[]
) AS m (
    seq, id, type, queue, state, rank, lane, due_at_ms, created_at_ms, priority, attempt, max_attempts, timeout_ms,
    cancel, started_at_ms, finished_at_ms, parked_at_ms, slot_at_ms, key, unique_key, unique_for_ms, unique_states,
    workflow, schedule, tags, meta, payload, result, errors, progress, progress_note, node, after, after_failed, parents
)
ON CONFLICT (id) DO NOTHING RETURNING id, seq
"""
_STEPS = """
INSERT INTO packhorse.steps (seq, name, result) SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[])
"""


def _insert(tx: Tx, arriving: Sequence[MovedJob], old: dict[str, int]) -> Script[dict[str, int]]:
    """Store jobs as they left; answers their seqs. One that was here as absent gets the seq it had."""
    yield from tx.places.know(
        (moved.record.queue, moved.record.key, moved.record.priority)
        for moved in arriving
        if moved.record.state is State.PENDING
    )
    rows = [_row(tx, moved, old.get(moved.record.id)) for moved in arriving]
    seqs: dict[str, int] = dict((yield from tx.ask(_INSERT, *columns(rows))))
    if len(seqs) < len(rows):
        raise Again
    steps = [
        (seqs[moved.record.id], name, result)
        for moved in arriving
        for name, result in (moved.record.steps or {}).items()
    ]
    if steps:
        yield from tx.ask(_STEPS, *columns(steps))
    return seqs


def _row(tx: Tx, moved: MovedJob, seq: int | None) -> tuple[Any, ...]:
    record, rule = moved.record, moved.unique
    place, lane = 0, None
    if record.state is State.PENDING:
        place, lane = tx.places.of(record.queue, record.type, record.key, record.priority, record.due_at_ms)
    is_held = any(tie is Tie.HELD for tie in moved.parents.values())
    has_rule = rule is not None and (rule.for_ms or rule.states != UNTIL_IT_ENDS)
    return (
        seq,
        record.id,
        record.type,
        record.queue,
        CODES[record.state],
        place,
        lane,
        record.due_at_ms,
        record.created_at_ms,
        record.priority,
        record.attempt,
        record.max_attempts,
        record.timeout_ms,
        ASKED if record.cancel_requested else FOR_PARENT if is_held else 0,
        record.started_at_ms,
        record.finished_at_ms,
        record.parked_at_ms,
        record.slot_at_ms,
        record.key,
        record.unique,
        rule.for_ms if rule is not None and has_rule else None,
        mask_of(rule.states) if rule is not None and has_rule else None,
        record.workflow,
        record.schedule,
        to_json(record.tags).decode() if record.tags else None,
        to_json(record.meta).decode() if record.meta is not None else None,
        record.payload,
        record.result,
        to_json(record.errors).decode() if record.errors else None,
        record.progress,
        record.progress_note.encode("utf-8", "replace") if record.progress_note is not None else None,
        record.node,
        to_json(record.after).decode() if record.after else None,
        AFTER_FAILED.index(record.after_failed),
        len(set(record.after)),
    )


def _take_keys(tx: Tx, arriving: Sequence[MovedJob]) -> Script[None]:
    """Let those that hold their key hold it here, beside whoever does already."""
    slots = [
        (record.queue, moved.unique.key, record.id)
        for moved in arriving
        if moved.unique is not None
        and holds_key(moved.unique, (record := moved.record).state, record.created_at_ms, tx.now_ms)
    ]
    yield from keys.lock(tx, [(queue, key) for queue, key, _ in slots])
    yield from keys.take(tx, slots)


# ---- families ----------------------------------------------------------------------------------------------

_EDGE_OF = {Tie.WAITS: WAITS, Tie.TOLD: TOLD, Tie.HELD: HELD}
_STUB = f"""
INSERT INTO packhorse.jobs (
    id, type, queue, state, rank, due_at_ms, created_at_ms, priority, max_attempts, timeout_ms, finished_at_ms, payload
)
SELECT id, '', '', {ABSENT}, 0, 0, $2::bigint, 0, 0, 0, $2::bigint, '' FROM unnest($1::text[]) AS m (id)
ON CONFLICT (id) DO NOTHING RETURNING seq
"""
_EXPECT = "INSERT INTO packhorse.expected (seq, store) SELECT seq, $2::text FROM unnest($1::bigint[]) AS m (seq)"
_MEMBERS = """
UPDATE packhorse.jobs AS j SET waiting_for = m.waiting_for, held_by = m.held_by
FROM unnest($1::bigint[], $2::integer[], $3::bigint[]) AS m (seq, waiting_for, held_by) WHERE j.seq = m.seq
"""
_EDGES = """
INSERT INTO packhorse.edges (child, parent, done)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::smallint[]) ON CONFLICT DO NOTHING
"""
# Whoever ended and has children here that do not know gets marked as any job that ends: families.serve tells them.
MARK = f"""
UPDATE packhorse.jobs AS j SET children = CASE
    WHEN j.state <= 4 THEN 1 WHEN j.state = {ABSENT} THEN 2
    WHEN EXISTS (SELECT 1 FROM packhorse.edges AS e WHERE e.parent = j.seq AND e.done = 0) THEN 1
    ELSE 2 END
WHERE j.seq = ANY($1::bigint[]) AND EXISTS (SELECT 1 FROM packhorse.edges AS e WHERE e.parent = j.seq)
RETURNING j.seq, j.state, j.children
"""


def _tie(tx: Tx, arriving: Sequence[MovedJob], seqs: dict[str, int], source: str) -> Script[None]:
    """Tie jobs to the parents that their store knew; those that are not here are to come."""
    parents = yield from _find_parents(tx, arriving, source)
    edges: list[tuple[int, int, int]] = []
    members: list[tuple[int, int, int | None]] = []
    for moved in arriving:
        seq = seqs[moved.record.id]
        held_by = None
        for parent, tie in moved.parents.items():
            edges.append((seq, parents[parent], _EDGE_OF[tie]))
            if tie is Tie.HELD and held_by is None:
                held_by = parents[parent]
        if moved.parents:
            members.append((seq, sum(tie is Tie.WAITS for tie in moved.parents.values()), held_by))
    if members:
        yield from tx.ask(_MEMBERS, *columns(members))
    if not edges and not tx.families:
        return
    tx.join_families()
    if edges:
        yield from tx.ask(_EDGES, *columns(edges))
    marked = yield from tx.ask(MARK, sorted({*seqs.values(), *parents.values()}))
    tx.ended += [seq for seq, state, children in marked if state in {5, 6, 7} and children == 1]


def _find_parents(tx: Tx, arriving: Sequence[MovedJob], source: str) -> Script[dict[str, int]]:
    """Answer the seqs of the parents of jobs, with a row for each that is not here."""
    wanted = {parent for moved in arriving for parent in moved.parents}
    missing = sorted(wanted - (yield from families.find(tx, wanted, locked=True)).keys())
    if missing:
        made = [seq for (seq,) in (yield from tx.ask(_STUB, missing, tx.now_ms))]
        if len(made) < len(missing):
            raise Again
        yield from tx.ask(_EXPECT, made, source)
    return {one.id: one.seq for one in (yield from families.find(tx, wanted)).values()}


_OVERDUE = "DELETE FROM packhorse.expected WHERE store = $1::text RETURNING seq"
_CANCELLED = f"UPDATE packhorse.jobs SET state = {CANCELLED}, children = 1 WHERE seq = ANY($1::bigint[])"


def _give_up(tx: Tx, source: str) -> Script[None]:
    """Count the parents as cancelled that were to come from a source where nothing is left."""
    seqs = [seq for (seq,) in (yield from tx.ask(_OVERDUE, source))]
    if seqs:
        yield from tx.ask(_CANCELLED, seqs)
        yield from families.bury(tx, seqs)
        yield from families.serve(tx)
