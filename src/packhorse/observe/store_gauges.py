"""What the store says of queues and workers, as gauges: asked when somebody scrapes, within bounds on time and size."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ..backends.base import Backend, QueueCounts, Schedule, WorkerInfo
from ..clock import Clock
from ..errors import PackhorseError
from ..job import State
from . import metrics
from .labels import OTHER, QUEUES_MAX, LabelBounds
from .meters import Labels, Meters
from .metrics import Metric

log = logging.getLogger("packhorse.metrics")

#: The store is asked at most so often, ms, and never for more than a twentieth of the time.
FRESH_MS = 1_000
_REST_FACTOR = 20
#: Who scrapes waits so long for the store, ms, then is told that it is away. Prometheus gives up after 10 s.
WAIT_MS_MAX = 2_000
#: A look at the store that takes longer is given up, ms, and another one begun by the next scrape.
LOOK_MS_MAX = 10_000

Gauge = tuple[Metric, Labels, float]

_AWAY: Gauge = (metrics.STORE_UP, (), 0.0)


class StoreGauges:
    """Depth and age of queues, live workers, dead letters. For one event loop."""

    def __init__(self, backend: Callable[[], Awaitable[Backend]], clock: Clock, meters: Meters) -> None:
        self._backend = backend
        self._clock = clock
        self._bounds = meters.bounds
        self._writing = meters.writing
        self._found: Sequence[Gauge] = ()
        self._next_ms = 0
        self._looking: asyncio.Task[None] | None = None
        self._is_late = False  # the look under way has kept somebody waiting for as long as anybody waits

    async def read(self) -> Sequence[Gauge]:
        """Answer the gauges, as of a second ago at most if the store is quick; only `store_up 0` while it is away.

        `store_up` is 0, too, while it answers and this process cannot write to it. Where it is full, the rest is told.
        """
        found = await self._read()
        if not self._writing.problems(self._clock.boot_ms()):
            return found
        return (_AWAY, *found[1:]) if self._writing.is_full else (_AWAY,)

    async def _read(self) -> Sequence[Gauge]:
        if self._looking is None:
            if self._clock.boot_ms() < self._next_ms:
                return self._found or (_AWAY,)
            self._is_late = False
            self._looking = asyncio.get_running_loop().create_task(self._look())
        if not self._is_late:
            done, _ = await asyncio.wait({self._looking}, timeout=WAIT_MS_MAX / 1000)
            if done:
                return self._found or (_AWAY,)
            self._is_late = True
        return (_AWAY,)

    async def problems(self) -> list[str]:
        """Answer what is wrong with the store, as old as the gauges may be: it is away, or does not take writes."""
        if await self._read() == (_AWAY,):
            return ["the store does not answer"]
        return self._writing.problems(self._clock.boot_ms())

    async def _look(self) -> None:
        """Ask the store. Never raises for it: it is away then, which is asked again by the next scrape."""
        began_ms = self._clock.boot_ms()
        self._found = ()
        try:
            async with asyncio.timeout(LOOK_MS_MAX / 1000):
                backend = await self._backend()
                counts = await backend.counts()
                workers = await backend.workers()
                schedules = await backend.schedules()
        except (PackhorseError, TimeoutError) as error:
            log.debug("the store does not answer: %s", type(error).__name__)
        else:
            for worker in workers:
                self._bounds.hear(worker.id, worker.types, worker.queues)
            late_s = _late_ms(schedules, self._clock.now_ms()) / 1000
            self._found = (*_gauges(counts, workers, self._bounds), (metrics.SCHEDULE_LATE, (), late_s))
        finally:
            now_ms = self._clock.boot_ms()
            took_ms = now_ms - began_ms if self._found else 0  # one that is away is soon asked again
            self._next_ms = now_ms + max(FRESH_MS, _REST_FACTOR * took_ms)
            self._is_late = False
            self._looking = None

    async def close(self) -> None:
        """End a look that is under way. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)


def _gauges(counts: Mapping[str, QueueCounts], workers: Sequence[WorkerInfo], bounds: LabelBounds) -> list[Gauge]:
    served = Counter(name for worker in workers for name in set(worker.queues))
    known = Counter(dict.fromkeys(bounds.types, 0))
    known.update(bounds.job_type(name) for worker in workers for name in set(worker.types))
    found: list[Gauge] = [(metrics.STORE_UP, (), 1.0)]
    for name, queue in _told_apart(counts, served).items():
        found += [(metrics.DEPTH, (name, str(state)), queue.states.get(state, 0)) for state in State]
        found += [
            (metrics.LATENCY, (name,), (queue.oldest_pending_ms or 0) / 1000),
            (metrics.PAUSED, (name,), int(queue.paused)),
            (metrics.DEAD_LETTERS, (name,), queue.states.get(State.FAILED, 0)),
            (metrics.QUEUE_WORKERS, (name,), served[name]),
        ]
    found += [(metrics.TYPE_WORKERS, (name,), count) for name, count in sorted(known.items())]
    states = Counter("trouble" if worker.trouble else "busy" if worker.busy else "idle" for worker in workers)
    found += [(metrics.WORKERS, (state,), states[state]) for state in ("idle", "busy", "trouble")]
    return found


def _late_ms(schedules: Sequence[Schedule], now_ms: int) -> int:
    """Answer how long the most overdue slot has been due. One that nobody worked out is due since it was defined."""
    due = (one.done_ms if one.next_ms is None else one.next_ms for one in schedules if not one.paused)
    return max(0, now_ms - min(due, default=now_ms))


def _told_apart(counts: Mapping[str, QueueCounts], served: Counter[str]) -> dict[str, QueueCounts]:
    """Answer the queues by name, those with workers first, then the largest; the rest is summed as `other`."""
    nothing = QueueCounts(states={})
    every = {name: counts.get(name, nothing) for name in (*counts, *served)}
    order = sorted(every, key=lambda name: (name not in served, -sum(every[name].states.values()), name))
    shown = {name: every[name] for name in sorted(order[:QUEUES_MAX])}
    rest = [every[name] for name in order[QUEUES_MAX:]]
    if rest:
        states: Counter[State] = Counter()
        for queue in rest:
            states.update(queue.states)
        ages = [queue.oldest_pending_ms for queue in rest if queue.oldest_pending_ms is not None]
        if OTHER in shown:  # somebody named a queue so
            rest_of = shown[OTHER]
            states.update(rest_of.states)
            ages += [rest_of.oldest_pending_ms] if rest_of.oldest_pending_ms is not None else []
        shown[OTHER] = QueueCounts(states=dict(states), oldest_pending_ms=max(ages, default=None))
    return shown
