"""What a handler in a child process logs, on its way to the runner: in batches, a fraction of a second apart."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from ..clock import SYSTEM_CLOCK
from ..job import Claimed
from ..observe.job_log import RunLog, line_of
from .frames import ChildLog

#: The first line waits so long for others; what a child that is killed logged since then is lost.
FLUSH_MS = 200


class ChildLines:
    """The lines of the job that runs in this process, from any of its threads."""

    def __init__(self, send: Callable[[ChildLog], None]) -> None:
        self._send = send
        self._guard = threading.RLock()  # what the garbage collector ends in here may log
        self._sending = threading.Lock()  # nothing of one job may be sent after its end
        self._job: Claimed | None = None
        self._waiting: RunLog | None = None
        os.register_at_fork(after_in_child=self._end_in_copy)

    def _end_in_copy(self) -> None:
        """Take nothing in a process that the handler has forked: the socket is its parent's."""
        self._guard = threading.RLock()
        self._job = self._waiting = None

    def begin(self, job: Claimed) -> None:
        """Take lines of this job from now on."""
        with self._guard:
            self._job = job

    def keep(self, job: Claimed, record: logging.LogRecord) -> None:
        """Take a record. Called by the record factory, and so never raises."""
        try:
            line = line_of(record)
        except Exception:  # a record that cannot be written is the logger's own business
            return
        with self._guard:
            if job is not self._job:
                return  # a thread that goes on after its job has ended
            new = None if self._waiting is not None else RunLog(job.attempt, SYSTEM_CLOCK.boot_ms())
            first = self._waiting is None  # asked after that was made, since a collection may have come between
            if self._waiting is None:
                self._waiting = new
            assert self._waiting is not None
            self._waiting.add(line)
        if first:
            timer = threading.Timer(FLUSH_MS / 1000, self.flush)
            timer.daemon = True
            timer.start()

    def flush(self) -> None:
        """Send what there is."""
        with self._sending:
            with self._guard:
                waiting, self._waiting = self._waiting, None
            if waiting is not None:
                self._send(ChildLog(list(waiting.lines), waiting.left_out))

    def end(self) -> None:
        """Send what there is, and take no more of this job."""
        with self._guard:
            self._job = None
        self.flush()
