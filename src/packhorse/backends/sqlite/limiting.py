"""Claims from a queue where limits may hold jobs back, inside a transaction.

What a claim costs does not grow with what is held back: it looks at the limits of each type, at as many lanes as it
wants jobs (and those that cannot start because of jobs that run), and at the jobs it takes.
"""

# ruff: noqa: S608  # statements are made of constants of this package; all that comes from outside is a parameter

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from ...limits import lane_of
from ..base import DUE_TOPIC, queue_topic
from ..gates import Gate, Rule
from ..stored import PENDING, RUNNING, to_json
from .ops import Transaction
from .rows import numbers
from .taken import COLUMNS, Taken, decode_taken

#: Lanes looked at together.
_LANES = 64
#: Jobs of a lane looked at, at least.
_DEPTH = 16
#: Jobs moved into their lanes by one claim, where limits were set after they were enqueued: about 80 ms of work.
_SIFT_MAX = 10_000


class _Lane(msgspec.Struct, array_like=True):
    lane: str
    head: int
    key: str  # '' for jobs without one
    rule: Rule


# How many jobs run of each lane: as many steps as jobs with lanes run, whatever waits.
_RUNNING = f"""
SELECT CAST(json_group_array(json_array(lane, jobs)) AS BLOB) FROM (
    SELECT lane, count(*) AS jobs FROM jobs INDEXED BY running
    WHERE state = {RUNNING} AND lane IS NOT NULL GROUP BY lane
)
"""
_decode_running = msgspec.json.Decoder(list[tuple[str, int]]).decode

# The types with lanes: whether they have limits, some by key, and lanes by key; the limit of the whole type, its use.
_TYPES = """
SELECT CAST(json_group_array(json_array(t.type, t.live, t.by_key, t.in_lanes, json_array(
    l.rate, l.period_ms, l.burst, l.concurrency, b.full_at_ns
))) AS BLOB), EXISTS (SELECT 1 FROM queues WHERE name = ? AND paused)
FROM limited AS t LEFT JOIN limits AS l ON l.type = t.type AND l.key = ''
LEFT JOIN buckets AS b ON b.type = t.type AND b.key = ''
"""
_decode_types = msgspec.json.Decoder(list[tuple[str, int, int, int, Rule]]).decode

# The next lanes of a type by their best job, each with the limit of its key: its own, else the one for each.
_NEXT_LANES = f"""
SELECT CAST(json_group_array(json_array(t.lane, t.head, t.key, json_array(
    t.rate, t.period_ms, t.burst, t.concurrency, b.full_at_ns
))) AS BLOB)
FROM (
    SELECT n.*,
        iif(own.type IS NULL, every.rate, own.rate) AS rate,
        iif(own.type IS NULL, every.period_ms, own.period_ms) AS period_ms,
        iif(own.type IS NULL, every.burst, own.burst) AS burst,
        iif(own.type IS NULL, every.concurrency, own.concurrency) AS concurrency
    FROM (
        SELECT lane, head, type, substr(lane, length(type) + 2) AS key FROM lanes INDEXED BY lanes_open
        WHERE opens_at_ms IS NULL AND type = ?1 AND queue = ?2 AND (head, lane) > (?3, ?4)
        ORDER BY head, lane LIMIT {_LANES}
    ) AS n
    LEFT JOIN limits AS own ON own.type = n.type AND own.key = n.key
    LEFT JOIN limits AS every ON every.type = n.type AND every.key = '*'
) AS t LEFT JOIN buckets AS b ON b.type = t.type AND b.key = t.key
"""
_decode_lanes = msgspec.json.Decoder(list[_Lane]).decode

