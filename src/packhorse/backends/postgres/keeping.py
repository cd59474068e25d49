"""Leases and time: heartbeat, retire, tick."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from ...job import AGEING_MS, LAPSED, TERMINAL, JobError
from ..base import (
    DUE_TOPIC,
    SCHEDULES_A_TICK,
    Keep,
    Lapse,
    Note,
    Pulse,
    Ticked,
    WorkerInfo,
    job_topic,
    lapse_landing,
    queue_topic,
)
from ..stored import CODES, PENDING, RUNNING, SCHEDULED, Row, read_token, to_json
from . import dropping, families, following, schedules
from .claiming import worker_number
from .limit_rows import ANY_FORGOTTEN, REMEMBER_LANES
from .placing import LOWEST, MARGIN_MS, columns
from .reviving import revive
from .rows import IS_RUNNING, IS_SCHEDULED, load_by_seq, save
from .script import NOW, Script, Statement, Store, Tx

# ---- heartbeat ---------------------------------------------------------------------------------------------


class Beat(msgspec.Struct, frozen=True):
    """The arguments of a heartbeat."""

    worker: WorkerInfo
    lease_ms: int
    notes: tuple[Note, ...]


_BEAT = f"""
WITH known AS (
    INSERT INTO packhorse.workers (no, id, info) VALUES ($1::bigint, $2::text, $3::text)
    ON CONFLICT (no) DO UPDATE SET info = excluded.info
), old AS (
    DELETE FROM packhorse.leases WHERE worker = $1::bigint
)
INSERT INTO packhorse.leases (worker, end_at_ms) VALUES ($1::bigint, {NOW.format("$4")} + $5::bigint)
"""
# SKIP LOCKED: a user's open transaction may hold the job (a child that is tied to it, its own settlement), and no lease
# may wait for that: this progress is left out. test_a_transaction_left_open_on_a_running_job_keeps_its_worker_alive
_NOTE = f"""
WITH held AS MATERIALIZED (
    SELECT j.seq, m.progress, m.note
    FROM unnest($1::text[], $2::bigint[], $3::double precision[], $4::bytea[]) AS m (id, token, progress, note)
    JOIN packhorse.jobs AS j ON j.id = m.id WHERE {IS_RUNNING} AND j.token = m.token
    FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE packhorse.jobs AS j
SET progress = coalesce(held.progress, j.progress), progress_note = coalesce(held.note, j.progress_note)
FROM held WHERE j.seq = held.seq
"""
# The lock is the guard: between it and the commit nobody can take the job away.
_STEP = f"""
WITH held AS MATERIALIZED (
    SELECT j.seq, m.name, m.result
    FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bytea[]) AS m (id, token, name, result)
    JOIN packhorse.jobs AS j ON j.id = m.id WHERE {IS_RUNNING} AND j.token = m.token
    ORDER BY j.seq FOR NO KEY UPDATE OF j
)
INSERT INTO packhorse.steps (seq, name, result) SELECT seq, name, result FROM held
ON CONFLICT (seq, name) DO UPDATE SET result = excluded.result
"""
HELD = f"SELECT id, token::text, cancel, seq FROM packhorse.jobs WHERE state = {RUNNING} AND worker = $1::bigint"


def heartbeat(store: Store, now_ms: int | None, beat: Beat) -> Script[Pulse]:
    """Renew a lease, keep notes of what it still holds, and answer what that is."""
    worker = beat.worker
    number = worker_number(worker.id)
    lease = Statement(store.sql(_BEAT), (number, worker.id, to_json(worker).decode(), now_ms, beat.lease_ms), last=True)
    ahead: list[Statement] = []
    notes: dict[tuple[str, int], tuple[float | None, bytes | None]] = {}
    steps: dict[tuple[str, int, str], bytes] = {}
    for note in beat.notes:
        token = read_token(note.token)
        if token is None:
            continue
        if note.step is not None:
            steps[note.id, token, note.step] = note.result
        if note.progress is not None or note.text is not None:
            progress, text = notes.get((note.id, token), (None, None))
            notes[note.id, token] = (
                float(note.progress) if note.progress is not None else progress,
                note.text.encode("utf-8", "replace") if note.text is not None else text,
            )
    if notes:
        ahead.append(Statement(store.sql(_NOTE), tuple(columns((*name, *said) for name, said in notes.items()))))
    if steps:
        ahead.append(Statement(store.sql(_STEP), tuple(columns((*name, result) for name, result in steps.items()))))
        yield lease  # at once, for a step may have to wait for somebody's transaction
    else:
        ahead.insert(0, lease)
    held = yield Statement(store.sql(HELD), (number,), ahead=tuple(ahead), last=True)
    return Pulse(
        held={job_id: token for job_id, token, _, _ in held},
        cancel=frozenset(job_id for job_id, _, cancel, _ in held if cancel),
    )


# ---- lapse -------------------------------------------------------------------------------------------------

_FORGET_WORKER = """
WITH old AS (DELETE FROM packhorse.leases WHERE worker = $1::bigint)
DELETE FROM packhorse.workers WHERE no = $1::bigint
"""


def retire(tx: Tx, worker: str, reason: str) -> Script[tuple[list[Lapse], int]]:
    """Remove a worker and lapse what it holds; answers these jobs, and how many it still holds: they are locked."""
    number = worker_number(worker)
    yield from tx.begin()
    yield from tx.ask(_FORGET_WORKER, number)
    held = yield from tx.ask(HELD, number)
    # In the order of arrival: they take turns anew.
    lapses = yield from _lapse(tx, [(row[3], number, int(row[1])) for row in sorted(held, key=_seq_of_held)], reason)
    yield from families.serve(tx)
    yield from tx.finish()
    return lapses, len(held) - len(lapses)


def _seq_of_held(row: tuple[Any, ...]) -> int:
    return int(row[3])


def _lapse(tx: Tx, held: Sequence[tuple[int, int, int]], reason: str) -> Script[list[Lapse]]:
    """Take jobs (seq, worker, token) from their worker, those that still run under that very token once locked.

    Those that somebody's open transaction has locked are left to a later tick.
    """
    rows = yield from load_by_seq(tx, [seq for seq, _, _ in held], only_free=True)
    lapses = []
    for seq, worker, token in held:
        row = rows.get(seq)
        if row is not None and (row.state, row.worker, row.token) == (RUNNING, worker, token):
            lapses.append(_lapse_one(tx, row, reason))
    yield from save(tx, rows.values())
    return lapses


def _lapse_one(tx: Tx, row: Row, reason: str) -> Lapse:
    row.add_error(JobError(attempt=row.attempt, at_ms=tx.now_ms, kind=LAPSED, message=reason))
    row.let_go()
    tx.lapses = True
    state = lapse_landing(row.attempt, row.max_attempts, bool(row.cancel))
    if state in TERMINAL:
        row.end(CODES[state], tx.now_ms)
        tx.topics.add(job_topic(row.id))
    else:
        row.start_over(0, tx)
        tx.topics.add(queue_topic(row.queue))
    return row.lapsed_to(state)


# ---- tick --------------------------------------------------------------------------------------------------


class Tick(msgspec.Struct, frozen=True):
    """The arguments of a tick."""

    limit: int
    keep: Keep


#: Floors are looked at this often, whoever ticks; what is late is kept for longer than a transaction of ours takes.
_FLOORS_MS = 1_000
_WHOLE_MS = 20_000
_LATE_KEPT_MS = 60_000
_LATE_DROPPED_MAX = 5_000

# A scheduled job, or a rate that lets something start again.
_NEXT_JOB = f"(SELECT due_at_ms FROM packhorse.jobs WHERE state = {SCHEDULED} ORDER BY due_at_ms LIMIT 1)"
_NEXT_OPENING = "(SELECT min(at_ms) FROM packhorse.openings)"
NEXT_DUE = f"least({_NEXT_JOB}, {_NEXT_OPENING})"

# One step in the index for each worker, not for each of its jobs.
_HOLDERS = f"""
WITH RECURSIVE holder (no) AS (
    (SELECT worker FROM packhorse.jobs WHERE state = {RUNNING} ORDER BY worker LIMIT 1)
    UNION ALL
    SELECT (SELECT j.worker FROM packhorse.jobs AS j WHERE j.state = {RUNNING} AND j.worker > holder.no
            ORDER BY j.worker LIMIT 1)
    FROM holder WHERE holder.no IS NOT NULL
)
SELECT no FROM holder WHERE no IS NOT NULL AND NOT coalesce((
    SELECT l.end_at_ms > {{now_ms}} FROM packhorse.leases AS l WHERE l.worker = holder.no ORDER BY l.no DESC LIMIT 1
), FALSE)
"""
HOLDERS = _HOLDERS.format(now_ms="$1::bigint")
_HELD_BY = f"""
SELECT seq, worker, token FROM packhorse.jobs WHERE state = {RUNNING} AND worker = $1::bigint ORDER BY seq
    LIMIT $2::bigint
