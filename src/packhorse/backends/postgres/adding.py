"""New jobs: one statement for what is plain, and a plan for everything else."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import QueueFull
from ...job import AFTER_FAILED, AGEING_MS, JobSpec, rank
from ..base import DUE_TOPIC, Enqueued, job_topic, parents_first, replaced_by
from ..planning import New, Plan
from ..stored import (
    CANCELLED,
    PENDING,
    SCHEDULED,
    UNTIL_IT_ENDS,
    WAITING,
    Parent,
    Row,
    mask_of,
    missing_parent,
    to_json,
)
from . import families, keys
from .placing import columns
from .rows import load_by_id, load_by_seq, save
from .script import NOW, Again, Script, Statement, Store, Tx

# ---- what is plain -----------------------------------------------------------------------------------------

_PLAIN_COLUMNS = "id, type, queue, payload, priority, max_attempts, timeout_ms, delay_ms, tags, meta, workflow, node"

# Nothing is stored unless no limit, no capacity and no key has to be looked at; then it is one message to the server.
# The order of unnest is the order of the call, so that `seq` rises along it.
ADD_PLAIN = f"""
WITH facts AS MATERIALIZED (
    SELECT {NOW.format("$1")} AS now_ms, NOT EXISTS (SELECT 1 FROM packhorse.limited)
        AND NOT EXISTS (SELECT 1 FROM packhorse.queues WHERE capacity IS NOT NULL) AS is_plain
), added AS (
    INSERT INTO packhorse.jobs (state, rank, due_at_ms, created_at_ms, {_PLAIN_COLUMNS.replace("delay_ms, ", "")})
    SELECT CASE WHEN m.delay_ms > 0 THEN {SCHEDULED} ELSE {PENDING} END,
        CASE WHEN m.delay_ms > 0 THEN 0 ELSE f.now_ms + m.priority * {AGEING_MS} END,
        f.now_ms + m.delay_ms, f.now_ms, m.id, m.type, m.queue, m.payload, m.priority, m.max_attempts, m.timeout_ms,
        m.tags, m.meta, m.workflow, m.node
    FROM facts AS f, unnest(
        $2::text[], $3::text[], $4::text[], $5::bytea[], $6::smallint[], $7::integer[], $8::bigint[], $9::bigint[],
        $10::text[], $11::text[], $12::text[], $13::text[]
    ) AS m ({_PLAIN_COLUMNS})
    WHERE f.is_plain
    ON CONFLICT (id) DO NOTHING
    RETURNING id, state, created_at_ms
), heard AS (
    SELECT pg_notify($14::text, $15::text) FROM facts WHERE is_plain AND $15::text IS NOT NULL
)
SELECT (SELECT is_plain FROM facts), (SELECT count(*) FROM heard), count(*),
    CASE WHEN count(*) < cardinality($2::text[]) THEN array_agg(id) END,
    CASE WHEN count(*) > 0 THEN packhorse.tell(array_agg(id), array_agg(state), max(created_at_ms)) END
FROM added
"""


def is_plain(spec: JobSpec) -> bool:
    """Tell whether a spec can be stored without a look at anything else."""
    alone = not spec.after and spec.after_failed == "cancel"
    return alone and spec.unique is None and spec.key is None and spec.schedule is None


def add_plain(
    store: Store, now_ms: int | None, specs: Sequence[JobSpec], payload: str | None = None
) -> Script[list[Enqueued] | None]:
    """Store plain jobs, and tell others `payload`; None: nothing was stored, for there are limits or capacities."""
    rows = [
        (
            spec.id,
            spec.type,
            spec.queue,
            spec.payload,
            spec.priority,
            spec.max_attempts,
            spec.timeout_ms,
            max(0, spec.delay_ms),
            to_json(spec.tags).decode() if spec.tags else None,
            to_json(spec.meta).decode() if spec.meta is not None else None,
            spec.workflow,
            spec.node,
        )
        for spec in specs
    ]
    sql = store.sql(ADD_PLAIN)
    [(done, _, count, ids, _)] = yield Statement(sql, (now_ms, *columns(rows), store.channel, payload), last=True)
    if not done:
        return None
    if count == len(specs):
        return [Enqueued(spec.id, True) for spec in specs]
    added = set(ids or ())
    answers = []
    for spec in specs:
        answers.append(Enqueued(spec.id, spec.id in added))
        added.discard(spec.id)  # the second of two with the same id was there already
    return answers


def topics_of(specs: Iterable[JobSpec]) -> set[str]:
    """Answer what new jobs ring."""
    topics = set()
    for spec in specs:
        topics.add(f"queue:{spec.queue}")
        if spec.delay_ms > 0:
            topics.add(DUE_TOPIC)
    return topics


# ---- everything else ---------------------------------------------------------------------------------------


def enqueue(tx: Tx, specs: Sequence[JobSpec]) -> Script[list[Enqueued]]:
    """Store the jobs of one call, all or none; a refusal is raised before anything is written."""
    # Before the time is read: a wait for a key must not put the jobs behind their time.
    yield from keys.lock(tx, [(spec.queue, spec.unique.key) for spec in specs if spec.unique is not None])
    yield from tx.begin()
    order = parents_first(specs)
    plan = yield from _make_plan(tx, specs if order is None else [specs[number] for number in order], refuse=True)
    yield from _check_room(tx, plan)
    answers = yield from _carry_out(tx, plan)
    yield from families.serve(tx)
    yield from tx.finish()
    if order is None:
        return answers
    found = dict(zip(order, answers, strict=True))
    return [found[number] for number in range(len(specs))]


def add(tx: Tx, specs: Sequence[JobSpec]) -> Script[list[Enqueued]]:
    """Store what follows from a move: no capacity holds, what cannot be stored is left out, `serve` is the caller's."""
    order = parents_first(specs)
    ordered = specs if order is None else [specs[number] for number in order]
    return (yield from _carry_out(tx, (yield from _make_plan(tx, ordered, refuse=False))))


