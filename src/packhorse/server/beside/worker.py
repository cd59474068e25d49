"""The worker beside a server: `packhorse serve APP --with-worker`.

For a store that others can reach it is a `packhorse worker` of its own, so that no handler can hold up the server; for
`memory://`, which lives in one process, it shares the server's loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ...clock import SYSTEM_CLOCK
from ...observe.meters import Meters
from ...worker.link import Counted, Link
from .child import Child

if TYPE_CHECKING:
    from ...app import Packhorse
    from ...worker.local import LocalWorker

log = logging.getLogger("packhorse.server")

#: A worker that ends sooner than this after its start is started again more and more slowly, up to the pause.
_SHORT_LIFE_MS = 10_000
_PAUSE_S, _PAUSE_S_MAX = 0.5, 30.0
#: A process that has ended may have left something to read: for so long, if what it started holds its socket open.
_LAST_WORDS_S = 0.5
#: The exit code of a command that cannot work as it is configured.
USAGE = 2
_FAILED = 1
#: What a keeper may take beyond the time that it gives its jobs, before it is ended by force.
PATIENCE_MS = 25_000


class Beside(Protocol):
    """A worker beside the server."""

    async def run(self) -> int:
        """Work until `stop`; answers sooner, with an exit code, only where it cannot go on."""

    async def stop(self) -> None:
        """Stop claiming, let what runs end in its time, settle."""

    def hurry(self) -> None:
        """Stop now; what has not ended is given back."""


class WorkerProcess:
    """A `packhorse worker` that is started again when it dies. Implements `Beside`."""

    def __init__(
        self, arguments: Sequence[str], grace_ms: int, url: str | None = None, meters: Meters | None = None
    ) -> None:
        """Take the command's arguments, and apart from them its `--url`, which may have a password in it.

        What the worker counts is added to `meters`, about a second after it happened.
        """
        self._arguments = list(arguments)
        self._url = url
        self._meters = meters or Meters()
        self._patience_ms = grace_ms + PATIENCE_MS
        self._child: Child | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Supervise the process."""
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            started_ms = SYSTEM_CLOCK.boot_ms()
            try:
                self._child, listening = await self._start()
            except OSError as error:  # no process, no memory, no file to be had: of others' making, and it passes
                why = f"could not be started: {error.strerror}"
            else:
                code = await self._child.exit_code()
                await asyncio.wait([listening], timeout=_LAST_WORDS_S)
                listening.cancel()
                if self._stopping.is_set():
                    break
                if code == USAGE:
                    return USAGE  # it said why: the app or the store cannot work as it is
                why = f"ended with exit code {code}"
            if SYSTEM_CLOCK.boot_ms() - started_ms >= _SHORT_LIFE_MS:
                pause_s = _PAUSE_S
            log.error("the worker %s; it is started again in %g s", why, pause_s)
            await self._pause(pause_s)
            pause_s = min(_PAUSE_S_MAX, pause_s * 2)
        return 0

    async def _start(self) -> tuple[Child, asyncio.Task[None]]:
        """Start the process, and listen to what it counts until it ends. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            child = Child(self._arguments, self._url, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        link = await Link.over(ours)
        return child, asyncio.get_running_loop().create_task(self._listen(link))

    async def _listen(self, link: Link) -> None:
        sheet = self._meters.sheet()
        try:
            while (message := await link.receive()) is not None:
                if isinstance(message, Counted):
                    sheet.add(message.rises)
                    self._meters.writing.hear(message.rises, SYSTEM_CLOCK.boot_ms())
        finally:
            self._meters.fold(sheet)
            link.close()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def stop(self) -> None:
        """Stop the process, and start no other."""
        self._stopping.set()
        if self._child is not None:
            await self._child.stop(self._patience_ms)

    def hurry(self) -> None:
        """Tell the process a second time."""
        if self._child is not None:
            self._child.tell()


class WorkerInLoop:
    """A worker in the server's own event loop, for a store that lives in this process. Implements `Beside`."""

    def __init__(self, app: Packhorse, **options: object) -> None:
        self._worker: LocalWorker = app.worker(**options)
        self._started = asyncio.Event()

    async def run(self) -> int:
        """Work until stopped."""
        await self._worker.start()
        engine = self._worker.engine
        assert engine is not None
        self._started.set()
        await engine.broken.wait()
        log.error("a part of the worker failed; the lines above say which")
        return _FAILED

    async def stop(self) -> None:
        """Stop claiming, finish what runs."""
        if self._started.is_set():
            await self._worker.stop()

    def hurry(self) -> None:
        """End what runs."""
        if self._worker.engine is not None:
            self._worker.engine.hurry()
