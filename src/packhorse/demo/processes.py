"""The worker that a demo starts, and the only processes it ever signals: that keeper and its runners."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from ..clock import SYSTEM_CLOCK
from ..settings import ALIASES
from .files import DIRECTORY_VARIABLE

CONCURRENCY = 16
#: Running jobs get this long when the demo stops; they are short.
_SHUTDOWN = "3s"
#: Should nobody see a runner die, its jobs are taken back after so long.
_LEASE = "5s"
_GRACE_MS, _HURRY_MS, _KILL_MS = 12_000, 8_000, 5_000
_LOOK_S = 0.05
#: Where there is no /proc (macOS, the BSDs), `ps` tells the same.
_PROC = Path("/proc/self/stat").exists()


def worker_command(workers: int) -> list[str]:
    """Answer the command that a user would type, without its first word."""
    return ["worker", "packhorse.demo.jobs:app", "-p", str(workers), "-c", str(CONCURRENCY), "-q", "default"]


def worker_environment(environ: Mapping[str, str], directory: Path, url: str) -> dict[str, str]:
    """Answer the environment of the worker: nothing of the user's own settings steers the demo's worker."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PACKHORSE_") and name not in ALIASES}
    return kept | {
        DIRECTORY_VARIABLE: str(directory),
        "PACKHORSE_URL": url,
        "PACKHORSE_LEASE": _LEASE,
        "PACKHORSE_SHUTDOWN_TIMEOUT": _SHUTDOWN,
        "PACKHORSE_LOG_LEVEL": "info",
        "PACKHORSE_LOG_FORMAT": "console",
    }


def identity(pid: int) -> tuple[int, str] | None:
    """Answer a process's parent and the moment it started, which together with its id name it for ever; None: gone."""
    if not _PROC:
        return _ask_ps(pid)
    try:
        # The name in parentheses may hold spaces and parentheses itself: read behind the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # gone, now or while it was read
        return None
    return None if fields[0] in {"Z", "X"} else (int(fields[1]), fields[19])


def _ask_ps(pid: int) -> tuple[int, str] | None:
    parts = _ps("-o", "ppid=,stat=,lstart=", "-p", str(pid)).split(None, 2)
    return None if len(parts) < 3 or parts[1].startswith("Z") else (int(parts[0]), parts[2].strip())


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout


def children(pid: int) -> list[int]:
    """Answer the processes that `pid` started and that have not been waited for."""
    if _PROC:
        return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in _words(file)]
    lines = [line.split() for line in _ps("-A", "-o", "pid=,ppid=").splitlines()]
    return [int(child) for child, parent in lines if parent == str(pid)]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # the thread is gone
        return []


class Team:
    """One keeper process, its runners, and what those started."""

    def __init__(self, workers: int, directory: Path, url: str) -> None:
        self.log_file = directory / "worker.log"
        theirs, self._leash = os.pipe()
        with self.log_file.open("ab") as log:
            # A session of its own: Ctrl+C in the terminal reaches the demo alone, which stops its worker in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "packhorse.leash", str(theirs), *worker_command(workers)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=worker_environment(os.environ, directory, url),
                pass_fds=(theirs,),
                start_new_session=True,
            )
        os.close(theirs)
        self.pid = self._process.pid
        self._seen: dict[int, str] = {}

    def exit_code(self) -> int | None:
        """Answer the keeper's exit code; None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """Answer the end of the worker's log."""
        with self.log_file.open("rb") as log:
            lines = deque(log, maxlen=5)
        return b"".join(lines).decode(errors="replace").strip()

    def look(self) -> None:
        """Remember all processes that the keeper and its runners have started until now."""
        if self._process.poll() is not None:
            return  # its id may be somebody else's by now
        parents = [self.pid]
        while parents:
            parent = parents.pop()
            for pid in children(parent):
                found = identity(pid)
                if found is not None and found[0] == parent:
                    self._seen[pid] = found[1]
                    parents.append(pid)

    def _alive(self) -> list[int]:
        """Answer those seen that still run: the id and the moment of the start together are never used again."""
        return [pid for pid, start in self._seen.items() if (found := identity(pid)) is not None and found[1] == start]

    def kill_runner(self, pid: int) -> bool:
        """Kill a runner as `kill -9` does; False if it is none of the keeper's, or gone."""
        if self._process.poll() is not None or pid not in children(self.pid):
            return False
        self.look()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    async def stop(self, hurry: asyncio.Event) -> list[str]:
        """End the worker: by SIGTERM, again to hurry, at last by force. Answers what did not go as it should."""
        trouble: list[str] = []
        self.look()
        if not await self._ended(signal.SIGTERM, _GRACE_MS, hurry) and not await self._ended(signal.SIGTERM, _HURRY_MS):
            trouble.append(f"the worker (pid {self.pid}) did not stop when told to and was killed")
            self.look()
            await self._ended(signal.SIGKILL, _KILL_MS)
        if not await self._all_gone(_KILL_MS):
            trouble.append(f"the processes {self._alive()} outlived their keeper and were killed")
            for pid in self._alive():
                os.kill(pid, signal.SIGKILL)
            await self._all_gone(_KILL_MS)
        os.close(self._leash)
        return trouble

    async def _ended(self, number: signal.Signals, timeout_ms: int, hurry: asyncio.Event | None = None) -> bool:
        if self._process.poll() is None:
            self._process.send_signal(number)
        end_ms = SYSTEM_CLOCK.boot_ms() + timeout_ms
        while self._process.poll() is None:
            if SYSTEM_CLOCK.boot_ms() >= end_ms or (hurry is not None and hurry.is_set()):
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def _all_gone(self, timeout_ms: int) -> bool:
        end_ms = SYSTEM_CLOCK.boot_ms() + timeout_ms
        while self._alive():
            if SYSTEM_CLOCK.boot_ms() >= end_ms:
                return False
            await asyncio.sleep(_LOOK_S)
        return True
