"""Moves to another store (decision 18): a batch of jobs becomes one value until it arrived."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...chance import CHANCE
from ...errors import ConfigurationError
from ...job import JobRecord, State, Unique
from ..base import BATCH_MAX, TRANSFER_BYTES_MAX, MovedJob, Tie, Transfer, job_topic, read_transfer, write_transfer
from ..stored import ABSENT, CANCELLED, HELD, RUNNING, WAITING, WAITS, states_of, to_json
from . import families, keys, looking, schedules
from .reviving import revive
from .script import Script, Tx


class Departure(msgspec.Struct, frozen=True):
    """What `hand_over` is asked."""

    to: str
    limit: int
    stored: int | None


_IDENTITY = """
INSERT INTO packhorse.marks (name, value) VALUES ('store', $1::text) ON CONFLICT (name) DO NOTHING
"""
_READ_IDENTITY = "SELECT value FROM packhorse.marks WHERE name = 'store'"


def identify(tx: Tx) -> Script[str]:
    """Answer the identity of this store, made when it is first asked for."""
    yield from tx.ask(_IDENTITY, to_json(CHANCE.id(tx.now_ms)).decode())
    identity: str = msgspec.json.decode((yield from tx.ask(_READ_IDENTITY))[0][0], type=str)
    return identity


_UNDER_WAY = "SELECT store, number, batch FROM packhorse.departures WHERE batch IS NOT NULL"
_ARRIVED = "UPDATE packhorse.departures SET batch = NULL WHERE batch IS NOT NULL"
_STANDS = "SELECT number, after_seq FROM packhorse.departures WHERE store = $1::text"
_NOTE = """
INSERT INTO packhorse.departures (store, number, after_seq, batch)
VALUES ($1::text, $2::bigint, $3::bigint, $4::bytea)
ON CONFLICT (store) DO UPDATE SET number = excluded.number, after_seq = excluded.after_seq,
    batch = excluded.batch
"""


def hand_over(tx: Tx, asked: Departure) -> Script[Transfer]:
    """Answer the batch that is in transit, or let the next one leave. One at a time: it holds the lock of moves."""
    yield from tx.lock(tx.store.lock_key("transfer"))
    yield from tx.begin()
    under_way = yield from tx.ask(_UNDER_WAY)
    if under_way:
        store, number, batch = under_way[0]
        if store != asked.to:
            raise ConfigurationError("jobs of this store are on their way to another one; finish that move first")
        if number != asked.stored:
            return read_transfer(batch)
        yield from tx.ask(_ARRIVED)
    source = yield from identify(tx)
    found = yield from tx.ask(_STANDS, asked.to)
    last_number, after_seq = found[0] if found else (0, 0)
    yield from families.serve_the_rest(tx, BATCH_MAX)
    yield from revive(tx)
    if (yield from tx.ask(families.ANY_LEFT))[0][0]:
        # Children that are to be told or revived yet would not hear of it where they go.
        yield from tx.finish()
        return Transfer(source=source, number=last_number + 1)
    seqs, after_seq = yield from _choose(tx, max(1, asked.limit), after_seq)
    is_last = not seqs and not (yield from tx.ask(ANY_LEFT))[0][0]
    seqs = seqs[: asked.limit]
    leaving = yield from schedules.hand_over(tx, asked.limit)
    if not seqs and not leaving:
        yield from tx.finish()
        return Transfer(source=source, number=last_number + 1, last=is_last)
    transfer = Transfer(
        source=source,
        number=max(last_number + 1, tx.now_ms),  # a store set back to an earlier copy of itself repeats none
        jobs=tuple((yield from _read(tx, seqs))),
        schedules=leaving,
    )
    yield from keys.free(tx, seqs)
    yield from tx.ask(_ABSENT, seqs, tx.now_ms)
    tx.topics.update(job_topic(moved.record.id) for moved in transfer.jobs)
    yield from tx.ask(_NOTE, asked.to, transfer.number, after_seq, write_transfer(transfer))
    yield from tx.finish()
    return transfer


# Beside those that can leave. A buried one has somebody to tell; what somebody else moves just now is left too.
ANY_LEFT = f"""
SELECT EXISTS (SELECT 1 FROM packhorse.jobs WHERE state = {RUNNING})
    OR EXISTS (SELECT 1 FROM packhorse.jobs WHERE state <= {CANCELLED})
    OR EXISTS (SELECT 1 FROM packhorse.jobs WHERE state >= 5 AND children = 1)
    OR EXISTS (SELECT 1 FROM packhorse.expected) OR EXISTS (SELECT 1 FROM packhorse.schedules)
