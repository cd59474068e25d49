"""A worker inside a program: for tests and small services. Its handlers share the event loop with the program."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from ..backends.base import WorkerInfo
from ..settings import duration_ms
from .engine import Engine
from .options import WorkerOptions

if TYPE_CHECKING:
    from ..app import Packhorse


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

    async def start(self) -> None:
        """Begin to claim. Raises Unavailable or ConfigurationError where the backend cannot be opened."""
        backend = await self.app.backend()
        self.engine = Engine(self.app, backend, worker_info(self.app, self.options), self.options)
        await self.engine.start()

    async def stop(self) -> None:
        """Stop claiming, finish what runs, settle."""
        if self.engine is not None:
            try:
                await self.engine.stop()
            finally:
                self.engine = None

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
