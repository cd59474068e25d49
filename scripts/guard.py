"""Nothing is left behind: what the tests started ends with them, even by kill -9.

`guard.mind` starts a process that outlives this one for a moment. It is told of each process and directory that was
made, and when its input closes, because this process has ended in whatever way, it ends and removes what is left.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

END_S = 20.0


def children_of(pid: int) -> list[int]:
    """Answer the live processes that `pid` started, from /proc; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.parent.name))
    return found


class Guard:
    """Our end of the pipe; the other process is started when the first thing is to be minded."""

    def __init__(self) -> None:
        self._pipe: IO[str] | None = None
        self._owner = 0

    def mind(self, *, pid: int | None = None, directory: Path | None = None) -> None:
        """Take a process or a directory into care."""
        if self._pipe is None or self._owner != os.getpid():
            self._begin()
        assert self._pipe is not None
        self._pipe.write(f"pid {pid} {started(pid)}\n" if pid is not None else f"directory {directory}\n")
        self._pipe.flush()

    def _begin(self) -> None:
        self._owner = os.getpid()
        process = subprocess.Popen(
            [sys.executable, "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            cwd="/",
        )
        self._pipe = process.stdin
        atexit.register(self._end, process, os.getpid())

    def _end(self, process: subprocess.Popen[str], owner: int) -> None:
        if owner == os.getpid() and process.stdin is not None:
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)


def started(pid: int) -> str:
    """Answer when a process was started, in the kernel's ticks, so that its id is never mistaken for a later one's."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return "-"


def stand_guard() -> None:
    """Collect what is to be minded until the other end is closed; then end and remove what is left of it."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    processes: list[tuple[int, str]] = []
    directories: list[Path] = []
    for line in sys.stdin:
        what, _, rest = line.strip().partition(" ")
        if what == "pid":
            pid, _, began = rest.partition(" ")
            processes.append((int(pid), began))
        else:
            directories.append(Path(rest))
    for pid, began in processes:
        if started(pid) == began:
            for each in (*children_of(pid), pid):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
    time.sleep(0.2)  # until the killed have let go of their files
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


guard = Guard()


if __name__ == "__main__":
    stand_guard()
