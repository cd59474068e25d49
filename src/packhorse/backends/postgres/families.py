"""Parents and children: waiting, and being told of an end.

A job that has somebody to tell of its end is marked (`children` = 1). Whatever ends it, the index `untold` then shows
it among those whose children do not know yet, so no move can forget them: `serve` tells the first `BATCH_MAX` in the
same transaction, ticks tell the others. Who ties a child to a parent locks the parent's row first,
    and who ends a parent
locks it too: so a child is either seen by the one who ends its parent, or sees that it has ended.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

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
from .placing import columns
from .rows import askable, load_by_seq, save
from .script import Script, Tx

_FIND = "SELECT j.id, j.seq, j.state FROM packhorse.jobs AS j WHERE j.id = ANY($1::text[])"
_FIND_LOCKED = f"{_FIND} ORDER BY j.seq FOR NO KEY UPDATE"


def find(tx: Tx, ids: Iterable[str], *, locked: bool = False) -> Script[dict[str, Parent]]:
    """Look jobs up by id, and keep them from moving; those that are not there are not in the answer."""
    wanted = askable(ids)
    if not wanted:
        return {}
    rows = yield from tx.ask(_FIND_LOCKED if locked else _FIND, wanted)
    return {row[0]: Parent(*row) for row in rows}


# ---- to wait -----------------------------------------------------------------------------------------------

_JOIN = """
INSERT INTO packhorse.edges (child, parent, done)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::smallint[]) ON CONFLICT DO NOTHING
"""
_REMEMBER = """
UPDATE packhorse.jobs AS j SET after = m.after, waiting_for = m.live
FROM unnest($1::bigint[], $2::text[], $3::integer[]) AS m (seq, after, live) WHERE j.seq = m.seq
"""
#: A parent that lives has somebody to tell; one that ended just has children, which a tick keeps it for.
_MARK = f"""
UPDATE packhorse.jobs SET children = CASE WHEN state <= {RUNNING} THEN 1 ELSE 2 END
WHERE seq = ANY($1::bigint[]) AND (state <= {RUNNING} AND children <> 1 OR state > {RUNNING} AND children = 0)
"""


def join(
    tx: Tx,
    members: Mapping[int, Sequence[Parent]],
    after: Mapping[int, Sequence[str]],
    cancelled: Container[int],
    live: Mapping[int, int],
) -> Script[None]:
    """Tie stored children, by seq, to those of their parents that are there, and keep the ids of all."""
    edges = [
        (child, parent.seq, WAITS if parent.lives else HELD if parent.is_bad and child in cancelled else TOLD)
        for child, parents in members.items()
        for parent in parents
    ]
    kept = [(child, to_json(ids).decode(), live.get(child, 0)) for child, ids in after.items()]
    yield from tx.ask(_REMEMBER, *columns(kept))
    if edges:
        yield from tx.ask(_JOIN, *columns(edges))
        yield from tx.ask(_MARK, sorted({parent for _, parent, _ in edges}))
        tx.join_families()


EDGES_OF = """
SELECT e.child, e.parent, e.done, p.state
FROM packhorse.edges AS e JOIN packhorse.jobs AS p ON p.seq = e.parent
WHERE e.child = ANY($1::bigint[]) ORDER BY p.seq FOR NO KEY UPDATE OF p
"""
TELL = """
UPDATE packhorse.edges AS e SET done = m.done
FROM unnest($1::bigint[], $2::bigint[], $3::smallint[]) AS m (child, parent, done)
WHERE e.child = m.child AND e.parent = m.parent
"""


def look_at(tx: Tx, children: Iterable[int]) -> Script[dict[int, Ties]]:
    """Look at the parents of children that are about to start over, as they stand now, and keep them so."""
    ties = {child: Ties() for child in children}
    if not ties:
        return ties
    for child, parent, done, state in (yield from tx.ask(EDGES_OF, list(ties))):
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


def tie_again(tx: Tx, ties: Sequence[Ties]) -> Script[None]:
    """Write how the edges of children that start over stand now."""
    changed = [edge for of_child in ties for edge in of_child.changed]
    if changed:
        yield from tx.ask(TELL, *columns(changed))
    live = {parent for of_child in ties for parent in of_child.live}
    if live:
        yield from tx.ask(_MARK, sorted(live))


def start_over(tx: Tx, row: Row, delay_ms: int, ties: Ties | None) -> None:
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

UNTOLD = f"""
SELECT seq FROM packhorse.jobs WHERE state >= {SUCCEEDED} AND children = 1 AND seq <> ALL($2::bigint[])
ORDER BY seq LIMIT $1::bigint FOR NO KEY UPDATE SKIP LOCKED
"""
ANY_LEFT = f"""
SELECT EXISTS (SELECT 1 FROM packhorse.jobs WHERE state >= {SUCCEEDED} AND children = 1)
    OR EXISTS (SELECT 1 FROM packhorse.revivals)
