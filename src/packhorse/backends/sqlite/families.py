"""Parents and children, inside a transaction: waiting, being told of an end, and being revived.

A job that has somebody to tell of its end is marked (`children` = 1). Whatever ends it, the index `ended` then shows
it among those whose children do not know yet, so no move can forget them: `serve` tells the first `BATCH_MAX` in the
same transaction, ticks tell the others.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Mapping, Sequence

import msgspec

from ..base import BATCH_MAX, DUE_TOPIC, job_topic, parent_failed, queue_topic
from ..stored import (
    BURIED,
    CANCELLED,
    FAILED,
    FOR_PARENT,
    HELD,
    RUNNING,
    STATES,
    SUCCEEDED,
    TOLD,
    WAITING,
    WAITS,
    Parent,
    Row,
    Ties,
    lives,
    to_json,
)
from .dropping import drop
from .ops import Transaction
from .rows import load_by_seq, numbers, save

FIND = """
SELECT CAST(json_group_array(json_array(j.id, j.seq, j.state)) AS BLOB)
FROM json_each(?) AS m CROSS JOIN jobs AS j ON j.id = m.value
"""
_decode_parents = msgspec.json.Decoder(list[Parent]).decode


def find(db: sqlite3.Connection, ids: Iterable[str]) -> dict[str, Parent]:
    """Look jobs up by id; those that are not there are not in the answer."""
    wanted = list(ids)
    if not wanted:
        return {}
    found = _decode_parents(db.execute(FIND, (to_json(wanted).decode(),)).fetchone()[0])
    return {parent.id: parent for parent in found}


# ---- to wait -----------------------------------------------------------------------------------------------

_JOIN = """
INSERT OR IGNORE INTO edges (child, parent, done)
SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)
"""
_REMEMBER = """
INSERT INTO parents (seq, after)
SELECT value ->> 0, value -> 1 FROM json_each(?)
"""
#: A parent that lives has somebody to tell; one that ended just has children, which a tick keeps it for.
_MARK = f"""
UPDATE jobs NOT INDEXED SET children = iif(state <= {RUNNING}, 1, 2)
WHERE seq IN (SELECT value FROM json_each(?)) AND children != iif(state <= {RUNNING}, 1, 2)
AND (state <= {RUNNING} OR children = 0)
"""


def join(
    tx: Transaction,
    members: Mapping[int, Sequence[Parent]],
    after: Mapping[int, Sequence[str]],
    cancelled: Container[int],
) -> None:
    """Tie stored children, by seq, to those of their parents that are there, and keep the ids of all."""
    edges = [
        (child, parent.seq, WAITS if parent.lives else HELD if parent.is_bad and child in cancelled else TOLD)
        for child, parents in members.items()
        for parent in parents
    ]
    tx.db.execute(_REMEMBER, (to_json(list(after.items())).decode(),))
    if edges:
        tx.db.execute(_JOIN, (to_json(edges).decode(),))
        tx.db.execute(_MARK, (numbers({parent for _, parent, _ in edges}),))
        tx.join_families()
        tx.pages += len(edges) // 50


_EDGES_OF = """
SELECT CAST(json_group_array(json_array(e.child, e.parent, e.done, p.state)) AS BLOB)
FROM json_each(?) AS m CROSS JOIN edges AS e ON e.child = m.value CROSS JOIN jobs AS p ON p.seq = e.parent
"""
_decode_edges_of = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode

_TELL = """
UPDATE edges SET done = m.value ->> 2 FROM json_each(?) AS m
WHERE edges.child = m.value ->> 0 AND edges.parent = m.value ->> 1
"""


def look_at(tx: Transaction, children: Iterable[int]) -> dict[int, Ties]:
    """Look at the parents of children that are about to start over, as they stand now."""
    ties = {child: Ties() for child in children}
    if not ties:
        return ties
    for child, parent, done, state in _decode_edges_of(tx.db.execute(_EDGES_OF, (numbers(ties),)).fetchone()[0]):
        of_child = ties[child]
        is_live = lives(state)
        of_child.all.add(parent)
        if is_live:
            of_child.live.append(parent)
        of_child.bad = of_child.bad or state in {FAILED, CANCELLED}
        wanted = WAITS if is_live else TOLD
        if done != wanted:
            of_child.changed.append((child, parent, wanted))
    return ties


def tie_again(tx: Transaction, ties: Sequence[Ties]) -> None:
    """Write how the edges of children that start over stand now."""
    changed = [edge for of_child in ties for edge in of_child.changed]
    if changed:
        tx.db.execute(_TELL, (to_json(changed).decode(),))
    live = {parent for of_child in ties for parent in of_child.live}
    if live:
        tx.db.execute(_MARK, (numbers(live),))
    tx.pages += len(changed) // 50


def start_over(tx: Transaction, row: Row, delay_ms: int, ties: Ties | None) -> None:
    """Let a row wait for its parents that live, or run after `delay_ms` where there are none. Rings for it."""
    if ties is not None and ties.live:
        row.state = WAITING
        row.due_at_ms = row.created_at_ms + max(0, delay_ms)
        row.dirty = True
        row.wait_for(len(ties.live))
    else:
        row.wait_for(0)
        row.start_over(delay_ms, tx)
        tx.topics.add(queue_topic(row.queue) if delay_ms <= 0 else DUE_TOPIC)


# ---- to be told of an end ----------------------------------------------------------------------------------

_ENDED = "state >= 5 AND state IN (5, 6, 7, 8, 9, 10)"
UNTOLD = f"SELECT seq FROM jobs INDEXED BY ended WHERE {_ENDED} AND children = 1 LIMIT ?"
ANY_LEFT = f"""
SELECT EXISTS (SELECT 1 FROM jobs INDEXED BY ended WHERE {_ENDED} AND children = 1) OR EXISTS (SELECT 1 FROM revivals)
"""

TO_TELL = f"""
SELECT CAST(json_group_array(json_array(seq, iif(state IN (5, 8), '', id), state, child)) AS BLOB) FROM (
    SELECT p.seq, p.id, p.state, e.child
    FROM json_each(?) AS m CROSS JOIN jobs AS p ON p.seq = m.value
    LEFT JOIN edges AS e INDEXED BY children_of ON e.parent = p.seq AND e.done = 0
    WHERE p.state >= {SUCCEEDED} AND p.children = 1 LIMIT ?
)
"""
_decode_to_tell = msgspec.json.Decoder(list[tuple[int, str, int, int | None]]).decode
_ALL_TOLD = "UPDATE jobs NOT INDEXED SET children = 2 WHERE seq IN (SELECT value FROM json_each(?)) AND children = 1"


def serve(tx: Transaction, limit: int = BATCH_MAX) -> int:
    """Tell the children of the jobs that ended in this transaction, and theirs; answers how many were told.

    At most `limit`: the others are left to ticks.
    """
    if not tx.ended:
        return 0
    told = 0
    if tx.families:
        told = _serve(tx, limit)
        if told >= limit:
            tx.topics.add(DUE_TOPIC)
    tx.ended.clear()
    return told


def _serve(tx: Transaction, limit: int) -> int:
    told = 0
    while tx.ended and told < limit:
        ended, tx.ended = tx.ended, []
        told += _tell(tx, ended, limit - told)
    tx.ended.clear()
    return told


def serve_the_rest(tx: Transaction, limit: int) -> int:
    """Tell children that earlier moves left over; answers how many, with those of jobs that ended in this one."""
    told = serve(tx, limit)
    while told < limit:  # also where no edge is left: then there is nobody to tell, which is to be noted
        tx.ended += [seq for (seq,) in tx.db.execute(UNTOLD, (limit - told,)).fetchall()]
        if not tx.ended:
            break
        told += _serve(tx, limit - told)
    return told


def _tell(tx: Transaction, parents: Sequence[int], limit: int) -> int:
    edges = _decode_to_tell(tx.db.execute(TO_TELL, (numbers(parents), limit + 1)).fetchone()[0])
    more = len(edges) > limit
    edges = edges[:limit]
    through = {seq: state for seq, _, state, _ in edges}
    if more and edges:
        through.pop(edges[-1][0])  # perhaps not all of its children are among these
        tx.ended += [seq for seq in parents if seq not in through]
    rows = load_by_seq(tx.db, {child for *_, child in edges if child is not None})
    told: list[tuple[int, int, int]] = []
    for seq, parent, state, child in edges:
        if child is not None:
            row = rows[child]
            if row.state == WAITING:
                _hear(tx, row, Parent(parent, seq, state))
            is_held = parent and (row.state, row.cancel) == (CANCELLED, FOR_PARENT) and not row.after_failed
            told.append((child, seq, HELD if is_held else TOLD))
    if told:
        tx.db.execute(_TELL, (to_json(told).decode(),))
    save(tx, rows.values())
    if through:
        tx.db.execute(_ALL_TOLD, (numbers(through),))
        drop(tx, [seq for seq, state in through.items() if state > CANCELLED])
    tx.pages += len(told) // 5
    return len(told)


def _hear(tx: Transaction, row: Row, parent: Parent) -> None:
    """Let a waiting child hear of a parent's end."""
    if parent.state > CANCELLED:
        parent = Parent(parent.id.partition(":")[2], parent.seq, parent.state - BURIED)
    if parent.is_bad and not row.after_failed:
        cancel_for(tx, row, parent)
        return
    row.wait_for(row.waiting_for - 1)
    if row.waiting_for <= 0:
        start_over(tx, row, row.due_at_ms - row.created_at_ms, None)


def cancel_for(tx: Transaction, row: Row, parent: Parent) -> None:
    """Cancel a child because a parent ended badly."""
    row.add_error(parent_failed(parent.id, STATES[parent.state], tx.now_ms))
    row.cancel = FOR_PARENT
    row.held_by = parent.seq
    row.family_dirty = True
    row.end(CANCELLED, tx.now_ms)
    tx.topics.add(job_topic(row.id))


_BURY = f"""
UPDATE jobs NOT INDEXED SET id = char(127) || seq || ':' || id, workflow = NULL, schedule = NULL, unique_key = NULL,
    finished_at_ms = coalesce(finished_at_ms, ?), state = {BURIED} + max(state, iif(state <= {RUNNING}, {CANCELLED}, 0))
WHERE seq IN (SELECT value FROM json_each(?))
"""


def bury(tx: Transaction, seqs: Sequence[int]) -> None:
    """Remove jobs from sight that are deleted and have children to tell; `serve` drops them once it told all.

    Those that had not ended count as cancelled. Their keys must be free already.
    """
    tx.db.execute(_BURY, (tx.now_ms, numbers(seqs)))
    tx.ended += seqs
