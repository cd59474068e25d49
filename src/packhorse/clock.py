"""All time goes through here: the lint forbids `time` and `datetime.now` everywhere else.

Two kinds of time, never mixed: the wall clock names instants that people read and stores keep; the
boot clock measures how long something took or may still take, and goes on through a suspend.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

# Linux and macOS count suspend in this clock; where it is missing, monotonic is the next best.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

#: Whether the system tells the processor time of each thread, and how Linux numbers those clocks (`posix-timers.h`).
TELLS_THREAD_CPU = sys.platform == "linux"
_CPUCLOCK_SCHED, _CPUCLOCK_PERTHREAD = 2, 4


class Clock(Protocol):
    """Where a component reads the time. Tests pass one they can advance."""

    def now_ms(self) -> int:
        """Answer the wall clock, ms since 1970-01-01 UTC. May jump."""

    def boot_ms(self) -> int:
        """Answer ms since an arbitrary start. Never jumps, counts suspend, shared by all processes."""

    def boot_ns(self) -> int:
        """Answer the same clock in ns, for measuring what is shorter than a ms."""


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_ms(self) -> int:
        return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(_BOOT_CLOCK)


def thread_cpu_ns(native_id: int) -> int | None:
    """Answer the processor time that a thread of this process used, ns; None if it is gone or the system does not tell.

    `native_id` is the kernel's number of the thread, not its `ident`: of one that is gone that is a bad address.
    """
    try:
        return time.clock_gettime_ns(thread_cpu_clock(native_id)) if TELLS_THREAD_CPU else None
    except OSError:
        return None


def thread_cpu_clock(native_id: int) -> int:
    """Answer Linux's number of the clock of a thread's processor time, whether or not it lives."""
    return ~native_id << 3 | _CPUCLOCK_PERTHREAD | _CPUCLOCK_SCHED


class ManualClock:
    """A clock for tests: it stands still until `advance` is called."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._boot_ms = 1_000_000

    def now_ms(self) -> int:
        return self._now_ms

    def boot_ms(self) -> int:
        return self._boot_ms

    def boot_ns(self) -> int:
        return self._boot_ms * 1_000_000

    def advance(self, ms: int) -> None:
        """Move both clocks on by `ms`, at least 0."""
        if ms < 0:
            raise ValueError("time only moves on; use jump() for a wall clock that was set back")
        self._now_ms += ms
        self._boot_ms += ms

    def jump(self, ms: int) -> None:
        """Set the wall clock by `ms` (may be negative), as an operator or NTP does."""
        self._now_ms += ms


SYSTEM_CLOCK = SystemClock()

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def process_cpu_ms() -> float:
    """Answer the CPU time this process has used so far, ms."""
    return time.process_time_ns() / 1e6


def wall_ns() -> int:
    """Answer the wall clock in ns, as spans of traces have it. May jump."""
    return time.time_ns()


def precise_boot_ms() -> float:
    """Answer the boot clock with fractions of a ms, for measuring what is shorter than one."""
    return time.clock_gettime_ns(_BOOT_CLOCK) / 1e6


def pause(seconds: float) -> None:
    """Block this thread. For threads of our own only, never on an event loop."""
    time.sleep(seconds)


def to_rfc3339(instant_ms: int) -> str:
    """Write an instant as RFC 3339 in UTC with milliseconds."""
    return to_datetime(instant_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_datetime(instant_ms: int) -> datetime:
    """Write an instant as an aware datetime in UTC, exactly: a float of seconds loses ms in some centuries."""
    return _EPOCH + timedelta(milliseconds=instant_ms)
