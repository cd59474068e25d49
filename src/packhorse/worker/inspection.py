"""How a running process is looked into from beside it: over a socket of its own, served by a thread of its own.

Not over `link`: that is read by the event loop, and the question is often why the loop does not turn. Whoever asks is
the keeper, or a runner of its handlers' child processes. Length-prefixed msgpack frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..clock import SYSTEM_CLOCK
from ..observe.profiling import Mode, Profile
from ..observe.stacks import Stack

if TYPE_CHECKING:
    from typing import Self

#: A profile of 20,000 stacks takes about 3 MiB.
FRAME_BYTES_MAX = 10 << 20
_LENGTH_BYTES = 4
#: A process answers at once, unless something holds its interpreter lock, or it starts.
ANSWER_MS = 300
#: From the first byte of an answer to the last.
_WHOLE_FRAME_S = 2.0


class Look(msgspec.Struct, tag=True):
    """Asked: what are you doing?"""

    number: int


class Looked(msgspec.Struct, tag=True):
    """Answered: the stacks of all threads and of all waiting runs."""

    number: int
    stacks: list[Stack]
    notes: list[str] = []


class Sample(msgspec.Struct, tag=True):
    """Asked: take a profile. One at a time."""

    number: int
    duration_ms: int
    rate: int
    mode: Mode


class Halt(msgspec.Struct, tag=True):
    """Asked: end the profile now, and answer what there is."""

    number: int


class Sampled(msgspec.Struct, tag=True):
    """Answered: the profile."""

    number: int
    profile: Profile


class Declined(msgspec.Struct, tag=True):
    """Answered: not possible, and why."""

    number: int
    reason: str


class Handlers(msgspec.Struct, tag=True):
    """Told at the start: which functions are handlers, as (file, function, type). A dump by signal names no jobs."""

    known: list[tuple[str, str, str]]


Asked = Look | Sample | Halt
Answered = Looked | Sampled | Declined | Handlers

_encode = msgspec.msgpack.Encoder().encode
_read_asked: Callable[[bytes], Asked] = msgspec.msgpack.Decoder(Asked).decode
_read_answered: Callable[[bytes], Answered] = msgspec.msgpack.Decoder(Answered).decode


def pack(message: Asked | Answered) -> bytes:
    """Write a frame."""
    data = _encode(message)
    return len(data).to_bytes(_LENGTH_BYTES) + data


def _read_exactly(end: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = end.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _read_frame(end: socket.socket) -> bytes:
    length = int.from_bytes(_read_exactly(end, _LENGTH_BYTES))
    if length > FRAME_BYTES_MAX:
        raise EOFError
    return _read_exactly(end, length)


def read_asked(end: socket.socket) -> Asked | None:
    """Wait for what is asked next; None when nobody is there to ask. Blocks."""
    try:
        return _read_asked(_read_frame(end))
    except (OSError, EOFError, msgspec.DecodeError):
        return None


class BlockingInspection:
    """The asking end in threads, of a runner that asks a handler's child process."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._hearing = threading.Lock()
        self._kept: dict[int, Answered] = {}
        self._numbers = itertools.count(1)

    def ask(self, question: Look | Sample) -> int:
        """Ask, with a number for `hear`; answers the number."""
        question.number = next(self._numbers)
        self.tell(question)
        return question.number

    def tell(self, message: Asked) -> None:
        """Send without an answer in mind. A process that is gone hears nothing."""
        with contextlib.suppress(OSError):
            self._end.sendall(pack(message))

    def hear(self, number: int, timeout_s: float) -> Answered | None:
        """Wait for the answer of this number; None when there is none in time."""
        end_ms = SYSTEM_CLOCK.boot_ms() + timeout_s * 1000
        with self._hearing:
            while number not in self._kept:
                left_s = (end_ms - SYSTEM_CLOCK.boot_ms()) / 1000
                try:
                    if not select.select([self._end], [], [], max(0.0, left_s))[0]:
                        return None
                    self._end.settimeout(_WHOLE_FRAME_S)
                    message = _read_answered(_read_frame(self._end))
                except (OSError, ValueError, EOFError, msgspec.DecodeError):
                    self._end.close()
                    return None
                if not isinstance(message, Handlers):
                    self._kept[message.number] = message
            return self._kept.pop(number)

    def close(self) -> None:
        """Close this end; the thread at the other ends."""
        self._end.close()


class Inspection:
    """The asking end, in a keeper's loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._number = 0
        self._gone = False
        self.handlers: dict[tuple[str, str], str] = {}
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Ask over this end of a socket pair."""
        return cls(*await asyncio.open_connection(sock=end))

    async def look(self, timeout_ms: int = ANSWER_MS) -> Looked | None:
        """Ask for stacks; None where no answer comes in time."""
        self._number += 1
        answer = await self._ask(Look(self._number), timeout_ms)
        return answer if isinstance(answer, Looked) else None

    async def sample(self, duration_ms: int, rate: int, mode: Mode) -> Sampled | Declined:
        """Ask for a profile. Cancelled, it ends the profile."""
        self._number += 1
        number = self._number
        try:
            answer = await self._ask(Sample(number, duration_ms, rate, mode), duration_ms + 10_000)
        except asyncio.CancelledError:
            self._send(Halt(number))
            raise
        if isinstance(answer, Sampled | Declined):
            return answer
        self._send(Halt(number))
        return Declined(number, "it ended" if self._gone else "it does not answer; try packhorse stacks")

    async def _ask(self, question: Look | Sample, timeout_ms: int) -> Answered | None:
        if self._gone or self._writer.is_closing():
            return None
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting[question.number] = future
        self._send(question)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(question.number, None)

    def _send(self, question: Asked) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(question))

    async def _read(self) -> None:
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
                if length > FRAME_BYTES_MAX:
                    break
                message = _read_answered(await self._reader.readexactly(length))
                if isinstance(message, Handlers):
                    self.handlers = {(file, function): job_type for file, function, job_type in message.known}
                elif (future := self._waiting.get(message.number)) is not None and not future.done():
                    future.set_result(message)
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            pass  # it ended, or its handlers wrote into a socket that is not theirs
        self._gone = True
        for future in self._waiting.values():
            if not future.done():
                future.set_result(Declined(0, "it ended"))

    def close(self) -> None:
        """Close this end; the thread at the other ends."""
        self._reading.cancel()
        self._writer.close()
