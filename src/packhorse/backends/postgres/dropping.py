"""Jobs that go: what is deleted with them, and how ticks find those that were kept long enough."""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ..base import ABSENT_KEPT_MS, Keep
from ..stored import ABSENT, CANCELLED, FAILED, SUCCEEDED, lives, to_json
from . import keys
from .placing import columns
from .script import Script, Tx

#: Edges that one tick deletes, and that it looks at, about.
EDGES_MAX = 20_000

# Told of is only what was seen: not the rows of jobs that were deleted before, or are in another store.
_DROP = f"""
WITH gone AS (
    DELETE FROM packhorse.jobs WHERE seq = ANY($1::bigint[]) RETURNING seq, id, state
), rest AS (
    DELETE FROM packhorse.steps WHERE seq IN (SELECT seq FROM gone)
)
SELECT packhorse.tell(array_agg(id), '{{0}}', $2::bigint) FROM gone WHERE state <= {CANCELLED} HAVING count(*) > 0
"""
_DROP_EDGES = """
WITH first AS (DELETE FROM packhorse.edges WHERE child = ANY($1::bigint[]))
DELETE FROM packhorse.edges WHERE parent = ANY($1::bigint[]) AND child <> ALL($1::bigint[])
"""
_DROP_EXPECTED = "DELETE FROM packhorse.expected WHERE seq = ANY($1::bigint[])"
_DROP_REVIVALS = "DELETE FROM packhorse.revivals WHERE parent = ANY($1::bigint[])"


def drop(tx: Tx, seqs: Sequence[int]) -> Script[None]:
    """Remove jobs and all that is kept of them."""
    if not seqs:
        return
    wanted = list(seqs)
    yield from keys.free(tx, wanted)
    yield from tx.ask(_DROP, wanted, tx.now_ms)
    if tx.families:
        yield from tx.ask(_DROP_EDGES, wanted)
        yield from tx.ask(_DROP_REVIVALS, wanted)
        yield from tx.ask(_DROP_EXPECTED, wanted)


# ---- what was kept long enough -----------------------------------------------------------------------------

# Locked and asked again by the lock itself: a rerun may have started one over since.
_KEPT = """
SELECT seq FROM packhorse.jobs WHERE state >= 5 AND state = {} AND children = 0 AND finished_at_ms <= $1::bigint
ORDER BY finished_at_ms LIMIT $2::bigint FOR UPDATE SKIP LOCKED
"""
KEPT = {state: _KEPT.format(state) for state in (SUCCEEDED, FAILED, CANCELLED, ABSENT)}
_ANY_KEPT = """(
    SELECT least(
        (SELECT finished_at_ms FROM packhorse.jobs WHERE state >= 5 AND state = {0} AND children = 0
            ORDER BY finished_at_ms LIMIT 1),
        (SELECT finished_at_ms FROM packhorse.jobs WHERE state >= 5 AND state = {0} AND children <> 0
            ORDER BY finished_at_ms LIMIT 1)
    ) <= $1::bigint - {1}
) IS TRUE"""
#: A condition on the time ($1) and how long each kind is kept ($2, $3, $4).
ANY_OLD = " OR ".join(
    _ANY_KEPT.format(state, f"${place}::bigint") for state, place in ((SUCCEEDED, 2), (FAILED, 3), (CANCELLED, 4))
)
ANY_OLD += f" OR {_ANY_KEPT.format(ABSENT, ABSENT_KEPT_MS)}"


def kept_ms(keep: Keep) -> Iterable[tuple[int, int]]:
    """Answer how long ended jobs are kept, by state."""
    return (SUCCEEDED, keep.succeeded_ms), (FAILED, keep.failed_ms), (CANCELLED, keep.cancelled_ms)


def drop_old(tx: Tx, keep: Keep, limit: int) -> Script[int]:
    """Drop jobs that ended long enough ago, at most `limit`; answers how many."""
    dropped = 0
    for state, keep_ms in kept_ms(keep):
        dropped += yield from _drop_old(tx, state, tx.now_ms - keep_ms, limit - dropped)
    yield from _drop_old(tx, ABSENT, tx.now_ms - ABSENT_KEPT_MS, limit)  # they are no jobs of this store
    return dropped


def _drop_old(tx: Tx, state: int, until_ms: int, limit: int) -> Script[int]:
    dropped = 0
    if limit > 0:
        seqs = [seq for (seq,) in (yield from tx.ask(KEPT[state], until_ms, limit))]
        seqs = yield from keys.not_held(tx, seqs)
        if seqs and tx.families:
            seqs = yield from _not_too_many(tx, seqs)
        yield from drop(tx, seqs)
        dropped += len(seqs)
    if dropped < limit:
        dropped += yield from _drop_parents(tx, state, until_ms, limit - dropped)
    return dropped


