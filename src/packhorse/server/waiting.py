"""Waiting on behalf of a client, who may go away: a long poll."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .net.limits import bounds_of
from .request import Request

if TYPE_CHECKING:
    from .operation import Call

T = TypeVar("T")

#: How often a waiting client's question is asked again although no bell rang: bells are hints and may be missed.
POLL_MS = 1_000
#: How much longer than it waits a request may take.
_GRACE_MS = 30_000


#: How long a verb on all jobs that match may take: on a million of them it takes minutes.
SWEEP_MS_MAX = 600_000


def take_long(call: Call) -> None:
    """Give a request the time that a verb on many jobs needs. One that is cut off has done a part: repeat it."""
    bounds = bounds_of(call.request.scope)
    if bounds is not None:
        bounds.take_time(SWEEP_MS_MAX)


def take_wait(call: Call, wait_ms: int) -> None:
    """Give a request the time that it waits for something, and what others have beyond that."""
    bounds = bounds_of(call.request.scope)
    if bounds is not None:
        bounds.take_time(wait_ms + _GRACE_MS)


async def wait_until(
    call: Call, topics: Sequence[str], wait_ms: int, look: Callable[[], Awaitable[tuple[T, bool]]]
) -> T:
    """Answer what `look` answers once it says that this is the end of the wait, or after `wait_ms`, or before.

    It looks at once, when one of `topics` rings, and every second. The wait is over early, with one more look, when
    the client has gone or the server begins to stop: then nothing of it is left.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + wait_ms / 1000
    take_wait(call, wait_ms)
    backend = await call.backend()
    with backend.watch(topics) as bell:
        found, over = await look()
        if over or wait_ms <= 0:
            return found
        ends = [loop.create_task(_until_gone(call.request)), loop.create_task(call.service.stopping.wait())]
        for end in ends:
            end.add_done_callback(lambda _: bell.ring())
        try:
            while not over and (left_ms := (end_s - loop.time()) * 1000) > 0:
                await bell.wait(min(left_ms, POLL_MS))
                last = any(end.done() for end in ends)
                found, over = await look()
                if last:
                    break
            return found
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
