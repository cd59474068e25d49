"""A command on a terminal of its own: what it shows, keys to press, sizes to change."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .kit import clean_environ

HOME = "\x1b[H"
SCREEN_ON, SCREEN_OFF = "\x1b[?1049h", "\x1b[?1049l"
CURSOR_ON, CURSOR_OFF = "\x1b[?25h", "\x1b[?25l"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """Runs `packhorse *args` on a terminal of `columns` x `lines`."""

    def __init__(
        self, directory: Path, *args: str, environ: dict[str, str], columns: int = 80, lines: int = 24
    ) -> None:
        self.ours, theirs = pty.openpty()
        self._theirs = os.dup(theirs)  # to ask how the terminal is set, also after the command has ended
        self.before = termios.tcgetattr(theirs)
        self.output = ""
        self._lines = lines
        self._set_size(columns, lines)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "packhorse", *args],
            env=clean_environ() | {"TERM": "xterm-256color"} | environ,
            cwd=directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # so that Ctrl+C is a signal
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, as a window that is dragged; the kernel tells the command."""
        self._lines = lines
        self._set_size(columns, lines)

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def read(self) -> None:
        """Take what it has written by now."""
        while select.select([self.ours], [], [], 0.02)[0]:
            try:
                data = os.read(self.ours, 65_536)
            except OSError:  # how Linux says that the other end is closed
                return
            if not data:
                return
            self.output += data.decode("utf-8", "replace")

    @property
    def frame(self) -> str:
        """The last whole frame of this size, without colours: of the one that is being written a part may be here."""
        return _plain(next(reversed(self._whole()), ""))

    @property
    def frames(self) -> list[str]:
        """All of them, the first one first."""
        return [_plain(frame) for frame in self._whole()]

    def _whole(self) -> list[str]:
        return [frame for frame in self.output.split(HOME)[1:] if frame.count("\n") == self._lines - 1]

    def until(self, condition: Callable[[str], Any], seconds: float = 60) -> str:
        """Wait until a frame is as it should be; answers it."""
        end = time.monotonic() + seconds
        while True:
            self.read()
            if condition(self.frame):
                return self.frame
            assert self.process.poll() is None, f"it ended: {self.output[-2000:]!r}"
            assert time.monotonic() < end, f"not shown in time: {self.frame}"

    def shows(self, text: str, seconds: float = 60) -> str:
        """Wait until a frame has `text`; answers it."""
        return self.until(lambda frame: text in frame, seconds)

    def ends(self, code: int = 0, seconds: float = 60) -> None:
        """Wait for the end, with the terminal given back as it was."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            self.read()
            assert time.monotonic() < end, "did not end in time"
        self.read()
        assert self.process.returncode == code, (self.process.returncode, self.output[-2000:])
        assert "Traceback" not in self.output
        assert self.output.count(SCREEN_ON) == self.output.count(SCREEN_OFF)
        assert self.output.rfind(CURSOR_ON) >= self.output.rfind(CURSOR_OFF)
        assert termios.tcgetattr(self._theirs) == self.before


def _plain(frame: str) -> str:
    return _ESCAPE.sub("", frame).replace("\r\n", "\n")
