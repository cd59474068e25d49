"""Waking those who wait: a bell per waiter, rung by topic.

A bell is a hint with memory: a ring between two waits is not lost, so "look, then wait" has no gap.
Each bell lives on the event loop it was made on; `Bells.ring` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from typing import Self


class Bell:
    """Rings when one of its topics may have something new."""

    def __init__(self, bells: Bells, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)
        self._bells = bells
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, timeout_ms: float) -> bool:
        """Sleep until rung or until `timeout_ms` passed; answers whether it rang. One waiter at a time."""
        if not self._rung and timeout_ms > 0:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout_ms / 1000, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        rung, self._rung = self._rung, False
        return rung

    def ring(self) -> None:
        """Wake the waiter now, or the next one at once. From any thread."""
        if self._rung:
            return
        self._rung = True
        if self._thread == threading.get_ident():
            self._wake()
        else:
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # its loop is closed: nobody waits any more
                self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._bells.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Bells:
    """All bells of one backend, by topic."""

    def __init__(self) -> None:
        # The inner dict is a set that keeps an order: the simulator must ring in the same one each time.
        self._by_topic: dict[str, dict[Bell, None]] = {}
        self._lock = threading.Lock()

    def watch(self, topics: Sequence[str]) -> Bell:
        """Hang up a bell for `topics`, on the running event loop."""
        bell = Bell(self, topics)
        with self._lock:
            for topic in bell.topics:
                self._by_topic.setdefault(topic, {})[bell] = None
        return bell

    def remove(self, bell: Bell) -> None:
        """Take a bell down."""
        with self._lock:
            for topic in bell.topics:
                hung = self._by_topic.get(topic)
                if hung is not None:
                    hung.pop(bell, None)
                    if not hung:
                        del self._by_topic[topic]

    def ring(self, topics: Iterable[str]) -> None:
        """Ring every bell of `topics`."""
        if not self._by_topic:
            return
        with self._lock:
            rung = [bell for topic in topics for bell in self._by_topic.get(topic, ())]
        for bell in rung:
            bell.ring()

    def ring_kind(self, prefix: str) -> None:
        """Ring every bell of a topic that begins so: something happened to one of them, it is not known to which."""
        with self._lock:
            topics = [topic for topic in self._by_topic if topic.startswith(prefix)]
        self.ring(topics)

    @property
    def are_hung(self) -> bool:
        """Tell whether there is any bell."""
        return bool(self._by_topic)

    def ring_all(self) -> None:
        """Ring every bell: something happened, it is not known what."""
        with self._lock:
            rung = dict.fromkeys(bell for hung in self._by_topic.values() for bell in hung)
        for bell in rung:
            bell.ring()
