"""Waking through a server: one stream that says which topics rang, for as long as a bell hangs.

All is a hint. What happened before the server heard of a topic, or while the stream was broken, is made up for by
ringing its bells once the server listens; and waiters poll anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing

import msgspec

from ...chance import CHANCE
from ...errors import PackhorseError
from ..bells import Bell, Bells
from . import wire
from .link import Link

#: The stream is kept for a while after the last bell: who waits for a job after another hangs up one after another.
LINGER_S = 5.0
#: A lost stream is opened again after a random time of at most this, which doubles with each try that fails ...
RETRY_S_MAX = 0.4
#: ... up to this.
RETRY_S_LONGEST = 30.0
#: Topics that nobody waits for any more may lie on the server until there are so many of them.
LEFT_OVER_MAX = 256

_read_rings = msgspec.json.Decoder(wire.Rings).decode


class Wake:
    """The bells of one backend and what rings them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.bells = _HungBells(self._changed)
        self._task: asyncio.Task[None] | None = None
        self._changing: asyncio.Task[None] | None = None
        self._stream = ""
        #: What the server was told to listen to for the stream that is open.
        self._told: set[str] = set()
        self._failed = 0

    def watch(self, topics: Sequence[str]) -> Bell:
        """Hang up a bell, and listen."""
        return self.bells.watch(topics)

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        tasks = [task for task in (self._task, self._changing) if task is not None and not task.done()]
        self._task = self._changing = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _changed(self) -> None:
        """Listen to what the bells need. On the loop of the backend."""
        if not self._link.is_open or not self.bells.are_hung:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._listen())
        elif self._stream and self._missing() and (self._changing is None or self._changing.done()):
            self._changing = asyncio.get_running_loop().create_task(self._tell())

    def _missing(self) -> set[str]:
        return self.bells.topics() - self._told

    # ---- listening -----------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Listen until no bell has hung for a while; a lost stream is opened again."""
        while self.bells.are_hung:
            try:
                await self._hear()
            except PackhorseError:
                self._failed += 1  # whoever waits polls meanwhile
            finally:
                self._stream, self._told = "", set()
            if self.bells.are_hung:
                doubled = RETRY_S_MAX * 2 ** min(max(0, self._failed - 1), 16)
                await asyncio.sleep(CHANCE.uniform(0.0, min(doubled, RETRY_S_LONGEST)))

    async def _hear(self) -> None:
        """Hear one stream to its end, or until no bell has hung for a while."""
        loop = asyncio.get_running_loop()
        hung_at_s = loop.time()
        topics = _some(self.bells.topics())
        async with aclosing(self._link.stream(wire.write(wire.Watch(tuple(topics))))) as lines:
            async for line in lines:
                if self.bells.are_hung:
                    hung_at_s = loop.time()
                elif loop.time() - hung_at_s > LINGER_S:
                    return
                try:
                    rings = _read_rings(line)
                except wire.UNREADABLE:
                    self.bells.ring_all()  # from somebody else: who waits looks, at worst in vain
                    continue
                if rings.stream:
                    self._stream, self._told, self._failed = rings.stream, topics, 0
                    self.bells.ring_all()  # what happened until now was not heard
                    self._changed()
                elif rings.rung:
                    self.bells.ring(rings.rung)

    # ---- other topics --------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        """Tell the server of topics that were added; where that fails, the stream is opened anew with all of them."""
        await asyncio.sleep(0)  # bells that are hung up together go out together
        while self._stream and (missing := self._missing()):
            stream, wanted = self._stream, self.bells.topics()
            left_over = self._told - wanted
            removed = left_over if len(left_over) > LEFT_OVER_MAX else set()
            added = _some(missing, wire.TOPICS_MAX - len(self._told - removed))
            if not added and not removed:
                return  # more than a server takes: their bells are only polled for
            try:
                await self._link.retopic(stream, wire.write(wire.Watch(tuple(added), tuple(removed))))
            except PackhorseError:
                if self._task is not None and self._stream == stream:
                    self._task.cancel()
                    await asyncio.wait([self._task])
                    self._task = None
                    self._changed()
                return
            if self._stream == stream:
                self._told = self._told - removed | added
                self.bells.ring(added)  # what happened until now was not heard


def _some(topics: Iterable[str], most: int = wire.TOPICS_MAX) -> set[str]:
    """Answer those that a server takes: no more than it listens to, and none that is too long."""
    short = [topic for topic in topics if len(topic) <= wire.TOPIC_CHARS_MAX]
    return set(short[: max(0, most)])


class _HungBells(Bells):
    """Bells that tell when one was hung up."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._tell = changed

    def topics(self) -> set[str]:
        """Answer all topics that a bell waits for."""
        with self._lock:
            return set(self._by_topic)

    def watch(self, topics: Sequence[str]) -> Bell:
        bell = super().watch(topics)
        self._tell()
        return bell
