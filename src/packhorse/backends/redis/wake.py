"""Waking other processes: one connection that listens, for as long as a bell hangs.

Scripts publish the topics they ring, one message a call: those of queues, workers and due times on one channel, ended
jobs on another that only those who wait for a job listen to. All is a hint: what happened before the server noted
that we listen is made up for by ringing all bells then, and waiters poll anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from redis import exceptions as driver

from ...chance import CHANCE
from ...errors import PackhorseError
from ..base import job_topic
from ..bells import Bell, Bells
from .link import ERRORS, Link
from .records import unpack

#: A connection that says nothing for so long is asked whether it lives.
SILENCE_S = 15.0
#: The connection is kept for a while after the last bell: who waits for a job after another hangs up one after another.
LINGER_S = 5.0
#: A lost connection is made again after a random time of at most this ...
RETRY_S_MAX = 0.8
#: ... so often; then the time doubles with each try that fails, up to this.
RETRIES_SOON = 5
RETRY_S_LONGEST = 30.0


class Wake:
    """The bells of one backend and what rings them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._wake = link.location.key("wake")
        self._ended = link.location.key("ended")
        self.bells = _HungBells(self._changed)
        self._task: asyncio.Task[None] | None = None
        self._pubsub: Any = None
        self._subscribing = asyncio.Lock()
        self._failed = 0

    def watch(self, topics: Sequence[str]) -> Bell:
        """Hang up a bell, and listen."""
        return self.bells.watch(topics)

    def _changed(self) -> None:
        """Listen to what the bells need. On the loop of the backend."""
        if self.bells.hung and self._link.is_open and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._listen())
        elif self._pubsub is not None and self._channels() - self._pubsub.channels.keys():
            task = asyncio.get_running_loop().create_task(self._subscribe_more(self._pubsub))
            _keep(task)

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # again, where the driver swallowed it while it read
            await asyncio.wait([task], timeout=0.2)

    def _channels(self) -> set[bytes]:
        channels = {self._wake.encode()}
        return channels | {self._ended.encode()} if self.bells.job_bells else channels

    async def _subscribe(self, pubsub: Any) -> None:
        async with self._subscribing:
            missing = self._channels() - pubsub.channels.keys()
            if missing:
                await pubsub.subscribe(*sorted(missing))

    async def _subscribe_more(self, pubsub: Any) -> None:
        """Listen to what a new bell needs too; where that fails, the listening connection is made again anyway."""
        with suppress(*ERRORS, OSError):
            await self._subscribe(pubsub)

    async def _listen(self) -> None:
        """Listen until no bell has hung for a while; a lost connection is made again."""
        while self.bells.hung:
            client = None
            try:
                client = await self._link.listener()
                await self._hear(client)
            except (*ERRORS, OSError, EOFError, PackhorseError):
                pass  # whoever waits polls meanwhile
            finally:
                self._pubsub = None
                if client is not None:
                    with suppress(*ERRORS, OSError):
                        await client.aclose()
            if self.bells.hung:
                doubled = min(max(0, self._failed - RETRIES_SOON), 16)
                await asyncio.sleep(CHANCE.uniform(0.0, min(RETRY_S_MAX * 2**doubled, RETRY_S_LONGEST)))
                self._failed += 1

    async def _hear(self, client: Any) -> None:
        pubsub = client.pubsub()
        self._pubsub = pubsub
        self._subscribing = asyncio.Lock()  # of two that subscribe at once the driver gives each a connection
        unanswered = False
        try:
            await self._subscribe(pubsub)
            while True:
                hung = bool(self.bells.hung)
                message = await pubsub.get_message(timeout=SILENCE_S if hung else LINGER_S)
                if message is None:
                    if not self.bells.hung:
                        return
                    if unanswered and hung:
                        raise driver.ConnectionError("the listening connection is silent")
                    unanswered = True
                    await pubsub.ping()
                    continue
                unanswered = False
                self._take(message)
        finally:
            with suppress(*ERRORS, OSError):
                await pubsub.aclose()

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "subscribe":
            self._failed = 0
            self.bells.ring_all()  # what happened until now was not heard
        elif kind == "message":
            try:
                rung = unpack(message["data"])
                ended = message["channel"] == self._ended.encode()
                self.bells.ring([job_topic(job_id) for job_id in rung] if ended else rung)
            except (msgspec.DecodeError, TypeError, AttributeError, ValueError):
                self.bells.ring_all()  # from somebody else: who waits looks, at worst in vain


class _HungBells(Bells):
    """Bells that tell when one was hung up."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._tell = changed

    @property
    def hung(self) -> bool:
        """Whether any bell hangs."""
        return bool(self._by_topic)

    @property
    def job_bells(self) -> bool:
        """Whether any bell waits for the end of a job."""
        return any(topic.startswith("job:") for topic in list(self._by_topic))

    def watch(self, topics: Sequence[str]) -> Bell:
        bell = super().watch(topics)
        self._tell()
        return bell


_tasks: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    """Hold a task until it is done: the loop alone would let it go."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
