"""Keeps the steps of runs: each is durable before its handler goes on, and many share one heartbeat."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from ..backends.base import BATCH_MAX, Backend, Bound, Note
from ..chance import Chance
from ..clock import Clock
from ..errors import Forbidden, LeaseLost, PackhorseError, Refused
from ..job import JobRecord
from ..observe.outage import Outage
from .heart import Heart

log = logging.getLogger("packhorse.steps")

T = TypeVar("T")

#: Results in one heartbeat, bytes: a few of the largest, and thousands of small ones.
BATCH_BYTES_MAX = 4 << 20
_PAUSE_S_MIN = 0.05
_PAUSE_S_MAX = 5.0
#: How often a thread that waits looks whether its run is to stop.
_LOOK_S = 0.5


class StepKeeper:
    """Group commit for the steps of all runs of a worker."""

    def __init__(self, heart: Heart, chance: Chance, clock: Clock) -> None:
        self._heart = heart
        self._chance = chance
        self._outage = Outage(log, clock, "keep steps")
        self._waiting: deque[tuple[Note, asyncio.Future[None]]] = deque()
        self._flushing: asyncio.Task[None] | None = None

    async def keep(self, note: Note) -> None:
        """Return once the note is durable; a backend that is away is waited for, as long as the run may.

        Raises LeaseLost if the job is not this run's any more, Refused if the backend will not have the note.
        """
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[None] = loop.create_future()
        self._waiting.append((note, kept))
        if self._flushing is None:
            # Not the context of the run that happens to come first: the task serves others too.
            self._flushing = loop.create_task(self._flush(), context=contextvars.Context())
        try:
            await kept
        except asyncio.CancelledError:
            # The pulse that says so also stops the run: the handler is to hear why.
            if kept.done() and not kept.cancelled() and (error := kept.exception()) is not None:
                raise error from None
            raise

    async def _flush(self) -> None:
        pause_s = _PAUSE_S_MIN
        singly = 0
        try:
            await asyncio.sleep(0)  # runs that end a step in the same turn come along
            while self._waiting:
                batch = self._take(1 if singly else BATCH_MAX)
                try:
                    await self._send(batch)
                except PackhorseError as error:
                    is_final = isinstance(error, Refused) and not isinstance(error, Forbidden)
                    if is_final and len(batch) == 1:
                        _fail(batch, error)
                        continue
                    self._waiting.extendleft(reversed(batch))
                    if is_final:  # one of them is the reason
                        singly = len(batch)
                        continue
                    self._outage.failed(error)
                    await asyncio.sleep(self._chance.uniform(0, pause_s))
                    pause_s = min(pause_s * 2, _PAUSE_S_MAX)
                except Exception as error:  # a backend that breaks its contract: the runs hear of it
                    _fail(batch, error)
                except asyncio.CancelledError:
                    self._waiting.extendleft(reversed(batch))
                    raise
                else:
                    self._outage.over()
                    singly, pause_s = max(0, singly - 1), _PAUSE_S_MIN
        finally:
            self._flushing = None

    def _take(self, count_max: int) -> list[tuple[Note, asyncio.Future[None]]]:
        """Take what goes into one heartbeat. A step whose run was stopped is kept all the same: it was done."""
        batch: list[tuple[Note, asyncio.Future[None]]] = []
        bytes_left = BATCH_BYTES_MAX
        while self._waiting and len(batch) < count_max and (not batch or len(self._waiting[0][0].result) <= bytes_left):
            batch.append(self._waiting.popleft())
            bytes_left -= len(batch[-1][0].result)
        return batch

    async def _send(self, batch: list[tuple[Note, asyncio.Future[None]]]) -> None:
        pulse, sent_ms = await self._heart.send([note for note, _ in batch])
        lost = False
        for note, kept in batch:
            if pulse.held.get(note.id) == note.token:
                if not kept.done():
                    kept.set_result(None)
            else:
                lost = True
                why = f"job {note.id} was taken from this run; its step {note.step} is not kept and may be done again"
                _fail([(note, kept)], LeaseLost(why))
        if lost or pulse.cancel:  # else the regular beat is soon enough
            self._heart.act(pulse, sent_ms)

    async def close(self) -> None:
        """Give up on what is not kept; its runs have ended or were given up."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
        while self._waiting:
            self._waiting.popleft()[1].cancel()


def _fail(batch: Sequence[tuple[Note, asyncio.Future[None]]], error: Exception) -> None:
    for _, kept in batch:
        if not kept.done():
            kept.set_exception(error)


class WorkerReach:
    """What runs of this event loop's worker can reach of the store."""

    def __init__(self, backend: Backend, keeper: StepKeeper) -> None:
        self._backend = backend
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self.steps = backend.capabilities.steps

    async def get(self, ids: Sequence[str]) -> list[JobRecord | None]:
        self._check_loop()
        return await self._backend.get(ids)

    async def keep(self, note: Note) -> None:
        self._check_loop()
        await self._keeper.keep(note)

    def get_blocking(self, ids: Sequence[str], stop: threading.Event) -> list[JobRecord | None]:
        return self._wait(self._backend.get(ids), stop)

    def bind(self, connection: object) -> Bound:
        return self._backend.bind(connection)

    def keep_blocking(self, note: Note, stop: threading.Event) -> None:
        self._wait(self._keeper.keep(note), stop)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this is another event loop than the worker's; here use ctx.blocking")

    def _wait(self, coroutine: Coroutine[Any, Any, T], stop: threading.Event) -> T:
        if self._is_on_loop():
            coroutine.close()
            raise RuntimeError("ctx.blocking would stop the event loop of the worker; await ctx.step(...) and the like")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        while True:
            try:
                return future.result(_LOOK_S)
            except TimeoutError:
                if future.done():
                    raise
                if stop.is_set():
                    future.cancel()
                    # As in async code: the runner knows why it told the run to stop.
                    raise asyncio.CancelledError("the run was told to stop") from None
            except concurrent.futures.CancelledError:
                raise asyncio.CancelledError("the worker stopped") from None

    def _is_on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False
