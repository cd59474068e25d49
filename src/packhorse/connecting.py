"""The app's connections: one to its store for each event loop that uses it, opened when first asked for."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
from typing import TYPE_CHECKING, Self

from .backends.base import Backend
from .backends.opening import open_backend, store_url
from .inherited import leave_alone, tell_of_forks

if TYPE_CHECKING:
    from .backends.measured import MeasuredBackend
    from .clock import Clock
    from .observe.meters import Meters
    from .observe.spans import Tracing
    from .settings import Settings
    from .sync import Portal


class Connecting:
    """The part of `Packhorse` that opens and closes."""

    if TYPE_CHECKING:
        name: str
        settings: Settings
        clock: Clock
        meters: Meters
        portal: Portal

    def __init__(self) -> None:
        self._backends: dict[asyncio.AbstractEventLoop, MeasuredBackend] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[MeasuredBackend]] = {}
        self._tracing: Tracing | None = None

    async def backend(self) -> Backend:
        """Answer this event loop's connection, opened when first asked for."""
        loop = asyncio.get_running_loop()
        backend = self._backends.get(loop)
        if backend is None:
            opening = self._opening.get(loop)
            if opening is None:
                # A context of its own: its connections go on after the job that was the first to ask.
                opening = loop.create_task(self._open(loop), context=contextvars.Context())
                self._opening[loop] = opening
                # Who asked may have given up: then nobody is told of an error, and nobody needs to be.
                opening.add_done_callback(lambda done: done.cancelled() or done.exception())
            # All first callers wait for one connection; one that gives up does not take it from the others.
            backend = await asyncio.shield(opening)
        return backend

    async def _open(self, loop: asyncio.AbstractEventLoop) -> MeasuredBackend:
        from .backends.measured import MeasuredBackend

        try:
            for other in list(self._backends):  # other threads add and remove theirs meanwhile
                left = self._backends.pop(other, None) if other.is_closed() else None
                if left is not None:
                    await left.close()
                    self.meters.fold(left.sheet)
            if not self._backends:
                atexit.register(self.close)
            inner = open_backend(store_url(self.settings), self.clock)
            backend = MeasuredBackend(inner, self.meters, self.clock)
            try:
                await backend.open()
            except BaseException:
                self.meters.fold(backend.sheet)
                raise
            self._backends[loop] = backend
            tell_of_forks(self)
            return backend
        finally:
            del self._opening[loop]

    def after_fork_in_child(self) -> None:
        """Leave the connections to the parent: the loops that use them run there. The child opens its own."""
        if self._backends or self._opening:
            leave_alone((self._backends, self._opening))
        self._backends, self._opening = {}, {}

    def tracing(self, service: str | None = None) -> Tracing | None:
        """Answer what makes spans, made when first asked for; None where tracing is off. Raises ConfigurationError."""
        if self._tracing is None and self.settings.tracing != "off":
            from .observe.tracing import start_tracing

            self._tracing = start_tracing(self.settings, service or self.name)
        return self._tracing

    async def aclose(self) -> None:
        """Close this event loop's connection. The app can be used again."""
        loop = asyncio.get_running_loop()
        if loop in self._opening:
            await asyncio.wait([self._opening[loop]])
        backend = self._backends.pop(loop, None)
        if backend is not None:
            await backend.close()
            self.meters.fold(backend.sheet)

    def close(self) -> None:
        """Close the connection of blocking code. The app can be used again."""
        atexit.unregister(self.close)
        if any(not loop.is_closed() for loop in list(self._backends)):
            self.portal.call(self.aclose())
        self.portal.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