# The best jobs that no limit concerned when they became pending, and the best of some lanes, so many of each.
_SEQS = f"""
SELECT seq FROM (
    SELECT seq FROM jobs INDEXED BY ready
    WHERE state = {PENDING} AND lane IS NULL AND queue = ?1 ORDER BY rank, seq LIMIT ?4
)
UNION ALL
SELECT j.seq FROM json_each(?2) AS m CROSS JOIN jobs AS j NOT INDEXED ON j.seq IN (
    SELECT seq FROM jobs INDEXED BY laned
    WHERE state = {PENDING} AND lane IS NOT NULL AND queue = ?1 AND lane = m.value
    ORDER BY rank, seq LIMIT ?3
)
"""
_WHOLE = f"SELECT {COLUMNS} FROM jobs NOT INDEXED WHERE seq IN ({_SEQS})"
# Where more are looked at than are wanted: only what is needed to choose, and the chosen ones then.
_PLACES = f"""
SELECT CAST(json_group_array(json_array(
    seq, rank, type, key, lane, '', NULL, 0, 0, 0, priority, 0, 0, NULL, NULL, NULL, NULL
)) AS BLOB) FROM jobs NOT INDEXED WHERE seq IN ({_SEQS})
"""
CHOSEN = f"SELECT {COLUMNS} FROM jobs NOT INDEXED WHERE seq IN (SELECT value FROM json_each(?))"

_HAS_LANES = f"""
SELECT EXISTS (
    SELECT 1 FROM jobs INDEXED BY laned
    WHERE state = {PENDING} AND lane IS NOT NULL AND queue = ? AND lane >= ? AND lane < ?
)
"""
_SIFT = """
UPDATE jobs NOT INDEXED SET lane = m.value ->> 1 FROM json_each(?) AS m WHERE jobs.seq = m.value ->> 0
"""
_WAKE = """
UPDATE lanes SET opens_at_ms = NULL, asleep_at_ms = NULL
WHERE opens_at_ms <= ?1 AND opens_at_ms IS NOT NULL OR asleep_at_ms > ?1 AND asleep_at_ms IS NOT NULL
"""
# They are all there: an UPDATE would look for each in the whole queue.
_SLEEP = """
INSERT INTO lanes (queue, lane, type, head, opens_at_ms, asleep_at_ms)
SELECT ?1, value ->> 0, '', 0, value ->> 1, ?3 FROM json_each(?2) WHERE TRUE
ON CONFLICT (queue, lane) DO UPDATE SET opens_at_ms = excluded.opens_at_ms, asleep_at_ms = excluded.asleep_at_ms
"""
_NEW_HEADS = f"""
UPDATE lanes SET head = coalesce((
    SELECT min(rank) FROM jobs INDEXED BY laned
    WHERE state = {PENDING} AND lane IS NOT NULL AND queue = lanes.queue AND lane = lanes.lane
), 1 << 62)
WHERE queue = ?1 AND lane IN (SELECT value FROM json_each(?2))
"""
_DROP_EMPTY = "DELETE FROM lanes WHERE queue = ?1 AND lane IN (SELECT value FROM json_each(?2)) AND head = 1 << 62"
_STILL_THERE = "SELECT lane FROM lanes WHERE queue = ?1 AND lane IN (SELECT value FROM json_each(?2))"
_FILL = """
INSERT INTO buckets (type, key, full_at_ns)
SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE TRUE
ON CONFLICT (type, key) DO UPDATE SET full_at_ns = excluded.full_at_ns
"""
_OPENS = """
INSERT INTO openings (queue, at_ms) VALUES (?1, ?2)
ON CONFLICT (queue) DO UPDATE SET at_ms = ?2 WHERE at_ms > ?2 OR at_ms <= ?3
"""

T = TypeVar("T")