"""

# ---- which jobs --------------------------------------------------------------------------------------------

# Those that wait, before any of their parents can leave.
WAIT = f"""
SELECT seq FROM packhorse.jobs WHERE state IN (1, 6) AND state = {WAITING} ORDER BY seq LIMIT $1::bigint
FOR NO KEY UPDATE
"""
# The others in their order of arrival, from where the batch before ended: rows of jobs that left are not looked at.
NEXT = """
SELECT seq FROM packhorse.jobs WHERE seq > $1::bigint AND state IN (2, 3, 5, 6, 7) ORDER BY seq LIMIT $2::bigint
FOR NO KEY UPDATE SKIP LOCKED
"""
# Those that ran, or were held by somebody, when their turn came.
_LEFT = """
SELECT seq FROM packhorse.jobs WHERE {} LIMIT $1::bigint FOR NO KEY UPDATE SKIP LOCKED
"""
LEFT = [
    _LEFT.format(where)
    for where in (
        "state = 2",
        "state = 3 AND lane IS NULL",
        "state = 3 AND lane IS NOT NULL",
        "state >= 5 AND children = 0 AND state IN (5, 6, 7)",
        "state >= 5 AND children <> 0 AND state IN (5, 6, 7)",
    )
]
# A child that came while we looked: its parent follows it.
_AWAITED = f"""
SELECT DISTINCT e.parent FROM packhorse.edges AS e JOIN packhorse.jobs AS c ON c.seq = e.child
WHERE e.parent = ANY($1::bigint[]) AND e.done = {WAITS} AND c.state = {WAITING} AND c.seq <> ALL($1::bigint[])
"""
SIZES = """
SELECT j.seq, length(j.payload) + coalesce(length(j.result), 0) + coalesce(length(j.errors), 0)
    + coalesce(length(j.after), 0) + coalesce((SELECT sum(length(s.result))
        FROM packhorse.steps AS s WHERE s.seq = j.seq), 0)
FROM packhorse.jobs AS j WHERE j.seq = ANY($1::bigint[])
"""


def _choose(tx: Tx, limit: int, after_seq: int) -> Script[tuple[list[int], int]]:
    """Lock the jobs of the next batch; answers them in the order in which they are to arrive, and where to go on."""
    seqs = [seq for (seq,) in (yield from tx.ask(WAIT, limit))]
    waiting, in_order = set(seqs), set[int]()
    if len(seqs) < limit:
        in_order = {seq for (seq,) in (yield from tx.ask(NEXT, after_seq, limit - len(seqs)))}
        seqs += sorted(in_order)
    if len(seqs) < limit:
        left: set[int] = set()
        for sql in LEFT:
            left.update(seq for (seq,) in (yield from tx.ask(sql, limit)))
        seqs += sorted(left - set(seqs))[: limit - len(seqs)]
    if seqs and tx.families:
        awaited = {seq for (seq,) in (yield from tx.ask(_AWAITED, seqs))}
        seqs = [seq for seq in seqs if seq in waiting or seq not in awaited]
    seqs = seqs[: (yield from _fitting(tx, seqs))]
    return seqs, max(in_order.intersection(seqs), default=after_seq)


def _fitting(tx: Tx, seqs: Sequence[int]) -> Script[int]:
    """Answer how many jobs are not too large to leave together, at least one."""
    sizes: dict[int, int] = dict((yield from tx.ask(SIZES, seqs)))
    size = 0
    for place, seq in enumerate(seqs):
        size += sizes[seq]
        if size > TRANSFER_BYTES_MAX:
            return max(1, place)
    return len(seqs)


# ---- as values ---------------------------------------------------------------------------------------------

RULES = """
SELECT seq, unique_for_ms, unique_states FROM packhorse.jobs WHERE seq = ANY($1::bigint[]) AND unique_key IS NOT NULL
"""
# Buried parents tell nobody any more. The parent that a child is held by comes first.
TIES = f"""
SELECT e.child, p.id, e.done
FROM packhorse.edges AS e JOIN packhorse.jobs AS p ON p.seq = e.parent JOIN packhorse.jobs AS c ON c.seq = e.child
WHERE e.child = ANY($1::bigint[]) AND (p.state <= {CANCELLED} OR p.state = {ABSENT})
ORDER BY c.held_by IS NOT DISTINCT FROM e.parent DESC, e.parent
"""


def _read(tx: Tx, seqs: Sequence[int]) -> Script[list[MovedJob]]:
    records = yield from looking.get_by_seq(tx, seqs)
    rules = {seq: (for_ms, states) for seq, for_ms, states in (yield from tx.ask(RULES, list(seqs)))}
    ties: dict[int, dict[str, int]] = {}
    for child, parent, done in (yield from tx.ask(TIES, list(seqs))):
        ties.setdefault(child, {})[parent] = done
    return [_moved(records[seq], rules.get(seq, (None, None)), ties.get(seq, {})) for seq in seqs]


def _moved(record: JobRecord, rule: tuple[int | None, int | None], ties: dict[str, int]) -> MovedJob:
    unique = None
    if record.unique is not None:
        unique = Unique(key=record.unique, for_ms=rule[0] or 0, states=states_of(rule[1]))
    parents = {
        parent: Tie.HELD if done == HELD else Tie.WAITS if done == WAITS and record.state is State.WAITING else Tie.TOLD
        for parent, done in ties.items()
    }
    return MovedJob(record=record, unique=unique, parents=parents)


# ---- out of the tables -------------------------------------------------------------------------------------

# Who waits for it goes on waiting: its edges stay, and those to its own parents, which are kept until they follow.
_ABSENT = f"""
WITH gone AS (DELETE FROM packhorse.steps WHERE seq = ANY($1::bigint[]))
UPDATE packhorse.jobs SET state = {ABSENT}, finished_at_ms = $2::bigint,
    children = CASE WHEN children = 0 THEN 0 ELSE 2 END, type = '', queue = '', lane = NULL, key = NULL,
    unique_key = NULL, unique_for_ms = NULL, unique_states = NULL, workflow = NULL, node = NULL, schedule = NULL,
    tags = NULL, meta = NULL, payload = '', result = NULL, errors = NULL, progress = NULL, progress_note = NULL,
    after = NULL, parents = 0, waiting_for = 0, held_by = NULL
WHERE seq = ANY($1::bigint[])
"""