"""

# Locked first, so that nobody tells the same children at the same time or ties another one to such a parent.
LOCK_PARENTS = """
SELECT seq FROM packhorse.jobs WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR NO KEY UPDATE
"""
TO_TELL = f"""
SELECT p.seq, CASE WHEN p.state IN (5, 8) THEN '' ELSE p.id END, p.state, e.child
FROM unnest($1::bigint[]) WITH ORDINALITY AS m (seq, no)
JOIN packhorse.jobs AS p ON p.seq = m.seq
LEFT JOIN packhorse.edges AS e ON e.parent = p.seq AND e.done = 0
WHERE p.state + 0 >= {SUCCEEDED} AND p.children = 1 ORDER BY m.no, e.child LIMIT $2::bigint
"""
_ALL_TOLD = "UPDATE packhorse.jobs SET children = 2 WHERE seq = ANY($1::bigint[]) AND children = 1"


def serve(tx: Tx, limit: int = BATCH_MAX) -> Script[int]:
    """Tell the children of the jobs that ended in this transaction, and theirs; answers how many were told.

    At most `limit`: the others are left to ticks.
    """
    if not tx.ended:
        return 0
    told = 0
    if tx.families:
        told = yield from _serve(tx, limit)
        if told >= limit:
            tx.topics.add(DUE_TOPIC)
    tx.ended.clear()
    return told


def _serve(tx: Tx, limit: int, held_up: set[int] | None = None) -> Script[int]:
    told = 0
    while tx.ended and told < limit:
        ended, tx.ended = tx.ended, []
        told += yield from _tell(tx, ended, limit - told, held_up)
    tx.ended.clear()
    return told


def serve_the_rest(tx: Tx, limit: int) -> Script[int]:
    """Tell children that earlier moves left over; answers how many. Those that somebody has locked hear of it later."""
    told = 0
    held_up: set[int] = set()
    while told < limit:  # also where no edge is left: then there is nobody to tell, which is to be noted
        tx.ended += [seq for (seq,) in (yield from tx.ask(UNTOLD, limit - told, sorted(held_up)))]
        if not tx.ended:
            break
        told += yield from _serve(tx, limit - told, held_up)
    return told


def _tell(tx: Tx, parents: Sequence[int], limit: int, held_up: set[int] | None) -> Script[int]:
    """Tell children of ended jobs. `held_up`: wait for nobody, and note the parents of children that are locked."""
    yield from tx.ask(LOCK_PARENTS, list(parents))
    edges = yield from tx.ask(TO_TELL, list(parents), limit + 1)
    more = len(edges) > limit
    edges = edges[:limit]
    through = {seq: state for seq, _, state, _ in edges}
    if more and edges:
        through.pop(edges[-1][0])  # perhaps not all of its children are among these
    left = [seq for seq in parents if seq not in through] if more else []
    children = {child for *_, child in edges if child is not None}
    rows = yield from load_by_seq(tx, children, only_free=held_up is not None)
    if held_up is not None:
        held_up.update(seq for seq, _, _, child in edges if child is not None and child not in rows)
        for seq in held_up:
            through.pop(seq, None)
        left = [seq for seq in left if seq not in held_up]
    tx.ended += left
    told: list[tuple[int, int, int]] = []
    for seq, parent, state, child in edges:
        row = rows.get(child) if child is not None else None
        if row is not None:
            if row.state == WAITING:
                _hear(tx, row, Parent(parent, seq, state))
            is_held = parent and (row.state, row.cancel) == (CANCELLED, FOR_PARENT) and not row.after_failed
            told.append((row.seq, seq, HELD if is_held else TOLD))
    if told:
        yield from tx.ask(TELL, *columns(told))
    yield from save(tx, rows.values())
    if through:
        yield from tx.ask(_ALL_TOLD, list(through))
        yield from drop(tx, [seq for seq, state in through.items() if state > CANCELLED])
    return len(told)


def _hear(tx: Tx, row: Row, parent: Parent) -> None:
    """Let a waiting child hear of a parent's end."""
    if parent.state > CANCELLED:
        parent = Parent(parent.id.partition(":")[2], parent.seq, parent.state - BURIED)
    if parent.is_bad and not row.after_failed:
        cancel_for(tx, row, parent)
        return
    row.wait_for(row.waiting_for - 1)
    if row.waiting_for <= 0:
        start_over(tx, row, row.due_at_ms - row.created_at_ms, None)


def cancel_for(tx: Tx, row: Row, parent: Parent) -> None:
    """Cancel a child because a parent ended badly."""
    row.add_error(parent_failed(parent.id, STATES[parent.state], tx.now_ms))
    row.cancel = FOR_PARENT
    row.held_by = parent.seq
    row.family_dirty = True
    row.end(CANCELLED, tx.now_ms)
    tx.topics.add(job_topic(row.id))


_BURY = f"""
UPDATE packhorse.jobs
SET id = chr(127) || seq || ':' || id, workflow = NULL, schedule = NULL, unique_key = NULL,
    finished_at_ms = coalesce(finished_at_ms, $1::bigint),
    state = {BURIED} + greatest(state, CASE WHEN state <= {RUNNING} THEN {CANCELLED} ELSE 0 END), lane = NULL
WHERE seq = ANY($2::bigint[])
"""


def bury(tx: Tx, seqs: Sequence[int]) -> Script[None]:
    """Remove jobs from sight that are deleted and have children to tell; `serve` drops them once it told all.

    Those that had not ended count as cancelled. Their keys must be free already.
    """
    yield from tx.ask(_BURY, tx.now_ms, list(seqs))
    tx.ended += seqs
