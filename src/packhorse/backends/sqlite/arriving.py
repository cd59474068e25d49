"""Moves from another store, inside a transaction (decision 18): a batch is held as it came, then becomes jobs."""

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
from .ops import Transaction
from .reviving import revive
from .rows import INLINE_BYTES, insert_chunks, numbers


def take_over(tx: Transaction, transfer: Transfer | None) -> Arrival:
    """Make the batch before live, and hold this one."""
    store = identify(tx)
    if transfer is None:
        return Arrival(store=store)
    source, number = transfer.source, transfer.number
    found = tx.db.execute("SELECT number, batch FROM arrivals WHERE store = ?", (source,)).fetchone()
    mark, held = found if found is not None else (0, None)
    is_empty = not transfer.jobs and not transfer.schedules
    if not is_empty and number < mark:
        return Arrival(store=store, verdict=Verdict.STALE)
    jobs = 0
    known: list[str] = []
    if held is not None and mark < number:
        before = read_transfer(held)
        known = _arrive(tx, before)
        jobs = len(before.jobs) - len(known)
        tx.db.execute("UPDATE arrivals SET batch = NULL WHERE store = ?", (source,))
    if not is_empty and number > mark:
        batch = write_transfer(transfer)
        tx.db.execute(_HOLD, (source, number, batch))
        tx.pages += len(batch) // 4_096
    if transfer.last:
        _give_up(tx, source)
    return Arrival(store=store, jobs=jobs, known=tuple(known))


_HOLD = """
INSERT INTO arrivals (store, number, batch) VALUES (?, ?, ?)
ON CONFLICT (store) DO UPDATE SET number = excluded.number, batch = excluded.batch
"""


def _arrive(tx: Transaction, transfer: Transfer) -> list[str]:
    """Make a batch live; answers the ids that were here before."""
    here = families.find(tx.db, [moved.record.id for moved in transfer.jobs])
    known = [job_id for job_id, one in here.items() if one.state != ABSENT]
    arriving = [
        moved for moved in transfer.jobs if moved.record.id not in here or here[moved.record.id].state == ABSENT
    ]
    if arriving:
        _remove(tx, [one.seq for one in here.values() if one.state == ABSENT])
        _insert(tx, arriving, {one.id: one.seq for one in here.values()})
        seqs = {one.id: one.seq for one in families.find(tx.db, [moved.record.id for moved in arriving]).values()}
        _insert_beside(tx, arriving, seqs)
        _take_keys(tx, arriving, seqs)
        _tie(tx, arriving, seqs, transfer.source)
        families.serve(tx)
        _ring(tx, arriving)
        _revive(tx, arriving)
    schedules.take_over(tx, transfer.schedules)
    return known


_RERUN = f"""
SELECT j.seq FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.id = m.value
WHERE j.children != 0 AND j.state NOT IN ({FAILED}, {CANCELLED}, {ABSENT})
"""


def _revive(tx: Transaction, arriving: Sequence[MovedJob]) -> None:
    """Revive children whose parents were rerun while one of the two was here and the other was not."""
    if not tx.families:
        return
    parents = {moved.record.id for moved in arriving}
    parents |= {parent for moved in arriving for parent, tie in moved.parents.items() if tie is Tie.HELD}
    rerun = [seq for (seq,) in tx.db.execute(_RERUN, (to_json(parents).decode(),))]
    if rerun:
        revive(tx, rerun)


def _ring(tx: Transaction, arriving: Sequence[MovedJob]) -> None:
    for moved in arriving:
        record = moved.record
        if record.state in TERMINAL:
            tx.topics.add(job_topic(record.id))
        elif record.state is State.PENDING:
            tx.topics.add(queue_topic(record.queue))
        elif record.state is State.SCHEDULED:
            tx.topics.add(DUE_TOPIC)


# ---- rows --------------------------------------------------------------------------------------------------