"""
_ENDED_LEASES = """
SELECT w.no FROM packhorse.workers AS w WHERE NOT coalesce((
    SELECT l.end_at_ms > {now_ms} FROM packhorse.leases AS l WHERE l.worker = w.no ORDER BY l.no DESC LIMIT 1
), FALSE)
"""
_ENDED = f"""{_ENDED_LEASES.format(now_ms="$1::bigint")} AND NOT EXISTS (
    SELECT 1 FROM packhorse.jobs AS j WHERE j.state = {RUNNING} AND j.worker = w.no
)"""
# Asked again in the statement that writes, once they are locked: one may have sent a heartbeat.
_LOCK_ENDED = f"{_ENDED} FOR UPDATE OF w SKIP LOCKED"
_FORGET = f"""
WITH ended AS MATERIALIZED ({_ENDED} AND w.no = ANY($2::bigint[])), gone AS (
    DELETE FROM packhorse.leases AS l USING ended WHERE l.worker = ended.no
)
DELETE FROM packhorse.workers AS w USING ended WHERE w.no = ended.no
"""
_WANTS_FLOORS = """
SELECT 1 FROM packhorse.floors WHERE at_ms + {ms} <= {now_ms} OR at_ms > {now_ms}
"""

# Whether there is anything to do, in one message: $1 the time, $2 to $4 how long ended jobs are kept.
# Each look is for the first of an order that an index has: asked just whether there is any, the planner may begin to
# read the whole table in the hope to meet one soon.
PROBE = f"""
WITH facts AS MATERIALIZED (SELECT {NOW.format("$1")} AS now_ms)
SELECT f.now_ms, {_NEXT_JOB}, {_NEXT_OPENING},
    (SELECT min(wants_at_ms) FROM packhorse.schedules WHERE wants_at_ms IS NOT NULL),
    EXISTS ({_WANTS_FLOORS.format(now_ms="f.now_ms", ms=_FLOORS_MS)}),
    EXISTS ({_HOLDERS.format(now_ms="f.now_ms")}) OR EXISTS ({_ENDED_LEASES.format(now_ms="f.now_ms")}),
    {dropping.ANY_OLD.replace("$1::bigint", "f.now_ms")},
    (SELECT seq FROM packhorse.jobs WHERE state >= 5 AND children = 1 ORDER BY seq LIMIT 1) IS NOT NULL
    OR EXISTS (SELECT 1 FROM packhorse.revivals),
    {ANY_FORGOTTEN}, {following.IS_OVER.format(now_ms="f.now_ms")}
