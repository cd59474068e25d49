"""The server ticks its store: due jobs, lapses and schedules come to their turn where all workers are elsewhere.

Workers of other languages do not tick, and do not declare the limits and schedules of the app's code. Those in Python
do both; any number of tickers is as good as one. What a tick here takes from lost workers nobody else hears of, so the
app's failure hooks are told of it here, as a worker would.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..backends.base import Backend, Lapse
from ..errors import PackhorseError
from ..observe.ends import count_lapses
from ..observe.outage import Outage
from ..worker.declared import declare_limits, declare_schedules
from ..worker.lapses import LEASE_OVER, failed_attempts, say_lapses
from ..worker.options import WorkerOptions, keep_times
from ..worker.ticker import Ticker

if TYPE_CHECKING:
    from ..app import Packhorse
    from ..worker.telling import FailureTeller

log = logging.getLogger("packhorse.server")

#: How long to wait before a store that could not be opened is tried again, s: between these, by chance.
_PAUSE_S = (0.2, 1.0)
#: The same after something that should not happen at all.
_BUG_PAUSE_S = 5.0


class Ticking:
    """Ticks from `start` to `stop`, whatever becomes of the store meanwhile."""

    def __init__(self, app: Packhorse) -> None:
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._failures: FailureTeller | None = None
        self._sheet = app.meters.sheet()

    def start(self) -> None:
        """Begin to tick, on the running event loop. Idempotent."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop ticking, and let the failure hooks end. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        failures, self._failures = self._failures, None
        if failures is not None:
            await failures.stop()
        self._app.meters.fold(self._sheet)

    async def _run(self) -> None:
        app = self._app
        keep = keep_times(WorkerOptions.of(app.settings))
        outage = Outage(log, app.clock, "open the store to tick it")
        while True:
            try:
                backend = await app.backend()
                outage.over()
                if app.failure_hooks and self._failures is None:
                    self._failures = _teller(app, backend)
                if app.tasks:
                    await declare_limits(app, backend)
                    await declare_schedules(app, backend)
                await Ticker(backend, keep, app.chance, app.clock, self._tell_lapses).run()
            except PackhorseError as error:  # only from opening it: the ticker goes on by itself
                outage.failed(error)
                await asyncio.sleep(app.chance.uniform(*_PAUSE_S))
            except Exception:  # nothing else would move time on: never end because of it
                log.exception("ticking failed; this is a bug")
                await asyncio.sleep(_BUG_PAUSE_S)

    def take_lapses(self, lapses: Sequence[Lapse]) -> None:
        """Count, say and tell what somebody's tick took from lost workers in queues that are not his to see."""
        count_lapses(self._sheet, lapses)
        say_lapses(lapses, LEASE_OVER)
        self._tell_lapses(lapses)

    def _tell_lapses(self, lapses: Sequence[Lapse]) -> None:
        if self._failures is not None:
            self._failures.lapsed(failed_attempts(lapses))


def _teller(app: Packhorse, backend: Backend) -> FailureTeller:
    """Make what calls the app's failure hooks. Imported now: most apps have none."""
    from ..worker.telling import FailureTeller

    return FailureTeller(app, backend, "")
