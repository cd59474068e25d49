"""The stacks of a process that cannot answer: it writes them itself, in C, when it gets a signal.

Where code in C holds the interpreter lock no thread of a runner can run Python, but `faulthandler` can still write. It
writes behind the page (`page.py`), which the keeper reads. The signal goes only to a process that did
not answer otherwise, so to none whose Python code is on the move; a system call of such code may end early (EINTR).
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal

from .page import BYTES, Page

#: A real-time signal that nothing else is known to use; SIGUSR2 where there are none (macOS).
SIGNAL = signal.SIGRTMIN + 8 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
#: 100 threads of 100 frames, as much as `faulthandler` writes, with short paths.
_DUMP_BYTES_MAX = 2 << 20
_LOOK_S = 0.02
_LOOKS_MAX = 25


def accept(page: Page) -> None:
    """Write the stacks of all threads behind the page whenever the signal comes. In a runner, before all else."""
    faulthandler.register(SIGNAL, file=page.fd, all_threads=True, chain=False)


def clear(page: Page) -> None:
    """Make room for the next dump."""
    os.ftruncate(page.fd, BYTES)
    os.lseek(page.fd, BYTES, os.SEEK_SET)  # of both processes: the descriptor is one


async def read(page: Page) -> str:
    """Wait for the dump, at most half a second, and answer it; '' when none came, as from a stopped process."""
    size = 0
    for _ in range(_LOOKS_MAX):
        await asyncio.sleep(_LOOK_S)
        if page.fd < 0:
            return ""
        before, size = size, os.fstat(page.fd).st_size - BYTES
        if size and size == before:
            break
    return os.pread(page.fd, min(max(size, 0), _DUMP_BYTES_MAX), BYTES).decode("ascii", "replace")
