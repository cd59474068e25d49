"""A worker inside a program: for tests and small services. Its handlers share the event loop with the program."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from ..backends.base import WorkerInfo
from ..clock import SystemClock
from ..errors import Unavailable
from ..observe import metrics
from ..observe.blocked import LoopWatcher
from ..settings import duration_ms
from .admission import check_admitted
from .engine import Engine
from .options import WorkerOptions

if TYPE_CHECKING:
    from ..app import Packhorse


#: How old the gauges of a worker in a program may be.
_GAUGE_S = 1.0


class LocalWorker:
    """`async with app.worker(): ...` runs jobs until the block ends, then finishes those it has started.

    A handler that blocks the event loop longer than the lease loses its job: here is no keeper to renew it.
    """

    def __init__(
        self,
        app: Packhorse,
        *,
        queues: Mapping[str, int] | tuple[str, ...] | list[str] | str | None = None,
        concurrency: int | None = None,
        lease: float | str | None = None,
        shutdown_timeout: float | str | None = None,
        burst: bool = False,
        **others: Any,
    ) -> None:
        self.app = app
        self.options = WorkerOptions.of(
            app.settings,
            queues=queues,
            concurrency=concurrency,
            lease_ms=None if lease is None else duration_ms(lease, "lease"),
            shutdown_timeout_ms=None if shutdown_timeout is None else duration_ms(shutdown_timeout, "shutdown_timeout"),
            burst=burst,
            **others,
        )
        self.engine: Engine | None = None
        self._watcher: LoopWatcher | None = None
        self._gauging: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to claim. Raises Unavailable, and ConfigurationError where the store refuses it all claims."""
        backend = await self.app.backend()
        info = worker_info(self.app, self.options)
        with suppress(Unavailable):  # it was there just now: the parts try again until it is back
            await check_admitted(backend, self.options, info.id)
        self.engine = Engine(self.app, backend, info, self.options)
        self._watch(self.engine)
        await self.engine.start()
        self._gauging = asyncio.get_running_loop().create_task(_gauge(self.engine))

    async def stop(self) -> None:
        """Stop claiming, finish what runs, settle."""
        if self._gauging is not None:
            self._gauging.cancel()
            await asyncio.wait([self._gauging])
        if self.engine is not None:
            try:
                await self.engine.stop()
            finally:
                self.engine = None
                if self._watcher is not None:
                    self._watcher.stop()
                    self._watcher = None

    def _watch(self, engine: Engine) -> None:
        """Warn of handlers that block the loop. In the time of tests, which stands still, there is nothing to watch."""
        if self.options.blocked_ms and isinstance(self.app.clock, SystemClock):
            sheet = engine.sheet

            def blocked() -> None:
                sheet.number(metrics.LOOP_BLOCKED).value += 1

            self._watcher = LoopWatcher(self.options.blocked_ms, lambda: engine.runner.holding, blocked)
            engine.runner.on_work = self._watcher.work

    async def run(self) -> None:
        """Work until cancelled, or with `burst=True` until nothing is left to do."""
        async with self:
            assert self.engine is not None
            ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(self.engine.broken.wait())]
            if self.options.burst:
                ends.append(asyncio.ensure_future(self.engine.exhausted()))
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
            if self.engine.broken.is_set():
                raise RuntimeError("a part of the worker failed; its log says which")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()


async def _gauge(engine: Engine) -> None:
    """Keep in the meters how busy the worker is. A keeper has that from its runners."""
    while True:
        engine.gauge()
        await asyncio.sleep(_GAUGE_S)


def worker_info(app: Packhorse, options: WorkerOptions) -> WorkerInfo:
    """Make the identity of a worker that starts now: never the same twice, whatever host and pid say (FAILURES B18)."""
    from .. import __version__

    now_ms = app.clock.now_ms()
    return WorkerInfo(
        id=app.chance.id(now_ms),
        host=socket.gethostname()[:128],
        pid=os.getpid(),
        queues=options.queues,
        types=tuple(sorted(app.tasks)),
        concurrency=options.concurrency,
        started_at_ms=now_ms,
        version=__version__,
    )
