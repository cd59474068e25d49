"""Interrupts of the main thread by its own processor time: each finds it exactly where it was.

A thread that looks at another must first get the interpreter lock, and gets it where the other gives it up: at calls
that write or wait, whatever the time is spent on. So the main thread, which runs a runner's event loop and the
handler of a child process, looks at itself: a timer of its processor time sends a signal to it, and to no other thread.
It comes only while the thread is on the processor, so no call that waits is cut short, and none is sent when nothing
runs. Forked and started processes do not inherit the timer.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from ..clock import TELLS_THREAD_CPU, thread_cpu_clock
from .stacks import owner_of

if TYPE_CHECKING:
    import ctypes

#: Next to nothing uses it, unlike SIGPROF, which profilers in handlers take. And it does nothing where its handler is
#: gone: Python takes all handlers back while it ends, and so may code of the user; then most signals end a process.
SIGNAL = getattr(signal, "SIGURG", None)
_SIGEV_THREAD_ID = 4  # of timer_create(2): to one thread

_take: Callable[[FrameType], None] | None = None


class NoInterruptsError(Exception):
    """The main thread cannot be interrupted; says why."""


def accept() -> None:
    """Take the signal, which does nothing while no profile is on. In the main thread, before code of the user runs."""
    if SIGNAL is not None:
        signal.signal(SIGNAL, _interrupted)
        signal.siginterrupt(SIGNAL, False)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if _take is None or frame is None:
        return
    try:
        _take(frame)
    except RecursionError:
        return  # too near to the end of the stack to look around: nor is there room for the question below
    except Exception as error:  # of ours: it must not be raised in the handler of a job
        if _is_of_another(error):
            raise


def without(frames: list[FrameType]) -> list[FrameType]:
    """Answer the frames of the main thread, innermost first, without an interrupt of it that runs just now."""
    for at, frame in enumerate(frames):
        if frame.f_code is _interrupted.__code__:
            return frames[at + 1 :]
    return frames


def _is_of_another(error: Exception) -> bool:
    """Answer whether a signal handler of the user raised this while ours ran: as time limits by SIGALRM do."""
    trace = error.__traceback__
    while trace is not None:
        if owner_of(trace.tb_frame.f_code.co_filename) in {"yours", "library"}:
            return True
        trace = trace.tb_next
    return False


class Interrupts:
    """Calls `take` in the main thread with the frame it was in, `rate` times in a second of its processor time.

    `take` must not wait for a lock. How fine the timer is depends on the system: often 4 ms. One at a time.
    """

    def __init__(self, take: Callable[[FrameType], None], rate: int) -> None:
        self._take = take
        self._gap_ns = 1_000_000_000 // rate
        self._timer: ctypes.c_void_p | None = None
        self._c: ctypes.CDLL | None = None

    def start(self) -> None:
        """Begin. Raises NoInterruptsError."""
        global _take
        if SIGNAL is None or signal.getsignal(SIGNAL) is not _interrupted:
            raise NoInterruptsError("signal SIGURG is taken" if SIGNAL is not None else "this system has none")
        try:
            self._start(SIGNAL)
        except (ImportError, AttributeError, OSError) as error:
            raise NoInterruptsError(f"this system has no timers of a thread's processor time: {error}") from None
        _take = self._take

    def _start(self, number: int) -> None:
        import ctypes

        class Event(ctypes.Structure):  # struct sigevent of sigevent(7); 64 bytes
            _fields_ = (
                ("value", ctypes.c_void_p),
                ("signo", ctypes.c_int),
                ("notify", ctypes.c_int),
                ("thread", ctypes.c_int),
                ("rest", ctypes.c_char * 44),
            )

        main = threading.main_thread().native_id
        if main is None or not TELLS_THREAD_CPU:
            raise OSError("only Linux has them")
        self._c = ctypes.CDLL(None, use_errno=True)
        event = Event(signo=number, notify=_SIGEV_THREAD_ID, thread=main)
        timer = ctypes.c_void_p()
        clock = ctypes.c_int(thread_cpu_clock(main))
        if self._c.timer_create(clock, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        self._timer = timer
        times = (ctypes.c_long * 4)(*divmod(self._gap_ns, 1_000_000_000), *divmod(self._gap_ns, 1_000_000_000))
        if self._c.timer_settime(timer, 0, times, None):
            self.stop()
            raise OSError(ctypes.get_errno(), "timer_settime")

    def stop(self) -> None:
        """End, whether it began or not. A signal that is on its way does nothing any more."""
        global _take
        if self._timer is not None and self._c is not None:
            _take = None
            self._c.timer_delete(self._timer)
            self._timer = None
