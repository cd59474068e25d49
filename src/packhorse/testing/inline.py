"""For tests of code that enqueues jobs: run them at once, run them when asked, or only look at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from .. import codec
from ..backends.base import Query
from ..backends.opening import forget_memory
from ..clock import ManualClock
from ..job import TERMINAL, JobRecord, State

if TYPE_CHECKING:
    from ..app import Packhorse

#: Ended jobs stay to be looked at, however far `drain` moves the clock; and only what a test enqueued is run: the slots
#: of the app's own schedules would come between.
_KEPT: dict[str, Any] = {
    "keep_succeeded_ms": 10**15,
    "keep_failed_ms": 10**15,
    "keep_cancelled_ms": 10**15,
    "define_schedules": False,
}
#: One round of `drain` promotes what is due, then runs all that is pending: a chain of retries this long is a loop.
_ROUNDS_MAX = 1_000


@contextmanager
def stored(app: Packhorse) -> Iterator[Packhorse]:
    """Let `app` keep its jobs in a fresh memory store for the time of the block; nothing runs unless drained.

    Its clock stands still meanwhile: `app.clock.advance(ms)` moves it.
    """
    outer_settings, outer_clock = app.settings, app.clock
    outer_backends, app._backends = app._backends, {}  # noqa: SLF001  # the test kit is part of the app
    app.clock = clock = ManualClock(now_ms=outer_clock.now_ms())
    app.settings = msgspec.structs.replace(outer_settings, url=f"memory://test-{id(clock)}")
    try:
        yield app
    finally:
        forget_memory(app.settings.url, clock)
        app.settings, app.clock = outer_settings, outer_clock
        app._backends = outer_backends  # noqa: SLF001


@contextmanager
def inline(app: Packhorse) -> Iterator[Packhorse]:
    """Run every job right when it is enqueued, through the real worker, on a fresh memory store.

    A job that is delayed or to be retried later waits for `drain`. A failed job is in state `failed`: nothing is
    raised.
    """
    with stored(app):
        app._after_enqueue = lambda: _run_pending(app)  # noqa: SLF001  # the test kit is part of the app
        try:
            yield app
        finally:
            app._after_enqueue = None  # noqa: SLF001


async def adrain(app: Packhorse, *, scheduled: bool = True) -> int:
    """Run jobs until none is pending; with `scheduled`, move a stored app's clock on to delayed jobs and retries too.

    Answers how many jobs ended. Raises RuntimeError when there is no end to it.
    """
    before = await _ended(app)
    for _ in range(_ROUNDS_MAX):
        await _run_pending(app)
        due = await _next_due_ms(app)
        if due is None or not scheduled or not isinstance(app.clock, ManualClock):
            return await _ended(app) - before
        app.clock.advance(max(1, due - app.clock.now_ms()))
    raise RuntimeError(f"drain: still jobs to run after {_ROUNDS_MAX} rounds; a job that always retries?")


def drain(app: Packhorse, *, scheduled: bool = True) -> int:
    """Run jobs until none is pending, from blocking code; see `adrain`."""
    return app.portal.call(adrain(app, scheduled=scheduled))


async def ajobs(app: Packhorse, **filters: Any) -> list[JobRecord]:
    """Answer the jobs of a stored or inline app, oldest first; filters as in `Query` (`type`, `queue`, `states` …)."""
    backend = await app.backend()
    query = Query(oldest_first=True, limit=1_000, **filters)
    found: list[JobRecord] = []
    while True:
        page = await backend.find(query)
        found += page.jobs
        if page.next is None:
            return found
        query = msgspec.structs.replace(query, cursor=page.next)


def jobs(app: Packhorse, **filters: Any) -> list[JobRecord]:
    """Answer the jobs of a stored or inline app, from blocking code; see `ajobs`."""
    return app.portal.call(ajobs(app, **filters))


def assert_enqueued(app: Packhorse, task: Any, payload: object = None, *, times: int | None = None) -> list[JobRecord]:
    """Assert that jobs of `task` (or a type's name) were enqueued, with this payload where one is given.

    `times` asks for exactly so many. Answers the jobs found.
    """
    name = getattr(task, "type", task)
    found = jobs(app, type=name)
    if payload is not None:
        wanted = codec.to_plain(payload)
        found = [job for job in found if codec.decode(job.payload) == wanted]
    what = f"{name} jobs" + (f" with {payload!r}" if payload is not None else "")
    if times is None:
        assert found, f"no {what} were enqueued; there are {_seen(app)}"
    else:
        assert len(found) == times, f"{len(found)} {what} were enqueued, not {times}; there are {_seen(app)}"
    return found


def _seen(app: Packhorse) -> str:
    return ", ".join(f"{job.type} {job.payload.decode(errors='replace')[:80]}" for job in jobs(app)[:20]) or "no jobs"


async def _run_pending(app: Packhorse) -> None:
    for _ in range(_ROUNDS_MAX):
        queues = tuple(await app.acounts()) or ("default",)
        await app.worker(burst=True, queues=queues, **_KEPT).run()
        # Again for what was enqueued meanwhile into queues that did not exist before.
        counts = await app.acounts()
        if not any(queue.states.get(State.PENDING) for queue in counts.values() if not queue.paused):
            return
    raise RuntimeError(f"still jobs to run after {_ROUNDS_MAX} rounds; jobs that enqueue each other?")


async def _next_due_ms(app: Packhorse) -> int | None:
    due = [job.due_at_ms for job in await ajobs(app, states=(State.SCHEDULED,))]
    return min(due, default=None)


async def _ended(app: Packhorse) -> int:
    counts = await app.acounts()
    return sum(count for queue in counts.values() for state, count in queue.states.items() if state in TERMINAL)
