"""Rings for clients far away: a stream for each, which says what topics rang, bounded per client and in all.

A stream has a bell for each of its topics. What rang since the last line goes out in one, so a slow client costs a set
of names and no more; one that reads nothing at all is dropped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress

import msgspec

from ..backends.base import Backend
from ..backends.bells import Bell
from ..backends.http import wire
from ..chance import secret_hex
from ..errors import NotFound
from .access import Caller
from .problems import Problem

#: Streams in all, and of one caller: one worker has two or three.
STREAMS_MAX = 2_000
STREAMS_OF_CALLER_MAX = 1_000
#: Topics of all streams together.
TOPICS_IN_ALL_MAX = 100_000
#: How long to wait for one ring; then the bell is asked again.
_WAIT_MS = 600_000

_write = msgspec.json.Encoder().encode


class Watching:
    """All streams of a server."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._streams: dict[str, RingStream] = {}
        self._of_caller: Counter[str] = Counter()
        self._topics = 0
        self._end: asyncio.Task[None] | None = None

    def open(self, backend: Backend, caller: Caller, topics: Collection[str]) -> RingStream:
        """Begin a stream. Raises Problem (429) where there are too many, or they hear too much."""
        if len(self._streams) >= STREAMS_MAX or self._of_caller[caller.name] >= STREAMS_OF_CALLER_MAX:
            raise _too_many("streams are open")
        stream = RingStream(self, backend, caller)
        self._streams[stream.id] = stream
        self._of_caller[caller.name] += 1
        if self._end is None:
            self._end = asyncio.get_running_loop().create_task(self._end_all())
        try:
            stream.change(topics, ())
        except BaseException:
            stream.end()
            raise
        if self._stopping.is_set():
            stream.end()
        return stream

    def find(self, stream_id: str, caller: Caller) -> RingStream:
        """Answer a stream of `caller`; raises NotFound for one of somebody else as for one that is gone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.caller != caller:
            raise NotFound("there is no such stream; open a new one")
        return stream

    def take(self, topics: int) -> None:
        """Count topics; negative ones are let go. Raises Problem (429)."""
        if topics > 0 and self._topics + topics > TOPICS_IN_ALL_MAX:
            raise _too_many("topics are listened to")
        self._topics += topics

    def forget(self, stream: RingStream) -> None:
        """Forget a stream that has ended. Idempotent."""
        if self._streams.pop(stream.id, None) is not None:
            self._of_caller[stream.caller.name] -= 1
            if not self._of_caller[stream.caller.name]:
                del self._of_caller[stream.caller.name]

    async def _end_all(self) -> None:
        await self._stopping.wait()
        for stream in list(self._streams.values()):
            stream.end()


class RingStream:
    """What one client hears."""

    def __init__(self, watching: Watching, backend: Backend, caller: Caller) -> None:
        self.id = secret_hex(16)
        self.caller = caller
        self._watching = watching
        self._backend = backend
        self._hung: dict[str, asyncio.Task[None]] = {}
        self._rung: dict[str, None] = {}
        self._ready = asyncio.Event()
        self._begun = False
        self._ended = False

    def change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Hear `add` from now on, and `remove` no more. Raises Problem (422, 429), and then nothing is changed."""
        if self._ended:
            raise NotFound("there is no such stream; open a new one")
        removed = {topic for topic in remove if topic in self._hung}
        added = [topic for topic in dict.fromkeys(add) if topic not in self._hung or topic in removed]
        if len(self._hung) - len(removed) + len(added) > wire.TOPICS_MAX:
            raise Problem(422, "invalid-option", "Too many topics", f"a stream hears at most {wire.TOPICS_MAX:,}")
        self._watching.take(len(added) - len(removed))
        for topic in removed:
            self._hung.pop(topic).cancel()
        loop = asyncio.get_running_loop()
        for topic in added:
            self._hung[topic] = loop.create_task(self._hear(topic, self._backend.watch([topic])))

    async def _hear(self, topic: str, bell: Bell) -> None:
        with bell:
            while True:
                if await bell.wait(_WAIT_MS):
                    self._rung[topic] = None
                    self._ready.set()

    async def next(self) -> bytes:
        """Wait for the next line: what rang, or a sign of life. Empty: the stream is over."""
        if not self._begun:
            self._begun = True
            return _line(wire.Rings(stream=self.id))
        if not self._rung and not self._ended:
            self._ready.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wire.SIGN_OF_LIFE_MS / 1000):
                    await self._ready.wait()
        if self._ended:
            return b""
        rung, self._rung = tuple(self._rung), {}
        return _line(wire.Rings(rung=rung))

    def end(self) -> None:
        """End the stream. Idempotent."""
        if self._ended:
            return
        self._ended = True
        self._watching.forget(self)
        self._watching.take(-len(self._hung))
        for task in self._hung.values():
            task.cancel()
        self._hung.clear()
        self._ready.set()


def _line(rings: wire.Rings) -> bytes:
    return _write(rings) + b"\n"


def _too_many(what: str) -> Problem:
    detail = f"too many {what} at once; poll, and try again later"
    return Problem(429, "too-many-streams", "No room for another stream", detail, headers={"Retry-After": "5"})
