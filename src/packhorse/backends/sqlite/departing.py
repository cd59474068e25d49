"""Moves to another store, inside a transaction (decision 18): a batch of jobs becomes one value until it arrived."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from ...chance import CHANCE
from ...errors import ConfigurationError
from ...job import JobRecord, State, Unique
from ..base import BATCH_MAX, TRANSFER_BYTES_MAX, MovedJob, Tie, Transfer, job_topic, read_transfer, write_transfer
from ..stored import ABSENT, CANCELLED, HELD, RUNNING, SUCCEEDED, WAITING, WAITS, states_of, to_json
from . import families, keys, schedules
from .ops import Transaction
from .records import RECORDS, RECORDS_JOIN, read_records, read_steps
from .reviving import revive
from .rows import numbers


class Departure(msgspec.Struct, frozen=True):
    """What `hand_over` is asked."""

    to: str
    limit: int
    stored: int | None


def identify(tx: Transaction) -> str:
    """Answer the identity of this store, made when it is first asked for."""
    tx.db.execute(
        "INSERT INTO marks (name, value) VALUES ('store', ?) ON CONFLICT (name) DO NOTHING",
        (to_json(CHANCE.id(tx.now_ms)).decode(),),
    )
    identity: str = tx.db.execute("SELECT value ->> '$' FROM marks WHERE name = 'store'").fetchone()[0]
    return identity


def hand_over(tx: Transaction, asked: Departure) -> Transfer:
    """Answer the batch that is in transit, or let the next one leave."""
    db = tx.db
    under_way = db.execute("SELECT store, number, batch FROM departures WHERE batch IS NOT NULL").fetchone()
    if under_way is not None:
        store, number, batch = under_way
        if store != asked.to:
            raise ConfigurationError("jobs of this store are on their way to another one; finish that move first")
        if number != asked.stored:
            return read_transfer(batch)
        db.execute("UPDATE departures SET batch = NULL WHERE batch IS NOT NULL")
    source = identify(tx)
    found = db.execute("SELECT number, after_seq FROM departures WHERE store = ?", (asked.to,)).fetchone()
    last_number, after_seq = found if found is not None else (0, 0)
    families.serve_the_rest(tx, BATCH_MAX)
    revive(tx)
    if db.execute(families.ANY_LEFT).fetchone()[0]:
        # Children that are to be told or revived yet would not hear of it where they go.
        return Transfer(source=source, number=last_number + 1)
    seqs, after_seq = _choose(db, max(1, asked.limit), after_seq)
    is_last = not seqs and not db.execute(ANY_LEFT).fetchone()[0]
    seqs = seqs[: asked.limit]
    leaving = schedules.hand_over(tx, asked.limit)
    if not seqs and not leaving:
        return Transfer(source=source, number=last_number + 1, last=is_last)
    transfer = Transfer(
        source=source,
        number=max(last_number + 1, tx.now_ms),  # a store set back to an earlier copy of itself repeats none
        jobs=tuple(_read(db, seqs)),
        schedules=leaving,
    )
    batch = write_transfer(transfer)
    _leave(tx, seqs)
    tx.topics.update(job_topic(moved.record.id) for moved in transfer.jobs)
    db.execute(_NOTE, (asked.to, transfer.number, after_seq, batch))
    tx.pages += len(batch) // 4_096
    return transfer


_NOTE = """
INSERT INTO departures (store, number, after_seq, batch) VALUES (?, ?, ?, ?) ON CONFLICT (store) DO UPDATE
SET number = excluded.number, after_seq = excluded.after_seq, batch = excluded.batch
"""
# Beside those that can leave. A buried one has somebody to tell.
ANY_LEFT = f"""
SELECT EXISTS (SELECT 1 FROM jobs INDEXED BY running WHERE state = {RUNNING})
OR EXISTS (SELECT 1 FROM jobs INDEXED BY ended WHERE state >= {SUCCEEDED} AND state IN (8, 9, 10))
OR EXISTS (SELECT 1 FROM expected) OR EXISTS (SELECT 1 FROM schedules)
"""

# ---- which jobs --------------------------------------------------------------------------------------------

# Those that wait, before any of their parents can leave.
WAIT = f"SELECT seq FROM jobs INDEXED BY listed WHERE state IN (1, 6) AND state = {WAITING} ORDER BY seq LIMIT ?"
# The others in their order of arrival, from where the batch before ended: rows of jobs that left are not looked at.
NEXT = "SELECT seq FROM jobs NOT INDEXED WHERE seq > ? AND state IN (2, 3, 5, 6, 7) ORDER BY seq LIMIT ?"
# Those that ran when their turn came.
LEFT = """
SELECT * FROM (SELECT seq FROM jobs INDEXED BY due WHERE state = 2 LIMIT ?1)
UNION ALL SELECT * FROM (SELECT seq FROM jobs INDEXED BY ready WHERE state = 3 AND lane IS NULL LIMIT ?1)
UNION ALL SELECT * FROM (SELECT seq FROM jobs INDEXED BY laned WHERE state = 3 AND lane IS NOT NULL LIMIT ?1)
UNION ALL SELECT * FROM (SELECT seq FROM jobs INDEXED BY ended WHERE state >= 5 AND state IN (5, 6, 7) LIMIT ?1)
"""

SIZES = """
SELECT m.value, coalesce(length(j.payload), 0) + coalesce(length(e.result), 0) + coalesce(length(e.errors), 0)
    + coalesce((SELECT length(payload) FROM payloads WHERE seq = m.value), 0)
    + coalesce((SELECT sum(length(result)) FROM steps WHERE seq = m.value), 0)
    + coalesce((SELECT length(after) FROM parents WHERE seq = m.value), 0)
FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.seq = m.value LEFT JOIN extras AS e ON e.seq = m.value
"""


def _choose(db: sqlite3.Connection, limit: int, after_seq: int) -> tuple[list[int], int]:
    """Answer the jobs of the next batch in the order in which they are to arrive, and where the one after goes on."""
    seqs = [seq for (seq,) in db.execute(WAIT, (limit,))]
    waiting = len(seqs)
    if len(seqs) < limit:
        seqs += [seq for (seq,) in db.execute(NEXT, (after_seq, limit - len(seqs)))]
    in_order = len(seqs)
    if len(seqs) < limit:
        known = set(seqs)
        left = sorted(seq for (seq,) in db.execute(LEFT, (limit,)) if seq not in known)
        seqs += left[: limit - len(seqs)]
    seqs = seqs[: _fitting(db, seqs)]
    return seqs, max(seqs[waiting:in_order], default=after_seq)


def _fitting(db: sqlite3.Connection, seqs: Sequence[int]) -> int:
    """Answer how many jobs are not too large to leave together, at least one."""
    sizes = dict(db.execute(SIZES, (numbers(seqs),)).fetchall())
    size = 0
    for place, seq in enumerate(seqs):
        size += sizes[seq]
        if size > TRANSFER_BYTES_MAX:
            return max(1, place)
    return len(seqs)


# ---- as values ---------------------------------------------------------------------------------------------

_RECORDS_BY_SEQ = f"{RECORDS} json_each(?) AS wanted CROSS JOIN jobs AS j ON j.seq = wanted.value {RECORDS_JOIN}"
RULES = "SELECT seq, for_ms, states FROM windows WHERE seq IN (SELECT value FROM json_each(?))"
# Buried parents tell nobody any more.
TIES = f"""
SELECT e.child, p.id, e.done, f.held_by IS e.parent
FROM json_each(?) AS m CROSS JOIN edges AS e ON e.child = m.value CROSS JOIN jobs AS p ON p.seq = e.parent
LEFT JOIN families AS f ON f.seq = e.child
WHERE p.state <= {CANCELLED} OR p.state = {ABSENT}
"""


def _read(db: sqlite3.Connection, seqs: Sequence[int]) -> Iterable[MovedJob]:
    wanted = (numbers(seqs),)
    records = read_records(db, _RECORDS_BY_SEQ, wanted)
    read_steps(db, records)
    rules = {seq: (for_ms, states) for seq, for_ms, states in db.execute(RULES, wanted)}
    ties: dict[int, dict[str, int]] = {}
    # The parent that a child is held by comes first.
    for child, parent, done, _ in sorted(db.execute(TIES, wanted), key=lambda row: not row[3]):
        ties.setdefault(child, {})[parent] = done
    by_seq = dict(records)
    return [_moved(by_seq[seq], rules.get(seq, (0, None)), ties.get(seq, {})) for seq in seqs]


def _moved(record: JobRecord, rule: tuple[int, int | None], ties: dict[str, int]) -> MovedJob:
    unique = None
    if record.unique is not None:
        unique = Unique(key=record.unique, for_ms=rule[0], states=states_of(rule[1]))
    parents = {
        parent: Tie.HELD if done == HELD else Tie.WAITS if done == WAITS and record.state is State.WAITING else Tie.TOLD
        for parent, done in ties.items()
    }
    return MovedJob(record=record, unique=unique, parents=parents)


# ---- out of the tables -------------------------------------------------------------------------------------

# Who waits for it goes on waiting: its edges stay, and those to its own parents, which are kept until they follow.
_ABSENT = f"""
UPDATE jobs NOT INDEXED SET state = {ABSENT}, finished_at_ms = ?, children = iif(children = 0, 0, 2), type = '',
    queue = '', lane = NULL, key = NULL, unique_key = NULL, workflow = NULL, schedule = NULL, tags = NULL, meta = NULL,
    payload = NULL
WHERE seq IN (SELECT value FROM json_each(?))
"""


def _leave(tx: Transaction, seqs: Sequence[int]) -> None:
    wanted = numbers(seqs)
    keys.free(tx, seqs)
    tx.db.execute(_ABSENT, (tx.now_ms, wanted))
    for table in ("extras", "payloads", "windows", "steps", "families", "parents"):
        tx.db.execute(f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))", (wanted,))
