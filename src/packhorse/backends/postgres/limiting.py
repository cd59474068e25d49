"""Claims from a queue where limits may hold jobs back. One such claim at a time: it holds the lock of the limits.

What a claim costs does not grow with what is held back: it looks at the limits of each type, at as many lanes as it
wants jobs (and those that cannot start because of jobs that run), and at the jobs it takes.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from ...limits import lane_of
from ..base import DUE_TOPIC, queue_topic
from ..gates import Gate, Rule
from ..stored import PENDING, RUNNING
from .placing import FLOOR, columns
from .script import Script, Statement, Tx

#: Lanes looked at together.
_LANES = 64
#: Jobs of a lane looked at, at least.
_DEPTH = 16
#: Jobs moved into their lanes by one claim, where limits were set after they were enqueued: about 80 ms of work.
_SIFT_MAX = 10_000
#: How often one claim puts lanes in order before it takes what there is.
_ROUNDS_MAX = 20


class Place(NamedTuple):
    """A pending job as it is looked at."""

    seq: int
    rank: int
    type: str
    key: str | None
    lane: str | None
    priority: int


class _Lane(NamedTuple):
    lane: str
    head: int
    key: str  # '' for jobs without one
    rule: Rule


_RUNNING = f"""
SELECT lane, count(*) FROM packhorse.jobs WHERE state = {RUNNING} AND lane IS NOT NULL GROUP BY lane
"""

# The types with lanes: whether they have limits, some by key, and lanes by key; the limit of the whole type, its use.
_TYPES = """
SELECT t.type, t.live, t.by_key, t.in_lanes, l.rate, l.period_ms, l.burst, l.concurrency, b.full_at_ns,
    EXISTS (SELECT 1 FROM packhorse.queues WHERE name = $1::text AND paused)
FROM packhorse.limited AS t LEFT JOIN packhorse.limits AS l ON l.type = t.type AND l.key = ''
LEFT JOIN packhorse.buckets AS b ON b.type = t.type AND b.key = ''
"""
_PAUSED = "SELECT EXISTS (SELECT 1 FROM packhorse.queues WHERE name = $1::text AND paused)"

# The next lanes of a type by their best job, each with the limit of its key: its own, else the one for each.
NEXT_LANES = f"""
SELECT n.lane, n.head, n.key,
    CASE WHEN own.type IS NULL THEN every.rate ELSE own.rate END,
    CASE WHEN own.type IS NULL THEN every.period_ms ELSE own.period_ms END,
    CASE WHEN own.type IS NULL THEN every.burst ELSE own.burst END,
    CASE WHEN own.type IS NULL THEN every.concurrency ELSE own.concurrency END,
    b.full_at_ns
FROM (
    SELECT lane, head, type, substr(lane, length(type) + 2) AS key FROM packhorse.lanes
    WHERE opens_at_ms IS NULL AND type = $1::text AND queue = $2::text AND (head, lane) > ($3::bigint, $4::text)
    ORDER BY head, lane LIMIT {_LANES}
) AS n
LEFT JOIN packhorse.limits AS own ON own.type = n.type AND own.key = n.key
LEFT JOIN packhorse.limits AS every ON every.type = n.type AND every.key = '*'
LEFT JOIN packhorse.buckets AS b ON b.type = n.type AND b.key = n.key
ORDER BY n.head, n.lane
"""

# The best jobs that no limit concerned when they became pending (of each priority, from a little before its front on),
# and the best of some lanes, so many of each. Locked: what is cancelled meanwhile, or enqueued by nobody yet, is not
# here.
OPEN_PLACES = f"""
SELECT j.seq, j.rank, j.type, j.key, j.lane, j.priority
FROM generate_series(0, 9) AS p (priority) CROSS JOIN (SELECT $1::text AS queue) AS q CROSS JOIN LATERAL (
    SELECT j.seq, j.rank, j.type, j.key, j.lane, j.priority FROM packhorse.jobs AS j
    WHERE j.state = {PENDING} AND j.lane IS NULL AND j.queue = q.queue AND j.priority = p.priority
        AND j.rank >= {FLOOR.format(now_ms="$3::bigint")}
    ORDER BY j.rank, j.seq LIMIT $2::bigint FOR NO KEY UPDATE SKIP LOCKED
) AS j ORDER BY j.rank, j.seq LIMIT $2::bigint
"""
LANE_PLACES = f"""
SELECT j.seq, j.rank, j.type, j.key, j.lane, j.priority
FROM unnest($2::text[]) AS m (lane) CROSS JOIN LATERAL (
    SELECT j.seq, j.rank, j.type, j.key, j.lane, j.priority FROM packhorse.jobs AS j
    WHERE j.state = {PENDING} AND j.lane IS NOT NULL AND j.queue = $1::text AND j.lane = m.lane
    ORDER BY j.rank, j.seq LIMIT $3::bigint FOR NO KEY UPDATE SKIP LOCKED
) AS j
"""

_HAS_LANES = f"""
SELECT seq FROM packhorse.jobs
WHERE state = {PENDING} AND lane IS NOT NULL AND queue = $1::text AND lane >= $2::text AND lane < $3::text
ORDER BY lane LIMIT 1
"""
_SIFT = """
UPDATE packhorse.jobs AS j SET lane = m.lane FROM unnest($1::bigint[], $2::text[]) AS m (seq, lane) WHERE j.seq = m.seq
"""
_WAKE = """
UPDATE packhorse.lanes SET opens_at_ms = NULL, asleep_at_ms = NULL
WHERE opens_at_ms IS NOT NULL AND (opens_at_ms <= $1::bigint OR asleep_at_ms > $1::bigint)
"""
_SLEEP = """
UPDATE packhorse.lanes AS l SET opens_at_ms = m.at_ms, asleep_at_ms = $4::bigint
FROM unnest($2::text[], $3::bigint[]) AS m (lane, at_ms) WHERE l.queue = $1::text AND l.lane = m.lane
"""
# What others told of since the last claim. Only what is committed is seen, and nobody waits.
_TAKE_SHOWN = """
WITH told AS (DELETE FROM packhorse.shown WHERE queue = $1::text RETURNING lane, type, head)
INSERT INTO packhorse.lanes (queue, lane, type, head) SELECT $1::text, lane, type, min(head) FROM told GROUP BY lane,
    type
