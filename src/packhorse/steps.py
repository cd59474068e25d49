"""Durable steps: what a run has done already is remembered, so that the next attempt goes on where it broke off."""

from __future__ import annotations

import asyncio
import inspect
import threading
import typing
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from . import codec
from .arguments import convert
from .backends.base import Note
from .errors import InvalidPayload, LeaseLost, Unsupported
from .job import LOG_PREFIX, STEPS_BYTES_MAX, STEPS_MAX, Claimed, JobRecord, check_name
from .outcome import Fail
from .reach import Reach


class Steps:
    """The steps of one run: those kept by earlier attempts, and those made now."""

    def __init__(self, job: Claimed, reach: Reach, stop: threading.Event) -> None:
        self._job = job
        self._reach = reach
        self._stop = stop
        self._kept: dict[str, bytes] | None = None  # None: not read yet
        self._made: dict[str, bytes] = {}  # done, and not known to be kept
        self._turns: dict[str, asyncio.Lock] = {}
        self._blocking_turns: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    async def run(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer what the step came to; see `Context.step`."""
        self._check(name)
        async with self._turn("", self._turns, asyncio.Lock):
            if self._kept is None:
                self._take((await self._reach.get([self._job.id]))[0])
        async with self._turn(name, self._turns, asyncio.Lock):
            note = self._known(name)
            if note is None:
                value = function(*args, **kwargs)
                note = self._note(name, await value if inspect.isawaitable(value) else value)
            if not self._is_kept(name):
                await self._reach.keep(note)
                self._remember(note)
        return _read(function, note.result)

    def run_blocking(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer what the step came to, in a thread; see `BlockingContext.step`."""
        if inspect.iscoroutinefunction(inspect.unwrap(function)):
            raise TypeError(f"step {name!r}: an async function needs an async handler and `await ctx.step(...)`")
        self._check(name)
        with self._turn("", self._blocking_turns, threading.Lock):
            if self._kept is None:
                self._take(self._reach.get_blocking([self._job.id], self._stop)[0])
        with self._turn(name, self._blocking_turns, threading.Lock):
            note = self._known(name)
            if note is None:
                note = self._note(name, function(*args, **kwargs))
            if not self._is_kept(name):
                self._reach.keep_blocking(note, self._stop)
                self._remember(note)
        return _read(function, note.result)

    def _check(self, name: str) -> None:
        check_name(name, "step")
        if not self._reach.steps:
            raise Unsupported("steps", "make each step a job of its own, e.g. with packhorse.chain")

    @typing.overload
    def _turn(
        self, name: str, turns: dict[str, asyncio.Lock], kind: type[asyncio.Lock]
    ) -> AbstractAsyncContextManager[Any]: ...
    @typing.overload
    def _turn(
        self, name: str, turns: dict[str, threading.Lock], kind: Callable[[], threading.Lock]
    ) -> AbstractContextManager[Any]: ...
    def _turn(self, name: str, turns: dict[str, Any], kind: Callable[[], Any]) -> Any:
        """One at a time of the same name: the second finds what the first has made."""
        with self._guard:
            if name not in turns:
                turns[name] = kind()
            return turns[name]

    def _take(self, record: JobRecord | None) -> None:
        if record is None:
            raise LeaseLost(f"job {self._job.id} is gone")
        self._kept = {name: data for name, data in (record.steps or {}).items() if not name.startswith(LOG_PREFIX)}

    def _is_kept(self, name: str) -> bool:
        return self._kept is not None and name in self._kept

    def _known(self, name: str) -> Note | None:
        """Answer a step that was done before, in an earlier attempt or in this run; refuse one too many."""
        assert self._kept is not None
        data = self._kept.get(name, self._made.get(name))
        if data is not None:
            return Note(id=self._job.id, token=self._job.token, step=name, result=data)
        if len(self._kept) + len(self._made) >= STEPS_MAX:
            raise Fail(f"step {name}: a job has at most {STEPS_MAX:,} steps; let some of them be jobs of their own")
        return None

    def _note(self, name: str, value: object) -> Note:
        assert self._kept is not None
        try:
            data = codec.encode(codec.to_plain(value), codec.RESULT_BYTES_MAX)
        except InvalidPayload as error:  # another attempt would only do it again
            raise Fail(f"step {name}: it was done, but its result cannot be kept: {error}") from None
        bytes_kept = sum(map(len, self._kept.values())) + sum(map(len, self._made.values()))
        if bytes_kept + len(data) > STEPS_BYTES_MAX:
            raise Fail(
                f"step {name}: it was done, but the results of a job's steps may have {STEPS_BYTES_MAX:,} bytes "
                "in all; store them elsewhere and return their names"
            )
        self._made[name] = data
        return Note(id=self._job.id, token=self._job.token, step=name, result=data)

    def _remember(self, note: Note) -> None:
        assert self._kept is not None
        assert note.step is not None
        self._kept[note.step] = note.result
        self._made.pop(note.step, None)


def _read(function: Callable[..., Any], data: bytes) -> Any:
    """Answer a result as the function's annotation says, alike on the run that made it and on those that find it."""
    plain = codec.decode(data)
    try:
        return convert(plain, typing.get_type_hints(inspect.unwrap(function)).get("return", Any))
    except Exception:  # no annotations, or some that JSON cannot fill: as plain JSON values
        return plain