FROM facts AS f
"""


class Probed(NamedTuple):
    """What a tick has to do: the parts of `PARTS`, and what to ring. `ticked`: all has been done."""

    ticked: Ticked | None
    todo: frozenset[str]
    topics: set[str]


def probe(store: Store, now_ms: int | None, tick: Tick) -> Script[Probed]:
    """Find out what a tick has to do, and do what is small.

    Rates that open are small: they do so many times a second, and tokens are lost meanwhile.
    """
    keep = [keep_ms for _, keep_ms in dropping.kept_ms(tick.keep)]
    rows = yield Statement(store.sql(PROBE), (now_ms, *keep), last=True)
    at_ms, due_at_ms, opens_at_ms, wants_at_ms, floors, dead, old, untold, forgotten, unread = rows[0]
    topics: set[str] = set()
    if unread:
        yield Statement(store.sql(following.FORGET), (at_ms,), last=True)
    if floors:
        yield Statement(store.sql(FLOORS), (at_ms,), last=True)
    if opens_at_ms is not None and opens_at_ms <= at_ms:
        opened = yield Statement(store.sql(_OPENED), (at_ms,), last=True)
        topics = {queue_topic(queue) for (queue,) in opened}
        forget = Statement(store.sql(_FORGET_FULL), (at_ms * 1_000_000,))
        opens_at_ms = (yield Statement(f"SELECT {store.sql(_NEXT_OPENING)}", (), ahead=(forget,), last=True))[0][0]
    todo = {
        "promoted": due_at_ms is not None and due_at_ms <= at_ms,
        "lapses": dead,
        "dropped": old or dead,  # what lapses may be kept for no time,
        "freed": untold or dead,  # or have children
    }
    found = frozenset(name for name, is_wanted in todo.items() if is_wanted)
    if found or forgotten or (wants_at_ms is not None and wants_at_ms <= at_ms):
        return Probed(None, found, topics)
    ticked = Ticked(next_due_ms=_in_ms(at_ms, due_at_ms, opens_at_ms, wants_at_ms), now_ms=at_ms)
    return Probed(ticked, found, topics)


DUE = f"""
SELECT seq, queue, type, key, priority, due_at_ms FROM packhorse.jobs
WHERE state = {SCHEDULED} AND due_at_ms <= $1::bigint ORDER BY due_at_ms, seq LIMIT $2::bigint
    FOR NO KEY UPDATE SKIP LOCKED
