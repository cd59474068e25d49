"""A run that waits for something: what can be stopped, and what its end means once it was told to."""

from __future__ import annotations

import asyncio

from .. import outcome as outcomes
from ..context import Context
from ..job import Claimed
from ..outcome import Outcome
from .handler import Handler


class Run:
    """A job whose handler has started and waits. One that never waits is none: it cannot be stopped."""

    __slots__ = ("abandoned", "ctx", "handler", "job", "number", "reason", "received_ms", "slot", "started_ns", "timer")

    def __init__(
        self,
        job: Claimed,
        number: int,
        handler: Handler,
        ctx: Context | None,
        slot: asyncio.Task[None],
        received_ms: int,
        started_ns: int,
    ) -> None:
        self.job = job
        self.number = number  # of its mark
        self.handler = handler
        self.ctx = ctx
        self.slot = slot
        self.reason: str | None = None  # why it was told to stop: timeout, cancel, shutdown, lost
        self.timer: asyncio.TimerHandle | None = None  # of its time-out; once it was told to stop, of its grace time
        self.abandoned = False
        self.received_ms = received_ms
        self.started_ns = started_ns  # boot clock

    @property
    def settled(self) -> bool:
        """Whether it settles its job in a transaction of its own."""
        return self.ctx is not None and self.ctx.settled

    def returned(self, value: object) -> Outcome:
        """Answer the outcome of a handler that returned `value`."""
        return outcomes.timed_out(self.job.timeout_ms) if self.reason == "timeout" else outcomes.from_result(value)

    def raised(self, error: BaseException) -> Outcome | None:
        """Answer the outcome of a handler that raised `error`; None: the job is not ours to settle any more."""
        match self.reason:
            case "lost":
                return None
            case "timeout":
                return outcomes.timed_out(self.job.timeout_ms)
        if isinstance(error, asyncio.CancelledError):
            match self.reason:
                case "cancel":
                    return outcomes.cancelled()
                case "shutdown":
                    return outcomes.RELEASED
        return outcomes.from_exception(error, self.handler.task.fail_on)
