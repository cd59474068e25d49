"""Reruns: jobs start over, and the children that were cancelled because of them wait again."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..base import BATCH_MAX, DUE_TOPIC
from ..stored import CANCELLED, FOR_PARENT, HELD, Row, Slot
from . import keys
from .dropping import EDGES_MAX
from .families import look_at, start_over, tie_again
from .placing import columns
from .rows import load_by_seq, save
from .script import Script, Tx

#: A parent, and the child of it after which there are others to be looked at.
_Place = tuple[int, int]

# How much there is to look at is known before it is looked at: a candidate has as many edges as parents.
CANDIDATES = f"""
SELECT e.parent, e.child, f.parents
FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS m (parent, child, no)
JOIN packhorse.edges AS e ON e.parent = m.parent AND e.done = {HELD} AND e.child > m.child
JOIN packhorse.jobs AS f ON f.seq = e.child
ORDER BY m.no, e.child LIMIT $3::bigint
"""
_TAKE_UP = """
WITH taken AS MATERIALIZED (
    SELECT parent FROM packhorse.revivals ORDER BY parent LIMIT $1::bigint FOR UPDATE SKIP LOCKED
)
DELETE FROM packhorse.revivals AS r USING taken WHERE r.parent = taken.parent RETURNING r.parent, r.child
"""
_LEAVE = """
INSERT INTO packhorse.revivals (parent, child) SELECT * FROM unnest($1::bigint[], $2::bigint[])
ON CONFLICT (parent) DO UPDATE SET child = least(packhorse.revivals.child, excluded.child)
"""


def revive(tx: Tx, parents: Sequence[int] = (), limit: int = BATCH_MAX) -> Script[int]:
    """Let the children wait again that were cancelled because of `parents`, and theirs in turn; answers how many did.

    At most `limit`; where they are more, ticks go on: they call this without parents.
    """
    if limit <= 0:
        return 0
    places: deque[_Place] = deque((parent, 0) for parent in parents)
    if not parents:
        places.extend((yield from tx.ask(_TAKE_UP, BATCH_MAX)))
    revived, edges_left = 0, EDGES_MAX
    while places and revived < limit and edges_left > 0:
        candidates, edges = yield from _look_on(tx, places, limit - revived, edges_left)
        edges_left -= edges
        started = yield from _revive(tx, candidates)
        revived += len(started)
        places.extend((row.seq, 0) for row in started if row.children)
    if places:
        yield from tx.ask(_LEAVE, *columns(sorted(dict(places).items())))
        tx.topics.add(DUE_TOPIC)
    return revived


def _look_on(tx: Tx, places: deque[_Place], limit: int, edges_max: int) -> Script[tuple[list[int], int]]:
    """Answer the next children to be looked at, and the edges this takes; what is left to look at stays in `places`."""
    wanted = list(places)
    found = yield from tx.ask(CANDIDATES, *columns(wanted), edges_max + 1)
    candidates: list[int] = []
    edges = 0
    last: _Place | None = None
    for parent, child, parents in found:
        if len(candidates) >= limit or edges > edges_max:
            break
        edges += 1 + parents
        candidates.append(child)
        last = (parent, child)
    else:
        if len(found) <= edges_max:
            last = None
    places.clear()
    if last is not None:
        seqs = [parent for parent, _ in wanted]
        places.append(last)
        places.extend(wanted[seqs.index(last[0]) + 1 :])
    return candidates, edges


def _revive(tx: Tx, candidates: Sequence[int]) -> Script[list[Row]]:
    """Let those wait again that no parent and no key keeps from it; answers them."""
    if not candidates:
        return []
    rows = yield from load_by_seq(tx, dict.fromkeys(candidates))
    ties = yield from look_at(tx, rows)
    slots = [(row.queue, row.unique_key) for row in rows.values() if row.unique_key is not None]
    holders = yield from keys.find_holders(tx, slots)
    taken: set[Slot] = set()
    started, later = [], []
    for row in rows.values():
        if ties[row.seq].bad or (row.state, row.cancel) != (CANCELLED, FOR_PARENT):
            continue
        if row.held_by not in ties[row.seq].all:  # what a parent that is gone keeps down stays down
            continue
        if row.unique_key is not None:
            slot = (row.queue, row.unique_key)
            if slot in taken:  # its new holder may not keep others from it, by the rule it has
                later.append(row.seq)
                continue
            if slot in holders and holders[slot].seq != row.seq:
                continue
            taken.add(slot)
        row.cancel = 0
        row.finished_at_ms = None
        start_over(tx, row, row.due_at_ms - row.created_at_ms, ties[row.seq])
        started.append(row)
    yield from save(tx, started)
    yield from tie_again(tx, [ties[row.seq] for row in started])
    yield from keys.take(tx, [(row.queue, row.unique_key, row.id) for row in started if row.unique_key is not None])
    return started + (yield from _revive(tx, later))
