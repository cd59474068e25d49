"""The terminal while `top` has it: another screen, keys without Enter, and all as it was before at the end.

Whatever ends it, Ctrl+C and errors too, the terminal is given back; Ctrl+Z gives it back until the process goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment

from .choices import read_keys
from .drawing import Frame


class Drawn:
    """A frame as rich prints it."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._frame.lines:
            for piece in line:
                yield Segment(piece.text, console.get_style(piece.style) if piece.style else None)
            yield Segment.line()


class Terminal:
    """A context in which the terminal is ours.

    `on_key` hears of keys, `on_change` that all has to be drawn anew, `on_end` of SIGTERM and of a closed terminal.
    """

    def __init__(
        self,
        console: Console,
        on_key: Callable[[str], None],
        on_change: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._console = console
        self._on_key = on_key
        self._on_change = on_change
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._live: Live | None = None
        self._keys: int | None = None  # stdin, where it is a terminal
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        self._take()
        for number, heard in (
            (signal.SIGWINCH, self._on_change),
            (signal.SIGTERM, self._on_end),
            (signal.SIGTSTP, self._suspend),
        ):
            self._loop.add_signal_handler(number, heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number in (signal.SIGWINCH, signal.SIGTERM, signal.SIGTSTP):
            self._loop.remove_signal_handler(number)
        self._give_back()

    def measure(self) -> tuple[int, int]:
        """Answer columns and lines as they are now, whatever COLUMNS and LINES said when the shell was started."""
        with suppress(OSError, ValueError):
            size = os.get_terminal_size(sys.stdout.fileno())
            if size.columns > 0 and size.lines > 0:
                self._console.size = ConsoleDimensions(size.columns, size.lines)
        return self._console.size

    def show(self, frame: Frame) -> None:
        """Draw a frame over the one before."""
        if self._live is not None:
            self._live.update(Drawn(frame), refresh=True)

    def _take(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            self._keys = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys, termios.TCSADRAIN)
            self._loop.add_reader(self._keys, self._read)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._live.start()

    def _give_back(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        keys, self._keys = self._keys, None
        if keys is not None:
            self._loop.remove_reader(keys)
            with suppress(OSError, termios.error):  # the terminal may be gone
                termios.tcsetattr(keys, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]  # set with it

    def _read(self) -> None:
        assert self._keys is not None
        try:
            data = os.read(self._keys, 1_024)
        except OSError:
            data = b""
        if not data:  # the terminal was closed
            self._loop.remove_reader(self._keys)
            self._on_end()
        for key in read_keys(data):
            self._on_key(key)

    def _suspend(self) -> None:
        """Stop as Ctrl+Z asks for, with the terminal given back; go on where somebody says so."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self._on_change()
