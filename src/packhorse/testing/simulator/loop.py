"""Virtual time: one event loop per simulated process, all turned by one kernel.

A process is a loop of its own, so everything a process starts (tasks, timers, futures) belongs to it by
construction, however contexts are copied or emptied on the way. To crash it is to drop what its loop holds;
to freeze it is not to turn its loop. Within one loop callbacks run in the order asyncio promises; which
loop gets the next turn is the seed's choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from asyncio import _set_running_loop as set_running_loop  # the documented hook for event loops
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

from ...chance import Chance

#: Instants are whole µs since the start of the world.
US_PER_MS = 1_000
US_PER_S = 1_000_000

#: Turns of loops without time moving on. More is a spin: somebody waits by asking again at once.
TURNS_STANDING_MAX = 20_000
#: How often a coroutine that refuses to end is told to, before it is left to the garbage collector.
_CLOSES_MAX = 50


class Spinning(Exception):
    """Callbacks follow callbacks and time stands still."""


def _whole_us(seconds: float) -> int:
    """Round to µs; what is above 0 takes some time, or a wait for the rest of a wait would spin."""
    return max(1, round(seconds * US_PER_S)) if seconds > 0 else 0


class _Handle(asyncio.Handle):
    def run(self) -> None:
        """Call back, unless cancelled."""
        if not self._cancelled:
            self._run()


class _Timer(asyncio.TimerHandle):
    due_us: int

    def run(self) -> None:
        """Call back, unless cancelled."""
        if not self._cancelled:
            self._run()


class SimLoop(asyncio.BaseEventLoop):
    """The event loop of one simulated process. Its time is the kernel's, less what it slept through suspended."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__()
        self.name = name
        self.dead = False
        self.frozen = False
        #: Every task there ever was, so that none is collected at a moment the seed did not choose.
        self.spawned: list[asyncio.Task[Any]] = []
        self._kernel = kernel
        self._suspended_us = 0
        #: What runs at the next turn.
        self.queue: deque[_Handle | _Timer] = deque()
        self._timers: list[tuple[int, int, _Timer]] = []
        self._pushes = 0
        kernel.loops.append(self)

    # ---- what asyncio asks -----------------------------------------------------------------------------

    def time(self) -> float:
        """Answer this process's monotonic clock, s: it stands still while the machine is suspended."""
        return self.local_us() / US_PER_S

    def local_us(self) -> int:
        """Answer this process's monotonic clock, µs."""
        return self._kernel.now_us - self._suspended_us

    def call_soon(  # type: ignore[override]  # typeshed types it by a TypeVarTuple
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        if not self.dead:
            self.queue.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]  # there is one thread
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_in(_whole_us(delay), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_in(_whole_us(when - self.time()), callback, *args, context=context)

    def call_in(
        self, delay_us: int, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back after `delay_us` of this process's own time."""
        due_us = self.local_us() + delay_us
        timer = _Timer(due_us / US_PER_S, callback, args, self, context)
        if not self.dead:
            self._pushes += 1
            heapq.heappush(self._timers, (due_us, self._pushes, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing: a cancelled timer is skipped when it comes up."""

    def create_task(
        self, coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **options)
        self.spawned.append(task)
        task.add_done_callback(self._tell_end)
        return task

    def _tell_end(self, task: asyncio.Task[Any]) -> None:
        # Not `task.exception()`, which would count as somebody having looked.
        if not task.cancelled() and task._exception is not None:  # noqa: SLF001
            self.call_in(US_PER_MS, self._tell_unretrieved, task)

    def _tell_unretrieved(self, task: asyncio.Task[Any]) -> None:
        if task._log_traceback:  # noqa: SLF001  # what asyncio looks at when it warns
            error = task.exception()
            name = getattr(task.get_coro(), "__qualname__", "?")
            self._kernel.on_error(self, f"task {name} ended with {type(error).__name__}: {error}", error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._kernel.on_error(self, f"{context.get('message')} {error!r}", error)

    def get_debug(self) -> bool:
        return False

    # ---- what the kernel asks --------------------------------------------------------------------------

    def describe_next(self) -> str:
        """Answer what runs next, for people."""
        return f"{self.name}: {self.queue[0]!r}" if self.queue else self.name

    def next_us(self) -> int | None:
        """Answer the kernel's instant of the next timer; None while there is none or the process cannot run."""
        if self.frozen:
            return None
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        return timers[0][0] + self._suspended_us if timers else None

    def wake_timers(self) -> None:
        """Queue the timers that are due."""
        timers, local_us = self._timers, self.local_us()
        while timers and timers[0][0] <= local_us:
            self.queue.append(heapq.heappop(timers)[2])

    def turn(self) -> None:
        """Run what is queued now, in order; what is queued meanwhile waits for the next turn."""
        queue = self.queue
        set_running_loop(self)
        try:
            for _ in range(len(queue)):
                queue.popleft().run()
                if self.frozen or self.dead:
                    break
        finally:
            set_running_loop(None)

    # ---- faults ----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End this process as `kill -9` does: nothing of it runs any more, no `finally` has an effect."""
        self.dead = True
        self.queue.clear()
        self._timers.clear()

    def freeze(self) -> None:
        """Stop turning this loop: SIGSTOP, or a virtual machine that is suspended."""
        self.frozen = True

    def thaw(self, suspended_us: int = 0) -> None:
        """Go on. Timers are `suspended_us` later than they were: the monotonic clock did not count a suspend."""
        self.frozen = False
        self._suspended_us += suspended_us
        self.wake_timers()

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """Answer the tasks that have not ended."""
        return [task for task in self.spawned if not task.done()]

    def dispose(self) -> None:
        """Take apart what is left, without any effect."""
        self.kill()
        set_running_loop(self)
        try:
            for task in self.unfinished():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  # it is meant to be destroyed
                _close(task.get_coro())
        finally:
            set_running_loop(None)
        self.spawned.clear()
        self.close()


def _close(coroutine: Any) -> None:
    for _ in range(_CLOSES_MAX):
        with contextlib.suppress(BaseException):  # whatever a dead process would have said
            coroutine.close()
            return


class Kernel:
    """Turns the loops and moves time on: to the next timer as soon as no loop has anything to do."""

    def __init__(self, chance: Chance, on_error: Callable[[SimLoop, str, BaseException | None], None]) -> None:
        self.now_us = 0
        self.loops: list[SimLoop] = []
        self.dead: list[SimLoop] = []
        self.on_error = on_error
        self.stopped = False
        self.turns = 0
        self._chance = chance

    def run(self, limit_us: int) -> None:
        """Run until `stopped`, until nothing is left to do, or until `limit_us` of virtual time."""
        standing, loops = 0, self.loops
        while not self.stopped:
            runnable = [loop for loop in loops if loop.queue and not loop.frozen]
            if runnable:
                standing += 1
                if standing > TURNS_STANDING_MAX:
                    raise Spinning(f"{standing} turns without time moving on: {runnable[0].describe_next()}")
                self.turns += 1
                runnable[self._chance.below(len(runnable)) if len(runnable) > 1 else 0].turn()
                continue
            instants = [instant for loop in loops if (instant := loop.next_us()) is not None]
            if not instants or min(instants) > limit_us:
                return
            if min(instants) > self.now_us:
                self.now_us = min(instants)
                standing = 0
            for loop in loops:
                if not loop.frozen:
                    loop.wake_timers()

    def bury(self, loop: SimLoop) -> None:
        """Kill a loop and take it out of the rounds."""
        loop.kill()
        self.loops.remove(loop)
        self.dead.append(loop)

    def dispose(self) -> None:
        """Take the world apart."""
        for loop in (*self.loops, *self.dead):
            loop.dispose()
        self.loops.clear()
        self.dead.clear()