def _make_plan(tx: Tx, specs: Sequence[JobSpec], *, refuse: bool) -> Script[Plan]:
    """Look up what decides, under locks that keep it true until the end of the transaction."""
    ids = {spec.id for spec in specs}
    named = {parent for spec in specs for parent in spec.after}
    slots = [(spec.queue, spec.unique.key) for spec in specs if spec.unique is not None]
    replaces = any(spec.unique is not None and spec.unique.on_conflict == "replace" for spec in specs)
    takers = yield from keys.find_takers(tx, slots, locked=replaces or bool(named))
    parents = yield from families.find(tx, ids - named)
    parents |= yield from families.find(tx, named, locked=True)
    return Plan(specs, tx.now_ms, parents, takers, refuse=refuse)


_CAPACITIES = "SELECT name, capacity FROM packhorse.queues WHERE capacity IS NOT NULL"
# Bounded by the capacity: what is above it need not be counted.
PENDING_UP_TO = """
SELECT count(*) FROM (
    SELECT 1 FROM packhorse.jobs WHERE state = 3 AND lane IS NULL AND queue = $1::text
    UNION ALL SELECT 1 FROM packhorse.jobs WHERE state = 3 AND lane IS NOT NULL AND queue = $1::text
    LIMIT $2::bigint
) AS found
"""


def _check_room(tx: Tx, plan: Plan) -> Script[None]:
    capacities: dict[str, int] = dict((yield from tx.ask(_CAPACITIES)))
    for one in plan.new.values():
        if one.state == WAITING and one.spec.queue in capacities:
            plan.room[one.spec.queue] += plan.starts_at_once(one.spec)
    full = [queue for queue, count in plan.room.items() if queue in capacities and count > 0]
    # One enqueue at a time counts and adds, else two would find the same room. Not in a caller's transaction: until its
    # commit nobody else could add anything to the queue. It may find room that another takes meanwhile.
    if not tx.is_bound:
        yield from tx.lock(*(tx.store.lock_key("room", queue) for queue in full))
    for queue in full:
        capacity, count = capacities[queue], plan.room[queue]
        pending = (yield from tx.ask(PENDING_UP_TO, queue, max(0, capacity - count) + 1))[0][0]
        if pending + count > capacity:
            raise QueueFull(queue, capacity)


# ---- carrying it out ---------------------------------------------------------------------------------------


def _carry_out(tx: Tx, plan: Plan) -> Script[list[Enqueued]]:
    yield from _replace(tx, plan)
    new = list(plan.new.values())
    yield from _insert(tx, [one.spec for one in new])
    yield from keys.take(
        tx,
        [
            (spec.queue, spec.unique.key, spec.id)
            for one in new
            if (spec := one.spec).unique is not None and one.replaced_by is None
        ],
    )
    yield from _end_at_once(tx, new, (yield from _join_families(tx, plan)))
    tx.topics |= topics_of(plan.specs)
    return plan.answers


def _replace(tx: Tx, plan: Plan) -> Script[None]:
    """Cancel the holders that make way."""
    if not plan.replaced:
        return
    rows = yield from load_by_seq(tx, plan.replaced)
    for row in rows.values():
        _make_way(tx, row, plan.replaced[row.seq])
    yield from save(tx, rows.values())


def _make_way(tx: Tx, row: Row, successor: str) -> None:
    row.add_error(replaced_by(successor, tx.now_ms))
    row.end(CANCELLED, tx.now_ms)
    tx.topics.add(job_topic(row.id))