class Choice:
    """The jobs that one claim takes from one queue with lanes."""

    def __init__(self, tx: Transaction, queue: str, wanted: int) -> None:
        self._tx = tx
        self._queue = queue
        self._wanted = wanted
        self._types: dict[str, Gate] = {}
        self._lanes: dict[str, Gate] = {}
        self._heads: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._cut = False  # there are lanes that were not looked at
        self._depth = 0  # jobs of a lane to look at; 0: as many as seem right
        self.untidy = False  # there are lanes of limits that are gone
        self._whole = True  # what was looked at has all columns
        self._sifted = 0
        self._put_to_sleep: list[str] = []  # lanes that sleep from this claim on

    def make(self) -> list[Taken]:
        """Choose up to `wanted` jobs, best first, and note what their starts use up."""
        tx = self._tx
        tx.places.write()
        chosen = self._choose()
        while chosen is None:
            chosen = self._choose()
        if self._sifted >= _SIFT_MAX:
            tx.topics.add(queue_topic(self._queue))  # the rest by the next claim, and that soon
        self._use()
        if not self._whole and chosen:
            found = decode_taken(tx.db.execute(CHOSEN, (numbers(one.seq for one in chosen),)).fetchone()[0])
            chosen = sorted(found, key=_order)
        return chosen

    def _choose(self) -> list[Taken] | None:
        """Choose from what the tables show; None if they were put right meanwhile, so that it is to be done again."""
        rooms = self._look_at_limits()
        if rooms is None:
            return []
        found, depth = self._look_at_jobs(rooms)
        stay = self._sift(found)
        if len(stay) < len(found) and self._sifted < _SIFT_MAX:
            return None
        if self._cut and self._put_heads_right(stay):
            return None
        stay.sort(key=_order)
        chosen: list[Taken] = []
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

    def _look_at_limits(self) -> list[tuple[str, int]] | None:
        """Answer the lanes that may start jobs, and how many of each; None for a paused queue."""
        tx = self._tx
        self._lanes, self._heads, self._types, self._cut = {}, {}, {}, False
        text, paused = tx.db.execute(_TYPES, (self._queue,)).fetchone()
        types = _decode_types(text)
        tx.hints.limits = bool(types)
        tx.places.limited = {job_type: bool(by_key) for job_type, live, by_key, *_ in types if live}
        self.untidy = any(not live or in_lanes > by_key for _, live, by_key, in_lanes, _ in types)
        if paused:
            return None
        by_key = any(in_lanes for _, _, _, in_lanes, _ in types)
        if by_key:
            tx.db.execute(_WAKE, (tx.now_ms,))
        self._running = {}
        of_types: Counter[str] = Counter()
        if by_key or any(rule.concurrency is not None for *_, rule in types):
            self._running = dict(_decode_running(tx.db.execute(_RUNNING).fetchone()[0]))
            for lane, count in self._running.items():
                of_types[lane.partition(":")[0]] += count
        rooms: list[tuple[str, int]] = []
        for job_type, _, _, in_lanes, rule in types:
            gate = self._types[job_type] = Gate((job_type, ""), rule, of_types[job_type], tx.now_ms)
            if gate.room > 0:
                rooms += self._rooms(gate, bool(in_lanes))
        return rooms

    def _look_at_jobs(self, rooms: list[tuple[str, int]]) -> tuple[list[Taken], int]:
        """Answer the best jobs of the open lane and of the others, and how many of each of those were asked for."""
        depth = 0
        if rooms:
            depth = min(self._depth or max(_DEPTH, 2 * self._wanted // len(rooms)), max(room for _, room in rooms))
        self._whole = depth * len(rooms) <= self._wanted
        lanes = to_json([lane for lane, _ in rooms]).decode()
        values = (self._queue, lanes, depth, self._wanted)
        found = self._tx.db.execute(_WHOLE if self._whole else _PLACES, values).fetchone()[0]
        return decode_taken(found), depth

    def _gates(self, place: Taken) -> list[Gate]:
        if place.lane is None:
            return []
        gates = [self._types[place.type]] if place.type in self._types else []
        return [*gates, self._lanes[place.lane]] if place.lane in self._lanes else gates

    def _rooms(self, gate: Gate, in_lanes: bool) -> Iterable[tuple[str, int]]:
        """Answer lanes of a type that may start jobs, and how many of each to look at."""
        job_type, most = gate.name[0], min(gate.room, self._wanted)
        yield f"{job_type}:", most
        after: tuple[int, str] = (-1 << 62, "")
        open_lanes = 0
        while in_lanes:
            values = (job_type, self._queue, *after)
            lanes = _decode_lanes(self._tx.db.execute(_NEXT_LANES, values).fetchone()[0])
            for lane in lanes:
                running = self._running.get(lane.lane, 0)
                own = self._lanes[lane.lane] = Gate((job_type, lane.key), lane.rule, running, self._tx.now_ms)
                self._heads[lane.lane] = lane.head
                if own.room > 0:
                    open_lanes += 1
                    yield lane.lane, min(own.room, most)
            if len(lanes) < _LANES:
                return
            if open_lanes >= most:
                self._cut = True
                return
            after = (lanes[-1].head, lanes[-1].lane)

    def _sift(self, places: list[Taken]) -> list[Taken]:
        """Move jobs into the lanes they belong to now; answers those that are where they belong."""
        limited = self._tx.places.limited
        wanted: dict[tuple[str, str | None], str | None] = {}
        stay: list[Taken] = []
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
        if move:
            self._tx.db.execute(_SIFT, (to_json(move).decode(),))
            self._tx.places.write()
            self._sifted += len(move)
        return stay

    def _put_heads_right(self, found: Sequence[Taken]) -> bool:
        """Line lanes up anew whose best job is worse than they promised; answers whether there were any."""
        best: dict[str, int] = {}
        for place in found:
            if place.lane is not None:
                best[place.lane] = min(place.rank, best.get(place.lane, place.rank))
        shown = (lane for lane, gate in self._lanes.items() if gate.room > 0)
        wrong = sorted(lane for lane in shown if best.get(lane) != self._heads[lane])
        self._line_up(wrong)
        return bool(wrong)

    def _line_up(self, lanes: Sequence[str]) -> None:
        if lanes:
            named = to_json(lanes).decode()
            self._tx.db.execute(_NEW_HEADS, (self._queue, named))
            self._tx.db.execute(_DROP_EMPTY, (self._queue, named))

    def _use(self) -> None:
        """Write down what the starts used, which lanes sleep, and when the queue is worth another look."""
        tx = self._tx
        buckets = present(gate.bucket() for gate in [*self._types.values(), *self._lanes.values()])
        if buckets:
            tx.db.execute(_FILL, (to_json(buckets).decode(),))
        sleeping = [
            (lane, at_ms)
            for lane, gate in self._lanes.items()
            if gate.room <= 0 and (at_ms := gate.opens_at_ms()) is not None
        ]
        if sleeping:
            self._put_to_sleep = [lane for lane, _ in sleeping]
            tx.db.execute(_SLEEP, (self._queue, to_json(sleeping).decode(), tx.now_ms))
        openings = [at_ms for _, at_ms in sleeping]
        openings += present(gate.opens_at_ms() for gate in self._types.values() if self._is_shut(gate))
        if openings and tx.db.execute(_OPENS, (self._queue, min(openings), tx.now_ms)).rowcount > 0:
            tx.topics.add(DUE_TOPIC)

    def _is_shut(self, gate: Gate) -> bool:
        """Tell whether a limit keeps a type from starting more, and jobs of it were or are pending here."""
        if gate.room > 0:
            return False
        return bool(gate.used) or self._has_lanes(gate.name[0])

    def _has_lanes(self, job_type: str) -> bool:
        span = (self._queue, f"{job_type}:", f"{job_type};")  # ; comes after :
        return bool(self._tx.db.execute(_HAS_LANES, span).fetchone()[0])

    def left(self, chosen: Sequence[Taken]) -> None:
        """Line the lanes up anew that the chosen jobs have left, or that had nothing to show; count what is shut."""
        used = {place.lane for place in chosen}
        self._line_up(
            sorted(lane for lane, gate in self._lanes.items() if lane in used or (gate.room > 0 and not gate.used))
        )
        rate_limited = self._tx.hints.rate_limited
        for job_type, gate in self._types.items():
            at_ms = gate.opens_at_ms() if gate.room <= 0 else None
            if at_ms is not None and not rate_limited.is_known(job_type, at_ms) and self._has_lanes(job_type):
                rate_limited.note_type(job_type, at_ms)
        if self._put_to_sleep:  # those that have no jobs left are gone from the table
            asked = (self._queue, to_json(self._put_to_sleep).decode())
            for (lane,) in self._tx.db.execute(_STILL_THERE, asked):
                rate_limited.note_lane(self._lanes[lane].name[0])


def present(values: Iterable[T | None]) -> list[T]:
    """Answer the values that are not None."""
    return [value for value in values if value is not None]


def _order(one: Taken) -> tuple[int, int]:
    return one.rank, one.seq
