"""Waking other processes: a side file that whoever commits writes to, and that whoever waits watches.

A file of 512 slots of 8 bytes. A process that committed something others may wait for writes a new value
into its slot; inotify tells the watchers, and a watcher whose own slot alone changed goes back to sleep.
All is a hint: two processes may share a slot, and a waiter polls anyway. Asking SQLite every 2 ms instead
(PRAGMA data_version) would cost an idle worker 7 % of a core (bench, 2026-11-22).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ...chance import CHANCE, secret_hex
from ...errors import ConfigurationError
from ..bells import Bell, Bells

SLOTS = 512
SLOT_BYTES = 8

#: Bells ring at most about this often, however many commits there are.
RING_S_MIN = 0.001

#: Without inotify: how often SQLite is asked, right after a change and after a long silence.
POLL_S_MIN = 0.002
POLL_S_MAX = 0.050

_IN_MODIFY = 0x2


class Wake:
    """Our end of the side file, and the bells of one backend."""

    def __init__(self, read_version: Callable[[], asyncio.Future[int]]) -> None:
        self.bells = _HungBells(self)
        self._read_version = read_version
        self._fd = -1
        self._path = ""
        self._slot = CHANCE.below(SLOTS) * SLOT_BYTES
        self._value = int(secret_hex(SLOT_BYTES - 1), 16)  # never all zeros, so never an empty slot
        self._written = b""
        self._watch: _Watch | None = None
        self._telling = threading.Lock()

    # ---- in the writer thread --------------------------------------------------------------------------

    def open(self, database: str) -> None:
        """Open the side file, making it if there is none, with the permissions of the database (C27)."""
        if self._fd >= 0:
            return
        self._path = database + "-wake"
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            try:
                self._fd = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                os.fchmod(self._fd, Path(database).stat().st_mode & 0o666)
            except FileExistsError:
                self._fd = os.open(self._path, flags)
        except OSError as error:
            raise ConfigurationError(
                f"{self._path} cannot be opened ({error.strerror}); remove it, or give this user access to it"
            ) from error

    def tell_others(self) -> None:
        """Write to our slot. 2 us; a disk that refuses it only costs latency."""
        with self._telling, suppress(OSError):  # the writer, and who waits for the ends of bound transactions
            self._value = (self._value + 1) & 0xFFFF_FFFF_FFFF_FFFF
            self._written = self._value.to_bytes(SLOT_BYTES)
            if self._fd >= 0:
                os.pwrite(self._fd, self._written, self._slot)

    def close(self) -> None:
        """Close the side file. It stays where it is: others may watch it."""
        with self._telling:  # who writes meanwhile would write into whatever is opened next: the database, say
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def after_fork_in_child(self) -> None:
        """Leave it all to the parent."""
        self._telling = threading.Lock()
        self._watch = None
        self._fd = -1

    # ---- on an event loop ------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch, from the running loop, because a bell was hung up."""
        watch = self._watch
        if self._fd >= 0 and (watch is None or watch.loop.is_closed()):
            self.stop()  # of a loop that was closed meanwhile
            self._watch = _Watch(self, asyncio.get_running_loop(), self._read_version)

    def stop(self) -> None:
        """Watch no more: there is no bell."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def glance(self) -> bytes:
        """Read the slots of the others."""
        with self._telling:  # else what we are just writing would look like somebody else's
            slots = bytearray(os.pread(self._fd, SLOTS * SLOT_BYTES, 0).ljust(SLOTS * SLOT_BYTES, b"\0"))
            written = self._written
        end = self._slot + SLOT_BYTES
        if slots[self._slot : end] == written:
            slots[self._slot : end] = bytes(SLOT_BYTES)
        return bytes(slots)

    def inotify(self) -> int:
        """Answer a descriptor that is readable once the side file was written to; OSError where that cannot be."""
        if not sys.platform.startswith("linux"):
            raise OSError("no inotify here")
        import ctypes  # 5 ms, and a process that only enqueues does without

        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if libc.inotify_add_watch(fd, os.fsencode(self._path), _IN_MODIFY) < 0:
            os.close(fd)
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        return fd


class _Watch:
    """Watches the side file from one event loop, or asks SQLite where that cannot be done."""

    def __init__(
        self, wake: Wake, loop: asyncio.AbstractEventLoop, read_version: Callable[[], asyncio.Future[int]]
    ) -> None:
        self.loop = loop
        self._wake = wake
        self._thread = threading.get_ident()
        self._read_version = read_version
        self._timer: asyncio.TimerHandle | None = None
        self._version: int | None = None
        self._poll_s = POLL_S_MIN
        self._fd = -1
        try:
            self._seen = wake.glance()
            self._fd = wake.inotify()
        except (OSError, ImportError):
            self._poll()
        else:
            self.loop.add_reader(self._fd, self._written)

    def _written(self) -> None:
        try:
            os.read(self._fd, 65_536)
            seen = self._wake.glance()
        except OSError:
            return
        if seen == self._seen:
            return
        self._seen = seen
        self.loop.remove_reader(self._fd)
        self._timer = self.loop.call_later(RING_S_MIN, self._listen)
        self._wake.bells.ring_all()

    def _listen(self) -> None:
        if self._fd >= 0:
            self.loop.add_reader(self._fd, self._written)

    def _poll(self) -> None:
        try:
            self._read_version().add_done_callback(self._polled)
        except Exception:  # closed meanwhile: the bells' owners poll by themselves
            self._polled(None)

    def _polled(self, answer: asyncio.Future[int] | None) -> None:
        if answer is not None and not answer.cancelled() and answer.exception() is None:
            version = answer.result()
            changed = version != self._version  # the first look too: somebody may have written since the watch began
            self._version = version
            self._poll_s = POLL_S_MIN if changed else min(POLL_S_MAX, self._poll_s * 1.3)
            if changed:
                self._wake.bells.ring_all()
        else:
            self._poll_s = POLL_S_MAX
        if self._read_version is not _nothing:
            self._timer = self.loop.call_later(self._poll_s, self._poll)

    def stop(self) -> None:
        if self.loop.is_closed():
            self._close()
        elif threading.get_ident() == self._thread:
            self._end()
        else:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._read_version = _nothing
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self.loop.remove_reader(self._fd)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _nothing() -> asyncio.Future[int]:
    raise RuntimeError("stopped")


class _HungBells(Bells):
    """Bells that keep a watch only while one of them hangs: an idle enqueuer watches nothing."""

    def __init__(self, wake: Wake) -> None:
        super().__init__()
        self._wake = wake

    def watch(self, topics: Sequence[str]) -> Bell:
        bell = super().watch(topics)
        self._wake.start()
        return bell

    def remove(self, bell: Bell) -> None:
        super().remove(bell)
        if not self._by_topic:
            self._wake.stop()