ON CONFLICT (queue, lane) DO UPDATE SET head = least(packhorse.lanes.head, excluded.head)
"""
_HEAD = f"""(
    SELECT min(rank) FROM packhorse.jobs AS j
    WHERE j.state = {PENDING} AND j.lane IS NOT NULL AND j.queue = l.queue AND j.lane = l.lane
)"""
_LINE_UP = f"""
WITH seen AS MATERIALIZED (
    SELECT l.lane, {_HEAD} AS head FROM packhorse.lanes AS l WHERE l.queue = $1::text AND l.lane = ANY($2::text[])
), gone AS (
    DELETE FROM packhorse.lanes AS l USING seen WHERE l.queue = $1::text AND l.lane = seen.lane AND seen.head IS NULL
    RETURNING 1
), moved AS (
    UPDATE packhorse.lanes AS l SET head = seen.head FROM seen
    WHERE l.queue = $1::text AND l.lane = seen.lane AND seen.head IS NOT NULL AND l.head <> seen.head
    RETURNING 1
)
SELECT EXISTS (SELECT 1 FROM gone) OR EXISTS (SELECT 1 FROM moved)
"""
_STILL_THERE = "SELECT lane FROM packhorse.lanes WHERE queue = $1::text AND lane = ANY($2::text[])"
_FILL = """
INSERT INTO packhorse.buckets (type, key, full_at_ns) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
ON CONFLICT (type, key) DO UPDATE SET full_at_ns = excluded.full_at_ns
"""
_OPENS = """
INSERT INTO packhorse.openings AS o (queue, at_ms) VALUES ($1::text, $2::bigint)
ON CONFLICT (queue) DO UPDATE SET at_ms = $2::bigint WHERE o.at_ms > $2::bigint OR o.at_ms <= $3::bigint
RETURNING 1
"""

T = TypeVar("T")


class Choice:
    """The jobs that one claim takes from one queue with lanes."""

    def __init__(self, tx: Tx, queue: str, wanted: int) -> None:
        self._tx = tx
        self._queue = queue
        self._wanted = wanted
        self._types: dict[str, Gate] = {}
        self._lanes: dict[str, Gate] = {}
        self._heads: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._cut = False  # there are lanes that were not looked at
        self._held: set[str] = set()  # lanes whose jobs are all locked by others
        self._rounds = 0  # how often heads were put right
        self._depth = 0  # jobs of a lane to look at; 0: as many as seem right
        self.untidy = False  # there are lanes of limits that are gone
        self._sifted = 0
        self._put_to_sleep: list[str] = []  # lanes that sleep from this claim on

    def make(self) -> Script[list[Place]]:
        """Choose up to `wanted` jobs, best first, lock them, and note what their starts use up."""
        yield from self._tx.places.write()
        chosen = yield from self._choose()
        while chosen is None:
            chosen = yield from self._choose()
        if self._sifted >= _SIFT_MAX:
            self._tx.topics.add(queue_topic(self._queue))  # the rest by the next claim, and that soon
        yield from self._use()
        return chosen

    def _choose(self) -> Script[list[Place] | None]:
        """Choose from what the tables show; None if they were put right meanwhile, so that it is to be done again."""
        rooms = yield from self._look_at_limits()
        if rooms is None:
            return []
        found, depth = yield from self._look_at_jobs(rooms)
        stay = yield from self._sift(found)
        if len(stay) < len(found) and self._sifted < _SIFT_MAX:
            return None
        if self._cut and (yield from self._put_heads_right(stay)):
            return None
        stay.sort(key=_order)
        chosen: list[Place] = []
        of_lane: dict[str | None, list[Gate]] = {None: []}
        for one in stay:
            if len(chosen) == self._wanted:
                break
            gates = of_lane.get(one.lane)
            if gates is None:
                gates = of_lane[one.lane] = self._gates(one)
            for gate in gates:
                if gate.room <= 0:
                    break
            else:
                for gate in gates:
                    gate.room -= 1
                    gate.used += 1
                chosen.append(one)
        if any(depth < room for _, room in rooms):
            taken = Counter(one.lane for one in chosen)
            if any(taken[lane] == depth < room for lane, room in rooms):
                # A lane gave all it was asked for: its next may be better than what others gave.
                self._depth = 4 * depth
                return None
        return chosen

    def _look_at_limits(self) -> Script[list[tuple[str, int]] | None]:
        """Answer the lanes that may start jobs, and how many of each; None for a paused queue."""
        tx = self._tx
        self._lanes, self._heads, self._types, self._cut = {}, {}, {}, False
        shown = tx.statement(_TAKE_SHOWN, self._queue)
        types = yield Statement(tx.store.sql(_TYPES), (self._queue,), ahead=(shown,))
        tx.limited = {job_type: by_key for job_type, live, by_key, *_ in types if live}
        self.untidy = any(not live or in_lanes > by_key for _, live, by_key, in_lanes, *_ in types)
        if types[0][-1] if types else (yield from tx.ask(_PAUSED, self._queue))[0][0]:
            return None
        by_key = any(in_lanes for _, _, _, in_lanes, *_ in types)
        rules = {job_type: Rule(*rest[:5]) for job_type, _, _, _, *rest in types}
        if by_key:
            yield from tx.ask(_WAKE, tx.now_ms)
        self._running = {}
        of_types: Counter[str] = Counter()
        if by_key or any(rule.concurrency is not None for rule in rules.values()):
            self._running = dict((yield from tx.ask(_RUNNING)))
            for lane, count in self._running.items():
                of_types[lane.partition(":")[0]] += count
        rooms: list[tuple[str, int]] = []
        for job_type, _, _, in_lanes, *_ in types:
            gate = self._types[job_type] = Gate((job_type, ""), rules[job_type], of_types[job_type], tx.now_ms)
            if gate.room > 0:
                rooms += yield from self._rooms(gate, in_lanes)
        return rooms

    def _look_at_jobs(self, rooms: list[tuple[str, int]]) -> Script[tuple[list[Place], int]]:
        """Answer the best jobs of the open lane and of the others, and how many of each of those were asked for."""
        ask, depth = self._tx.ask, 0
        found = yield from ask(OPEN_PLACES, self._queue, self._wanted, self._tx.now_ms)
        if rooms:
            depth = min(self._depth or max(_DEPTH, 2 * self._wanted // len(rooms)), max(room for _, room in rooms))
            found += yield from ask(LANE_PLACES, self._queue, [lane for lane, _ in rooms], depth)
        return [Place(*row) for row in found], depth

    def _gates(self, place: Place) -> list[Gate]:
        if place.lane is None:
            return []
        gates = [self._types[place.type]] if place.type in self._types else []
        return [*gates, self._lanes[place.lane]] if place.lane in self._lanes else gates

    def _rooms(self, gate: Gate, in_lanes: bool) -> Script[list[tuple[str, int]]]:
        """Answer lanes of a type that may start jobs, and how many of each to look at."""
        job_type, most = gate.name[0], min(gate.room, self._wanted)
        rooms = [(f"{job_type}:", most)]
        after: tuple[int, str] = (-1 << 62, "")
        while in_lanes:
            rows = yield from self._tx.ask(NEXT_LANES, job_type, self._queue, *after)
            lanes = [_Lane(row[0], row[1], row[2], Rule(*row[3:])) for row in rows]
            for lane in lanes:
                running = self._running.get(lane.lane, 0)
                own = self._lanes[lane.lane] = Gate((job_type, lane.key), lane.rule, running, self._tx.now_ms)
                self._heads[lane.lane] = lane.head
                if own.room > 0 and lane.lane not in self._held:
                    rooms.append((lane.lane, min(own.room, most)))
            if len(lanes) < _LANES:
                break
            if len(rooms) > most:
                self._cut = True
                break
            after = (lanes[-1].head, lanes[-1].lane)
        return rooms

    def _sift(self, places: list[Place]) -> Script[list[Place]]:
        """Move jobs into the lanes they belong to now; answers those that are where they belong."""
        limited = self._tx.limited
        wanted: dict[tuple[str, str | None], str | None] = {}
        stay: list[Place] = []
        move: list[tuple[int, str | None]] = []
        for place in places:
            name = (place.type, place.key)
            lane = wanted[name] if name in wanted else wanted.setdefault(name, lane_of(*name, limited))
            if lane == place.lane:
                stay.append(place)
                continue
            move.append((place.seq, lane))
            if lane is not None:
                self._tx.places.show(self._queue, lane, place.type, place.rank)
            else:
                self._tx.places.open(self._queue, place.priority, place.rank)
        if move:
            yield from self._tx.ask(_SIFT, *columns(move))
            yield from self._tx.places.write()
            self._sifted += len(move)
        return stay

    def _put_heads_right(self, found: Sequence[Place]) -> Script[bool]:
        """Line lanes up anew whose best job is worse than they promised; answers whether that changed anything.

        A best job that somebody else has locked is still the best, so its lane stays where it is. A lane that has only
        such jobs is left out from then on, so that those behind it get their turn.
        """
        if self._rounds >= _ROUNDS_MAX:
            return False
        self._rounds += 1
        best: dict[str, int] = {}
        for place in found:
            if place.lane is not None:
                best[place.lane] = min(place.rank, best.get(place.lane, place.rank))
        shown = (lane for lane, gate in self._lanes.items() if gate.room > 0 and lane not in self._held)
        wrong = sorted(lane for lane in shown if best.get(lane) != self._heads[lane])
        if (yield from self._line_up(wrong)):
            return True
        held = set(wrong) - set(best)
        self._held |= held
        return bool(held)

    def _line_up(self, lanes: Sequence[str]) -> Script[bool]:
        """Put each lane where its best job is; answers whether any was elsewhere."""
        return bool(lanes) and bool((yield from self._tx.ask(_LINE_UP, self._queue, list(lanes)))[0][0])

    def _use(self) -> Script[None]:
        """Write down what the starts used, which lanes sleep, and when the queue is worth another look."""
        tx = self._tx
        buckets = present(gate.bucket() for gate in [*self._types.values(), *self._lanes.values()])
        if buckets:
            yield from tx.ask(_FILL, *columns(buckets))
        sleeping = [
            (lane, at_ms)
            for lane, gate in self._lanes.items()
            if gate.room <= 0 and (at_ms := gate.opens_at_ms()) is not None
        ]
        if sleeping:
            self._put_to_sleep = [lane for lane, _ in sleeping]
            yield from tx.ask(_SLEEP, self._queue, *columns(sleeping), tx.now_ms)
        openings = [at_ms for _, at_ms in sleeping]
        for gate in self._types.values():
            at = gate.opens_at_ms() if (yield from self._is_shut(gate)) else None
            openings += [at] if at is not None else []
        if openings and (yield from tx.ask(_OPENS, self._queue, min(openings), tx.now_ms)):
            tx.topics.add(DUE_TOPIC)

    def _is_shut(self, gate: Gate) -> Script[bool]:
        """Tell whether a limit keeps a type from starting more, and jobs of it were or are pending here."""
        if gate.room > 0:
            return False
        return bool(gate.used) or (yield from self._has_lanes(gate.name[0]))

    def _has_lanes(self, job_type: str) -> Script[bool]:
        rows = yield from self._tx.ask(_HAS_LANES, self._queue, f"{job_type}:", f"{job_type};")  # ; comes after :
        return bool(rows)

    def left(self, chosen: Sequence[Place]) -> Script[None]:
        """Line the lanes up anew that the chosen jobs have left, or that had nothing to show; count what is shut."""
        used = {place.lane for place in chosen}
        yield from self._line_up(
            sorted(lane for lane, gate in self._lanes.items() if lane in used or (gate.room > 0 and not gate.used))
        )
        rate_limited = self._tx.store.rate_limited
        for job_type, gate in self._types.items():
            at_ms = gate.opens_at_ms() if gate.room <= 0 else None
            if at_ms is None or rate_limited.is_known(job_type, at_ms):
                continue
            if (yield from self._has_lanes(job_type)):
                rate_limited.note_type(job_type, at_ms)
        if self._put_to_sleep:  # those that have no jobs left are gone from the table
            for (lane,) in (yield from self._tx.ask(_STILL_THERE, self._queue, self._put_to_sleep)):
                rate_limited.note_lane(self._lanes[lane].name[0])


def present(values: Iterable[T | None]) -> list[T]:
    """Answer the values that are not None."""
    return [value for value in values if value is not None]


def _order(one: Place) -> tuple[int, int]:
    return one.rank, one.seq
