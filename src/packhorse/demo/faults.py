"""Failures on purpose: what a job's `meta` asks for, a middleware lets happen."""

from __future__ import annotations

import asyncio
from typing import Any

from ..app import Next
from ..context import Context
from ..outcome import Fail

FAULT_META = "fault"

#: How long a job that is to be caught by the death of its process waits for it; then it goes on as if nothing was.
HANG_S = 10.0


class InjectedFault(ConnectionError):
    """A transient failure that the demo planned."""


async def inject_faults(ctx: Context, call_next: Next) -> Any:
    """Fail as the job's `meta` says: `before:N` and `after:N` the first N runs, `never` for good, `hang` the first run.

    After means: after the work was done. Then a retry repeats the work, and shows that repeating does no harm.
    """
    kind, _, number = ctx.meta.get(FAULT_META, "").partition(":")
    failing = number.isdigit() and ctx.attempt <= int(number)
    if kind == "never":
        raise Fail("injected: a permanent failure, no retry would help")
    if kind == "before" and failing:
        raise InjectedFault(f"injected: the connection broke before the work (run {ctx.attempt})")
    value = await call_next()
    if kind == "after" and failing:
        raise InjectedFault(f"injected: the connection broke after the work (run {ctx.attempt})")
    if kind == "hang" and ctx.attempt == 1:
        await asyncio.sleep(HANG_S)
    return value
