"""Concurrent plain enqueues of this process, put together: one statement and one commit for all that came meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ...errors import Unavailable
from ...job import JobSpec
from ..base import BATCH_MAX, Enqueued
from .connection import is_lock_wait

#: Larger calls go by themselves: nothing is gained by joining them.
ALONE = 100

Add = Callable[[Sequence[JobSpec]], Awaitable["list[Enqueued] | None"]]


class Grouping:
    """Callers who wait for a statement together. None as an answer: it is to be stored the long way."""

    def __init__(self, add: Add) -> None:
        self._add = add
        self._waiting: list[tuple[Sequence[JobSpec], asyncio.Future[list[Enqueued] | None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._apart: set[asyncio.Task[None]] = set()

    async def add(self, specs: Sequence[JobSpec]) -> list[Enqueued] | None:
        """Store plain jobs, together with what others want stored at the same time."""
        future: asyncio.Future[list[Enqueued] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((specs, future))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        return await future

    async def finish(self) -> None:
        """Wait until all that was asked has been answered."""
        while self._task is not None or self._apart:
            await asyncio.wait([*self._apart, *([self._task] if self._task is not None else [])])

    async def _work(self) -> None:
        try:
            while self._waiting:
                count, calls = 0, 0
                for specs, _ in self._waiting:
                    count += len(specs)
                    if count > BATCH_MAX and calls:
                        break
                    calls += 1
                group, self._waiting = self._waiting[:calls], self._waiting[calls:]
                await self._store(group)
        finally:
            self._task = None

    async def _store(self, group: list[tuple[Sequence[JobSpec], asyncio.Future[list[Enqueued] | None]]]) -> None:
        group = [(specs, future) for specs, future in group if not future.done()]
        if not group:
            return
        try:
            answers = await self._add([spec for specs, _ in group for spec in specs])
        except Exception as error:
            if len(group) > 1 and is_lock_wait(error):
                # One of them waits for somebody's transaction: the others need not, nor who comes after.
                for one in group:
                    task = asyncio.get_running_loop().create_task(self._store([one]))
                    self._apart.add(task)
                    task.add_done_callback(self._apart.discard)
                return
            if len(group) > 1 and not isinstance(error, (Unavailable, ConnectionError)):
                for one in group:  # what is refused to one is refused to no other
                    await self._store([one])
                return
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for specs, future in group:
            if not future.done():
                future.set_result(None if answers is None else answers[start : start + len(specs)])
            start += len(specs)
