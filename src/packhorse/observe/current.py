"""Which job runs here: for log lines, traces and whoever else must know without being told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

import msgspec

from ..job import Claimed

#: The job whose handler runs in this context; None outside of runs. Each run has a context of its own.
CURRENT_JOB: ContextVar[Claimed | None] = ContextVar("packhorse_job", default=None)


class Here(msgspec.Struct, frozen=True):
    """The worker whose jobs run in this context: its id, and who keeps the lines of their logs, from which level on."""

    id: str
    level: int = 0
    keep: Callable[[Claimed, logging.LogRecord], None] | None = None


#: The worker that runs jobs in this context.
CURRENT_WORKER: ContextVar[Here | None] = ContextVar("packhorse_worker", default=None)

#: The id of the trace that this context belongs to, as 32 hexadecimal digits; None while traces are off.
CURRENT_TRACE: ContextVar[str | None] = ContextVar("packhorse_trace", default=None)
