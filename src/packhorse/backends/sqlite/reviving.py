"""Reruns, inside a transaction: jobs start over, and the children that were cancelled because of them wait again."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from ..base import BATCH_MAX, DUE_TOPIC
from ..stored import CANCELLED, FOR_PARENT, HELD, Row, Slot, to_json
from . import keys
from .dropping import EDGES_MAX
from .families import look_at, start_over, tie_again
from .ops import Transaction
from .rows import load_by_seq, numbers, save

#: A parent, and the child of it after which there are others to be looked at.
_Place = tuple[int, int]

# How much there is to look at is known before it is looked at: a candidate has as many edges as parents.
CANDIDATES = f"""
SELECT CAST(json_group_array(json_array(parent, child, parents)) AS BLOB) FROM (
    SELECT e.parent, e.child, f.parents
    FROM json_each(?) AS m
    CROSS JOIN edges AS e INDEXED BY children_of
    ON e.parent = m.value ->> 0 AND e.done = {HELD} AND e.child > m.value ->> 1
    CROSS JOIN families AS f ON f.seq = e.child
    LIMIT ?
)
"""
_decode_candidates = msgspec.json.Decoder(list[tuple[int, int, int]]).decode

_TAKE_UP = "SELECT json_group_array(json_array(parent, child)) FROM (SELECT * FROM revivals LIMIT ?)"
_decode_places = msgspec.json.Decoder(list[_Place]).decode
_LEAVE = """
INSERT INTO revivals (parent, child) SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE TRUE
ON CONFLICT (parent) DO UPDATE SET child = excluded.child
"""


def revive(tx: Transaction, parents: Sequence[int] = (), limit: int = BATCH_MAX) -> int:
    """Let the children wait again that were cancelled because of `parents`, and theirs in turn; answers how many did.

    At most `limit`; where they are more, ticks go on: they call this without parents.
    """
    if limit <= 0:
        return 0
    places: deque[_Place] = deque((parent, 0) for parent in parents)
    if not parents:
        places.extend(_decode_places(tx.db.execute(_TAKE_UP, (BATCH_MAX,)).fetchone()[0]))
        if places:
            taken = numbers(parent for parent, _ in places)
            tx.db.execute("DELETE FROM revivals WHERE parent IN (SELECT value FROM json_each(?))", (taken,))
    revived, edges_left = 0, EDGES_MAX
    while places and revived < limit and edges_left > 0:
        candidates, edges = _look_on(tx, places, limit - revived, edges_left)
        edges_left -= edges
        started = _revive(tx, candidates)
        revived += len(started)
        places.extend((row.seq, 0) for row in started if row.children)
    if places:
        tx.db.execute(_LEAVE, (to_json(list(places)).decode(),))
        tx.topics.add(DUE_TOPIC)
    return revived


def _look_on(tx: Transaction, places: deque[_Place], limit: int, edges_max: int) -> tuple[list[int], int]:
    """Answer the next children to be looked at, and the edges this takes; what is left to look at stays in `places`."""
    wanted = list(places)
    found = _decode_candidates(tx.db.execute(CANDIDATES, (to_json(wanted).decode(), edges_max + 1)).fetchone()[0])
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


def _revive(tx: Transaction, candidates: Sequence[int]) -> list[Row]:
    """Let those wait again that no parent and no key keeps from it; answers them."""
    if not candidates:
        return []
    rows = load_by_seq(tx.db, dict.fromkeys(candidates))
    ties = look_at(tx, rows)
    slots = [(row.queue, row.unique_key) for row in rows.values() if row.unique_key is not None]
    holders = keys.find_holders(tx.db, slots, tx.now_ms)
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
    save(tx, started)
    tie_again(tx, [ties[row.seq] for row in started])
    keys.take(tx, [(row.queue, row.unique_key, row.id) for row in started if row.unique_key is not None])
    return started + _revive(tx, later)
