"""Processes that a test stops for a while, as a debugger or a machine without time does."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

WAIT_S = 60.0
#: Whoever else writes to the file is done within it.
_OTHERS_S = 0.5


def stop_between_writes(pid: int, database: Path) -> None:
    """Stop a process that works on a SQLite file, at a moment in which it is not writing there.

    Stopped with the write lock in its hands it would keep all others from writing: SQLite cannot do better, and a test
    that is about something else fails once in some hundred runs.
    """
    end_s = time.monotonic() + WAIT_S
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            while not _stands(pid):
                assert time.monotonic() < end_s, f"process {pid} does not stop"
                time.sleep(0.001)
            if _takes_writes(database):
                return
        except BaseException:
            os.kill(pid, signal.SIGCONT)
            raise
        os.kill(pid, signal.SIGCONT)
        assert time.monotonic() < end_s, "somebody writes all the time"
        time.sleep(0.005)


def _stands(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"T", "t"}


def _takes_writes(database: Path) -> bool:
    with closing(sqlite3.connect(database, isolation_level=None, timeout=_OTHERS_S)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        db.execute("ROLLBACK")
        return True
