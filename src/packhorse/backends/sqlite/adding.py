"""New jobs, inside a transaction: a shortcut for what is plain, and a plan for everything else."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import QueueFull, UniqueConflict, UnknownParent
from ...job import AFTER_FAILED, JobSpec, rank
from ..base import DUE_TOPIC, Enqueued, job_topic, parents_first, replaced_by
from ..planning import New, Plan, first_state
from ..stored import (
    CANCELLED,
    PENDING,
    SCHEDULED,
    WAITING,
    Parent,
    Row,
    missing_parent,
    to_json,
)
from . import families, keys
from .ops import Redo, Transaction
from .rows import INLINE_BYTES, insert_chunks, load_by_id, load_by_seq, save


def enqueue_many(tx: Transaction, calls: list[Sequence[JobSpec]]) -> list[Any]:
    """Store the jobs of several calls, plain neighbours as if they were one. Redo if an id is taken."""
    answers: list[Any] = []
    plain: list[JobSpec] = []
    full = read_capacities(tx.db)
    for specs in calls:
        if not any(spec.unique is not None or spec.after or spec.queue in full for spec in specs):
            plain += specs
            answers.append([Enqueued(spec.id, True) for spec in specs])
            continue
        _insert_plain(tx, plain)
        plain = []
        try:
            answers.append(enqueue(tx, specs))
        except (UniqueConflict, UnknownParent, QueueFull) as refusal:  # before anything of the call was written
            answers.append(refusal)
    _insert_plain(tx, plain)
    return answers


def _insert_plain(tx: Transaction, specs: list[JobSpec]) -> None:
    try:
        insert(tx, specs)
    except sqlite3.IntegrityError as error:
        raise Redo from error
    _ring_new(tx, specs)


def enqueue(tx: Transaction, specs: Sequence[JobSpec]) -> list[Enqueued]:
    """Store the jobs of one call, all or none; a refusal is raised before anything is written."""
    order = parents_first(specs)
    plan = _make_plan(tx, specs if order is None else [specs[number] for number in order], refuse=True)
    _check_room(tx.db, plan)
    answers = _carry_out(tx, plan)
    families.serve(tx)
    if order is None:
        return answers
    found = dict(zip(order, answers, strict=True))
    return [found[number] for number in range(len(specs))]


def add(tx: Transaction, specs: Sequence[JobSpec]) -> list[Enqueued]:
    """Store what follows from a move: no capacity holds, what cannot be stored is left out, `serve` is the caller's."""
    order = parents_first(specs)
    ordered = specs if order is None else [specs[number] for number in order]
    return _carry_out(tx, _make_plan(tx, ordered, refuse=False))


# ---- the plan ----------------------------------------------------------------------------------------------


def _make_plan(tx: Transaction, specs: Sequence[JobSpec], *, refuse: bool) -> Plan:
    """Look up what decides. We hold the write lock, so it stays true."""
    named = {spec.id for spec in specs} | {parent for spec in specs for parent in spec.after}
    slots = [(spec.queue, spec.unique.key) for spec in specs if spec.unique is not None]
    parents, takers = families.find(tx.db, named), keys.find_takers(tx.db, slots)
    return Plan(specs, tx.now_ms, parents, takers, refuse=refuse)


CAPACITIES = "SELECT name, capacity FROM queues INDEXED BY capacities WHERE capacity IS NOT NULL"
# Bounded by the capacity: what is above it need not be counted.
PENDING_UP_TO = f"""
SELECT count(*) FROM (
    SELECT 1 FROM jobs INDEXED BY ready WHERE state = {PENDING} AND lane IS NULL AND queue = ?1
    UNION ALL SELECT 1 FROM jobs INDEXED BY laned WHERE state = {PENDING} AND lane IS NOT NULL AND queue = ?1
    LIMIT ?2
)
"""


def read_capacities(db: sqlite3.Connection) -> dict[str, int]:
    """Answer the queues that have a capacity."""
    return dict(db.execute(CAPACITIES).fetchall())


def _check_room(db: sqlite3.Connection, plan: Plan) -> None:
    capacities = read_capacities(db)
    for one in plan.new.values():
        if one.state == WAITING and one.spec.queue in capacities:
            plan.room[one.spec.queue] += plan.starts_at_once(one.spec)
    for queue, count in plan.room.items():
        capacity = capacities.get(queue)
        if capacity is not None and count > 0:
            pending = db.execute(PENDING_UP_TO, (queue, max(0, capacity - count) + 1)).fetchone()[0]
            if pending + count > capacity:
                raise QueueFull(queue, capacity)


