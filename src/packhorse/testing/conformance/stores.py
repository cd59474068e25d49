"""Harnesses for the backends that packhorse brings."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from ...backends.memory import MemoryBackend
from ...backends.memory_store import MemoryStore
from ...backends.opening import open_backend
from ...clock import ManualClock
from .harness import Harness


class MemoryHarness(Harness):
    """A new store in this process."""

    def __init__(self, kind: type[MemoryBackend] = MemoryBackend) -> None:
        clock = ManualClock()
        self.store = MemoryStore(clock)
        super().__init__(lambda: kind(self.store), clock)

    def drop_workers(self) -> None:
        self.store.workers.clear()


class SQLiteHarness(Harness):
    """A new file. Its directory is removed afterwards."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        super().__init__(lambda: open_backend(f"sqlite:///{path}", clock), clock)
        self.path = path

    def drop_workers(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM workers")

    async def clean(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)
