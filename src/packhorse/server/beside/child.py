"""A command of packhorse as a child process: told to stop once, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from ...leash import GIVEN_URL, TELL_FD


class Child:
    """`packhorse ARGUMENT...` in a session of its own, so that Ctrl+C in a terminal reaches us alone.

    We pass it on once: what hears it twice hurries. The child ends by itself when this process is gone.
    """

    def __init__(self, arguments: Sequence[str], url: str | None = None, tell_fd: int | None = None) -> None:
        """Start it, from a running event loop; `url` is its `--url`, which no argument shows. Raises OSError.

        `tell_fd` is a socket that it gets, to tell what it counts.
        """
        loop = asyncio.get_running_loop()
        handed = {GIVEN_URL: url, TELL_FD: None if tell_fd is None else str(tell_fd)}
        theirs, self._leash = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "packhorse.leash", str(theirs), *arguments],
                env=os.environ | {name: value for name, value in handed.items() if value is not None},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs,) if tell_fd is None else (theirs, tell_fd),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._leash)
            raise
        finally:
            os.close(theirs)
        self.pid = self._process.pid
        self._exit: asyncio.Future[int] = loop.create_future()
        threading.Thread(target=self._wait, args=(loop,), name=f"wait-{self.pid}", daemon=True).start()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        with suppress(RuntimeError):  # the loop ended first
            loop.call_soon_threadsafe(self._ended, code)

    def _ended(self, code: int) -> None:
        os.close(self._leash)
        self._exit.set_result(code)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._exit.done()

    async def exit_code(self) -> int:
        """Wait for the end; answers the exit code, below 0 for a signal."""
        return await asyncio.shield(self._exit)

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, if the process is still there."""
        if not self._exit.done():
            self._process.send_signal(number)

    async def stop(self, patience_ms: int) -> int:
        """Tell it to stop, and after `patience_ms` end it and all of its session by force. Answers the exit code."""
        self.tell()
        try:
            async with asyncio.timeout(patience_ms / 1000):
                return await self.exit_code()
        except TimeoutError:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            return await self.exit_code()
