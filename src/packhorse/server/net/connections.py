"""All connections of a server: how many there may be, who makes room for a new one, and whose time is up."""

from __future__ import annotations

import asyncio
import logging
from email.utils import formatdate
from typing import TYPE_CHECKING

from ...clock import SYSTEM_CLOCK
from ...wording import quantity

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from .limits import Limits
    from .protocol import Connection

log = logging.getLogger("packhorse.server")

#: How many may be on their way out while we still listen for their end; those beyond are cut off.
LEAVING_MAX = 256
#: At most one line each so often about clients that were refused: a flood of them must not become one of lines.
_TELL_MS = 10_000


class Connections:
    """The connections of one server. Looks at each once a second, and not at all where there are none."""

    def __init__(self, limits: Limits, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self._state = state
        self._loop = loop
        self._open: set[Connection] = state.connections  # type: ignore[assignment]  # uvicorn names its own classes
        #: Those on which no request is being read whole or answered, the longest first.
        self._waiting: dict[Connection, None] = {}
        self._leaving: set[Connection] = set()
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._refused = 0
        self._told_ms = -_TELL_MS
        shortest_ms = min(limits.idle_ms, limits.head_ms, limits.body_ms, limits.write_ms, limits.linger_ms)
        self._look_ms = max(10, min(1_000, shortest_ms // 4))
        self._now_ms = SYSTEM_CLOCK.boot_ms()

    def __len__(self) -> int:
        return len(self._open)

    def after(self, ms: int) -> int:
        """Answer the instant at least `ms` from now, by the boot clock and as of the last look: several a request."""
        return self._now_ms + self._look_ms + ms

    def admit(self, connection: Connection) -> bool:
        """Count a new connection, and let the oldest that waits make room; False where there is no room."""
        self._empty.clear()
        if self._timer is None:
            self._look()
        if len(self._open) > self.limits.connections_max:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                self._open.discard(connection)
                self._refuse()
                return False
            oldest.drop()
        self._waiting[connection] = None
        return True

    def wait(self, connection: Connection) -> None:
        """Count a connection among those that wait for a request."""
        self._waiting[connection] = None

    def work(self, connection: Connection) -> None:
        """Count a connection among those that have a request."""
        self._waiting.pop(connection, None)

    def hold(self, size: int) -> None:
        """Count bytes of heads that are not whole; negative ones are let go. Where they are too many the oldest go."""
        self._held_bytes += size
        if size > 0 and self._held_bytes > self.limits.heads_bytes_max:
            for connection in list(self._waiting):
                if connection.unread_bytes:
                    connection.drop()
                    if self._held_bytes <= self.limits.heads_bytes_max:
                        break

    def leave(self, connection: Connection) -> bool:
        """Count a connection no more; False where so many are leaving that this one is to be cut off."""
        self._waiting.pop(connection, None)
        self._open.discard(connection)
        if len(self._leaving) >= LEAVING_MAX:
            self._check_empty()
            return False
        self._leaving.add(connection)
        return True

    def gone(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._waiting.pop(connection, None)
        self._open.discard(connection)
        self._leaving.discard(connection)
        self._check_empty()

    async def ended(self) -> None:
        """Wait until there is none."""
        await self._empty.wait()

    def abort(self) -> None:
        """Cut all off, now."""
        for connection in [*self._open, *self._leaving]:
            connection.abort()

    def shut(self) -> None:
        """Let each end what it is answering, then close it; those that wait at once."""
        for connection in list(self._open):
            connection.shutdown()

    def _check_empty(self) -> None:
        if not self._open and not self._leaving:
            self._empty.set()

    def _refuse(self) -> None:
        self._refused += 1
        now_ms = SYSTEM_CLOCK.boot_ms()
        if now_ms - self._told_ms >= _TELL_MS:
            log.warning("no room for %s: all %d have a request", quantity(self._refused, "connection"), len(self._open))
            self._refused = 0
            self._told_ms = now_ms

    def _look(self) -> None:
        """End those whose time is up, and set the date of the answers to come."""
        if self._empty.is_set():
            self._timer = None
            return
        date = formatdate(SYSTEM_CLOCK.now_ms() / 1000, usegmt=True).encode()
        self._state.default_headers = [(b"date", date)]
        self._now_ms = now_ms = SYSTEM_CLOCK.boot_ms()
        for connection in [*self._open, *self._leaving]:
            connection.look(now_ms)
        self._timer = self._loop.call_later(self._look_ms / 1000, self._look)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