"""
_PROMOTE = f"""
WITH moved AS (
    UPDATE packhorse.jobs AS j SET state = {PENDING}, rank = m.rank, lane = m.lane
    FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS m (seq, rank, lane) WHERE j.seq = m.seq AND {IS_SCHEDULED}
    RETURNING j.id
)
SELECT count(*), CASE WHEN count(*) > 0 THEN packhorse.tell(array_agg(id), '{{{PENDING}}}', $4::bigint) END FROM moved
"""
_OPENED = """
WITH opened AS MATERIALIZED (
    SELECT queue FROM packhorse.openings WHERE at_ms <= $1::bigint FOR UPDATE SKIP LOCKED
)
DELETE FROM packhorse.openings AS o USING opened WHERE o.queue = opened.queue RETURNING o.queue
"""
# Buckets that are full again are as new ones.
_FORGET_FULL = """
WITH full_ones AS MATERIALIZED (
    SELECT type, key FROM packhorse.buckets WHERE full_at_ns <= $1::bigint LIMIT 1000 FOR UPDATE SKIP LOCKED
)
DELETE FROM packhorse.buckets AS b USING full_ones AS f WHERE b.type = f.type AND b.key = f.key
"""
# From where a claim would begin up to the first pending job, or to a little before now. See FLOOR in placing.py: what
# is late was looked at here, so it need not be told of any longer. Now and then from below everything: a transaction
# that had to wait for a lock may have stored a job behind its time.
FLOORS = f"""
WITH old AS MATERIALIZED (
    SELECT o.queue, o.priority, w.is_whole, CASE WHEN w.is_whole THEN {LOWEST} ELSE least(
        o.floor, (SELECT min(l.rank) FROM packhorse.late AS l WHERE l.queue = o.queue AND l.priority = o.priority),
        $1::bigint - {MARGIN_MS} + o.priority * {AGEING_MS}::bigint
    ) END AS floor
    FROM packhorse.floors AS o CROSS JOIN LATERAL (
        SELECT o.whole_at_ms + {_WHOLE_MS} <= $1::bigint OR o.whole_at_ms > $1::bigint AS is_whole
    ) AS w
    WHERE (o.at_ms + {_FLOORS_MS} <= $1::bigint OR o.at_ms > $1::bigint)
    ORDER BY o.queue, o.priority FOR UPDATE OF o SKIP LOCKED
), done AS (
    DELETE FROM packhorse.late AS l WHERE l.ctid = ANY (ARRAY(
        SELECT l.ctid FROM old JOIN packhorse.late AS l ON l.queue = old.queue AND l.priority = old.priority
        WHERE l.at_ms <= $1::bigint - {_LATE_KEPT_MS} OR l.at_ms > $1::bigint LIMIT {_LATE_DROPPED_MAX}
    ))
)
UPDATE packhorse.floors AS o
SET at_ms = $1::bigint, whole_at_ms = CASE WHEN old.is_whole THEN $1::bigint ELSE o.whole_at_ms END,
    floor = least($1::bigint - {MARGIN_MS} + o.priority * {AGEING_MS}::bigint, (
        SELECT j.rank FROM packhorse.jobs AS j
        WHERE j.state = {PENDING} AND j.lane IS NULL AND j.queue = old.queue AND j.priority = old.priority
            AND j.rank >= old.floor
        ORDER BY j.rank LIMIT 1
    ))