def _remove(tx: Transaction, seqs: Sequence[int]) -> None:
    """Make room for jobs that were absent. Who waits for them stays tied to the seq that they get again."""
    wanted = (numbers(seqs),)
    tx.db.execute("DELETE FROM jobs WHERE seq IN (SELECT value FROM json_each(?))", wanted)
    tx.db.execute("DELETE FROM expected WHERE seq IN (SELECT value FROM json_each(?))", wanted)
    tx.db.execute("DELETE FROM edges WHERE child IN (SELECT value FROM json_each(?))", wanted)


_JOB = (
    "INSERT INTO jobs (seq, id, type, queue, state, rank, lane, due_at_ms, created_at_ms, priority, attempt, "
    "max_attempts, timeout_ms, cancel, started_at_ms, finished_at_ms, parked_at_ms, slot_at_ms, key, unique_key, "
    "workflow, schedule, tags, meta, payload) VALUES {}"
)


def _insert(tx: Transaction, arriving: Sequence[MovedJob], seqs: dict[str, int]) -> None:
    rows: list[tuple[Any, ...]] = []
    for moved in arriving:
        record = moved.record
        place, lane = 0, None
        if record.state is State.PENDING:
            place, lane = tx.places.of(record.queue, record.type, record.key, record.priority, record.due_at_ms)
        is_held = any(tie is Tie.HELD for tie in moved.parents.values())
        rows.append(
            (
                seqs.get(record.id),
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
                record.workflow,
                record.schedule,
                to_json(record.tags).decode() if record.tags else None,
                to_json(record.meta).decode() if record.meta is not None else None,
                record.payload if len(record.payload) <= INLINE_BYTES else None,
            )
        )
    rows.sort(key=lambda row: row[0] is None)  # first who has a seq, or SQLite may give it to another
    insert_chunks(tx.db, _JOB, rows)


def _insert_beside(tx: Transaction, arriving: Sequence[MovedJob], seqs: dict[str, int]) -> None:
    """Store what lies beside the rows of jobs."""
    payloads, extras, steps, windows = [], [], [], []
    for moved in arriving:
        record = moved.record
        seq = seqs[record.id]
        if len(record.payload) > INLINE_BYTES:
            payloads.append((seq, record.payload))
        errors = to_json(record.errors).decode() if record.errors else None
        extra = (record.result, errors, record.progress, record.progress_note)
        if any(one is not None for one in extra):
            progress = None if record.progress is None else repr(record.progress)
            extras.append((seq, record.result, errors, progress, record.progress_note))
        steps += [(seq, name, result) for name, result in (record.steps or {}).items()]
        rule = moved.unique
        if rule is not None and (rule.for_ms or rule.states != UNTIL_IT_ENDS):
            windows.append((seq, rule.for_ms, mask_of(rule.states)))
    insert_chunks(tx.db, "INSERT INTO payloads (seq, payload) VALUES {}", payloads)
    insert_chunks(tx.db, "INSERT INTO extras (seq, result, errors, progress, progress_note) VALUES {}", extras)
    insert_chunks(tx.db, "INSERT INTO steps (seq, name, result) VALUES {}", steps)
    insert_chunks(tx.db, "INSERT INTO windows (seq, for_ms, states) VALUES {}", windows)


def _take_keys(tx: Transaction, arriving: Sequence[MovedJob], seqs: dict[str, int]) -> None:
    """Let those that hold their key hold it here, beside whoever does already."""
    keys.take(
        tx,
        [
            (record.queue, moved.unique.key, record.id)
            for moved in arriving
            if moved.unique is not None
            and holds_key(moved.unique, (record := moved.record).state, record.created_at_ms, tx.now_ms)
        ],
    )


# ---- families ----------------------------------------------------------------------------------------------

