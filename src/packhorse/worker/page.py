"""Memory that a keeper and its runner share: each writes its own numbers, nobody ever waits.

It tells the keeper that a runner's loop turns although no thread of the runner can speak (C code that holds the
interpreter lock), and the runner how fresh its lease is. One 8-byte number per field: written and read whole. Behind
them are the marks of the jobs that began (`marks.py`).
"""

from __future__ import annotations

import mmap
import os

from . import marks

_RENEWED, _PULSE, _ALLOWED, _HOLDING, _BUSY, _ENDED = range(6)
_NUMBERS_BYTES = 64
#: All of it; memory that was never written takes none.
BYTES = -(-(_NUMBERS_BYTES + marks.BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE


class Page:
    """Numbers shared by one keeper and one runner. Times are of the boot clock, which all processes share."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, BYTES)
        self._memory = memoryview(self._map)
        self._numbers = self._memory[:_NUMBERS_BYTES].cast("q")
        #: Which jobs of the runner have begun.
        self.marks = marks.Marks(self._memory[_NUMBERS_BYTES:])

    @classmethod
    def create(cls) -> Page:
        """Make a page; pass its `fd` on to the runner."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("packhorse-page", os.MFD_CLOEXEC)
            os.ftruncate(fd, BYTES)
        else:
            import tempfile

            fd, path = tempfile.mkstemp(prefix="packhorse-page-")
            os.unlink(path)  # noqa: PTH108  # the descriptor is all there is to it
            # Not ftruncate: memory that the disk has no room for ends the process that writes to it (SIGBUS).
            os.write(fd, bytes(BYTES))
        return cls(fd)

    def close(self) -> None:
        """Give the memory back. Idempotent."""
        if self.fd >= 0:
            self.marks.close()
            self._numbers.release()
            self._memory.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1

    @property
    def renewed_ms(self) -> int:
        """The boot clock before the last acknowledged heartbeat was sent. The keeper writes it."""
        return self._numbers[_RENEWED]

    @renewed_ms.setter
    def renewed_ms(self, value: int) -> None:
        self._numbers[_RENEWED] = value

    @property
    def pulse_ms(self) -> int:
        """When the runner's loop last had a turn."""
        return self._numbers[_PULSE]

    @pulse_ms.setter
    def pulse_ms(self, value: int) -> None:
        self._numbers[_PULSE] = value

    @property
    def allowed_ms(self) -> int:
        """How long the loop may be blocked: the longest time-out of what runs, 0 for no limit."""
        return self._numbers[_ALLOWED]

    @allowed_ms.setter
    def allowed_ms(self, value: int) -> None:
        self._numbers[_ALLOWED] = value

    @property
    def holding(self) -> int:
        """Jobs the runner has claimed and not ended."""
        return self._numbers[_HOLDING]

    @holding.setter
    def holding(self, value: int) -> None:
        self._numbers[_HOLDING] = value

    @property
    def busy(self) -> int:
        """Jobs the runner has started and not ended: those it holds without those claimed ahead."""
        return self._numbers[_BUSY]

    @busy.setter
    def busy(self, value: int) -> None:
        self._numbers[_BUSY] = value

    @property
    def ended(self) -> int:
        """Jobs the runner has ended since it started."""
        return self._numbers[_ENDED]

    @ended.setter
    def ended(self, value: int) -> None:
        self._numbers[_ENDED] = value

    def allow(self, timeout_ms: int) -> None:
        """Let the loop be blocked at least `timeout_ms` from here (0: without limit). On the way of every job."""
        numbers = self._numbers
        allowed_ms = numbers[_ALLOWED]
        if allowed_ms and (timeout_ms > allowed_ms or not timeout_ms):
            numbers[_ALLOWED] = timeout_ms
