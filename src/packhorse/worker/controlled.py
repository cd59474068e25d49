"""The keeper's end of its control socket (see `control`): answers commands of its own user."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from ..errors import PackhorseError
from ..observe.profiling import DURATION_MS_MAX, RATE_MAX
from . import control
from .child import Child
from .control import Answer, AskProfile, AskStacks, Keeps, Kept, Profiled, Question, Refused, Stacks, Who
from .inspection import Sampled
from .trouble import stacks_of

log = logging.getLogger("packhorse.keeper")

#: Who connects and asks nothing is cut off after this time.
_QUESTION_S = 5.0
#: Answers that are being made at once.
_AT_ONCE_MAX = 8


class Controlled:
    """Listens for as long as the keeper runs. `children` are its runners."""

    def __init__(self, children: Callable[[], Collection[Child]]) -> None:
        self._children = children
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the socket. Where that is not possible the worker works without one, and says so."""
        try:
            directory = control.make_directory()
            control.sweep(directory)
            end, self._path = control.listen(directory)
        except (OSError, PackhorseError) as error:
            log.warning("packhorse profile and packhorse stacks cannot look into this worker: %s", error)
            return
        self._server = await asyncio.start_unix_server(self._serve, sock=end)

    async def stop(self) -> None:
        """Close and remove the socket; those who wait for an answer get none."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
        if self._server is not None:
            self._server.close()
        for task in list(self._answering):
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            await self._talk(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            pass  # it asked nothing, has gone, or the keeper ends
        except Exception:
            log.exception("a question at the control socket failed; this is a bug")
        finally:
            self._answering.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end: socket.socket = writer.get_extra_info("socket")
        uid = control.peer_uid(end)
        if uid not in {None, os.getuid()}:
            log.warning("user %s tried to look into this worker and was refused", uid)
            return
        if len(self._answering) > _AT_ONCE_MAX:
            answer: Answer = Refused("the worker answers too many already; try again in a moment")
        else:
            async with asyncio.timeout(_QUESTION_S):
                length = int.from_bytes(await reader.readexactly(control.LENGTH_BYTES))
                if length > control.QUESTION_BYTES_MAX:
                    return
                data = await reader.readexactly(length)
            try:
                question = control.read_question(data)
            except msgspec.DecodeError:
                answer = Refused("this worker is of another version of packhorse; use the command of its version")
            else:
                answer = await self._unless_gone(question, reader)
        writer.write(control.pack(answer))
        async with asyncio.timeout(_QUESTION_S):
            await writer.drain()

    async def _unless_gone(self, question: Question, reader: asyncio.StreamReader) -> Answer:
        """Make the answer; whoever goes away meanwhile does not want it any more."""
        loop = asyncio.get_running_loop()
        answering = loop.create_task(self._answer(question))
        leaving = loop.create_task(reader.read(1))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise EOFError
            return answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, question: Question) -> Answer:
        if isinstance(question, Who):
            return Keeps([_kept(child) for child in self._children() if child.ready is not None and not child.gone])
        child = next((child for child in self._children() if child.worker == question.worker), None)
        if child is None or child.gone or child.ready is None:
            return Refused("that worker has ended meanwhile; packhorse workers lists those that are alive")
        if isinstance(question, AskStacks):
            return await _stacks(child)
        return await _profile(child, question)


def _kept(child: Child) -> Kept:
    return Kept(child.worker, child.pid, child.trouble.text() if child.trouble is not None else "")


async def _stacks(child: Child) -> Stacks:
    stacks, notes = await stacks_of(child)
    return Stacks(stacks, notes, child.trouble.text() if child.trouble is not None else "")


async def _profile(child: Child, question: AskProfile) -> Answer:
    if not 1 <= question.duration_ms <= DURATION_MS_MAX or not 1 <= question.rate <= RATE_MAX:
        return Refused(f"a profile takes at most {DURATION_MS_MAX // 1000} s, at a rate from 1 to {RATE_MAX}")
    if child.stopped():
        return Refused(f"the worker is stopped (SIGSTOP, or a debugger); go on with: kill -CONT {child.pid}")
    log.info("runner %d is profiled for %g s", child.pid, question.duration_ms / 1000)
    answer = await child.inspection.sample(question.duration_ms, question.rate, question.mode)
    if isinstance(answer, Sampled):
        return Profiled(answer.profile)
    return Refused(f"the worker cannot be profiled: {answer.reason}")
