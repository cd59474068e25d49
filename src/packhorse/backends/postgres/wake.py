"""Waking those who wait, in this process and in others: NOTIFY with every transaction that has something to tell, but
not more often than every few ms, and LISTEN on a connection of its own while anybody waits.

A NOTIFY makes all commits of a database wait in a row,
    so what comes in quick succession is told together a little later.
All of it is a hint: callers look on their own now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from ...chance import CHANCE, secret_hex
from ...clock import SYSTEM_CLOCK
from ..bells import Bell, Bells
from .connection import Connection

#: The least time between two NOTIFY of a process.
GAP_MS = 5
#: PostgreSQL takes 8,000 bytes.
_PAYLOAD_CHARS_MAX = 7_000
_TOPIC_CHARS_MAX = 200
#: More topics than this are mostly jobs, and told of as "jobs": 150 of 41 characters are 6,150.
_JOBS_MAX = 150
_JOBS = "job:"
_ALL_JOBS = "jobs"
_ALL = "all"
_TEST = "test:"

#: How long the listener waits before it connects again, with jitter, and the most.
_AGAIN_MS = 100
_AGAIN_MS_MAX = 5_000
#: How often it looks whether its connection still delivers, and how long that may take.
_TEST_EVERY_S = 20.0
_TEST_S = 3.0
#: How often bells are rung where notifications do not arrive (a pooler in transaction mode).
_POLL_S = 0.5


class Wake:
    """The bells of one backend, and what rings them from outside."""

    def __init__(
        self,
        channel: str,
        connect: Callable[[], Awaitable[Connection]],
        notify: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self.bells = Bells()
        self._channel = channel
        self._connect = connect
        self._notify = notify
        self._sender = secret_hex(4)  # so that we do not ring again for what we told ourselves
        self._told_at_ms = 0
        self._waiting: set[str] = set()  # topics to be told when the gap is over
        self._trailing: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._is_open = False
        self.delivers: bool | None = None  # whether notifications arrive; None: not known yet

    # ---- to tell -------------------------------------------------------------------------------------------

    def payload(self, topics: Iterable[str]) -> str | None:
        """Answer what to tell others together with a move; None: too soon after the last, `ring` tells it later."""
        now_ms = SYSTEM_CLOCK.boot_ms()
        if now_ms - self._told_at_ms < GAP_MS or self._trailing is not None:
            return None
        self._told_at_ms = now_ms
        return write_payload(topics, self._sender)

    def ring(self, topics: Iterable[str], *, told: bool) -> None:
        """After a commit, ring the bells of this backend; tell others a little later unless that is done."""
        topics = list(topics)
        if self.bells.are_hung:
            self.bells.ring([name_of(topic) for topic in topics])
        if topics and not told:
            self._waiting.update(topics)
            if self._trailing is None:
                self._trailing = asyncio.get_running_loop().create_task(self._tell_later())

    async def _tell_later(self) -> None:
        await asyncio.sleep(GAP_MS / 1000)
        topics, self._waiting = self._waiting, set()
        self._trailing = None
        self._told_at_ms = SYSTEM_CLOCK.boot_ms()
        with suppress(Exception):  # a hint that is lost; whoever asks next learns what is wrong
            await self._notify(write_payload(topics, self._sender))

    # ---- to hear -------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen from now on, while any bell hangs."""
        self._is_open = True
        if self.bells.are_hung:
            self._listen()

    def watch(self, topics: Sequence[str]) -> Bell:
        """Hang up a bell, and listen."""
        bell = self.bells.watch([name_of(topic) for topic in topics])
        if self._is_open:
            self._listen()
        return bell

    async def close(self) -> None:
        """Tell what is left to tell, and listen no more."""
        self._is_open = False
        if self._trailing is not None:
            await asyncio.wait([self._trailing], timeout=1)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            with suppress(asyncio.CancelledError):
                await listener

    def _listen(self) -> None:
        if self._listener is None or self._listener.done():
            self._listener = asyncio.get_running_loop().create_task(self._keep_listening())

    async def _keep_listening(self) -> None:
        pause_ms = _AGAIN_MS
        while self._is_open and self.bells.are_hung:
            try:
                db = await self._connect()
            except Exception:  # the server is away: whoever asks is told, here we just try again
                await asyncio.sleep(CHANCE.uniform(pause_ms / 2, pause_ms) / 1000)
                pause_ms = min(2 * pause_ms, _AGAIN_MS_MAX)
                continue
            try:
                await db.execute(f'LISTEN "{self._channel}"'.encode())
                self.bells.ring_all()  # whatever was told while nobody listened
                pause_ms = _AGAIN_MS
                await self._hear(db)
            except Exception:  # a lost connection mostly
                await asyncio.sleep(CHANCE.uniform(_AGAIN_MS / 2, _AGAIN_MS) / 1000)
            finally:
                with suppress(Exception):
                    await db.close()

    async def _hear(self, db: Connection) -> None:
        """Ring what is told, and look now and then whether anything arrives at all; raises what ends it."""
        while self._is_open and self.bells.are_hung:
            test = _TEST + secret_hex(8)
            tester = asyncio.get_running_loop().create_task(self._notify(test))
            arrived = False
            async for told in db.notifies(timeout=_TEST_S, stop_after=None):
                arrived = arrived or told.payload == test
                self._hear_one(told.payload)
                if arrived:
                    break
            await asyncio.wait([tester])
            tester.exception()
            self.delivers = arrived
            if not arrived:
                await self._poll()
                return
            async for told in db.notifies(timeout=_TEST_EVERY_S):
                self._hear_one(told.payload)

    async def _poll(self) -> None:
        """Nothing arrives here: ring all bells now and then instead, and try to listen again after a while."""
        for _ in range(int(60 / _POLL_S)):
            if not (self._is_open and self.bells.are_hung):
                return
            self.bells.ring_all()
            await asyncio.sleep(_POLL_S)

    def _hear_one(self, payload: str) -> None:
        sender, *names = payload.split("\n")
        if sender == self._sender:
            return
        if _ALL_JOBS in names:
            self.bells.ring_kind(_JOBS)
        if _ALL in names:
            self.bells.ring_all()
        self.bells.ring(names)


def write_payload(topics: Iterable[str], sender: str = "") -> str:
    """Write topics as one text that a NOTIFY can carry; very many jobs are just "jobs"."""
    names = list(topics)
    if len(names) > _JOBS_MAX:
        names = [topic for topic in names if not topic.startswith(_JOBS)] + [_ALL_JOBS]
    payload = "\n".join([sender, *map(name_of, names)])
    return payload if len(payload) <= _PAYLOAD_CHARS_MAX else f"{sender}\n{_ALL}"


def name_of(topic: str) -> str:
    """Answer how a topic is called on the way: what is long, or cannot be sent, by its hash."""
    if len(topic) <= _TOPIC_CHARS_MAX and topic.isascii() and topic.isprintable():
        return topic
    kind = topic.partition(":")[0]
    return f"{kind}:#{blake2b(topic.encode('utf-8', 'replace'), digest_size=16).hexdigest()}"