# ---- carrying it out ---------------------------------------------------------------------------------------


def _carry_out(tx: Transaction, plan: Plan) -> list[Enqueued]:
    _replace(tx, plan)
    new = list(plan.new.values())
    insert(tx, [one.spec for one in new])
    unique = [spec for one in new if (spec := one.spec).unique is not None]
    keys.take(
        tx,
        [
            (spec.queue, spec.unique.key, spec.id)
            for one in new
            if (spec := one.spec).unique is not None and one.replaced_by is None
        ],
    )
    keys.keep_rules(tx, unique)
    _end_at_once(tx, new, _join_families(tx, plan))
    _ring_new(tx, plan.specs)
    return plan.answers


def _replace(tx: Transaction, plan: Plan) -> None:
    """Cancel the holders that make way."""
    if not plan.replaced:
        return
    rows = load_by_seq(tx.db, plan.replaced)
    for row in rows.values():
        _make_way(tx, row, plan.replaced[row.seq])
    save(tx, rows.values())


def _make_way(tx: Transaction, row: Row, successor: str) -> None:
    row.add_error(replaced_by(successor, tx.now_ms))
    row.end(CANCELLED, tx.now_ms)
    tx.topics.add(job_topic(row.id))


def _join_families(tx: Transaction, plan: Plan) -> dict[str, Parent]:
    """Tie new jobs to their parents; answers those that end at once, with the parent that ended badly.

    One that was replaced by another of its call joins no family.
    """
    joining = {
        one.spec.id: tuple(dict.fromkeys(plan.instead.get(parent, parent) for parent in one.spec.after))
        for one in plan.new.values()
        if one.spec.after and one.state == WAITING
    }
    if not joining:
        return {}
    parents = families.find(tx.db, {parent for after in joining.values() for parent in after} | set(joining))
    for one in plan.new.values():
        if one.replaced_by is not None and one.spec.id in parents:
            parents[one.spec.id].state = CANCELLED
    members = {}
    ended: dict[str, Parent] = {}
    waiting: list[tuple[int, int]] = []
    free: list[str] = []
    for job_id, after in joining.items():
        named = [parents.get(name, missing_parent(name)) for name in after]
        mine = [parent for parent in named if parent.seq]
        members[parents[job_id].seq] = mine
        bad = next((parent for parent in named if parent.is_bad or parent.id in ended), None)
        if bad is not None and plan.new[job_id].spec.after_failed == "cancel":
            ended[job_id] = bad
        elif live := sum(parent.lives for parent in mine):
            waiting.append((parents[job_id].seq, live))
        else:
            free.append(job_id)
    families.join(
        tx,
        members,
        {parents[job_id].seq: after for job_id, after in joining.items()},
        {parents[job_id].seq for job_id in ended},
    )
    tx.db.execute(
        "UPDATE families SET waiting_for = m.value ->> 1 FROM json_each(?) AS m WHERE families.seq = m.value ->> 0",
        (to_json(waiting).decode(),),
    )
    _start(tx, free)
    return ended


def _start(tx: Transaction, ids: Sequence[str]) -> None:
    """Start new jobs whose parents have all ended."""
    if not ids:
        return
    rows = load_by_id(tx.db, ids)
    for row in rows.values():
        families.start_over(tx, row, row.due_at_ms - row.created_at_ms, None)
    save(tx, rows.values())


def _end_at_once(tx: Transaction, new: Iterable[New], ended: Mapping[str, Parent]) -> None:
    """Cancel new jobs that a parent or another of their call keeps from starting."""
    replaced = {one.spec.id: one.replaced_by for one in new if one.replaced_by is not None}
    ids = [*replaced, *ended]
    if not ids:
        return
    rows = load_by_id(tx.db, ids)
    for job_id, successor in replaced.items():
        _make_way(tx, rows[job_id], successor)
    for job_id, parent in ended.items():
        families.cancel_for(
            tx, rows[job_id], Parent(parent.id, parent.seq, parent.state if parent.is_bad else CANCELLED)
        )
    save(tx, rows.values())