_EDGE_OF = {Tie.WAITS: WAITS, Tie.TOLD: TOLD, Tie.HELD: HELD}
_STUB = (
    "INSERT INTO jobs (id, type, queue, state, rank, due_at_ms, created_at_ms, priority, max_attempts, timeout_ms, "
    "finished_at_ms) VALUES {}"
)
_EXPECT = """
INSERT INTO expected (seq, store) SELECT j.seq, ?2 FROM json_each(?1) AS m CROSS JOIN jobs AS j ON j.id = m.value
"""
# Whoever ended and has children here that do not know gets marked as any job that ends: families.serve tells them.
MARK = f"""
UPDATE jobs NOT INDEXED SET children = CASE
    WHEN state <= 4 THEN 1 WHEN state = {ABSENT} THEN 2
    WHEN EXISTS (SELECT 1 FROM edges AS e INDEXED BY children_of WHERE e.parent = jobs.seq AND e.done = 0) THEN 1
    ELSE 2 END
WHERE seq IN (SELECT value FROM json_each(?))
AND EXISTS (SELECT 1 FROM edges AS e INDEXED BY children_of WHERE e.parent = jobs.seq)
"""
UNTOLD = """
SELECT seq FROM jobs NOT INDEXED
WHERE seq IN (SELECT value FROM json_each(?)) AND state IN (5, 6, 7) AND children = 1
"""


def _tie(tx: Transaction, arriving: Sequence[MovedJob], seqs: dict[str, int], source: str) -> None:
    """Tie jobs to the parents that their store knew; those that are not here are to come."""
    db = tx.db
    parents = _find_parents(tx, arriving, source)
    edges, members, after = [], [], []
    for moved in arriving:
        record = moved.record
        seq = seqs[record.id]
        held_by = None
        for parent, tie in moved.parents.items():
            edges.append((seq, parents[parent], _EDGE_OF[tie]))
            if tie is Tie.HELD and held_by is None:
                held_by = parents[parent]
        if record.after or record.node is not None or record.after_failed != AFTER_FAILED[0]:
            waiting_for = sum(tie is Tie.WAITS for tie in moved.parents.values())
            policy = AFTER_FAILED.index(record.after_failed)
            members.append((seq, len(set(record.after)), waiting_for, policy, held_by, record.node))
        if record.after:
            after.append((seq, to_json(record.after).decode()))
    insert_chunks(
        db, "INSERT INTO families (seq, parents, waiting_for, after_failed, held_by, node) VALUES {}", members
    )
    insert_chunks(db, "INSERT INTO parents (seq, after) VALUES {}", after)
    if not edges and not tx.families:
        return
    tx.join_families()
    insert_chunks(db, "INSERT INTO edges (child, parent, done) VALUES {}", edges)
    tx.pages += len(edges) // 50
    kin = numbers({*seqs.values(), *parents.values()})
    db.execute(MARK, (kin,))
    tx.ended += [seq for (seq,) in db.execute(UNTOLD, (kin,))]


def _find_parents(tx: Transaction, arriving: Sequence[MovedJob], source: str) -> dict[str, int]:
    """Answer the seqs of the parents of jobs, with a row for each that is not here."""
    wanted = {parent for moved in arriving for parent in moved.parents}
    missing = sorted(wanted - families.find(tx.db, wanted).keys())
    if missing:
        now_ms = tx.now_ms
        insert_chunks(tx.db, _STUB, [(one, "", "", ABSENT, 0, 0, now_ms, 0, 0, 0, now_ms) for one in missing])
        tx.db.execute(_EXPECT, (to_json(missing).decode(), source))
    return {one.id: one.seq for one in families.find(tx.db, wanted).values()}


def _give_up(tx: Transaction, source: str) -> None:
    """Count the parents as cancelled that were to come from a source where nothing is left."""
    seqs = [seq for (seq,) in tx.db.execute("SELECT seq FROM expected WHERE store = ?", (source,))]
    if not seqs:
        return
    wanted = numbers(seqs)
    tx.db.execute("DELETE FROM expected WHERE store = ?", (source,))
    tx.db.execute(
        f"UPDATE jobs NOT INDEXED SET state = {CANCELLED}, children = 1 WHERE seq IN (SELECT value FROM json_each(?))",
        (wanted,),
    )
    families.bury(tx, seqs)
    families.serve(tx)