FROM old WHERE o.queue = old.queue AND o.priority = old.priority
"""


def look_ahead(tx: Tx) -> Script[Ticked]:
    """Answer what the next tick has to do, and when. The last part of a tick."""
    yield from tx.begin()
    more = (yield from tx.ask(families.ANY_LEFT))[0][0]
    yield from tx.ask(REMEMBER_LANES)
    due_at_ms = tx.now_ms if more else (yield from tx.ask(f"SELECT {NEXT_DUE}"))[0][0]
    wanting, wants_at_ms = yield from schedules.planned(tx, SCHEDULES_A_TICK)
    yield from tx.finish()
    return Ticked(next_due_ms=_in_ms(tx.now_ms, due_at_ms, wants_at_ms), now_ms=tx.now_ms, schedules=wanting)


def _in_ms(now_ms: int, *instants: int | None) -> int | None:
    known = [instant for instant in instants if instant is not None]
    return max(0, min(known) - now_ms) if known else None


#: Fields of Ticked, what a part of a tick moved.
Moved = dict[str, Any]


def _promote(tx: Tx, tick: Tick) -> Script[Moved]:
    yield from tx.begin()
    promoted = yield from _promote_due(tx, tick.limit)
    yield from _ring_opened(tx)
    yield from _finish(tx)
    return {"promoted": promoted}


def _finish(tx: Tx) -> Script[None]:
    tx.topics.discard(DUE_TOPIC)  # `next_due_ms` says it
    yield from tx.finish()


def _promote_due(tx: Tx, limit: int) -> Script[int]:
    due = yield from tx.ask(DUE, tx.now_ms, limit)
    if not due:
        return 0
    yield from tx.places.know((queue, key, priority) for _, queue, _, key, priority, _ in due if key is not None)
    of = tx.places.of
    places = [(seq, *of(queue, job_type, key, priority, at_ms)) for seq, queue, job_type, key, priority, at_ms in due]
    tx.topics.update(queue_topic(queue) for _, queue, *_ in due)
    promoted: int = (yield from tx.ask(_PROMOTE, *columns(places), tx.now_ms))[0][0]
    return promoted


def _ring_opened(tx: Tx) -> Script[None]:
    """Ring the queues where a rate lets something start again."""
    opened = yield from tx.ask(_OPENED, tx.now_ms)
    tx.topics.update(queue_topic(queue) for (queue,) in opened)
    if opened:
        yield from tx.ask(_FORGET_FULL, tx.now_ms * 1_000_000)


# Those that exist and somebody has locked: their heartbeat is under way.
_BEATING = """
WITH free AS MATERIALIZED (
    SELECT no FROM packhorse.workers WHERE no = ANY($1::bigint[]) ORDER BY no FOR UPDATE SKIP LOCKED
)
SELECT no FROM packhorse.workers WHERE no = ANY($1::bigint[]) AND no NOT IN (SELECT no FROM free)
"""


def _lapse_the_dead(tx: Tx, tick: Tick) -> Script[Moved]:
    yield from tx.begin()
    workers = [worker for (worker,) in (yield from tx.ask(HOLDERS, tx.now_ms))]
    held: list[tuple[int, int, int]] = []
    for worker in workers:
        if len(held) < tick.limit:
            held += yield from tx.ask(_HELD_BY, worker, tick.limit - len(held))
    lapses: list[Lapse] = []
    if held:
        # Asked again once the row that a heartbeat writes is locked: either we see the new lease, or it sees what we
        # took.
        beating = {worker for (worker,) in (yield from tx.ask(_BEATING, workers))}
        dead = {worker for (worker,) in (yield from tx.ask(HOLDERS, tx.now_ms))} - beating
        lapses = yield from _lapse(tx, [one for one in held if one[1] in dead], "the lease of the worker ran out")
    ended = [worker for (worker,) in (yield from tx.ask(_LOCK_ENDED, tx.now_ms))]
    if ended:
        yield from tx.ask(_FORGET, tx.now_ms, ended)
    yield from _finish(tx)
    return {"lapses": tuple(lapses)}


def _drop(tx: Tx, tick: Tick) -> Script[Moved]:
    yield from tx.begin()
    dropped = yield from dropping.drop_old(tx, tick.keep, tick.limit)
    yield from _finish(tx)
    return {"dropped": dropped}


def _serve(tx: Tx, tick: Tick) -> Script[Moved]:
    yield from tx.begin()
    freed = yield from families.serve_the_rest(tx, tick.limit)
    if tx.families:
        freed += yield from revive(tx, limit=tick.limit - freed)
    yield from _finish(tx)
    return {"freed": freed}


#: The parts of a tick, at most `limit` jobs each, by the field of Ticked that says so. Each is a transaction of
#: its own, so that what keeps one of them up undoes nothing of the others.
PARTS: dict[str, Callable[[Tx, Tick], Script[Moved]]] = {
    "promoted": _promote,
    "lapses": _lapse_the_dead,
    "dropped": _drop,
    "freed": _serve,
}