# Edges tell which children were live when last looked at, so that each is looked at once, however many there are
# and however long the last one takes: the first that is not marked decides.
_PARENTS = """
SELECT p.finished_at_ms, p.queue, p.seq, (
    SELECT c.state FROM packhorse.edges AS e JOIN packhorse.jobs AS c ON c.seq = e.child
    WHERE e.parent = p.seq AND e.done < 2 LIMIT 1
)
FROM packhorse.jobs AS p
WHERE p.state >= 5 AND p.state = {} AND p.children = 2 AND p.children <> 0 AND p.finished_at_ms <= $1::bigint
    AND (p.finished_at_ms, p.queue, p.seq) > ($2::bigint, $3::text, $4::bigint)
ORDER BY p.finished_at_ms, p.queue, p.seq LIMIT $5::bigint FOR UPDATE OF p SKIP LOCKED
"""
PARENTS = {state: _PARENTS.format(state) for state in (SUCCEEDED, FAILED, CANCELLED, ABSENT)}

CHILDREN = """
SELECT e.parent, e.child, c.state
FROM unnest($1::bigint[]) WITH ORDINALITY AS m (seq, no)
JOIN packhorse.edges AS e ON e.parent = m.seq AND e.done < 2 JOIN packhorse.jobs AS c ON c.seq = e.child
ORDER BY m.no LIMIT $2::bigint
"""
_NOTED = """
UPDATE packhorse.edges AS e SET done = 2 FROM unnest($1::bigint[], $2::bigint[]) AS m (child, parent)
WHERE e.child = m.child AND e.parent = m.parent AND e.done = 1
"""
EDGES = """
SELECT m.seq FROM unnest($1::bigint[]) WITH ORDINALITY AS m (seq, no)
CROSS JOIN LATERAL (
    SELECT 1 FROM packhorse.edges WHERE child = m.seq UNION ALL SELECT 1 FROM packhorse.edges WHERE parent = m.seq
) AS e ORDER BY m.no LIMIT $2::bigint
"""

_MARKED = "SELECT value FROM packhorse.marks WHERE name = $1::text"
_MARK = """
INSERT INTO packhorse.marks (name, value) VALUES ($1::text, $2::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_Place = tuple[int, str, int]
_START: _Place = (-1, "", 0)
_decode_place = msgspec.json.Decoder(_Place).decode


def _drop_parents(tx: Tx, state: int, until_ms: int, limit: int) -> Script[int]:
    """Drop jobs with children none of which lives. The next tick goes on after those that are kept."""
    name = f"kept {state}"
    found = yield from tx.ask(_MARKED, name)
    start = _decode_place(found[0][0]) if found else _START
    parents = yield from tx.ask(PARENTS[state], until_ms, *start, limit)
    go_on: _Place = parents[-1][:3] if len(parents) == limit else _START
    if go_on != start:
        yield from tx.ask(_MARK, name, to_json(go_on).decode())
    # Asked again now that they are locked: one may have been tied to such a parent meanwhile.
    childless = yield from _without_live_children(
        tx, [seq for *_, seq, child_state in parents if child_state is None or not lives(child_state)]
    )
    childless = yield from _not_too_many(tx, (yield from keys.not_held(tx, childless)))
    yield from drop(tx, childless)
    return len(childless)


def _without_live_children(tx: Tx, parents: Sequence[int]) -> Script[list[int]]:
    """Look on from the first child of each, which has ended; answers those whose children have all ended."""
    if not parents:
        return []
    children = yield from tx.ask(CHILDREN, list(parents), EDGES_MAX + 1)
    over = set(parents)
    if len(children) > EDGES_MAX:
        seen = {parent for parent, *_ in children[:-1]} - {children[-1][0]}
        over &= seen
    over -= {parent for parent, _, state in children if lives(state)}
    noted = [(child, parent) for parent, child, state in children if not lives(state) and parent not in over]
    if noted:
        yield from tx.ask(_NOTED, *columns(noted))
    return [parent for parent in parents if parent in over]


def _not_too_many(tx: Tx, seqs: Sequence[int]) -> Script[list[int]]:
    """Answer as many of `seqs` as have edges that one tick may delete, at least one."""
    if not seqs:
        return []
    edges = [seq for (seq,) in (yield from tx.ask(EDGES, list(seqs), EDGES_MAX + 1))]
    if len(edges) <= EDGES_MAX:
        return list(seqs)
    last = edges[-1]
    whole = seqs[: seqs.index(last)]
    return list(whole) or [last]
