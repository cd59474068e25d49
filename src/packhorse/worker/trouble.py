"""What is wrong with a runner, as its keeper sees it: a loop that does not turn, a process that is stopped.

Said in the log with the stack, and in the heartbeats, so that whoever lists workers sees it. A runner that is wedged
past its jobs' time-outs is killed, and its stack goes into the errors of its jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ..backends.messages import TROUBLE_CHARS_MAX
from ..clock import SYSTEM_CLOCK
from ..observe.blocked import BlockLog, BlockWatch, Found, extra_of
from ..observe.meters import Number
from ..observe.stacks import Stack, loop_of, read_dump, say_frames
from .child import Child

log = logging.getLogger("packhorse.keeper")

#: A runner's loop marks its turns this often (`runner_process.PULSE_MS`): so old may the news be.
_PULSE_MS = 200
#: Allowed time of a loop in which no job has stepped since its last turn (`runner.longest_timeout_ms`).
_NOTHING_STEPS = 1


class Trouble:
    """What is wrong with one runner. `blocked` counts the times its loop was blocked; `go` starts tasks."""

    def __init__(
        self, child: Child, blocked: Number, go: Callable[[Coroutine[Any, Any, None]], object], blocked_ms: int
    ) -> None:
        self._child = child
        self._blocked = blocked
        self._go = go
        self._watch = BlockWatch(blocked_ms, _PULSE_MS)
        self._lines = BlockLog(log, f"runner {child.pid}: its event loop")
        self._found = Found()
        self._is_stopped = False
        self._is_condemned = False
        self._is_examining = False

    def text(self) -> str:
        """Answer what is wrong now, '' if nothing is. For people, one line."""
        if self._is_stopped:
            return "stopped (SIGSTOP)"
        since_ms = self._watch.since_ms
        if since_ms is None:
            return ""
        blocked_s = (SYSTEM_CLOCK.boot_ms() - since_ms) / 1000
        return f"event loop blocked for {blocked_s:.0f} s{self._named(self._found).yours}"[:TROUBLE_CHARS_MAX]

    def stopped(self) -> bool:
        """Note that the process is stopped; answers whether that is new."""
        if self._is_stopped:
            return False
        self._is_stopped = True
        log.warning("runner %d is stopped (SIGSTOP, or a debugger): its leases are not renewed", self._child.pid)
        return True

    def look(self) -> None:
        """Look whether the loop turns. Several times a second."""
        child = self._child
        now_ms = SYSTEM_CLOCK.boot_ms()
        if self._is_stopped:
            self._is_stopped = False
            self._watch.forgive(now_ms)
            log.warning("runner %d runs again", child.pid)
            child.beat_ms = 0  # at once, so that nobody is shown what is over
        page = child.page
        busy = page.holding > 0 or page.allowed_ms != _NOTHING_STEPS
        match self._watch.look(now_ms, page.pulse_ms, busy=busy):
            case "begins":
                self._blocked.value += 1
                child.beat_ms = 0  # which jobs it holds may tell which one it is
                self._found = Found()
                self._go(self._say())
            case "over":
                if not self._is_examining:  # else it is said when that is done
                    self._lines.over(self._watch.lasted_ms, self._found)
                child.beat_ms = 0
            case None if self._watch.since_ms is not None and not self._is_examining:
                self._lines.still(now_ms, now_ms - self._watch.since_ms, self._found)

    async def _say(self) -> None:
        self._is_examining = True
        try:
            self._found = await self._examine()
        finally:
            self._is_examining = False
        now_ms = SYSTEM_CLOCK.boot_ms()
        since_ms = self._watch.since_ms
        self._found = self._named(self._found)
        self._lines.begins(now_ms, self._watch.lasted_ms if since_ms is None else now_ms - since_ms, self._found)
        if since_ms is None:  # it was over while we looked
            self._lines.over(self._watch.lasted_ms, self._found)
        self._child.beat_ms = 0

    async def _examine(self) -> Found:
        """Ask what the loop is doing."""
        stacks, _ = await stacks_of(self._child, whole=False)
        stack = loop_of(stacks)
        if stack is None or stack.doing == "waits":  # it turns by now
            return Found()
        return Found(stack.frames, stack.job_id, stack.job_type or self._type_by(stack))

    def _named(self, found: Found) -> Found:
        """Answer what was found with the id of its job, where a dump has none: of the only job the runner holds."""
        held = self._child.held
        if found.job_id or not found.frames or len(held) != 1:
            return found
        return Found(found.frames, next(iter(held)), found.job_type)

    def _type_by(self, stack: Stack) -> str:
        known = self._child.inspection.handlers
        return next((known[key] for frame in stack.frames if (key := (frame.file, frame.function)) in known), "")

    def condemn(self) -> None:
        """Kill the runner, whose loop was blocked beyond all time-outs, but first see what it does."""
        if not self._is_condemned:
            self._is_condemned = True
            self._go(self._kill())

    async def _kill(self) -> None:
        child = self._child
        pulse_ms = child.page.pulse_ms
        found = await self._examine()
        if not found.frames and self._watch.since_ms is not None:  # it had no time to answer: as it was found blocked
            found = self._found
        found = self._named(found)
        if not child.page_open or child.page.pulse_ms != pulse_ms:  # it ended, or turned just now
            self._is_condemned = False
            return
        blocked_s = (SYSTEM_CLOCK.boot_ms() - pulse_ms) / 1000
        log.error(
            "runner %d: its event loop has not turned for %.0f s, beyond the time-outs of its jobs; it is killed. "
            "The stack: %s",
            child.pid,
            blocked_s,
            say_frames(found.frames) or "not known",
            extra=extra_of(found),
        )
        child.kill(f"was killed: its event loop was blocked for {blocked_s:.0f} s{found.place}")


async def stacks_of(child: Child, *, whole: bool = True) -> tuple[list[Stack], list[str]]:
    """Answer the stacks of a runner, and what must be known to read them. One that cannot answer shows its threads.

    If not `whole`, that of its loop's thread is enough.
    """
    looked = await child.inspection.look()
    if looked is not None:
        return looked.stacks, looked.notes
    if child.stopped():
        return [], [f"it is stopped (SIGSTOP, or a debugger), and shows no stacks; go on with: kill -CONT {child.pid}"]
    stacks = read_dump(await child.dump(whole=whole))
    if not stacks:
        return [], ["it showed no stacks: it has not started yet, or is about to end"]
    why = "it did not answer in time, as when code in C holds its interpreter lock"
    return stacks, [f"{why}: threads are shown without the runs that wait"]
