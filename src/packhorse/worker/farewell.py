"""How long a runner that was told to stop may take, and what becomes of it then."""

from __future__ import annotations

import asyncio

from ..clock import SYSTEM_CLOCK
from .child import Child
from .options import HOOKS_CLOSE_MS_MAX, HOOKS_MS_MAX, SETTLE_MS_MAX

#: A runner is looked at this often, s.
_LOOK_S = 0.2
#: So long after the grace time a runner ends that has nothing to wait for; one that is stopped by then is killed.
_LATE_MS = 2_000


async def see_off(child: Child, grace_ms: int) -> None:
    """See a runner that was told to stop to its end. Killed when it is late: how late it may be, `late_ms_max` says.

    A runner that is stopped (SIGSTOP) has not even heard of it. It is made to go on, and has its grace time like any
    other: most can end well. One that is stopped after that too, by a debugger or by somebody who stops it again, is
    killed at once: it can neither stop its runs nor settle them, so the time for that would only hold up the worker.
    """
    child.go_on()
    told_ms = SYSTEM_CLOCK.boot_ms()
    ended = asyncio.ensure_future(child.ended())
    while not ended.done():
        await asyncio.wait([ended], timeout=_LOOK_S)
        late_ms = SYSTEM_CLOCK.boot_ms() - told_ms - grace_ms
        if late_ms > late_ms_max(child):
            child.kill("did not stop in time")
        elif late_ms > _LATE_MS and child.stopped():
            child.kill("was stopped (SIGSTOP, or a debugger) and did not go on to end")


def late_ms_max(child: Child) -> int:
    """Answer how long after the grace time a runner may take: to stop its runs, settle them and tell failure hooks."""
    if child.ready is None:
        return SETTLE_MS_MAX + _LATE_MS
    hooks_ms = HOOKS_MS_MAX + HOOKS_CLOSE_MS_MAX if child.ready.failure_hooks else 0
    return child.ready.options.stop_grace_ms + SETTLE_MS_MAX + hooks_ms + _LATE_MS
