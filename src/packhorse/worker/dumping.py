"""The stacks of a process that cannot answer: its threads write them themselves, in C, when they get a signal.

Where code in C holds the interpreter lock no thread of a runner can run Python, but `faulthandler` can still write. It
writes behind the page (`page.py`), which the keeper reads. The signal goes only to a process that did not answer
otherwise; a system call of such code may end early (EINTR).

That it did not answer does not say that its Python stands still: with a hundred busy threads, or on a machine without
time, it is merely late. So each thread is asked by itself and writes its own stack, one after the other. One that
writes those of others (`all_threads`) reads frames that go meanwhile: one such dump in thirty ended the process
(tests/worker/test_dumping.py).
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ..clock import SYSTEM_CLOCK
from .page import BYTES, Page

#: A real-time signal that nothing else is known to use; SIGUSR2 where there are none (macOS).
SIGNAL = signal.SIGRTMIN + 8 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
#: 100 threads of 100 frames, as much as `faulthandler` writes, with short paths.
_DUMP_BYTES_MAX = 2 << 20
_THREADS_MAX = 100
#: How long the main thread, and after it all others, may take.
_MAIN_MS, _OTHERS_MS = 500, 500
#: Looks at whether a thread has written: where /proc tells, and where only the file does.
_LOOK_S, _LOOK_AT_FILE_S = 0.002, 0.02


def accept(page: Page) -> None:
    """Let each thread write its stack behind the page whenever the signal comes to it. In a runner, before all else."""
    faulthandler.register(SIGNAL, file=page.fd, all_threads=False, chain=False)
    signal.siginterrupt(SIGNAL, False)


async def dump(pid: int, page: Page, *, whole: bool) -> str:
    """Have the threads of a process write their stacks, the main one first, and with `whole` the others too.

    Answers what they wrote, '' if it was nothing, as by a stopped process. Takes a second at most. One at a time.
    """
    os.ftruncate(page.fd, BYTES)
    os.lseek(page.fd, BYTES, os.SEEK_SET)  # of both processes: the descriptor is one
    send = _sender()
    if send is None:
        await _dump_main(pid, page)
    else:
        end_ms = SYSTEM_CLOCK.boot_ms() + _MAIN_MS
        if await _dump_one(send, pid, pid, page, end_ms):
            end_ms = SYSTEM_CLOCK.boot_ms() + _OTHERS_MS
            for thread in _threads(pid)[1:_THREADS_MAX] if whole else []:
                if not await _dump_one(send, pid, thread, page, end_ms):
                    break  # it would write under the name of the next one
    if page.fd < 0:
        return ""
    size = os.fstat(page.fd).st_size - BYTES
    return os.pread(page.fd, min(max(size, 0), _DUMP_BYTES_MAX), BYTES).decode("ascii", "replace")


async def _dump_one(send: Callable[[int, int], None], pid: int, thread: int, page: Page, end_ms: int) -> bool:
    """Have one thread write its stack; answers whether it is done with that: not if there was no time left."""
    caught, masked = _signals(pid, thread)
    if not caught or masked:
        return True  # the signal would end the process, as one that runs another program by now; or never arrives
    said = "Current thread" if thread == pid else "Thread"
    os.write(page.fd, f"{said} {thread:#x} (most recent call first):\n".encode())
    with suppress(OSError):  # it has ended
        send(pid, thread)
    while SYSTEM_CLOCK.boot_ms() < end_ms:
        if not _signals(pid, thread)[1]:
            return True
        await asyncio.sleep(_LOOK_S)
        if page.fd < 0:
            return False
    return False


async def _dump_main(pid: int, page: Page) -> None:
    """Where the system does not tell more: a signal to a process comes to its main thread."""
    os.write(page.fd, b"Current thread 0x1 (most recent call first):\n")
    size = first = os.fstat(page.fd).st_size
    with suppress(OSError):
        os.kill(pid, SIGNAL)
    end_ms = SYSTEM_CLOCK.boot_ms() + _MAIN_MS
    while SYSTEM_CLOCK.boot_ms() < end_ms:
        await asyncio.sleep(_LOOK_AT_FILE_S)
        if page.fd < 0:
            return
        before, size = size, os.fstat(page.fd).st_size
        if first < size == before:
            return


def _threads(pid: int) -> list[int]:
    """Answer the kernel's numbers of the threads of a process, its main one first; none of one that is gone."""
    try:
        numbers = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    return sorted(numbers, key=lambda number: (number != pid, number))


def _signals(pid: int, thread: int) -> tuple[bool, bool]:
    """Answer whether a thread has a handler for the signal; and whether it is on its way, being handled, or masked."""
    try:
        lines = Path(f"/proc/{pid}/task/{thread}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return False, False  # it has ended
    sets = {
        name: int(bits, 16)
        for name, _, bits in (line.partition(":") for line in lines)
        if name.startswith("Sig") and name != "SigQ"
    }
    bit = 1 << (SIGNAL - 1)
    return bool(sets["SigCgt"] & bit), bool((sets["SigPnd"] | sets["SigBlk"]) & bit)


@lru_cache(maxsize=1)
def _sender() -> Callable[[int, int], None] | None:
    """Answer what sends the signal to one thread of a process; None where that cannot be."""
    if not Path("/proc/self/task").is_dir():
        return None
    try:
        import ctypes

        tgkill = ctypes.CDLL(None, use_errno=True).tgkill
    except (ImportError, OSError, AttributeError):
        return None

    def send(pid: int, thread: int) -> None:
        if tgkill(pid, thread, int(SIGNAL)):
            raise OSError(ctypes.get_errno(), "tgkill")

    return send
