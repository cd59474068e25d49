"""A listener at the other end of an HTTP response: `text/event-stream`, bounded, and ended at once when asked.

What the feed tells lies here until it is written; a client that reads too slowly is cut off, and finds its place again
when it comes back. The bytes are shared by all who hear the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ... import __version__
from .events import Batch, Filter, message, sign_of_life
from .listeners import Listener

if TYPE_CHECKING:
    from .following import Feed

#: Events, and bytes of them, that wait for a slow client before it is cut off: what a full round may bring, twice.
HELD_EVENTS_MAX = 1_000
HELD_BYTES_MAX = 512 << 10

#: A comment keeps proxies from closing a quiet stream, and carries the place to go on from: stores forget after 60 s.
ALIVE_S = 15.0
#: A client that takes nothing for so long is gone. The server's own limit is usually sooner.
WRITE_S = 30.0
#: How long a client waits before it comes back, ms, as we tell it.
RETRY_MS = 2_000

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}


class Stream(Listener):
    """What one client is to be sent."""

    def __init__(
        self,
        feed: Feed,
        wanted: Filter,
        *,
        owner: str,
        after: str | None = None,
        jobs: bool = True,
        counts: bool = False,
    ) -> None:
        super().__init__(wanted, owner=owner, after=after, jobs=jobs)
        self._feed = feed
        self.wants_counts = counts
        self._held: deque[bytes] = deque()
        self._held_events = 0
        self._held_bytes = 0
        self._ready = asyncio.Event()
        self.ended = False
        #: Whether it was cut off because its client was too slow.
        self.is_cut = False

    def begin(self, mark: str | None, *, resumed: bool) -> None:
        super().begin(mark, resumed=resumed)
        hello = message("hello", {"server": __version__, "resumed": resumed}, mark)
        self._hold(b"retry: %d\n%s" % (RETRY_MS, hello), events=0)

    def take(self, batch: Batch) -> None:
        if batch.events:
            self._hold(batch.frames, len(batch.events))

    def take_counts(self, text: bytes) -> None:
        self._hold(text)

    def gap(self, reason: str, mark: str | None) -> None:
        self._hold(message("gap", {"reason": reason}, mark))

    def end(self) -> None:
        self.ended = True
        self._feed.remove(self)
        self._ready.set()

    def _hold(self, text: bytes, events: int = 1) -> None:
        if self.ended:
            return
        # One batch is taken whole even where it is larger, as is one behind a hello: the client may be as quick as can
        # be, and one that comes back for more than fits would be cut off each time.
        if self._held_events and (
            self._held_events + events > HELD_EVENTS_MAX or self._held_bytes + len(text) > HELD_BYTES_MAX
        ):
            self.is_cut = True
            self._take_held()
            self.end()
            return
        self._held.append(text)
        self._held_events += events
        self._held_bytes += len(text)
        self._ready.set()

    def _take_held(self) -> bytes:
        text = b"".join(self._held) if len(self._held) != 1 else self._held[0]
        self._held.clear()
        self._held_events = self._held_bytes = 0
        return text

    async def started(self, timeout_s: float) -> bool:
        """Wait until the feed has let it join or ended it; False where that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    async def next(self) -> bytes:
        """Wait for what is to be sent; a sign of life after a while; empty: the stream is over."""
        while not self._held and not self.ended:
            self._ready.clear()
            try:
                async with asyncio.timeout(ALIVE_S):
                    await self._ready.wait()
            except TimeoutError:
                return sign_of_life(self.own_mark or self._feed.mark)
        return self._take_held()


class Lines(Protocol):
    """What a stream response writes."""

    async def next(self) -> bytes:
        """Wait for what is to be sent; empty: it is over."""
        ...

    def end(self) -> None:
        """End it. Idempotent."""
        ...


class StreamResponse(Response):
    """Writes a stream to its client until either of them ends."""

    def __init__(self, stream: Lines, headers: Mapping[str, str] = HEADERS) -> None:
        super().__init__(status_code=200, headers=headers)
        del self.headers["content-length"]
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; returns when the stream is over."""
        stream = self._stream
        leaving = asyncio.get_running_loop().create_task(_end_with_client(stream, receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while text := await stream.next():
                async with asyncio.timeout(WRITE_S):
                    await send({"type": "http.response.body", "body": text, "more_body": True})
            async with asyncio.timeout(WRITE_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            return  # nobody reads any more
        finally:
            stream.end()
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)


async def _end_with_client(stream: Lines, receive: Receive) -> None:
    """End a stream whose client went away, or sends more than it was asked for."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        stream.end()
