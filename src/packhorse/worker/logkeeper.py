"""Keeps the logs of runs: about once a second while they run, and before their end is settled.

A log that cannot be kept never holds up a run or its end: lines that the store would not take are sent with the next
ones, and are lost with the run. Costs nothing per job, but for jobs that log.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..backends.base import BATCH_MAX, Note, Settlement
from ..clock import Clock
from ..errors import Forbidden, PackhorseError, Refused
from ..observe.job_log import RunLogs
from ..wording import quantity
from .heart import Heart

log = logging.getLogger("packhorse.logs")

#: While a run goes on, what it logged is in the store after about so long.
FLUSH_MS = 1_000
#: Bytes of logs in one heartbeat, while runs go on and at their end.
_FLUSH_BYTES_MAX = 1 << 20
_ENDED_BYTES_MAX = 4 << 20
#: An end is not held up for longer than this by its log.
_ENDED_S_MAX = 5.0


class LogKeeper:
    """Sends the lines of runs with heartbeats of their own: a lease must not depend on what a log holds."""

    def __init__(self, heart: Heart, clock: Clock, level: int, in_transaction: Callable[[], set[str]]) -> None:
        self._heart = heart
        self._in_transaction = in_transaction  # tokens of jobs whose rows are locked by the run itself
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()  # an older state of a log must not come after a newer one
        self._flushing: asyncio.Task[None] | None = None
        self._closed = False
        self.logs = RunLogs(level, clock.boot_ms, self._wake)

    def _wake(self) -> None:
        """There is something to send; called from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._start, context=contextvars.Context())

    def _start(self) -> None:
        if self._flushing is None and not self._closed:
            self._flushing = self._loop.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self.logs.has_unsent:
                await asyncio.sleep(FLUSH_MS / 1000)
                async with self._sending:
                    await self._send(self.logs.notes(BATCH_MAX, _FLUSH_BYTES_MAX, self._in_transaction()))
        except Exception as error:  # a backend that breaks its contract
            log.warning("cannot keep the logs of jobs: %s", error)
        finally:
            self._flushing = None

    async def keep_ended(self, ended: Sequence[Settlement]) -> None:
        """Keep what these runs have logged, before they are settled. Never raises what a backend raises."""
        if not len(self.logs):
            return
        try:
            async with asyncio.timeout(_ENDED_S_MAX), self._sending:
                while notes := self.logs.ended_notes(ended, BATCH_MAX, _ENDED_BYTES_MAX):
                    if not await self._send(notes):
                        return
        except TimeoutError:
            log.warning("the logs of %s are not kept whole: the store took too long", quantity(len(ended), "job"))

    async def _send(self, notes: Sequence[Note]) -> bool:
        """Send notes; answers whether it is of use to send more."""
        if not notes:
            return False
        try:
            await self._heart.send(notes)
        except PackhorseError as error:
            if isinstance(error, Refused) and not isinstance(error, Forbidden):
                log.warning("the store refuses lines of jobs' logs, they are not kept: %s", error)
                return True  # the next may be accepted
            self.logs.unsent(notes)  # the heart says why
            self._start()
            return False
        return True

    def forget(self, ended: Sequence[Settlement]) -> None:
        """Drop what is held of runs whose ends are settled."""
        if len(self.logs):
            self.logs.forget(ended)

    async def close(self) -> None:
        """Send no more; the runs have ended or were given up."""
        self._closed = True
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])