def _ring_new(tx: Transaction, specs: Iterable[JobSpec]) -> None:
    for spec in specs:
        tx.topics.add(f"queue:{spec.queue}")
        if spec.delay_ms > 0:
            tx.topics.add(DUE_TOPIC)


# ---- rows --------------------------------------------------------------------------------------------------

#: How much of a row is written. Most jobs are plain; of those that are traced most have meta and nothing else.
PLAIN, META, FULL = range(3)
_HEAD = "id, type, queue, state, rank, due_at_ms, created_at_ms, priority, max_attempts, timeout_ms, payload, lane"
_NEW = (
    f"INSERT INTO jobs ({_HEAD}) VALUES {{}}",
    f"INSERT INTO jobs ({_HEAD}, meta) VALUES {{}}",
    f"INSERT INTO jobs ({_HEAD}, meta, key, tags, unique_key, workflow, schedule, slot_at_ms) VALUES {{}}",
)

_NEW_KIN = """
INSERT INTO families (seq, parents, waiting_for, after_failed, node)
SELECT j.seq, m.value ->> 1, 0, m.value ->> 2, m.value ->> 3
FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.id = m.value ->> 0
"""


def insert(tx: Transaction, specs: Sequence[JobSpec]) -> None:
    """Store new jobs; an id that is taken is an IntegrityError. Those with parents wait, for nobody yet."""
    rows: list[list[tuple[Any, ...]]] = [[], [], []]
    width = 0
    large: list[tuple[str, bytes]] = []
    size = 0
    now_ms = tx.now_ms
    limited, of = tx.places.limited, tx.places.of
    kin = []
    for spec in specs:
        payload: bytes | None = spec.payload
        assert payload is not None
        size += len(payload)
        if len(payload) > INLINE_BYTES:
            large.append((spec.id, payload))
            payload = None
        due_at_ms = now_ms + max(0, spec.delay_ms)
        place, lane = 0, None
        if spec.after:
            state = WAITING
        elif spec.delay_ms > 0:
            state = SCHEDULED
        else:
            state = PENDING
            if spec.key is None and not limited:
                place = rank(now_ms, spec.priority)
            else:
                place, lane = of(spec.queue, spec.type, spec.key, spec.priority, now_ms)
        if spec.after or spec.node is not None or spec.after_failed != AFTER_FAILED[0]:
            kin.append((spec.id, len(set(spec.after)), AFTER_FAILED.index(spec.after_failed), spec.node))
        head = (
            spec.id,
            spec.type,
            spec.queue,
            state,
            place,
            due_at_ms,
            now_ms,
            spec.priority,
            spec.max_attempts,
            spec.timeout_ms,
            payload,
            lane,
        )
        if width < FULL:  # once one is not plain all are written as wide, in their order
            width = max(width, _width(spec))
        rows[width].append(head if width == PLAIN else head + _rest(spec, width))
    for statement, some in zip(_NEW, rows, strict=True):
        insert_chunks(tx.db, statement, some)
    if kin:
        tx.db.execute(_NEW_KIN, (to_json(kin).decode(),))
    for job_id, payload in large:
        tx.db.execute("INSERT INTO payloads SELECT seq, ? FROM jobs WHERE id = ?", (payload, job_id))
    tx.pages += size // 4_096
    if specs and tx.followed:
        _tell(tx, specs)


def _tell(tx: Transaction, specs: Sequence[JobSpec]) -> None:
    by_state: dict[int, list[str]] = {}
    for spec in specs:
        by_state.setdefault(first_state(spec), []).append(spec.id)
    for state, ids in by_state.items():
        tx.tell(state, ids)


def _width(spec: JobSpec) -> int:
    if (
        spec.key is None
        and not spec.tags
        and spec.unique is None
        and spec.workflow is None
        and spec.schedule is None
        and spec.slot_at_ms is None
    ):
        return PLAIN if spec.meta is None else META
    return FULL


def _rest(spec: JobSpec, width: int) -> tuple[Any, ...]:
    meta = to_json(spec.meta).decode() if spec.meta is not None else None
    if width == META:
        return (meta,)
    return (
        meta,
        spec.key,
        to_json(spec.tags).decode() if spec.tags else None,
        spec.unique.key if spec.unique is not None else None,
        spec.workflow,
        spec.schedule,
        spec.slot_at_ms,
    )
