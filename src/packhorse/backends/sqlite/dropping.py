"""Jobs that go: what is deleted with them, and how ticks find those that were kept long enough."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from ..base import ABSENT_KEPT_MS, Keep
from ..stored import ABSENT, CANCELLED, FAILED, SUCCEEDED, lives, to_json
from . import keys
from .changelog import GONE
from .ops import Transaction
from .rows import numbers

#: Edges that one tick deletes, and that it looks at, about: 20,000 take 30 ms (bench, 2026-11-22).
EDGES_MAX = 20_000

_PRESENT = (
    "SELECT EXISTS (SELECT 1 FROM keys), EXISTS (SELECT 1 FROM windows), EXISTS (SELECT 1 FROM steps), "
    "EXISTS (SELECT 1 FROM families), EXISTS (SELECT 1 FROM expected)"
)


def drop(tx: Transaction, seqs: Sequence[int]) -> None:
    """Remove jobs and all that is kept of them. A seq may be given to another job then, so nothing may stay behind."""
    if not seqs:
        return
    wanted = (numbers(seqs),)
    some_keys, some_windows, some_steps, some_families, some_expected = tx.db.execute(_PRESENT).fetchone()
    if some_keys:
        keys.free(tx, seqs)
    tables = ["jobs", "extras", "payloads"]
    tables += ["windows"] * some_windows + ["steps"] * some_steps + ["families", "parents"] * some_families
    tables += ["expected"] * some_expected
    for table in tables:
        tx.db.execute(f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))", wanted)
    if tx.families:
        tx.db.execute("DELETE FROM edges WHERE child IN (SELECT value FROM json_each(?))", wanted)
        tx.db.execute("DELETE FROM edges WHERE parent IN (SELECT value FROM json_each(?))", wanted)
        tx.db.execute("DELETE FROM revivals WHERE parent IN (SELECT value FROM json_each(?))", wanted)


# ---- what was kept long enough -----------------------------------------------------------------------------

KEPT = f"""
SELECT CAST(json_group_array(seq) AS BLOB) FROM (
    SELECT seq FROM jobs INDEXED BY ended
    WHERE state >= {SUCCEEDED} AND state = ? AND children = 0 AND finished_at_ms <= ?
    ORDER BY finished_at_ms LIMIT ?
)
"""
_decode_seqs = msgspec.json.Decoder(list[int]).decode

_IDS = "SELECT id FROM jobs WHERE seq IN (SELECT value FROM json_each(?))"

ANY_KEPT = f"""
SELECT EXISTS (
    SELECT 1 FROM jobs INDEXED BY ended
    WHERE state >= {SUCCEEDED} AND state = ?1 AND children = 0 AND finished_at_ms <= ?2
) OR EXISTS (
    SELECT 1 FROM jobs INDEXED BY ended
    WHERE state >= {SUCCEEDED} AND state = ?1 AND children = 2 AND finished_at_ms <= ?2
)
"""


def _kept_ms(keep: Keep) -> Iterable[tuple[int, int]]:
    return (SUCCEEDED, keep.succeeded_ms), (FAILED, keep.failed_ms), (CANCELLED, keep.cancelled_ms)


def is_any_old(db: sqlite3.Connection, keep: Keep, now_ms: int) -> bool:
    """Tell whether there is anything that may be dropped. A parent may turn out to be kept for its children."""
    kept_ms = (*_kept_ms(keep), (ABSENT, ABSENT_KEPT_MS))
    return any(db.execute(ANY_KEPT, (state, now_ms - keep_ms)).fetchone()[0] for state, keep_ms in kept_ms)


def drop_old(tx: Transaction, keep: Keep, limit: int) -> int:
    """Drop jobs that ended long enough ago, at most `limit`; answers how many."""
    dropped = 0
    for state, keep_ms in _kept_ms(keep):
        dropped += _drop_old(tx, state, tx.now_ms - keep_ms, limit - dropped)
    _drop_old(tx, ABSENT, tx.now_ms - ABSENT_KEPT_MS, limit)  # they are no jobs of this store
    return dropped


def _drop_old(tx: Transaction, state: int, until_ms: int, limit: int) -> int:
    dropped = 0
    if limit > 0:
        seqs = _decode_seqs(tx.db.execute(KEPT, (state, until_ms, limit)).fetchone()[0])
        if seqs and tx.families:
            seqs = _not_too_many(tx, seqs)
        _drop_ended(tx, state, seqs)
        dropped += len(seqs)
    if dropped < limit:
        dropped += _drop_parents(tx, state, until_ms, limit - dropped)
    return dropped


def _drop_ended(tx: Transaction, state: int, seqs: Sequence[int]) -> None:
    if seqs and state != ABSENT and tx.followed:
        tx.tell(GONE, [job_id for (job_id,) in tx.db.execute(_IDS, (numbers(seqs),))])
    drop(tx, seqs)


# Edges tell which children were live when last looked at, so that each is looked at once, however many there are
# and however long the last one takes: the first that is not marked decides.
PARENTS = f"""
SELECT CAST(json_group_array(json_array(finished_at_ms, queue, seq, child_state)) AS BLOB) FROM (
    SELECT p.finished_at_ms, p.queue, p.seq, (
        SELECT c.state FROM edges AS e INDEXED BY children_of CROSS JOIN jobs AS c ON c.seq = e.child
        WHERE e.parent = p.seq AND e.done < 2 LIMIT 1
    ) AS child_state
    FROM jobs AS p INDEXED BY ended
    WHERE p.state >= {SUCCEEDED} AND p.state = ? AND p.children = 2 AND p.finished_at_ms <= ?
    AND (p.finished_at_ms, p.queue, p.seq) > (?, ?, ?)
    ORDER BY p.finished_at_ms, p.queue, p.seq LIMIT ?
)
"""
_decode_parents = msgspec.json.Decoder(list[tuple[int, str, int, int | None]]).decode

CHILDREN = """
SELECT CAST(json_group_array(json_array(parent, child, state)) AS BLOB) FROM (
    SELECT e.parent, e.child, c.state
    FROM json_each(?) AS m CROSS JOIN edges AS e INDEXED BY children_of ON e.parent = m.value AND e.done < 2
    CROSS JOIN jobs AS c ON c.seq = e.child LIMIT ?
)
"""
_decode_children = msgspec.json.Decoder(list[tuple[int, int, int]]).decode
_NOTED = """
UPDATE edges SET done = 2 FROM json_each(?) AS m
WHERE edges.child = m.value ->> 0 AND edges.parent = m.value ->> 1
"""

EDGES = """
SELECT CAST(json_group_array(seq) AS BLOB) FROM (
    SELECT m.value AS seq FROM json_each(?1) AS m CROSS JOIN edges AS e ON e.child = m.value OR e.parent = m.value
    LIMIT ?2
)
"""

_MARK = "INSERT INTO marks (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_Place = tuple[int, str, int]
_START: _Place = (-1, "", 0)
_decode_place = msgspec.json.Decoder(_Place).decode


def _drop_parents(tx: Transaction, state: int, until_ms: int, limit: int) -> int:
    """Drop jobs with children none of which lives. The next tick goes on after those that are kept."""
    name = f"kept {state}"
    found = tx.db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    start = _decode_place(found[0]) if found is not None else _START
    parents = _decode_parents(tx.db.execute(PARENTS, (state, until_ms, *start, limit)).fetchone()[0])
    go_on: _Place = parents[-1][:3] if len(parents) == limit else _START
    if go_on != start:
        tx.db.execute(_MARK, (name, to_json(go_on).decode()))
    childless = [seq for *_, seq, child_state in parents if child_state is None]
    childless += _without_live_children(
        tx, [seq for *_, seq, child_state in parents if child_state is not None and not lives(child_state)]
    )
    childless = _not_too_many(tx, childless)
    _drop_ended(tx, state, childless)
    return len(childless)


def _without_live_children(tx: Transaction, parents: Sequence[int]) -> list[int]:
    """Look on from the first child of each, which has ended; answers those whose children have all ended."""
    if not parents:
        return []
    children = _decode_children(tx.db.execute(CHILDREN, (numbers(parents), EDGES_MAX + 1)).fetchone()[0])
    over = set(parents)
    if len(children) > EDGES_MAX:
        seen = {parent for parent, *_ in children[:-1]} - {children[-1][0]}
        over &= seen
    over -= {parent for parent, _, state in children if lives(state)}
    noted = [(child, parent) for parent, child, state in children if not lives(state) and parent not in over]
    if noted:
        tx.db.execute(_NOTED, (to_json(noted).decode(),))
    return [parent for parent in parents if parent in over]


def _not_too_many(tx: Transaction, seqs: Sequence[int]) -> list[int]:
    """Answer as many of `seqs` as have edges that one tick may delete, at least one."""
    if not seqs:
        return []
    edges = _decode_seqs(tx.db.execute(EDGES, (numbers(seqs), EDGES_MAX + 1)).fetchone()[0])
    if len(edges) <= EDGES_MAX:
        return list(seqs)
    last = edges[-1]
    whole = seqs[: seqs.index(last)]
    return list(whole) or [last]
