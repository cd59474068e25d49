"""A runner process as its keeper sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..clock import SYSTEM_CLOCK
from ..observe.meters import Sheet
from . import dumping
from .exits import said_exit
from .inspection import Inspection
from .launch import Launched
from .link import Link, Ready
from .page import Page

if TYPE_CHECKING:
    from .trouble import Trouble


class Child:
    """A runner process: its link, its page, and what the keeper remembers about it."""

    def __init__(self, launched: Launched, link: Link, inspection: Inspection, worker: str, sheet: Sheet) -> None:
        self._process = process = launched.process
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = loop.create_future()
        threading.Thread(target=self._wait, args=(loop,), name=f"wait-{process.pid}", daemon=True).start()
        self.link = link
        self.inspection = inspection
        self.page: Page = launched.page
        self.trouble: Trouble | None = None  # once it is ready
        self.held: Collection[str] = ()  # its jobs, as the store said last
        self.worker = worker
        self.sheet = sheet  # what the runner told of what it counts
        self.pid = process.pid
        self.started_ms = SYSTEM_CLOCK.boot_ms()
        self.started_at_ms = SYSTEM_CLOCK.now_ms()
        self.ready: Ready | None = None
        self.exhausted = False
        self.leaving = False
        self.gone = False
        self.beating = False
        self.cancel_asked = False
        self.beat_ms = self.started_ms
        self._why_killed: str | None = None
        self._dumping = asyncio.Lock()

    @classmethod
    async def adopt(cls, launched: Launched, worker: str, sheet: Sheet) -> Child:
        """Take a runner process over as the worker of this id."""
        inspection = await Inspection.over(launched.inspection_end)
        return cls(launched, await Link.over(launched.end), inspection, worker, sheet)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        try:
            loop.call_soon_threadsafe(self._exit.set_result, code)
        except RuntimeError:  # the keeper ended first
            return

    @property
    def was_killed(self) -> bool:
        """Whether the keeper ended it."""
        return self._why_killed is not None

    @property
    def ended_well(self) -> bool:
        """Whether it has ended, and by itself, as it was told."""
        return self._exit.done() and self._exit.result() == 0 and not self.was_killed

    @property
    def page_open(self) -> bool:
        """Whether the page can still be read."""
        return self.page.fd >= 0

    async def ended(self) -> str:
        """Wait for the process to end; answers how, as text that goes into the errors of its jobs."""
        code = await asyncio.shield(self._exit)
        self.gone = True
        self._end_tree()
        if self._why_killed is not None:
            return self._why_killed
        return said_exit(code)

    def kill(self, why: str) -> None:
        """End the process and all it started, now."""
        if not self.gone and self._why_killed is None:
            self._why_killed = why
            self._end_tree()
            self._process.kill()

    def go_on(self) -> None:
        """Let the process go on if it was stopped (SIGSTOP); one that a debugger holds stays where it is."""
        if not self.gone:
            self._process.send_signal(signal.SIGCONT)

    def _end_tree(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    async def dump(self, *, whole: bool = True) -> str:
        """Make the process write down the stacks of its threads, whatever it does; answers them, '' if it cannot.

        Only the stack of the main thread if not `whole`.
        """
        async with self._dumping:
            if self.ready is None or self.gone or not self.page_open:
                return ""  # without its handler for it, the signal would end it
            return await dumping.dump(self.pid, self.page, whole=whole)

    def stopped(self) -> bool:
        """Answer whether the process is stopped (SIGSTOP, a debugger). Only Linux tells; elsewhere False."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in {"T", "t"}

    def memory_bytes(self) -> int:
        """Answer the resident memory of the process, bytes; 0 where the system does not tell."""
        try:
            resident_pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return resident_pages * os.sysconf("SC_PAGE_SIZE")