def _join_families(tx: Tx, plan: Plan) -> Script[dict[str, Parent]]:
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
    parents = yield from families.find(
        tx, {parent for after in joining.values() for parent in after} | set(joining), locked=True
    )
    for one in plan.new.values():
        if one.replaced_by is not None and one.spec.id in parents:
            parents[one.spec.id].state = CANCELLED
    members = {}
    ended: dict[str, Parent] = {}
    waiting: dict[int, int] = {}
    free: list[str] = []
    for job_id, after in joining.items():
        named = [parents.get(name, missing_parent(name)) for name in after]
        mine = [parent for parent in named if parent.seq]
        members[parents[job_id].seq] = mine
        bad = next((parent for parent in named if parent.is_bad or parent.id in ended), None)
        if bad is not None and plan.new[job_id].spec.after_failed == "cancel":
            ended[job_id] = bad
        elif live := sum(parent.lives for parent in mine):
            waiting[parents[job_id].seq] = live
        else:
            free.append(job_id)
    yield from families.join(
        tx,
        members,
        {parents[job_id].seq: after for job_id, after in joining.items()},
        {parents[job_id].seq for job_id in ended},
        waiting,
    )
    yield from _start(tx, free)
    return ended


def _start(tx: Tx, ids: Sequence[str]) -> Script[None]:
    """Start new jobs whose parents have all ended."""
    rows = yield from load_by_id(tx, ids)
    for row in rows.values():
        families.start_over(tx, row, row.due_at_ms - row.created_at_ms, None)
    yield from save(tx, rows.values())


def _end_at_once(tx: Tx, new: Iterable[New], ended: Mapping[str, Parent]) -> Script[None]:
    """Cancel new jobs that a parent or another of their call keeps from starting."""
    replaced = {one.spec.id: one.replaced_by for one in new if one.replaced_by is not None}
    rows = yield from load_by_id(tx, [*replaced, *ended])
    for job_id, successor in replaced.items():
        _make_way(tx, rows[job_id], successor)
    for job_id, parent in ended.items():
        families.cancel_for(
            tx, rows[job_id], Parent(parent.id, parent.seq, parent.state if parent.is_bad else CANCELLED)
        )
    yield from save(tx, rows.values())


# ---- rows --------------------------------------------------------------------------------------------------

INSERT = """
WITH stored AS (
    INSERT INTO packhorse.jobs (
        created_at_ms, id, type, queue, state, rank, due_at_ms, priority, max_attempts, timeout_ms, payload, lane, key,
        tags, meta, unique_key, unique_for_ms, unique_states, workflow, schedule, slot_at_ms, parents, after_failed,
        node
    )
    SELECT $1::bigint, * FROM unnest(
        $2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[], $8::smallint[], $9::integer[],
        $10::bigint[], $11::bytea[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::bigint[],
        $18::smallint[], $19::text[], $20::text[], $21::bigint[], $22::integer[], $23::smallint[], $24::text[]
    )
    ON CONFLICT (id) DO NOTHING RETURNING id, state
)
SELECT count(*), CASE WHEN count(*) > 0 THEN packhorse.tell(array_agg(id), array_agg(state), $1::bigint) END FROM stored
"""


def _insert(tx: Tx, specs: Sequence[JobSpec]) -> Script[None]:
    """Store new jobs; raises Again if one was stored by another meanwhile. Those with parents wait, for nobody yet."""
    if not specs:
        return
    places = tx.places
    yield from places.know((spec.queue, spec.key, spec.priority) for spec in specs if spec.key is not None)
    rows: list[tuple[Any, ...]] = []
    now_ms = tx.now_ms
    for spec in specs:
        place, lane = 0, None
        if spec.after:
            state = WAITING
        elif spec.delay_ms > 0:
            state = SCHEDULED
        else:
            state = PENDING
            if spec.key is None and not tx.limited and not tx.is_bound:
                place = rank(now_ms, spec.priority)
            else:
                place, lane = places.of(spec.queue, spec.type, spec.key, spec.priority, now_ms)
        unique = spec.unique
        has_rule = unique is not None and (unique.for_ms or unique.states != UNTIL_IT_ENDS)
        rows.append(
            (
                spec.id,
                spec.type,
                spec.queue,
                state,
                place,
                now_ms + max(0, spec.delay_ms),
                spec.priority,
                spec.max_attempts,
                spec.timeout_ms,
                spec.payload,
                lane,
                spec.key,
                to_json(spec.tags).decode() if spec.tags else None,
                to_json(spec.meta).decode() if spec.meta is not None else None,
                unique.key if unique is not None else None,
                unique.for_ms if unique is not None and has_rule else None,
                mask_of(unique.states) if unique is not None and has_rule else None,
                spec.workflow,
                spec.schedule,
                spec.slot_at_ms,
                len(set(spec.after)),
                AFTER_FAILED.index(spec.after_failed),
                spec.node,
            )
        )
    [(stored, _)] = yield from tx.ask(INSERT, now_ms, *columns(rows))
    if stored < len(rows):
        raise Again
