"""What the looks of the last minutes come to: rates and columns over time. No I/O; all times are given.

Jobs that come are those that were not there before, so the time that ended ones are kept for does not matter. Jobs that
end are those that came less what the live ones grew by. An operator who deletes live jobs ends them too; one who
reruns ended ones hides as many ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec

from ...job import LIVE, State
from .samples import Sample

#: How far back the sparklines go, ms, and how many looks they hold at most.
SPAN_MS = 120_000
WINDOWS_MS = (30_000, 60_000, SPAN_MS)
POINTS_MAX = 600

#: A rate is that of the looks of so long a time, at least of one, ms: a quiet queue's does not flicker.
RATE_MS = 5_000

#: Queues of which the past is kept: those with the most to do.
TRACKED_MAX = 1_000


class Move(msgspec.Struct, frozen=True, gc=False):
    """Of a queue between two looks: jobs that wait or run at its end, that came, that ended, that failed for good.

    `ended` may be below 0: a job that came while the store was asked is in one of its answers and not in the other, and
    the next look has it the other way round.
    """

    depth: int
    came: int = 0
    ended: int = 0
    failed: int = 0


class Point(msgspec.Struct, frozen=True):
    """What happened in the `elapsed_ms` before `at_ms`: in all, and by queue. `known`: there was a look before."""

    at_ms: int
    elapsed_ms: int
    all: Move
    queues: dict[str, Move]
    known: bool = True
    at_least: bool = False


class Rates(msgspec.Struct, frozen=True):
    """Jobs a second that came, ended, and failed for good. None: one look says nothing of rates."""

    came: float | None = None
    ended: float | None = None
    failed: float | None = None


class History:
    """The last looks and what they come to."""

    def __init__(self) -> None:
        self.sample: Sample | None = None
        #: Why the store could not be asked, "" while it answers; and since when.
        self.trouble = ""
        self.away_since_ms: int | None = None
        #: The queues, those with the most jobs to run first.
        self.order: list[str] = []
        self._totals = dict.fromkeys(State, 0)
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._dead: deque[tuple[int, int]] = deque(maxlen=POINTS_MAX)  # dead letters over time

    def add(self, sample: Sample) -> None:
        """Take what a look found."""
        before, self.sample = self.sample, sample
        self.trouble, self.away_since_ms = "", None
        self._totals = dict.fromkeys(State, 0)
        for counts in sample.queues.values():
            for state, jobs in counts.states.items():
                self._totals[state] += jobs
        self.order = by_need(sample)
        self._points.append(_point(before, sample, self.order))
        self._dead.append((sample.at_ms, self.count(State.FAILED)))

    def away(self, why: str, at_ms: int) -> None:
        """Take that the store could not be asked."""
        self.trouble = why
        if self.away_since_ms is None:
            self.away_since_ms = self.sample.at_ms if self.sample is not None else at_ms

    # ---- numbers -----------------------------------------------------------------------------------------

    def count(self, state: State) -> int:
        """Answer how many jobs are in a state, in all that is shown."""
        return self._totals[state]

    def rates(self, queue: str | None = None) -> Rates:
        """Answer the rates of late, of a queue or of all."""
        moves: list[Move] = []
        elapsed_ms = 0
        for point in reversed(self._points):
            if not point.known or (elapsed_ms + point.elapsed_ms > RATE_MS and moves):
                break
            move = point.all if queue is None else point.queues.get(queue)
            if move is None:
                break
            moves.append(move)
            elapsed_ms += point.elapsed_ms
        if not moves or not elapsed_ms:
            return Rates()
        seconds = elapsed_ms / 1000
        return Rates(
            sum(move.came for move in moves) / seconds,
            max(0, sum(move.ended for move in moves)) / seconds,
            sum(move.failed for move in moves) / seconds,
        )

    @property
    def at_least(self) -> bool:
        """Whether more came just now than could be counted, so that rates are the least they can be."""
        return bool(self._points) and self._points[-1].at_least

    @property
    def dead_grew_by(self) -> int:
        """By how many dead letters there are more than at the first of the looks of the last minutes."""
        return self._dead[-1][1] - self._first_dead() if self._dead else 0

    @property
    def span_ms(self) -> int:
        """How long a time the looks span, `SPAN_MS` at most."""
        return min(SPAN_MS, self._points[-1].at_ms - self._points[0].at_ms) if self._points else 0

    def _first_dead(self) -> int:
        begin_ms = self._dead[-1][0] - SPAN_MS
        return next(count for at_ms, count in self._dead if at_ms >= begin_ms)

    # ---- over time ---------------------------------------------------------------------------------------

    def came(self, width: int) -> list[float | None]:
        """Answer jobs a second that came, over the last minutes in `width` columns; None where nobody looked."""
        return self._columns(width, lambda point: (point.all.came, point.elapsed_ms / 1000) if point.known else None)

    def ended(self, width: int) -> list[float | None]:
        """Answer jobs a second that ended, in the same columns."""
        return self._columns(width, lambda point: (point.all.ended, point.elapsed_ms / 1000) if point.known else None)

    def failed(self, width: int) -> list[float | None]:
        """Answer jobs a second that failed for good, in the same columns."""
        return self._columns(width, lambda point: (point.all.failed, point.elapsed_ms / 1000) if point.known else None)

    def depth(self, queue: str, width: int) -> list[float | None]:
        """Answer how many jobs of a queue waited to be run or ran, in the same columns."""

        def value(point: Point) -> tuple[float, float] | None:
            move = point.queues.get(queue)
            return None if move is None else (move.depth, 1)

        return self._columns(width, value)

    @property
    def window_ms(self) -> int:
        """How long a time the sparklines show: half a minute at first, `SPAN_MS` in the end."""
        return next((window for window in WINDOWS_MS if window >= self.span_ms), SPAN_MS)

    def _columns(self, width: int, value: Callable[[Point], tuple[float, float] | None]) -> list[float | None]:
        """Answer the mean of what each column has; `value` answers an amount and what it is to be divided by.

        What happened between two looks counts for all the time between them.
        """
        amounts, weights = [0.0] * width, [0.0] * width
        if not self._points or not width:
            return [None] * width
        end_ms, window_ms = self._points[-1].at_ms, self.window_ms
        for point in reversed(self._points):
            ago_ms = end_ms - point.at_ms
            if ago_ms >= window_ms:
                break
            found = value(point)
            if found is None:
                continue
            first = max(0, width - 1 - (ago_ms + max(0, point.elapsed_ms - 1)) * width // window_ms)
            for column in range(first, width - ago_ms * width // window_ms):
                amounts[column] += found[0]
                weights[column] += found[1]
        return [max(0, amount) / weight if weight else None for amount, weight in zip(amounts, weights, strict=True)]


def by_need(sample: Sample) -> list[str]:
    """Answer the queues, those with the most jobs to run first, then by name."""
    return [name for _, name in sorted((-_depth(sample, name), name) for name in sample.queues)]


def _states(sample: Sample, queue: str) -> Mapping[State, int]:
    counts = sample.queues.get(queue)
    return counts.states if counts is not None else {}


def _depth(sample: Sample, queue: str) -> int:
    states = _states(sample, queue)
    return states.get(State.PENDING, 0) + states.get(State.RUNNING, 0)


def _point(before: Sample | None, now: Sample, order: list[str]) -> Point:
    came = now.arrived.queues if now.arrived is not None else {}
    known = before is not None and now.arrived is not None
    # One that came after the counts were made, and one that is gone since, count too: the next look makes up for it.
    names = now.queues.keys() | came.keys() | (before.queues.keys() if before is not None else set())
    moves = {queue: _move(before if known else None, now, queue, came.get(queue, 0)) for queue in names}
    tracked = moves if len(moves) <= TRACKED_MAX else {queue: moves[queue] for queue in order[:TRACKED_MAX]}
    return Point(
        at_ms=now.at_ms,
        elapsed_ms=max(1, now.at_ms - before.at_ms) if before is not None else 0,
        all=_sum(moves.values()),
        queues=tracked,
        known=known,
        at_least=now.arrived is not None and now.arrived.at_least,
    )


def _move(before: Sample | None, now: Sample, queue: str, came: int) -> Move:
    depth = _depth(now, queue)
    if before is None:
        return Move(depth)
    states, past = _states(now, queue), _states(before, queue)
    if not came and states == past:
        return Move(depth)
    grew = sum(states.get(state, 0) - past.get(state, 0) for state in LIVE)
    failed = states.get(State.FAILED, 0) - past.get(State.FAILED, 0)
    return Move(depth, came, came - grew, max(0, failed))


def _sum(moves: Iterable[Move]) -> Move:
    listed = list(moves)
    return Move(
        sum(move.depth for move in listed),
        sum(move.came for move in listed),
        sum(move.ended for move in listed),
        sum(move.failed for move in listed),
    )
