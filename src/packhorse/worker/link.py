"""What a keeper and its runner say to each other, as lines of JSON over a socket that only they have."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec

from ..observe.meters import Rise
from .options import WorkerOptions

#: A beat lists all held jobs with their tokens, about 100 bytes each: room for 100,000.
_LINE_BYTES_MAX = 10 << 20


class Setup(msgspec.Struct, tag=True):
    """Keeper → runner, first: what to run. In the socket, not in argv, since the URL may carry a password."""

    app: str
    url: str | None
    worker: str
    overrides: dict[str, Any]
    log_level: str
    log_format: str


class Ready(msgspec.Struct, tag=True):
    """Runner → keeper: the app is loaded and claims begin."""

    url: str
    options: WorkerOptions
    types: tuple[str, ...]
    failure_hooks: bool = False  # the app has hooks that want to hear what became of a dead runner's jobs


class Broken(msgspec.Struct, tag=True):
    """Runner → keeper: it cannot start, and why."""

    message: str


class Exhausted(msgspec.Struct, tag=True):
    """Runner → keeper: a burst found nothing left to do."""


class Tainted(msgspec.Struct, tag=True):
    """Runner → keeper: replace me, a run cannot be stopped."""

    reason: str


class Counted(msgspec.Struct, tag=True):
    """Runner → keeper: what it counted since it last told. The keeper answers for it, whatever becomes of it."""

    rises: list[Rise]


class Beat(msgspec.Struct, tag=True):
    """Keeper → runner: the answer to a heartbeat sent at `sent_ms`."""

    sent_ms: int
    held: dict[str, str]
    cancel: list[str]


class Lapsed(msgspec.Struct, tag=True):
    """Keeper → runner: these jobs lapsed, in this attempt, with this worker if it is known; tell the failure hooks."""

    number: int
    worker: str | None
    attempts: dict[str, int]


class Told(msgspec.Struct, tag=True):
    """Runner → keeper: the failure hooks know of the lapses of this number."""

    number: int


class Stop(msgspec.Struct, tag=True):
    """Keeper → runner: stop; what runs has `grace_ms` to end."""

    grace_ms: int


class Hurry(msgspec.Struct, tag=True):
    """Keeper → runner: stop now."""


Message = Setup | Ready | Broken | Exhausted | Tainted | Counted | Told | Beat | Lapsed | Stop | Hurry

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


class Link:
    """One end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Link:
        """Speak over this end of a socket pair."""
        reader, writer = await asyncio.open_connection(sock=end, limit=_LINE_BYTES_MAX)
        return cls(reader, writer)

    def send(self, message: Message) -> None:
        """Send without waiting; to an end that is gone it is lost, and its process's death tells why."""
        if not self._writer.is_closing():
            self._writer.write(_encoder.encode(message) + b"\n")

    async def flush(self) -> None:
        """Wait until what was sent is on its way."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def receive(self) -> Message | None:
        """Wait for the next message; None when the other end is gone."""
        try:
            line = await self._reader.readline()
            return _decoder.decode(line) if line.endswith(b"\n") else None
        except (ConnectionError, ValueError):
            return None

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
